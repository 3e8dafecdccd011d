"""What a method has to say to the harness."""

import dataclasses
from collections.abc import Callable, Sequence

from sleep_jax import evals
from sleep_jax.data.stream import Experience
from sleep_jax.fit import World
from sleep_jax.model import memory as memory_lib
from sleep_jax.phases import State
from sleep_jax.sleep.night import ask
from sleep_jax.types import Tree


def speaks_itself(world: World, state: State, lived: Sequence[Experience]) -> evals.Answerer:
    """The learner answers without any help, rested.

    Fast memory is empty in the morning, but after a night that was rolled back: then it still holds the day,
    and would answer everything out of it.
    """
    del lived
    return ask(world, state.params, memory_lib.rest(state.memory))


Phase = Callable[[World, str, State, int, Experience], State]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of living.

    Attributes:
      phases: of a day and its night, in order; `run(world, name, state, cycle, experience) -> state`, where
        `name` is "<cycle>-<phase>". A checkpoint stands at the end of each.
      extra: `extra(world, params) -> arrays` that the method keeps beside them, as they are after birth.
      extra_like: `extra_like(params) -> arrays` of the same shapes, to restore a checkpoint into.
      answerer: `answerer(world, state, lived) -> Answerer`; `lived` are the days so far.
    """

    phases: tuple[tuple[str, Phase], ...]
    extra: Callable[[World, Tree], Tree] = lambda world, params: {}
    extra_like: Callable[[Tree], Tree] = lambda params: {}
    answerer: Callable[[World, State, Sequence[Experience]], evals.Answerer] = speaks_itself
