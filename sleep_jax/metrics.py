"""What a life writes down: metrics, timings, records of the nights. `report` reads them.

The files of a work directory that are neither checkpoints nor what a checkpoint needs (config.json,
tokenizer.json):

    metrics.jsonl   one line a logged step; no wall-clock value ever, so that a resumed life is bit-equal
    timings.jsonl   what took how long, and the most memory so far; only summary.json has seconds too
    tb/             the metrics once more, as TensorBoard events, one run per phase and cycle
    summary.json    `Summary`
    retention.csv   accuracy on each experience after each experience
    links.jsonl     `Links`, one line a night
    slots.json      a list of `Slot`
    memory.json     {step: {flops, xla_flops, bytes: {argument, output, temp, alias}}}
    answers/000.jsonl       `Answer`, one a line: to every question, on the first morning and after each day
    dreams/night-01.jsonl   `Dream`, one a line; merge-07-1.jsonl where night 7 merged a full level 1
    dreams/rem-01-round-1.jsonl   `Trial`, one a line; with rem-01.jsonl, the `Dream`s of what was kept
    dreams/rem-01-rounds.json     how each round went, and what a person should know of it
    anchor.json     in birth/, general text, see `anchor`; beside it notes/ of each day, see `notes`
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


@dataclasses.dataclass(frozen=True)
class Night:
    """How a night ended: `outcome` is "committed" or "rolled back".

    `reason` says why it was rolled back, or what is to be known of one that was committed.

    Stage 2 of a night has an entry of its own, with `rem`. A night that is taken out later has one more then,
    with the outcome "forgotten".
    """

    night: int
    experience: str
    outcome: str
    reason: str = ""
    rem: bool = False


@dataclasses.dataclass(frozen=True)
class Summary:
    """A finished life in numbers; accuracies in [0, 1], `wall_s` in seconds by phase.

    `final_accuracy` is over every question on everything ever learnt, birth included. The others are by
    `ops.retention`, every experience alike however many questions it has: `learning_accuracy` over the days,
    transfer and forgetting over birth and the days. `tokens` counts source, dreamt, gradient; `flops` are
    those of training steps, see `fit.Account`; `questions` is how many each experience, birth included, is
    asked. `anchor` is the loss on general text in nats per token, on the first morning and after each
    experience; `anchor_untouched` that of the checkpoint which birth began with.
    """

    method: str
    seed: int
    final_accuracy: float | None
    birth_before: float | None
    birth_after: float | None
    experiences: Mapping[str, float | None]
    learning_accuracy: float | None
    backward_transfer: float | None
    forward_transfer: float | None
    forgetting_from_first: float | None
    forgetting_from_peak: float | None
    wall_s: Mapping[str, float]
    tokens: Mapping[str, int]
    flops: float | None
    peak_rss_bytes: int
    nights: Sequence[Night] = ()
    questions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    anchor: Sequence[float] = ()
    anchor_untouched: float | None = None


@dataclasses.dataclass(frozen=True)
class Links:
    """The chain from a day to what is left of it; every value a share in [0, 1], None if not measured.

    Attributes:
      awake: accuracy of the awake self on the day's probes.
      recalled: how evenly the answers to the day's probes came up in its dreams, and as answers to its inputs
        where these were at hand (`evals.overlap`: 1 when each has its share, less where some came up rarely);
        None where no dream has a prompt, or the day no probe.
      student: accuracy of the student on the day's probes with the new slot forced on.
      after: the same after the night, when the router decides.
      old_before: accuracy on everything earlier, on the morning before; `old_after` the same on the morning
        after.
      new_before: accuracy on the day's probes before the night, with the fast memory as the day left it.
    """

    night: int
    experience: str
    awake: float | None
    recalled: float | None
    student: float | None
    after: float | None
    old_before: float | None
    old_after: float | None
    new_before: float | None


@dataclasses.dataclass(frozen=True)
class Dream:
    """A dream, by whom, and what became of it; `reason` is empty when it was kept.

    `reward` is the imitation reward of the sleeper, of dreams that were held out and have a prompt.
    """

    night: int
    teacher: str
    prompt: str
    answer: str
    credited: str
    reward: float | None
    kept: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was answered in a morning to a probe of an experience, and what was expected."""

    experience: str
    question: str
    expected: str
    answer: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Trial:
    """A dream of stage 2 and what came of trying it; `reason` says why it was not tried.

    `norm`, `align` and `gain` are what it was selected by, `before` and `after` the measure without and with
    it, `difference` and `error` their paired difference with its standard error, `struck` how many of its
    lines were left out.
    """

    task: str
    role: str
    prompt: str
    text: str
    norm: float
    align: float
    gain: float
    before: float
    after: float
    difference: float
    error: float
    reward: int | None
    reason: str = ""
    struck: int = 0


@dataclasses.dataclass(frozen=True)
class Slot:
    """Who wrote a slot: the last of its nights and all that it holds, from how much; and what it does now."""

    level: int
    slot: int
    night: int
    experience: str
    documents: int
    dreams: int
    dreams_file: str
    merged_from: Sequence[Any] = ()
    forgotten: bool = False
    share_of_answers: float | None = None


def plain(value: Any) -> Any:
    """What strict JSON holds: dataclasses as objects, array scalars as numbers, NaN and infinity as null."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Sampled text can hold half a surrogate pair; its backslash form is the JSON escape of that character.
    partial.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(partial, path)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(plain(value), ensure_ascii=False, indent=indent) + "\n"


def write_summary(run: str | os.PathLike, summary: Summary) -> None:
    """Writes <run>/summary.json."""
    _replace(pathlib.Path(run, "summary.json"), _json(summary, indent=2))


def write_json(run: str | os.PathLike, name: str, value: Any) -> None:
    """Writes <run>/<name> as a whole."""
    _replace(pathlib.Path(run, name), _json(value, indent=2))


def write_slots(run: str | os.PathLike, slots: Sequence[Slot]) -> None:
    """Writes <run>/slots.json, the provenance of every slot in use."""
    _replace(pathlib.Path(run, "slots.json"), _json(list(slots), indent=2))


def write_memory(run: str | os.PathLike, steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes <run>/memory.json: {step: {"flops": .., "bytes": {"argument": .., ..}}} (`cost.compiled`)."""
    _replace(pathlib.Path(run, "memory.json"), _json(steps, indent=2))


def write_dreams(run: str | os.PathLike, name: str, dreams: Iterable[Any]) -> str:
    """Writes <run>/dreams/<name>.jsonl anew, a dataclass a line; returns its path in the run, for `Slot`."""
    path = f"dreams/{name}.jsonl"
    _replace(pathlib.Path(run, path), "".join(map(_json, dreams)))
    return path


def write_answers(run: str | os.PathLike, cycle: int, answers: Iterable[Answer]) -> None:
    """Writes <run>/answers/<cycle>.jsonl anew: what was answered after so many days."""
    _replace(pathlib.Path(run, f"answers/{cycle:03d}.jsonl"), "".join(map(_json, answers)))


def write_links(run: str | os.PathLike, links: Links) -> None:
    """Adds a night to <run>/links.jsonl in place of this and later nights: a resumed life repeats them."""
    path = pathlib.Path(run, "links.jsonl")
    earlier = [line for line in read_jsonl(path)[0] if line["night"] < links.night]
    _replace(path, "".join(map(_json, [*earlier, links])))


def write_retention(run: str | os.PathLike, names: Sequence[str], accuracy: Sequence[Sequence[Any]]) -> None:
    """Writes <run>/retention.csv.

    Args:
      run: the directory of the life.
      names: what was lived through, in order, birth first.
      accuracy: [rows lived so far, names] accuracy in [0, 1] on the column after the row; NaN or None if not
        measured.

    Raises:
      ValueError: if there are more rows than names, or a row has another length than `names`.
    """
    sizes = sorted({len(row) for row in accuracy})
    if len(accuracy) > len(names) or sizes not in ([], [len(names)]):
        raise ValueError(
            f"retention: {len(accuracy)} rows of lengths {sizes} do not fit {len(names)} names {list(names)}"
        )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["after", *names])
    for name, row in zip(names, accuracy, strict=False):
        table.writerow([name, *("" if v is None or math.isnan(v) else repr(float(v)) for v in row)])
    _replace(pathlib.Path(run, "retention.csv"), text.getvalue())


def read_jsonl(path: str | os.PathLike) -> tuple[list[dict[str, Any]], int]:
    """Reads objects, one a line.

    Returns:
      The objects in order, and how many lines were none (a kill in the middle of a line leaves one).
      A missing file has no lines.
    """
    path, objects, bad = pathlib.Path(path), [], 0
    if not path.exists():
        return objects, bad
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                objects.append(value)
            else:
                bad += 1
    return objects, bad


def _cut(path: pathlib.Path, keep: int | None) -> int:
    """Leaves the first `keep` whole lines of a file (None: all of them); returns how many are left."""
    path.touch()
    with path.open("r+b") as file:
        count = end = 0
        for line in file:
            if count == keep or not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        if keep is not None and count < keep:
            raise ValueError(
                f"{path} holds {count} lines, but the checkpoint was made when it held {keep}: one of them "
                "belongs to another life. Put the file back, or start in an empty --workdir."
            )
        file.truncate(end)
    return count


class MetricsWriter:
    """Appends metrics and timings of one life; every line is flushed before the call returns.

    Args:
      workdir: the directory of the life; made if missing.
      position: on resume, the `position()` of the writer when the checkpoint was made: later lines of
        metrics.jsonl are cut off, as the resumed life writes them again. None keeps every whole line.

    Raises:
      ValueError: if metrics.jsonl has fewer lines than `position`; nothing is changed then.
    """

    def __init__(self, workdir: str | os.PathLike, position: int | None = None):
        self._workdir = pathlib.Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._lines = self._position = _cut(self._workdir / "metrics.jsonl", position)
        _cut(self._workdir / "timings.jsonl", None)
        self._metrics = (self._workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._timings = (self._workdir / "timings.jsonl").open("a", encoding="utf-8")
        # tensorboardX's SummaryWriter writes in a thread, whose queue stops the life when the disk is full.
        self._boards: dict[tuple[str, int], EventsWriter] = {}

    def position(self) -> int:
        """Number of lines in metrics.jsonl; belongs into the checkpoint."""
        return self._position

    def seek(self, position: int) -> None:
        """Goes to the `position()` of a checkpoint that is taken up again.

        Lines behind it that a later checkpoint vouches for stay: what a resumed process repeats on its way to
        that one is not written twice.

        Raises:
          ValueError: metrics.jsonl is shorter.
        """
        if position > self._lines:
            raise ValueError(f"metrics.jsonl holds {self._lines} lines, fewer than {position}")
        self._position = position

    def write(self, phase: str, cycle: int, step: int, scalars: Mapping[str, Any]) -> None:
        """Logs the scalars of a step; a value that is not finite is written as Python's json does (NaN).

        Raises:
          ValueError: if a scalar is named like one of the keys that place the line.
        """
        place = {"phase": phase, "cycle": int(cycle), "step": int(step)}
        values = {name: float(value) for name, value in scalars.items()}
        if taken := sorted(place.keys() & values.keys()):
            raise ValueError(f"scalars {taken} of phase {phase!r} are named like the keys that place a line")
        self._position += 1
        if self._position <= self._lines:
            return
        self._lines = self._position
        self._metrics.write(json.dumps(place | values, sort_keys=True) + "\n")
        self._metrics.flush()
        board = self._board(phase, int(cycle), int(step))
        for name, value in values.items():
            if math.isfinite(value):  # TensorBoard has no place for others, and warns.
                summary = scalar(f"{phase}/{name}", value)
                board.write_event(Event(wall_time=time.time(), step=int(step), summary=summary))
        board.flush()

    def time(self, phase: str, cycle: int, seconds: float, **info: Any) -> None:
        """Logs what took how long, and the most memory that the process has had by its end."""
        line = {"phase": phase, "cycle": cycle, "seconds": float(seconds), "peak_rss_bytes": peak_rss_bytes()}
        self._timings.write(_json(line | info))
        self._timings.flush()

    @contextlib.contextmanager
    def timed(self, phase: str, cycle: int) -> Iterator[None]:
        """Logs what its body took."""
        started = time.perf_counter()
        yield
        self.time(phase, cycle, time.perf_counter() - started)

    def _board(self, phase: str, cycle: int, step: int) -> EventsWriter:
        """The event file of a phase, opened at its first step in this process; other cycles' are closed."""
        if (phase, cycle) not in self._boards:
            for key in [key for key in self._boards if key[1] != cycle]:
                self._boards.pop(key).close()
            folder = self._workdir / "tb" / f"{cycle:02d}-{phase.replace('/', '-')}"
            folder.mkdir(parents=True, exist_ok=True)
            # The suffix keeps files of the same second apart, which tensorboardX would name alike and
            # overwrite. A start hides what an interrupted process had logged from this step on.
            board = EventsWriter(str(folder / "events"), f".{self._position}")
            start = SessionLog(status=SessionLog.START)
            board.write_event(Event(wall_time=time.time(), step=step, session_log=start))
            self._boards[phase, cycle] = board
        return self._boards[phase, cycle]

    def close(self) -> None:
        """Closes all files; a closed writer cannot be written to."""
        for file in (self._metrics, self._timings, *self._boards.values()):
            file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes (getrusage: KiB on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
