"""Taking nights out of a life: the slots that they wrote are locked and emptied, and nothing else changes."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from sleep_jax import checkpoint, life, metrics, report, standing
from sleep_jax.model import memory as memory_lib
from sleep_jax.sleep.selves import Slot

# What only the data could tell of the life without the night.
UNKNOWN = (
    "final_accuracy", "birth_after", "backward_transfer", "forward_transfer", "forgetting_from_first",
    "forgetting_from_peak",
)  # fmt: skip


def forget(workdir: str | pathlib.Path, nights: Sequence[int]) -> str:
    """Takes nights out of the life in `workdir`, at the last boundary that it has reached.

    Their slots are locked and set to zero: the function is then what it is with these slots masked, and for
    the last night bit for bit what it was the evening before, fast memory aside. Every other slot stays as it
    is. The result is a boundary "<cycle>-forget-<nights>", which stands in for the one before it whenever the
    life is taken up again. Needs no data; must not run while the life does.

    Args:
      workdir: of one life, the directory that holds its phases/.
      nights: their numbers; nights in one slot can only go together.

    Returns:
      What was done, for a person.

    Raises:
      ValueError: the directory is not that of a life, or a night has no slot of its own. Nothing is changed.
      FileNotFoundError, CheckpointError: what the life was made of is gone, or cannot be read or written.
    """
    life_here = standing.read(workdir)
    workdir, boundary = life_here.workdir, life_here.boundary
    nights = sorted(set(nights))
    chosen = _slots_of(life_here.meta["state"], nights)
    state = life_here.state()
    mask = np.zeros(state.memory.active_LE.shape, bool)
    for slot in chosen:
        mask[slot.level, slot.index] = True
    cycle = boundary.split("-")[0]
    experience_of = {n.night: n.experience for n in state.nights if not n.rem}
    state = dataclasses.replace(
        state,
        memory=memory_lib.clear_slots(state.memory, mask),
        slots=[s for s in state.slots if s not in chosen],
        forgotten=[*state.forgotten, *chosen],
        # What was measured at the end of this day is no longer so; earlier rows are history.
        retention=state.retention[: int(cycle)],
        anchor=state.anchor[: int(cycle)],
        nights=[
            *state.nights,
            *(metrics.Night(n, experience_of[n], "forgotten", f"after {boundary}") for n in nights),
        ],
    )
    name = f"{cycle}-forget-{'-'.join(map(str, nights))}"
    checkpoint.save_boundary(workdir, name, state.arrays(), life_here.meta | {"state": state.record()})
    checkpoint.clear_rolling(workdir)  # it led on from a self that still had the night
    life.write_slots(workdir, state)
    if (workdir / "summary.json").exists():
        summary = metrics.Summary(**json.loads((workdir / "summary.json").read_text()))
        unknown = dict.fromkeys(UNKNOWN) | {"experiences": dict.fromkeys(summary.experiences)}
        metrics.write_summary(workdir, dataclasses.replace(summary, nights=state.nights, **unknown))
    report.write(life_here.root)
    return "\n".join(
        [
            *(
                f"night {', '.join(map(str, s.nights))} ({', '.join(s.experiences)}) is out: "
                f"slot {s.index} of level {s.level + 1} is locked and empty"
                for s in chosen
            ),
            f"{len(state.slots)} slots remain in use; phases/{name} stands in for phases/{boundary}",
            "the accuracies in summary.json are unknown now: the command that made this life measures them",
            "checkpoints before it and dreams/ still hold what the night learnt",
        ]
    )


def _slots_of(record: dict, nights: Sequence[int]) -> list[Slot]:
    """The slots that hold these nights and no others."""
    slots, gone = ([Slot.from_json(s) for s in record.get(k, ())] for k in ("slots", "forgotten"))
    outcome = {n.night: n for n in (metrics.Night(**n) for n in record["nights"]) if not n.rem}
    chosen = []
    for night in nights:
        if night not in outcome:
            known = ", ".join(map(str, sorted(outcome))) or "none"
            raise ValueError(f"there is no night {night}: the nights of this life so far are {known}")
        if any(night in s.nights for s in gone):
            raise ValueError(f"night {night} was taken out already")
        mine = [s for s in slots if night in s.nights]  # two, where it has dreamt on
        if not mine and outcome[night].outcome == "rolled back":
            raise ValueError(
                f"night {night} was rolled back ({outcome[night].reason}): it wrote no slot that could be "
                "taken out; its day waits in fast memory for the next night"
            )
        if not mine:
            raise ValueError(
                f"night {night} wrote no slot: a method without expansion keeps its nights in the backbone, "
                "from which none can be taken out"
            )
        for slot in mine:
            if others := sorted(set(slot.nights) - set(nights)):
                raise ValueError(
                    f"night {night} is in one slot with {', '.join(map(str, others))}: they can only go "
                    f"together, --night={','.join(map(str, slot.nights))}"
                )
            if slot not in chosen:
                chosen.append(slot)
    return chosen
