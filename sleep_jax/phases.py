"""The state of a life between two phases, and the boundaries that it can be taken up from."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax

from sleep_jax import checkpoint, metrics
from sleep_jax.data import stream
from sleep_jax.data.stream import Stream
from sleep_jax.fit import Account, World
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Memory, Tree


@dataclasses.dataclass
class State:
    """What a life is at a phase boundary.

    Attributes:
      params: backbone; Sleep never changes it after birth.
      memory: fast memory and slots; None at birth, so that lives of any memory may start from it.
      extra: arrays that a method keeps beside them.
      slots: provenance of every open slot.
      forgotten: what slots held that were since taken out.
      retention: accuracy on every experience (columns, birth first) after each one lived (rows).
      nights: how each night ended.
      links: where each night lost what.
      anchor: loss on general text, in nats per token, on the first morning and after each experience.
    """

    params: Tree
    memory: Memory | None
    extra: Tree = dataclasses.field(default_factory=dict)
    slots: list[Slot] = dataclasses.field(default_factory=list)
    forgotten: list[Slot] = dataclasses.field(default_factory=list)
    retention: list[list[float]] = dataclasses.field(default_factory=list)
    nights: list[metrics.Night] = dataclasses.field(default_factory=list)
    links: list[metrics.Links] = dataclasses.field(default_factory=list)
    anchor: list[float] = dataclasses.field(default_factory=list)

    def arrays(self) -> Tree:
        return {"params": self.params, "memory": self.memory, "extra": self.extra}

    def record(self) -> dict:
        """What goes into a boundary's meta beside the arrays."""
        record = {
            "slots": [dataclasses.asdict(s) for s in self.slots],
            "forgotten": [dataclasses.asdict(s) for s in self.forgotten],
            "retention": self.retention,
            "nights": [dataclasses.asdict(n) for n in self.nights],
            "links": [dataclasses.asdict(n) for n in self.links],
            "anchor": self.anchor,
        }
        return json.loads(json.dumps(record))  # tuples become lists now rather than on the way back

    @classmethod
    def restore(cls, arrays: Tree, record: dict) -> "State":
        return cls(
            **arrays,
            slots=[Slot.from_json(s) for s in record["slots"]],
            forgotten=[Slot.from_json(s) for s in record.get("forgotten", ())],
            retention=record["retention"],
            nights=[metrics.Night(**n) for n in record["nights"]],
            links=[metrics.Links(**n) for n in record["links"]],
            anchor=record.get("anchor", []),
        )


def claim(workdir: str | os.PathLike, of: Mapping[str, Sequence[str]]) -> None:
    """Makes sure that what a directory holds is the beginning of this life, or all of it.

    Args:
      of: as in `World`. Days may have been added at the end since.

    Raises:
      CheckpointError: a checkpoint there is of another method, seed or data; with what it is and what is
        asked for.
    """
    for meta in checkpoint.metas(workdir):
        for key, now in of.items():
            there = meta["of"][key]
            here = [*now, *["nothing"] * len(there)][: len(there)]
            if differ := [f"{a} there, {b} now" for a, b in zip(there, here, strict=True) if a != b]:
                raise checkpoint.CheckpointError(
                    f"{workdir} holds the checkpoints of another life, {key}: {'; '.join(differ)}. Choose "
                    "another --workdir, or set back config.method, config.seed or the data "
                    "(config.data_dir, config.stream) to continue here: what has been read once can be added "
                    "to, as further days, but not be read otherwise."
                )


def in_order_lived(root: str | os.PathLike, material: Stream) -> Stream:
    """The stream with the days first that lives below a directory tell of, as they do, and then the others.

    So a document is lived after all others whatever its name is, where days come in the order of names, and
    all methods and seeds live the same.
    """
    held = (path for depth in ("", "*/", "*/*/") for path in pathlib.Path(root).glob(f"{depth}phases"))
    told = (meta["of"]["data"][1:] for path in held for meta in checkpoint.metas(path.parent))
    place = {stream.name_of(day): n for n, day in enumerate(max(told, key=len, default=()))}
    days = sorted(material.days, key=lambda day: place.get(day.name, len(place)))  # others stay as they are
    return dataclasses.replace(material, days=tuple(days))


def load(world: World, name: str, like: State) -> State:
    """The state at a boundary; the account becomes what it was then."""
    arrays, meta = checkpoint.load_boundary(world.workdir, name, world.partitioner.abstract(like.arrays()))
    world.account = Account(**meta["account"])
    world.costs = meta["costs"] | world.costs
    if world.writer is not None:
        world.writer.seek(meta["metrics"])
    return State.restore(arrays, meta["state"])


def save(world: World, name: str, state: State) -> None:
    """Preserves a boundary and drops the rolling checkpoints that led to it."""
    meta = {
        "of": world.of,
        "state": state.record(),
        "account": dataclasses.asdict(world.account),
        "metrics": world.writer.position(),
        "costs": world.costs,
    }
    checkpoint.save_boundary(world.workdir, name, state.arrays(), meta)
    checkpoint.clear_rolling(world.workdir)


def phase(world: World, name: str, state: State, run: Callable[[State], State]) -> State:
    """Runs a phase and preserves its end, or takes the end from an earlier process.

    A boundary "<cycle>-forget-<night>" written since by `launch.forget` stands in for the phase that it
    followed.
    """
    names = checkpoint.boundaries(world.workdir)
    if name in names:
        cycle = name.split("-")[0]
        later = [n for n in names[names.index(name) :] if n.startswith(f"{cycle}-forget-")]
        return load(world, (later or [name])[-1], state)
    cycle, kind = name.split("-", 1)
    with world.writer.timed(kind, int(cycle)):
        state = run(state)
        jax.block_until_ready(state.arrays())
    save(world, name, state)
    return state


def position(workdir) -> int:
    """Lines of metrics.jsonl that the latest checkpoint vouches for; 0 before the first."""
    return max((meta["metrics"] for meta in checkpoint.metas(workdir)), default=0)
