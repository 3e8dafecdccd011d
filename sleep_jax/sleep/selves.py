"""States of one network told apart by masks: which slots are open, and whether fast memory is.

Every slot is written once and then protected, so the self that closed any earlier night is still there: it is
the set of the slots that were open by then. Knowledge Seeding asks "one or several smaller models" to teach
(Sleep, 2606.03979, section 3.3); that the earlier selves are among them, each for what it learnt, is our
reading.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sleep_jax import cost
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.types import Memory, Model, Tree


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where an expert slot's content comes from.

    Attributes:
      level, index: which slot.
      nights: the nights whose learning it holds, in order; several after a merge.
      experiences: names of what was lived on the days before, in the same order.
      documents: number of examples of those days.
      dreams: number of dreams that it was seeded from.
      dreams_file: which they are, in the life's directory.
      share_of_answers: share of this life's probes in whose answers it was open most, by `leading`.
      rem: whether it keeps what stage 2 of its night learnt.
    """

    level: int
    index: int
    nights: tuple[int, ...]
    experiences: tuple[str, ...]
    documents: int
    dreams: int
    dreams_file: str = ""
    share_of_answers: float | None = None
    rem: bool = False

    @classmethod
    def from_json(cls, fields: dict) -> "Slot":
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


@dataclasses.dataclass(frozen=True)
class Self:
    """One state of the network.

    Attributes:
      name: "birth", "night 3" or "awake".
      knows: experiences that it, and none before it, has learnt.
      active: bool [L, E], its open slots.
      awake: whether fast memory is open.
      weight: its share of the dreams is in proportion to it; by examples that it learnt from.
      adapter: what it has beside the network, as `Model.apply` takes it; None is nothing.
    """

    name: str
    knows: tuple[str, ...]
    active: np.ndarray
    awake: bool
    weight: float
    adapter: Tree | None = dataclasses.field(default=None, compare=False, repr=False)


def earlier(
    slots: Sequence[Slot],
    shape: tuple[int, int],
    birth: str,
    documents_at_birth: int,
    night_weight: float = 1.0,
) -> list[Self]:
    """The selves that closed birth and each night since, as far as their slots remain, in order of time.

    Args:
      slots, shape: those in use, of [L, E].
      birth, documents_at_birth: name and number of examples of the birth.
      night_weight: of an example of a night against one of birth.
    """
    closed = np.zeros(shape, bool)
    selves = [Self("birth", (birth,), closed, False, documents_at_birth)]
    for slot in sorted(slots, key=lambda s: (s.nights[-1], s.rem)):
        active = selves[-1].active.copy()
        active[slot.level, slot.index] = True
        name = f"night {slot.nights[-1]}" + (", dreaming" if slot.rem else "")
        weight = night_weight * slot.documents
        selves.append(Self(name, slot.experiences, active, False, weight))
    return selves


def awake(past: Sequence[Self], experience: str, documents: int) -> Self:
    """The self at the end of the day: all open slots and fast memory."""
    return Self("awake", (experience,), past[-1].active, True, documents)


def seen_by(memory: Memory, self_: Self) -> Memory:
    """The memory that this self has."""
    memory = memory if self_.awake else memory_lib.rest(memory)
    return memory_lib.with_active(memory, self_.active)


LEADING = cost.Kind(
    "finding which slots answered", "lower eval_batch (a quarter of it is read at once) or model.max_len"
)


@functools.lru_cache(maxsize=8)
def _mean_routes(model: Model):
    @cost.Program
    def mean(params, memory, tokens_BT, weights_BT):
        routes_BTLE = model.apply(params, tokens_BT, memory=memory).routes_BTLE
        return jnp.einsum("btle,bt->ble", routes_BTLE, weights_BT) / weights_BT.sum(1)[:, None, None]

    return mean


def leading(
    model: Model,
    tok: Tokenizer,
    params: Tree,
    memory: Memory,
    probes: Sequence[Example],
    answers: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """Share of the answers in which each slot was open most, as share_LE; it sums to at most 1.

    A slot leads an answer when it was open in more layers and tokens than any other, where the answer's
    tokens are predicted, and in more than half of them.

    Args:
      model, tok, params, memory: who answered.
      probes: n questions.
      answers: what was answered to each.
      batch_size: questions per compiled call.
    """
    width = model.config.max_len
    tokens, weights = np.zeros((len(probes), width), np.int32), np.zeros((len(probes), width), np.float32)
    for i, (probe, answer) in enumerate(zip(probes, answers, strict=True)):
        question = [tok.bos, *tok.encode(" " + probe.prompt), tok.ans]
        ids = [*question, *tok.encode(" " + answer)][:width]
        tokens[i, : len(ids)] = ids
        weights[i, len(question) - 1 : len(ids)] = 1
    led, mean = np.zeros(memory.active_LE.size + 1), _mean_routes(model)
    for start in range(0, len(probes), batch_size):
        index = np.arange(start, start + batch_size) % len(probes)
        routes_BLE = np.asarray(mean(LEADING, params, memory, tokens[index], weights[index]))
        for routes_LE in routes_BLE[: len(probes) - start]:
            led[np.argmax([*routes_LE.ravel(), 0.5])] += 1
    return (led[:-1] / len(probes)).reshape(memory.active_LE.shape)
