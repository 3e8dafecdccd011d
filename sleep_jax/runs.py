"""Reads what a life left in its directory, for `report`: what is missing or broken is noted, not raised."""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sleep_jax.metrics import read_jsonl

MARKS = "summary.json", "retention.csv", "links.jsonl", "metrics.jsonl"
STAGES = "kept", "router", "student", "dreams", "awake"
Labels = Mapping[str, str]  # title of a run by its name


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object; an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


@dataclasses.dataclass
class Run:
    """What one life left behind; every part may be empty."""

    path: pathlib.Path
    name: str
    problems: list[str] = dataclasses.field(default_factory=list)

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.problems.append(f"{self.name}/{name}: {error}")
            return None

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines, bad = read_jsonl(self.path / name)
        if bad:
            self.problems.append(f"{self.name}/{name}: {bad} unreadable line{'s' * (bad > 1)} left out")
        return lines

    def __post_init__(self):
        self.config = mapping(self._json("config.json"))
        self.summary = mapping(self._json("summary.json"))
        self.slots = dicts(self._json("slots.json"))
        self.memory = mapping(self._json("memory.json"))
        self.links, self.timings = self._lines("links.jsonl"), self._lines("timings.jsonl")
        self.metrics = self._lines("metrics.jsonl")
        dreams = {p.stem: self._lines(f"dreams/{p.name}") for p in sorted(self.path.glob("dreams/*.jsonl"))}
        self.answers = [
            self._lines(f"answers/{p.name}") for p in sorted(self.path.glob("answers/[0-9]*.jsonl"))
        ]
        tried = {name: lines for name, lines in dreams.items() if lines and "role" in lines[0]}
        self.dreams = {name: lines for name, lines in dreams.items() if name not in tried}
        # What is dreamt again to be asked is in the night's dreams, with the answers.
        self.trials = {name: lines for name, lines in tried.items() if not name.endswith("-recount")}
        folders = [part for part in pathlib.Path(self.name).parts if not re.fullmatch(r"seed\d+|\.", part)]
        seeds = re.findall(r"seed(\d+)", self.name)
        self.method = str(
            self.summary.get("method") or self.config.get("method") or "/".join(folders) or self.path.name
        )
        self.seed = str(self.summary.get("seed", seeds[-1] if seeds else self.config.get("seed", 0)))
        self.columns, self.rows = self._retention()

    def _retention(self) -> tuple[list[str], list[tuple[str, dict[str, float]]]]:
        """Names of the columns, and (after what, {column: accuracy}) in order."""
        try:
            with (self.path / "retention.csv").open(encoding="utf-8", errors="replace", newline="") as file:
                table = [row for row in csv.reader(file) if row]
            names, rows = table[0][1:] if table else [], []
            for after, *cells in table[1:]:
                values = {name: float(cell or "nan") for name, cell in zip(names, cells, strict=False)}
                rows.append((after, {name: value for name, value in values.items() if math.isfinite(value)}))
            return names, rows
        except FileNotFoundError:
            return [], []
        except (OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{self.name}/retention.csv: {error}")
            return [], []

    @property
    def is_life(self) -> bool:
        """Whether it lived days: neither a birth that lives share nor a part of a study."""
        part = any((self.path / name).exists() for name in ("single.json", "tasks.json", "rounds.json"))
        return bool(self.summary) or not (self.path.name == "birth" or part)

    def accuracy(self, part: slice) -> list[float]:
        """Accuracy after each experience on this part of what was lived so far; NaN if not measured.

        Every question counts alike; where their numbers are not on record, every experience does.
        """
        questions = mapping(self.summary.get("questions"))
        means = []
        for index, (_, row) in enumerate(self.rows):
            asked = [name for name, _ in self.rows[: index + 1][part] if name in row]
            weights = [number(questions.get(name)) or 0.0 for name in asked]
            if not all(weights):
                weights = [1.0] * len(asked)
            right = sum(row[name] * weight for name, weight in zip(asked, weights, strict=True))
            means.append(right / sum(weights) if asked else math.nan)
        return means

    def seconds(self) -> Counter:
        """Wall time by phase: of the summary or, before there is one, of the timings without their parts."""
        spent: Counter = Counter()
        for phase, value in mapping(self.summary.get("wall_s")).items():
            spent[phase] += number(value) or 0.0
        for line in () if spent else self.timings:
            if "/" not in str(line.get("phase")):
                spent[str(line.get("phase"))] += number(line.get("seconds")) or 0.0
        return spent

    def curves(self) -> dict[tuple[str, str], dict[int, list[tuple[float, float]]]]:
        """(step, value) by (phase, scalar) and cycle, in the order of the metrics."""
        curves: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
        for line in self.metrics:
            step, cycle = number(line.get("step")), number(line.get("cycle"))
            if step is None or cycle is None:
                continue
            for name, value in line.items():
                if name not in ("phase", "cycle", "step") and isinstance(value, int | float):
                    by_cycle = curves.setdefault((str(line.get("phase")), name), {})
                    by_cycle.setdefault(int(cycle), []).append((step, float(value)))
        return curves

    def settings(self) -> dict[str, str]:
        """The configuration as JSON values by dotted key."""

        def flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
            for key, value in config.items():
                if isinstance(value, dict) and value:
                    yield from flat(value, f"{prefix}{key}.")
                else:
                    yield f"{prefix}{key}", json.dumps(value)

        return dict(flat(self.config, ""))


def find_runs(workdir: str | os.PathLike) -> list[Run]:
    """All in a directory and two levels below: lives first; Sleep first, then by method and seed."""
    root = pathlib.Path(workdir)
    found = {
        path.parent for depth in ("", "*/", "*/*/") for mark in MARKS for path in root.glob(depth + mark)
    }
    runs = [Run(path, str(path.relative_to(root))) for path in found]
    return sorted(
        runs,
        key=lambda run: (
            not run.is_life,
            not run.method.startswith("sleep"),
            run.method,
            len(run.seed),
            run.seed,
            run.name,
        ),
    )


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def leaks(night: Mapping[str, Any]) -> dict[str, float] | None:
    """Where the day is lost between the awake self and the morning after; the shares add up to one.

    Going back from the morning, every stage is raised to what a later stage reaches (a student may generalise
    beyond its dreams), and dreams count for no more than the awake self knew:

        student' = max(student, after)
        recalled' = max(min(recalled, awake), student')
        awake' = max(awake, recalled')

    Lost are, in turn, student' - after, recalled' - student', awake' - recalled' and 1 - awake'.

    Args:
      night: a line of links.jsonl.

    Returns:
      Shares by the keys of `STAGES`, or None if one of the four was not measured.
    """
    values = [number(night.get(key)) for key in ("awake", "recalled", "student", "after")]
    if None in values:
        return None
    awake, recalled, student, after = (min(max(value, 0.0), 1.0) for value in values)
    student = max(student, after)
    recalled = max(min(recalled, awake), student)
    awake = max(awake, recalled)
    shares = after, student - after, recalled - student, awake - recalled, 1 - awake
    return dict(zip(STAGES, shares, strict=True))


def sample(
    dreams: Sequence[Mapping[str, Any]], count: int, keys: Sequence[str] = ("teacher", "reason")
) -> list[Mapping[str, Any]]:
    """At most `count` dreams, in order: as many of each kind (up to a colon), evenly spaced within each."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, dream in enumerate(dreams):
        kind = tuple(str(dream.get(key)).split(":")[0] for key in keys)
        groups.setdefault(kind, []).append(index)
    share = dict.fromkeys(groups, 0)
    for _ in range(min(count, len(dreams))):
        share[min((k for k in groups if share[k] < len(groups[k])), key=lambda k: share[k])] += 1
    chosen = [groups[k][i * len(groups[k]) // n] for k, n in share.items() for i in range(n)]
    return [dreams[index] for index in sorted(chosen)]
