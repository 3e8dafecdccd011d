"""States of one network told apart by masks: which slots are open, and whether fast memory is.

Every slot is written once and then protected, so the self that closed any earlier night is still there: it is
the set of the slots that were open by then. Knowledge Seeding asks "one or several smaller models" to teach
(Sleep, 2606.03979, section 3.3); that the earlier selves are among them, each for what it learnt, is our
reading.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sleep_jax.model import memory as memory_lib
from sleep_jax.types import Memory


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where an expert slot's content comes from.

    Attributes:
      level, index: which slot.
      nights: the nights whose learning it holds, in order; several after a merge.
      experiences: names of what was lived on the days before, in the same order.
      documents: number of examples of those days.
      dreams: number of dreams that it was seeded from.
    """

    level: int
    index: int
    nights: tuple[int, ...]
    experiences: tuple[str, ...]
    documents: int
    dreams: int

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
      alone: bool [L, E], only the slots that it added: what it dreams with.
      awake: whether fast memory is open.
      documents: number of examples that it learnt from, its weight among the dreams.
    """

    name: str
    knows: tuple[str, ...]
    active: np.ndarray
    alone: np.ndarray
    awake: bool
    documents: int


def earlier(slots: Sequence[Slot], shape: tuple[int, int], birth: str, documents_at_birth: int) -> list[Self]:
    """The selves that closed birth and each night since, as far as their slots remain, in order of time."""
    closed = np.zeros(shape, bool)
    selves = [Self("birth", (birth,), closed, closed, False, documents_at_birth)]
    for slot in sorted(slots, key=lambda s: s.nights[-1]):
        alone = np.zeros(shape, bool)
        alone[slot.level, slot.index] = True
        name = f"night {slot.nights[-1]}"
        selves.append(Self(name, slot.experiences, selves[-1].active | alone, alone, False, slot.documents))
    return selves


def awake(past: Sequence[Self], experience: str, documents: int) -> Self:
    """The self at the end of the day: all open slots and fast memory."""
    return Self("awake", (experience,), past[-1].active, past[-1].active, True, documents)


def seen_by(memory: Memory, self_: Self, *, alone: bool = False) -> Memory:
    """The memory that this self has."""
    memory = memory if self_.awake else memory_lib.rest(memory)
    return memory_lib.with_active(memory, self_.alone if alone else self_.active)
