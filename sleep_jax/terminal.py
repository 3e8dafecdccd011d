"""What a person at the terminal sees: progress of what takes long, and the closing table."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from sleep_jax.figures import duration, percent, scaled
from sleep_jax.metrics import Links, Summary, plain

QUIET_INTERVAL_S = 15.0


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
        pace = f"{duration(1 / rate)} each" if 0 < rate < 1 else f"{scaled(float(f'{rate:.3g}'))}/s"
        print(" · ".join([f"{self._description}: {done}", pace, *more]), flush=True)

    def advance(self, count: int = 1) -> None:
        """Counts `count` more as done."""
        self._done += count
        if self._task is not None:
            Bar._live.advance(self._task, count)
            return
        now = time.monotonic()
        if now - self._told_at < QUIET_INTERVAL_S or self._done == self._total:
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


def morning(summary: Summary) -> str:
    """A line on what the latest experience left behind: how its night ended, and what is known now, in %."""
    latest = [n for n in summary.nights if n.night == summary.nights[-1].night and n.outcome != "forgotten"]
    ended = [
        f"{'its dreaming' if n.rem else f'night {n.night}'} {n.outcome}{n.reason and f' ({n.reason})'}"
        for n in latest
    ]
    newest = list(summary.experiences.items())[-1:]
    known = {"all": summary.final_accuracy, "birth": summary.birth_after, **dict(newest)}
    told = [*ended, *(f"{name} {percent(value)} %" for name, value in known.items())]
    if summary.anchor:
        born, untouched = f"{summary.anchor[0]:.3f}", summary.anchor_untouched
        if untouched is not None and untouched != summary.anchor[0]:
            born = f"{untouched:.3f} untouched → {born} at birth"
        told.append(f"general text {born} → {summary.anchor[-1]:.3f} nats a token")
    return "  " + " · ".join(told)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> rich.table.Table:
    """A table whose columns after the second hold numbers."""
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.title_justify = "left"
    made.title = rich.text.Text(title, style="bold")
    for index, heading in enumerate(headings):
        made.add_column(rich.text.Text(heading), justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(rich.text.Text, row))
    return made


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
    rows = [plain(row) for row in rows]
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
        table("At the end of the life", ["method", "seed", *headings], lives),
        table("Each experience at the end", ["method", "seed", *names], each),
    ]
    for heading, nights in (links or {}).items():
        changes = [
            [
                str(night["night"]), night["experience"],
                change(night["new_before"], night["after"]), change(night["old_before"], night["old_after"]),
            ]
            for night in map(plain, nights)
        ]  # fmt: skip
        title = f"{heading}: before sleep → after sleep"
        tables.append(table(title, ["night", "experience", "new", "old"], changes))
    show(tables, console)


def show(tables: Sequence[rich.table.Table], console: rich.console.Console | None = None) -> None:
    """Prints tables one below the other, on standard output by default."""
    console = console or rich.console.Console()
    if not console.is_terminal:  # A log has no edge to wrap at.
        wide = console.options.update(max_width=1000)
        needed = [console.measure(one, options=wide).maximum for one in tables]
        console.width = max(console.width, *needed)
    for one in tables:
        console.print(one)
