"""What a life writes down and shows: metrics, timings, records of the nights, progress, closing table.

Every file of a work directory that is not a checkpoint is written here and read by `report`:

    metrics.jsonl   one line a logged step; no wall-clock value ever, so that a resumed life is bit-equal
    timings.jsonl   what took how long; the only place for seconds beside summary.json
    tb/             the metrics once more, as TensorBoard events, one run per phase and cycle
    summary.json    `Summary`
    retention.csv   accuracy on each experience after each experience
    links.jsonl     `Links`, one line a night
    slots.json      a list of `Slot`
    memory.json     {step: {flops, bytes: {argument, output, temp}}}
    dreams/night-01.jsonl   `Dream`, one a line
"""

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

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text
import tensorboardX

QUIET_INTERVAL_S = 15.0


@dataclasses.dataclass(frozen=True)
class Night:
    """How a night ended. `outcome` is "committed" or "rolled back", `reason` says why it was rolled back."""

    night: int
    experience: str
    outcome: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A finished life in numbers; accuracies in [0, 1], `wall_s` in seconds by phase.

    `final_accuracy` is over everything ever learnt, birth included; `tokens` counts source, dreamt, gradient.
    """

    method: str
    seed: int
    final_accuracy: float | None
    birth_before: float | None
    birth_after: float | None
    experiences: Mapping[str, float | None]
    learning_accuracy: float | None
    backward_transfer: float | None
    forgetting_from_peak: float | None
    wall_s: Mapping[str, float]
    tokens: Mapping[str, int]
    flops: float | None
    peak_rss_bytes: int
    nights: Sequence[Night] = ()


@dataclasses.dataclass(frozen=True)
class Links:
    """The chain from a day to what is left of it; every value a share in [0, 1], None if not measured.

    Attributes:
      awake: accuracy of the awake self on the day's probes.
      recalled: share of the day's answers that came up in its dreams.
      student: accuracy of the student on the day's probes with the new slot forced on.
      after: the same after the night, when the router decides.
      old_before: accuracy on everything earlier, before the night; `old_after` the same after it.
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
    """A dream, by whom, and what became of it; `reason` is empty when it was kept."""

    night: int
    teacher: str
    prompt: str
    answer: str
    credited: str
    reward: float | None
    kept: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Who wrote a slot: the night and its experience, from how much; and its share of today's answers."""

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


def _plain(value: Any) -> Any:
    """What strict JSON holds: dataclasses as objects, array scalars as numbers, NaN and infinity as null."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
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
    return json.dumps(_plain(value), ensure_ascii=False, indent=indent) + "\n"


def write_summary(run: str | os.PathLike, summary: Summary) -> None:
    """Writes <run>/summary.json."""
    _replace(pathlib.Path(run, "summary.json"), _json(summary, indent=2))


def write_slots(run: str | os.PathLike, slots: Sequence[Slot]) -> None:
    """Writes <run>/slots.json, the provenance of every slot in use."""
    _replace(pathlib.Path(run, "slots.json"), _json(list(slots), indent=2))


def write_memory(run: str | os.PathLike, steps: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes <run>/memory.json: {step: {"flops": number, "bytes": {"argument": .., "output", "temp"}}}."""
    _replace(pathlib.Path(run, "memory.json"), _json(steps, indent=2))


def write_dreams(run: str | os.PathLike, night: int, dreams: Iterable[Dream]) -> pathlib.Path:
    """Writes <run>/dreams/night-<night>.jsonl anew; returns its path in the run, as `Slot` names it."""
    name = pathlib.Path("dreams", f"night-{night:02d}.jsonl")
    _replace(pathlib.Path(run, name), "".join(map(_json, dreams)))
    return name


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
        self._position = _cut(self._workdir / "metrics.jsonl", position)
        _cut(self._workdir / "timings.jsonl", None)
        self._metrics = (self._workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._timings = (self._workdir / "timings.jsonl").open("a", encoding="utf-8")
        self._boards: dict[tuple[str, int], tensorboardX.SummaryWriter] = {}

    def position(self) -> int:
        """Number of lines in metrics.jsonl; belongs into the checkpoint."""
        return self._position

    def write(self, phase: str, cycle: int, step: int, scalars: Mapping[str, Any]) -> None:
        """Logs the scalars of a step; a value that is not finite is written as Python's json does (NaN).

        Raises:
          ValueError: if a scalar is named like one of the keys that place the line.
        """
        place = {"phase": phase, "cycle": int(cycle), "step": int(step)}
        values = {name: float(value) for name, value in scalars.items()}
        if taken := sorted(place.keys() & values.keys()):
            raise ValueError(f"scalars {taken} of phase {phase!r} are named like the keys that place a line")
        self._metrics.write(json.dumps(place | values, sort_keys=True) + "\n")
        self._metrics.flush()
        self._position += 1
        board = self._board(phase, int(cycle), int(step))
        for name, value in values.items():
            if math.isfinite(value):  # TensorBoard has no place for others, and warns.
                board.add_scalar(f"{phase}/{name}", value, int(step))

    def time(self, phase: str, cycle: int, seconds: float, **info: Any) -> None:
        """Logs what took how long."""
        self._timings.write(_json({"phase": phase, "cycle": cycle, "seconds": float(seconds)} | info))
        self._timings.flush()

    def _board(self, phase: str, cycle: int, step: int) -> tensorboardX.SummaryWriter:
        """The event file of a phase, opened at its first step in this process; other cycles' are closed."""
        if (phase, cycle) not in self._boards:
            for key in [key for key in self._boards if key[1] != cycle]:
                self._boards.pop(key).close()
            # purge_step hides what an interrupted process had logged from this step on. The suffix keeps
            # files of the same second apart, which tensorboardX would name alike and overwrite.
            self._boards[phase, cycle] = tensorboardX.SummaryWriter(
                str(self._workdir / "tb" / f"{cycle:02d}-{phase.replace('/', '-')}"),
                purge_step=step,
                flush_secs=20,
                filename_suffix=f".{self._position}",
            )
        return self._boards[phase, cycle]

    def close(self) -> None:
        """Closes all files; a closed writer cannot be written to."""
        for file in (self._metrics, self._timings, *self._boards.values()):
            file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def percent(value: float | None) -> str:
    """0.923 as "92.3"; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def scaled(value: float | None, unit: str = "") -> str:
    """A count with three digits and a decimal prefix: 1234567 as "1.23 M"."""
    if value is None:
        return "–"
    power = 0 if abs(value) < 1000 else min(int(math.log10(abs(value)) / 3 + 1e-9), 6)
    digits = f"{value / 1000**power:.3g}" if power else f"{value:.4g}"
    if digits == "1e+03":
        digits, power = "1", power + 1
    return f"{digits} {('', 'k', 'M', 'G', 'T', 'P', 'E', 'Z')[power]}{unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Seconds as "8.1 s", "3.3 min" or "2.1 h"."""
    if seconds is None:
        return "–"
    size, unit = next((pair for pair in ((3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds / size:.1f} {unit}"


class _Rate(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> rich.text.Text:
        speed = task.finished_speed or task.speed
        return rich.text.Text("" if speed is None else f"{scaled(speed)}/s", style="progress.data.speed")


class Bar:
    """Progress of one loop; see `progress`. Iterate over it, or use it as a context and call `advance`."""

    # A terminal has one live display: the outermost loop owns it, inner loops are lines in it.
    _live: rich.progress.Progress | None = None

    def __init__(self, items: Iterable | None, total: int | None, start: int, description: str):
        self._items, self._total, self._description = items, total, description
        self._done = self._first = self._told = start
        self._console = rich.console.Console()

    def __enter__(self) -> "Bar":
        self._began = self._told_at = time.monotonic()
        self._task = self._owned = None
        if self._console.is_terminal:
            if Bar._live is None:
                self._owned = Bar._live = rich.progress.Progress(
                    rich.progress.TextColumn("{task.description}", markup=False),
                    rich.progress.BarColumn(),
                    rich.progress.MofNCompleteColumn(),
                    _Rate(),
                    rich.progress.TimeRemainingColumn(),
                    console=self._console,
                )
                Bar._live.start()
            self._task = Bar._live.add_task(self._description, total=self._total, completed=self._done)
        return self

    def __exit__(self, *error) -> None:
        if self._owned is not None:
            self._owned.stop()
            Bar._live = None
        elif self._task is not None:
            Bar._live.remove_task(self._task)
        elif time.monotonic() - self._began >= QUIET_INTERVAL_S:
            took = time.monotonic() - self._began
            self._tell((self._done - self._first) / took, f"took {duration(took)}")

    def __iter__(self) -> Iterator:
        with self:
            for item in self._items:
                yield item
                self.advance()

    def _tell(self, rate: float, *more: str) -> None:
        done = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        print(" · ".join([f"{self._description}: {done}", f"{scaled(rate)}/s", *more]), flush=True)

    def advance(self, count: int = 1) -> None:
        """Counts `count` more as done."""
        self._done += count
        if self._task is not None:
            Bar._live.advance(self._task, count)
            return
        now = time.monotonic()
        if now - self._told_at < QUIET_INTERVAL_S:
            return
        rate = (self._done - self._told) / (now - self._told_at)
        left = (self._total - self._done) / rate if self._total is not None and rate else None
        self._tell(rate, f"ETA {duration(left)}")
        self._told, self._told_at = self._done, now


def progress(
    iterable_or_total: Iterable | int, description: str, total: int | None = None, start: int = 0
) -> Bar:
    """Shows how far a loop is, how fast it goes and when it ends.

    On a terminal a bar; otherwise a plain line every 15 s at most, and none for what takes less than that.

        for batch in progress(batches, "night 1, seeding"): ...
        with progress(total, "night 1, dreaming") as bar: bar.advance(32)

    Args:
      iterable_or_total: what to loop over, or the number of steps (iterating then yields start..total-1).
      description: what is being done.
      total: number of items where the iterable does not know its length.
      start: steps done in an earlier process; done, but not counted in the rate. An iterable yields the items
        that are left, `total` counts them all.
    """
    if isinstance(iterable_or_total, int):
        return Bar(range(start, iterable_or_total), iterable_or_total, start, description)
    if total is None and hasattr(iterable_or_total, "__len__"):
        total = start + len(iterable_or_total)
    return Bar(iterable_or_total, total, start, description)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> rich.table.Table:
    """A table whose columns after the second hold numbers."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = "left"
    table.title = rich.text.Text(title, style="bold")
    for index, heading in enumerate(headings):
        table.add_column(rich.text.Text(heading), justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(rich.text.Text, row))
    return table


def closing_table(
    rows: Sequence[Summary | Mapping[str, Any]],
    links: Mapping[str, Sequence[Links | Mapping[str, Any]]] | None = None,
    console: rich.console.Console | None = None,
) -> None:
    """Prints what became of each life, and what each night did to the new and the old; accuracies in %.

    Args:
      rows: one summary a life, as written or as read back from summary.json.
      links: per heading (the method, say), the lines of its links.jsonl.
      console: where to print; standard output by default.
    """
    rows = [_plain(row) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row["experiences"]))

    def change(before: float | None, after: float | None) -> str:
        return f"{percent(before)} → {percent(after)}"

    headings = "all", "birth\nbefore → after", "learning", "for-\ngetting", "gradient\ntokens", "wall\ntime"
    lives = [
        [
            row["method"], str(row["seed"]), percent(row["final_accuracy"]),
            change(row["birth_before"], row["birth_after"]),
            percent(row["learning_accuracy"]), percent(row["forgetting_from_peak"]),
            scaled(row["tokens"].get("gradient")), duration(sum(row["wall_s"].values())),
        ]
        for row in rows
    ]  # fmt: skip
    each = [
        [row["method"], str(row["seed"]), *(percent(row["experiences"].get(name)) for name in names)]
        for row in rows
    ]
    tables = [
        _table("At the end of the life", ["method", "seed", *headings], lives),
        _table("Each experience at the end", ["method", "seed", *names], each),
    ]
    for heading, nights in (links or {}).items():
        changes = [
            [
                str(night["night"]), night["experience"],
                change(night["new_before"], night["after"]), change(night["old_before"], night["old_after"]),
            ]
            for night in map(_plain, nights)
        ]  # fmt: skip
        title = f"{heading}: before sleep → after sleep"
        tables.append(_table(title, ["night", "experience", "new", "old"], changes))
    console = console or rich.console.Console()
    if not console.is_terminal:  # A log has no edge to wrap at.
        wide = console.options.update(max_width=1000)
        needed = [console.measure(table, options=wide).maximum for table in tables]
        console.width = max(console.width, *needed)
    for table in tables:
        console.print(table)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes (getrusage: KiB on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
