"""Asking a life: what it answers, which night's expert spoke, and what its last sleep changed."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from sleep_jax import checkpoint, rollout
from sleep_jax.data.stream import Example
from sleep_jax.methods import METHODS
from sleep_jax.methods.base import speaks_itself
from sleep_jax.model import memory as memory_lib
from sleep_jax.phases import State
from sleep_jax.sleep import selves
from sleep_jax.standing import Standing
from sleep_jax.types import Array, Memory


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
      when: the moment of its life that was asked.
      text: greedy, '' where nothing was said.
      by: the night, with what it slept on, whose expert led the answer; else what it was born with, or its
        fast memory.
    """

    when: str
    text: str
    by: str


class Asker:
    """A life that is asked at its last boundary and, to compare, before its last sleep."""

    def __init__(self, life: Standing, compare: bool = False):
        """Raises as `Standing.state` does, and ValueError where the life does not speak by itself or has
        no sleep to compare with.
        """
        self.life = life
        method = life.meta["of"]["method"][0]
        if method in METHODS and METHODS[method].answerer is not speaks_itself:
            raise ValueError(
                f"--workdir={life.workdir} is a life of config.method={method}, which answers with its days "
                "before it: these are not at hand here, name the life of another method"
            )
        state = life.state()
        resting = state.memory and memory_lib.rest(state.memory)
        self.moments = [(f"after {life.boundary}", state, resting)]
        if compare:
            evenings = [n for n in checkpoint.boundaries(life.workdir) if n.endswith("-wake")]
            if not evenings or evenings[-1] == life.boundary:
                raise ValueError(
                    f"--compare: {life.workdir} stands at {life.boundary}: it has not slept since it read"
                )
            evening = life.state(evenings[-1])
            evening.params = jax.tree.map(_shared, state.params, evening.params)
            morning = f"in the morning of {evenings[-1].removesuffix('-wake')}, before it read"
            self.moments = [
                (morning, evening, memory_lib.rest(evening.memory)),
                (f"awake, after {evenings[-1]}", evening, evening.memory),
                *self.moments,
            ]

    def __call__(self, question: str) -> Iterator[Said]:
        """The answer of every moment, the oldest first.

        Raises:
          ValueError: the question is blank or too long.
        """
        life, asked = self.life, [Example(question, "")]
        for when, state, memory in self.moments:
            (text,) = rollout.answer(
                life.model, life.tok, state.params, memory, asked,
                max_new=life.config.answer_tokens, batch_size=1,
            )  # fmt: skip
            yield Said(when, text, self._by(state, memory, asked, text))

    def _by(self, state: State, memory: Memory | None, asked: list[Example], text: str) -> str:
        """Who led an answer, see `selves.leading`."""
        at_rest = memory is None or memory.fast is None
        otherwise = "what it was born with" if at_rest else "what it was born with, and fast memory"
        if memory is None or not state.slots:
            return otherwise
        life = self.life
        share_LE = selves.leading(life.model, life.tok, state.params, memory, asked, [text], 1)
        led = [s for s in state.slots if share_LE[s.level, s.index] > 0]
        return (
            f"night {', '.join(map(str, led[0].nights))} ({_some(led[0].experiences)})" if led else otherwise
        )


def _shared(x: Array, y: Array) -> Array:
    """`y`; where both are the same it is `x` itself, so that what no night changes is there once."""
    return x if jnp.array_equal(x, y) else y


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
