"""One self-contained page, report.html, about all lives below a work directory.

It reads what `metrics` writes, draws with inline SVG, fetches nothing, and needs neither jax nor a script.
What is missing or unreadable is said on the page. What comes out of a file is escaped on its way in (`el`).
"""

import csv
import dataclasses
import functools
import html
import json
import math
import os
import pathlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sleep_jax.metrics import duration, percent, read_jsonl, scaled

TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html"
MARKS = "summary.json", "retention.csv", "links.jsonl", "metrics.jsonl"
DREAMS_SHOWN, CHARACTERS_SHOWN, POINTS_DRAWN, PANELS_DRAWN, COLOURS = 6, 240, 120, 24, 8
CURVES = "kl", "entropy", "length", "reward", "grad", "loss", "accuracy"
STAGES = {
    "kept": "known after the night",
    "router": "lost: router does not find it",
    "student": "lost: student did not take it over",
    "dreams": "lost: dreams did not recall it",
    "awake": "lost: awake self had not learnt it",
}


class Html(str):
    """Markup; every other string is text and gets escaped."""


def join(parts: Iterable[Any]) -> Html:
    """Parts one after the other; those that are not `Html` are escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element; children that are not `Html` are escaped, attributes always; `class_` means class."""
    named = [
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    return Html(f"<{tag}{''.join(named)}>{join(children)}</{tag}>")


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
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
        self.config = _dict(self._json("config.json"))
        self.summary = _dict(self._json("summary.json"))
        self.slots = _dicts(self._json("slots.json"))
        self.memory = _dict(self._json("memory.json"))
        self.links, self.timings = self._lines("links.jsonl"), self._lines("timings.jsonl")
        self.metrics = self._lines("metrics.jsonl")
        self.dreams = {
            path.stem: self._lines(f"dreams/{path.name}") for path in sorted(self.path.glob("dreams/*.jsonl"))
        }
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
            names = table[0][1:] if table else []
            return names, [
                (
                    row[0],
                    {
                        n: float(v)
                        for n, v in zip(names, row[1:], strict=False)
                        if math.isfinite(float(v or "nan"))
                    },
                )
                for row in table[1:]
            ]
        except FileNotFoundError:
            return [], []
        except (OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{self.name}/retention.csv: {error}")
            return [], []


def find_runs(workdir: str | os.PathLike) -> list[Run]:
    """The lives in a directory, its sub-directories and theirs; sleep first, then by method and seed."""
    root = pathlib.Path(workdir)
    found = {
        path.parent for depth in ("", "*/", "*/*/") for mark in MARKS for path in root.glob(depth + mark)
    }
    runs = [Run(path, str(path.relative_to(root))) for path in found]
    return sorted(
        runs,
        key=lambda run: (not run.method.startswith("sleep"), run.method, len(run.seed), run.seed, run.name),
    )


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


def sample(dreams: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """At most `count` dreams, in order: as many of each (teacher, reason), evenly spaced within each."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, dream in enumerate(dreams):
        groups.setdefault((str(dream.get("teacher")).split(":")[0], str(dream.get("reason"))), []).append(
            index
        )
    share = dict.fromkeys(groups, 0)
    for _ in range(min(count, len(dreams))):
        share[min((k for k in groups if share[k] < len(groups[k])), key=lambda k: share[k])] += 1
    chosen = [groups[k][i * len(groups[k]) // n] for k, n in share.items() for i in range(n)]
    return [dreams[index] for index in sorted(chosen)]


# Tables and charts.


def _table(
    layout: str, headings: Sequence[str], rows: Iterable[Sequence[Any]], off: Sequence[bool] = ()
) -> Html:
    """A table; `layout` has a letter a column: t text, w wide text, n number; `off` rows are greyed."""
    # A zero-width space lets a heading in snake case wrap.
    words = [text.replace("_", "_\u200b") for text in headings]
    head = [el("th", text, class_=kind) for kind, text in zip(layout, words, strict=True)]
    body = [[el("td", cell, class_=kind) for kind, cell in zip(layout, row, strict=True)] for row in rows]
    marked = [*off, *[False] * (len(body) - len(off))]
    lines = [el("tr", *row, class_="off" if grey else None) for row, grey in zip(body, marked, strict=True)]
    full = "full" if "w" in layout else None
    table = el("table", el("thead", el("tr", *head)), el("tbody", *lines), class_=full)
    return el("div", table, class_="scroll")


def _mean(values: Iterable[Any], form: Callable[[float | None], str]) -> str:
    """Mean over seeds, and their sample standard deviation where they differ."""
    known = [v for v in map(number, values) if v is not None]
    if not known:
        return "–"
    spread = el("small", f"± {form(float(np.std(known, ddof=1))).lstrip('+')}") if len(set(known)) > 1 else ""
    return join([form(float(np.mean(known))).replace("-", "−"), spread])


def _ticks(low: float, high: float) -> np.ndarray:
    """Three to six round numbers that span [low, high]."""
    size = max(abs(low), abs(high), 1e-30)
    raw = (high - low) / 4 if high - low > 1e-9 * size else size
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * 0.999)
    return step * np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)


@dataclasses.dataclass
class Line:
    """A curve: `c` a CSS colour, `y` NaN where nothing was measured, `low` and `high` the seeds' extremes."""

    label: str
    c: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


def _line_chart(title: str, lines: Sequence[Line], names: Sequence[str] = (), share: bool = False) -> Html:
    """Lines over steps, or over named points (`names`); `share` fixes the vertical axis to 0..100 %."""
    width, height, left, right, top, bottom = 360, 210, 44, 10, 8, 24
    finite = np.array(
        [v for line in lines for v in (*line.y, *line.low, *line.high) if math.isfinite(v)] or [0.0]
    )
    at_y = np.linspace(0, 1, 6) if share else _ticks(finite.min(), finite.max())
    all_x = np.array([x for line in lines for x in line.x] or [0.0])
    at_x = np.arange(len(names)) if names else _ticks(all_x.min(), all_x.max())
    if not names:
        at_x = at_x[(at_x >= all_x.min()) & (at_x <= all_x.max())]
    x0, x1 = (0, max(len(names) - 1, 1)) if names else (all_x.min(), max(all_x.max(), all_x.min() + 1))
    y0, y1 = at_y[0], at_y[-1] if at_y[-1] > at_y[0] else at_y[0] + 1

    def px(x: float) -> float:
        return round(left + (x - x0) / (x1 - x0) * (width - left - right), 1)

    def py(y: float) -> float:
        return round(height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom), 1)

    def path(xs: Iterable[float], ys: Iterable[float]) -> str:
        pen, out = "M", []
        for x, y in zip(xs, ys, strict=True):
            out += [f"{pen}{px(x)} {py(y)}"] if math.isfinite(y) else []
            pen = "L" if math.isfinite(y) else "M"
        return "".join(out)

    marks = []
    for y in at_y:
        label = f"{100 * y:.0f} %" if share else scaled(float(y)).replace("-", "−")
        marks.append(el("line", x1=left, x2=width - right, y1=py(y), y2=py(y), class_="gridline"))
        marks.append(el("text", label, x=left - 6, y=py(y) + 4, text_anchor="end"))
    for x in at_x:
        label = names[int(x)] if names else scaled(float(x))
        marks.append(el("text", label, x=px(x), y=height - 6, text_anchor="middle"))
    for line in lines:
        c = f"--c:{line.c}"
        whole = [
            (x, lo, hi) for x, lo, hi in zip(line.x, line.low, line.high, strict=False) if math.isfinite(lo)
        ]
        if len(whole) > 1:
            edge = [f"{px(x)},{py(hi)}" for x, _, hi in whole] + [
                f"{px(x)},{py(lo)}" for x, lo, _ in whole[::-1]
            ]
            marks.append(el("polygon", points=" ".join(edge), class_="band", style=c))
    for line in lines:
        c = f"--c:{line.c}"
        dash = "2 5" if line.dashed else None
        marks.append(el("path", d=path(line.x, line.y), class_="line", style=c, stroke_dasharray=dash))
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        for x, y in points if names or len(points) == 1 else []:
            shown = percent(y) + " %" if share else scaled(y)
            tip = el("title", f"{line.label}, {names[int(x)] if names else scaled(x)}: {shown}")
            marks.append(el("circle", tip, cx=px(x), cy=py(y), r=3.5, class_="dot", style=c))
    drawing = el("svg", *marks, viewBox=f"0 0 {width} {height}", role="img", aria_label=title)
    return el("figure", el("figcaption", el("b", title)), drawing)


def _legend(keys: Iterable[tuple[str, str, str]]) -> Html:
    """A row of (label, colour, class of the key)."""
    items = [
        el("li", el("span", class_=f"key {kind}", style=f"--c:{colour}"), label)
        for label, colour, kind in keys
    ]
    return el("ul", *items, class_="legend")


def _leak_chart(run: Run, title: str) -> Html:
    """A bar a night, cut into what is known in the morning and what each link lost."""
    width, label, row, nights = 560, 150, 28, [(night, leaks(night)) for night in run.links]
    marks = []
    for index, (night, shares) in enumerate(nights):
        y, x = index * row, float(label)
        name = f"{night.get('night', '?')} · {night.get('experience', '?')}"
        marks.append(el("text", name if len(name) <= 24 else name[:23] + "…", x=0, y=y + 17))
        if shares is None:
            marks.append(el("text", "not measured", x=label, y=y + 17))
            continue
        for stage, share in shares.items():
            wide, tip = share * (width - label), el("title", f"{STAGES[stage]}: {percent(share)} %")
            style = f"fill:var(--{stage})"
            marks.append(
                el(
                    "rect",
                    tip,
                    x=round(x, 1),
                    y=y + 2,
                    width=round(max(wide - 2, 0), 1),
                    height=row - 6,
                    style=style,
                )
            )
            if share >= 0.055:
                middle, ink = round(x + wide / 2 - 1, 1), f"fill:var(--on-{stage})"
                marks.append(
                    el("text", f"{100 * share:.0f}", x=middle, y=y + 17, text_anchor="middle", style=ink)
                )
            x += wide
    drawing = el(
        "svg", *marks, viewBox=f"0 0 {width} {max(len(nights) * row, row)}", role="img", aria_label=title
    )
    return el("figure", el("figcaption", el("b", title)), drawing)


# Sections of the page: each takes the runs and returns what stands below its heading.

Labels = Mapping[str, str]  # Title of a run by its name.


def _missing(what: str, runs: Iterable[Run], labels: Labels) -> str:
    """Says which runs lack a part; nothing if none does."""
    names = ", ".join(labels[run.name] for run in runs)
    return el("p", f"No {what}: {names}.", class_="note") if names else ""


def _by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def _colours(runs: Sequence[Run]) -> dict[str, tuple[str, bool]]:
    """A colour a method, the same in every chart; dashed once the colours have been round."""
    return {m: (f"var(--s{i % COLOURS})", i >= COLOURS) for i, m in enumerate(_by_method(runs))}


def _foldable(entries: Sequence[tuple[str, str, Html]]) -> Html:
    """Details of many runs, (title, remark, content): the first is open."""
    return join(
        el(
            "details",
            el("summary", title, el("span", remark, class_="soft")),
            content,
            open="" if index == 0 else None,
        )
        for index, (title, remark, content) in enumerate(entries)
    )


def _methods(runs: Sequence[Run], labels: Labels) -> Html:
    groups = _by_method(run for run in runs if run.summary)
    if not groups:
        return el("p", "No summary.json yet: no life has ended.", class_="note")
    names = list(dict.fromkeys(n for run in runs for n in _dict(run.summary.get("experiences"))))
    signed = functools.partial("{:+.1f}".format)
    scalars = [
        ("everything", "final_accuracy", percent), ("birth before", "birth_before", percent),
        ("birth after", "birth_after", percent), ("learning", "learning_accuracy", percent),
        ("backward transfer", "backward_transfer", lambda v: signed(100 * v)),
        ("forgetting from peak", "forgetting_from_peak", percent),
    ]  # fmt: skip
    key = {
        m: el("span", class_="key dashed" if dashed else "key", style=f"--c:{colour}")
        for m, (colour, dashed) in _colours(runs).items()
    }

    def table(columns: Sequence[tuple[str, Callable[[Run], Any], Callable]]) -> Html:
        rows = [
            [
                join([key[m], m]),
                len(group),
                *(_mean(map(get, group), form) for _, get, form in columns),
            ]
            for m, group in groups.items()
        ]
        return _table(
            "t" + "n" * (len(columns) + 1), ["method", "seeds", *(head for head, *_ in columns)], rows
        )

    def inner(outer: str, name: str) -> Callable[[Run], Any]:
        return lambda run: _dict(run.summary.get(outer)).get(name)

    def scalar(name: str) -> Callable[[Run], Any]:
        return lambda run: run.summary.get(name)

    def wall(run: Run) -> float:
        return sum(number(v) or 0.0 for v in _dict(run.summary.get("wall_s")).values())

    def rolled_back(run: Run) -> int:
        return sum(night.get("outcome") == "rolled back" for night in _dicts(run.summary.get("nights")))

    costs = [
        *((f"{n} tokens", inner("tokens", n), scaled) for n in ("source", "dreamt", "gradient")),
        ("FLOPs", scalar("flops"), scaled), ("wall time", wall, duration),
        ("peak memory", scalar("peak_rss_bytes"), functools.partial(scaled, unit="B")),
        ("nights rolled back", rolled_back, "{:.3g}".format),
    ]  # fmt: skip
    return join([
        el("p", "At the end of life, in %. ± is the standard deviation over seeds. “Everything” is all "
           "that was ever learnt, birth included."),
        table([(head, scalar(name), form) for head, name, form in scalars]),
        el("h3", "Each experience at the end, in %"),
        table([(name, inner("experiences", name), percent) for name in names]),
        el("h3", "What it took"), table(costs),
        _missing("summary.json (not ended)", [run for run in runs if not run.summary], labels),
    ])  # fmt: skip


def _nights(runs: Sequence[Run], labels: Labels) -> Html:
    """Accuracy after birth and each experience: all so far, birth, what came since; a line a method."""
    lived = [run for run in runs if run.rows]
    if not lived:
        return el("p", "No retention.csv yet.", class_="note")
    length = max(len(run.rows) for run in lived)

    def curve(run: Run, part: Callable[[list[str]], list[str]]) -> list[float]:
        out = []
        for index, (_, row) in enumerate(run.rows):
            known = [row[name] for name in part([name for name, _ in run.rows[: index + 1]]) if name in row]
            out.append(float(np.mean(known)) if known else math.nan)
        return out + [math.nan] * (length - len(out))

    def lines(part: Callable[[list[str]], list[str]]) -> Iterator[Line]:
        for method, group in _by_method(lived).items():
            values = np.array([curve(run, part) for run in group])
            some = np.isfinite(values).any(axis=0)
            stats = [np.full(length, math.nan) for _ in range(3)]
            for out, f in zip(stats, (np.nanmean, np.nanmin, np.nanmax), strict=True):
                out[some] = f(values[:, some], axis=0)
            band = stats[1:] if len(group) > 1 else ((), ())
            colour, dashed = _colours(runs)[method]
            yield Line(method, colour, range(length), stats[0], *band, dashed=dashed)

    names = ["birth", *map(str, range(1, length))]
    parts = {
        "Everything so far": lambda seen: seen,
        "Known from birth": lambda seen: seen[:1],
        "Learnt since birth": lambda seen: seen[1:],
    }
    charts = [_line_chart(title, list(lines(part)), names, share=True) for title, part in parts.items()]
    used = _by_method(lived)
    keys = [(m, c, "dashed" if d else "") for m, (c, d) in _colours(runs).items() if m in used]
    return join([
        el("p", "Mean accuracy after birth and after each experience; every experience so far counts "
           "alike, whatever its number of questions. Bands run from the lowest to the highest seed."),
        _legend(keys), el("div", *charts, class_="grid"),
    ])  # fmt: skip


def _heat(runs: Sequence[Run], labels: Labels) -> Html:
    figures = []
    for run in (run for run in runs if run.rows):
        head = [
            el("th"),
            *(el("th", "birth" if n == "birth" else i, title=n) for i, n in enumerate(run.columns)),
        ]
        body = []
        for index, (after, row) in enumerate(run.rows):
            cells = [el("th", after if after == "birth" else f"{index} {after}", title=after)]
            for name in run.columns:
                value = row.get(name)
                level = None if value is None else f"--v:{100 * min(max(value, 0), 1):.0f}%"
                shade = "" if value is None else "cell hot" if value >= 0.62 else "cell"
                text = "" if value is None else f"{100 * value:.0f}"
                tip = None if value is None else f"{name} after {after}: {percent(value)} %"
                cells.append(el("td", text, class_=shade, style=level, title=tip))
            body.append(el("tr", *cells))
        grid = el("table", el("thead", el("tr", *head)), el("tbody", *body), class_="heat")
        scroll = el("div", grid, class_="scroll")
        figures.append(el("figure", el("figcaption", el("b", labels[run.name])), scroll))
    wide = 9 + 2.2 * max((len(run.columns) for run in runs), default=0)
    return join([
        el("p", "Accuracy in % on each experience (columns, numbered as the rows) after each one (rows)."),
        el("div", *figures, class_="grid", style=f"--least:{wide:.0f}rem"),
        _missing("retention.csv", [run for run in runs if not run.rows], labels),
    ])  # fmt: skip


def _lost(runs: Sequence[Run], labels: Labels) -> Html:
    slept = [run for run in runs if run.links]
    if not slept:
        return el("p", "No links.jsonl: no life here has slept.", class_="note")
    charts = [_leak_chart(run, labels[run.name]) for run in slept]
    tables = []
    for run in slept:
        ends = {night.get("night"): night for night in _dicts(run.summary.get("nights"))}
        rows, off = [], []
        for night in run.links:
            shares, end = leaks(night) or {}, ends.get(night.get("night"), {})
            worst = max((s for s in shares if s != "kept"), key=lambda s: shares[s], default=None)
            of = [percent(number(night.get(k))) for k in ("awake", "recalled", "student", "after")]
            old = [percent(number(night.get(k))) for k in ("old_before", "old_after")]
            end_text = " · ".join(str(end[k]) for k in ("outcome", "reason") if end.get(k)) or "–"
            leak = "–" if worst is None else f"{worst} {percent(shares[worst])}"
            new = percent(number(night.get("new_before")))
            rows.append(
                [night.get("night", "?"), night.get("experience", "?"), *of, leak, new, *old, end_text]
            )
            off.append(end.get("outcome") == "rolled back")
        heads = ["night", "experience", "awake", "recalled", "student", "after", "largest leak", "new before",
                 "old before", "old after", "outcome"]  # fmt: skip
        tables.append((labels[run.name], f"{len(rows)} nights", _table("ntnnnntnnnw", heads, rows, off)))
    return join([
        el("p", "Of the day's probes: what the awake self knew, what came up in its dreams, what the student "
           "knows with its new slot forced on, and what is left when the router decides. Every stage is "
           "raised to what a later one reaches, so that the parts add up; the tables have the values as "
           "measured."),
        _legend((text, f"var(--{stage})", "block") for stage, text in STAGES.items()),
        el("div", *charts, class_="grid", style="--least:30rem"), _foldable(tables),
    ])  # fmt: skip


def _clip(text: Any) -> str:
    text = str(text)
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"


def _dreams(runs: Sequence[Run], labels: Labels) -> Html:
    def kind(dream: Mapping[str, Any]) -> str:
        return str(dream.get("teacher")).split(":")[0]

    def reason(dream: Mapping[str, Any]) -> str:
        return str(dream.get("reason") or "no reason given")

    def cells(dream: Mapping[str, Any]) -> list[Any]:
        reward = number(dream.get("reward"))
        return [
            dream.get("teacher", "?"), _clip(dream.get("prompt", "")), _clip(dream.get("answer", "")),
            dream.get("credited") or "–", "–" if reward is None else f"{reward:.3f}".replace("-", "−"),
            "kept" if dream.get("kept") else f"dropped: {reason(dream)}",
        ]  # fmt: skip

    entries = []
    for run in (run for run in runs if any(run.dreams.values())):
        nights = {name: dreams for name, dreams in run.dreams.items() if dreams}
        total = [dream for dreams in nights.values() for dream in dreams]
        kinds = list(dict.fromkeys(map(kind, total)))
        reasons = list(dict.fromkeys(reason(dream) for dream in total if not dream.get("kept")))
        rows, parts = [], []
        for name, dreams in nights.items():
            kept = [dream for dream in dreams if dream.get("kept")]
            dropped = [dream for dream in dreams if not dream.get("kept")]
            by_kind, by_reason = Counter(map(kind, dreams)), Counter(map(reason, dropped))
            counts = [len(dreams), *map(by_kind.get, kinds), len(kept), *map(by_reason.get, reasons)]
            rewards = [r for r in (number(dream.get("reward")) for dream in dreams) if r is not None]
            mean = f"{np.mean(rewards):.3f}".replace("-", "−") if rewards else "–"
            rows.append([name, *(f"{c or 0:,}" for c in counts), mean])
            some = sample(kept, DREAMS_SHOWN) + sample(dropped, DREAMS_SHOWN)
            heads = "teacher", "prompt", "answer", "credited to", "reward", "kept?"
            parts.append(el("h4", f"{name}: {len(some)} of {len(dreams):,}"))
            parts.append(_table("twwtnt", heads, map(cells, some), [not d.get("kept") for d in some]))
        heads = ["night", "dreams", *(f"by {k}" for k in kinds), "kept", *(f"dropped: {r}" for r in reasons)]
        table = _table("t" + "n" * len(heads), [*heads, "mean reward"], rows)
        remark = f"{len(total):,} dreams in {len(nights)} nights"
        entries.append((labels[run.name], remark, join([table, *parts])))
    if not entries:
        return el("p", "No dreams/night-*.jsonl: nothing was dreamt here, or not written.", class_="note")
    intro = "Of every night a few dreams that were kept and a few that were not, of each teacher and reason."
    return join([el("p", intro), _foldable(entries)])


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS_DRAWN points: means of equal runs of neighbours; NaN where one of them is not finite."""
    bins = np.array_split(np.arange(len(x)), min(POINTS_DRAWN, len(x)))
    return [float(np.mean(np.array(x)[b])) for b in bins], [float(np.mean(np.array(y)[b])) for b in bins]


def _curves(runs: Sequence[Run], labels: Labels) -> Html:
    entries = []
    for run in runs:
        curves: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
        for line in run.metrics:
            step, cycle = number(line.get("step")), number(line.get("cycle"))
            for name in (
                line.keys() - {"phase", "cycle", "step"} if step is not None and cycle is not None else ()
            ):
                if isinstance(line[name], int | float):
                    by_cycle = curves.setdefault((str(line.get("phase")), name), {})
                    by_cycle.setdefault(int(cycle), []).append((step, float(line[name])))
        rank = {
            key: next((i for i, word in enumerate(CURVES) if word in key[1].lower()), len(CURVES))
            for key in curves
        }
        phases = list(dict.fromkeys(str(line.get("phase")) for line in run.metrics))
        drawn = [key for key in curves if max(map(len, curves[key].values())) > 1]
        drawn.sort(key=lambda key: (rank[key] == len(CURVES), phases.index(key[0]), rank[key], key[1]))
        if not drawn:
            continue
        cycles = sorted({cycle for key in drawn for cycle in curves[key]})
        mix = {c: round(100 * i / max(len(cycles) - 1, 1)) for i, c in enumerate(cycles)}
        colour = {c: f"color-mix(in oklab, var(--old) {part}%, var(--young))" for c, part in mix.items()}
        charts = [
            _line_chart(
                f"{key[0]} · {key[1]}",
                [
                    Line(f"cycle {c}", colour[c], *_thin(*zip(*curves[key][c], strict=True)))
                    for c in sorted(curves[key])
                ],
            )
            for key in drawn[:PANELS_DRAWN]
        ]
        keys = [("birth" if c == 0 else f"night {c}", colour[c], "") for c in cycles]
        rest = len(curves) - len(charts)
        note = el("p", f"{rest} more scalars in metrics.jsonl only.") if rest else ""
        content = join([_legend(keys), el("div", *charts, class_="grid"), note])
        entries.append((labels[run.name], f"{len(run.metrics):,} lines of metrics", content))
    if not entries:
        return el("p", "No metrics.jsonl with a curve in it.", class_="note")
    intro = "Over the steps of a phase; a line for every cycle of day and night."
    return join([el("p", intro), _foldable(entries)])


def _slots(runs: Sequence[Run], labels: Labels) -> Html:
    heads = ["level", "slot", "night", "experience", "documents", "dreams"]
    heads += ["dreams file", "merged from", "share of answers", "state"]
    entries = []
    for run in (run for run in runs if run.slots):
        rows = []
        for s in run.slots:
            merged = s.get("merged_from") or []
            merged = ", ".join(map(str, merged)) if isinstance(merged, list) else str(merged)
            share = number(s.get("share_of_answers"))
            rows.append([
                *(s.get(k, "?") for k in ("level", "slot", "night", "experience", "documents", "dreams")),
                s.get("dreams_file") or "–", merged or "–", "–" if share is None else f"{percent(share)} %",
                "forgotten" if s.get("forgotten") else "in use",
            ])  # fmt: skip
        off = [bool(s.get("forgotten")) for s in run.slots]
        entries.append((labels[run.name], f"{len(rows)} slots", _table("nnntnnttnt", heads, rows, off)))
    if not entries:
        return el("p", "No slots.json: no life here has opened a slot.", class_="note")
    intro = "Which night, experience and dreams wrote each slot, and what share of answers it gives now."
    return join([el("p", intro), _foldable(entries)])


def _costs(runs: Sequence[Run], labels: Labels) -> Html:
    seconds: dict[str, dict[str, float]] = {}
    for run in runs:
        spent: Counter = Counter()
        for phase, value in _dict(run.summary.get("wall_s")).items():
            spent[phase] += number(value) or 0.0
        if not spent:
            for line in run.timings:
                spent[str(line.get("phase"))] += number(line.get("seconds")) or 0.0
        seconds[run.name] = spent
    phases = list(dict.fromkeys(phase for spent in seconds.values() for phase in spent))
    rows = [
        [method, *(_mean([seconds[r.name].get(p) for r in group], duration) for p in phases),
         _mean([sum(seconds[r.name].values()) for r in group], duration)]
        for method, group in _by_method(run for run in runs if seconds[run.name]).items()
    ]  # fmt: skip
    times = _table("t" + "n" * (len(phases) + 1), ["method", *phases, "all"], rows)
    parts = [
        el("h3", "Wall time by phase"),
        times if rows else el("p", "Neither wall_s nor timings.jsonl.", class_="note"),
    ]
    steps = []
    for method, group in _by_method(run for run in runs if run.memory).items():
        for name, step in group[0].memory.items():
            sizes = _dict(_dict(step).get("bytes"))
            used = [scaled(number(sizes.get(k)), "B") for k in ("argument", "output", "temp")]
            steps.append([method, name, scaled(number(_dict(step).get("flops"))), *used])
    parts.append(el("h3", "Compiled steps"))
    heads = "method", "step", "FLOPs", "arguments", "output", "temporary"
    parts.append(_table("ttnnnn", heads, steps) if steps else el("p", "No memory.json.", class_="note"))
    return join(parts)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _config(runs: Sequence[Run], root: pathlib.Path, problems: list[str]) -> Html:
    """The configuration of all lives; a key in which they differ has all its values."""
    top = [] if any(run.path == root for run in runs) else [Run(root, ".")]
    problems += [problem for run in top for problem in run.problems]
    configs = [dict(_flat(run.config)) for run in (*runs, *top) if run.config]
    if not configs:
        return el("p", "No config.json.", class_="note")
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        rows.append([key, " | ".join(dict.fromkeys(config[key] for config in configs if key in config))])
    summary = el("summary", "Configuration", el("span", f"{len(rows)} keys", class_="soft"))
    return el("details", summary, _table("tw", ["key", "value"], rows))


SECTIONS = (
    ("methods", "Methods", _methods),
    ("nights", "Accuracy over nights", _nights),
    ("retention", "What is retained", _heat),
    ("lost", "Where it is lost", _lost),
    ("dreams", "What was dreamt", _dreams),
    ("curves", "Learning curves", _curves),
    ("slots", "Slots and where they come from", _slots),
    ("costs", "Time and memory", _costs),
)


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes <workdir>/report.html about every life in the directory or up to two levels below.

    Args:
      workdir: a life's directory, or one that holds <method>/ or seed<k>/<method>/.

    Returns:
      The path of the page.

    Raises:
      NotADirectoryError: if `workdir` is none.
    """
    root = pathlib.Path(workdir)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a directory: --workdir must name one that a life was run in")
    runs = find_runs(root)
    seeds = len({run.seed for run in runs})
    labels = {run.name: run.method if seeds == 1 else f"{run.method} · seed {run.seed}" for run in runs}
    problems: list[str] = []
    config = _config(runs, root, problems)
    title = f"Life report: {root.resolve().name}"
    counts = {"runs": len(runs), "methods": len(_by_method(runs)), "seeds": seeds}
    lives = " · ".join(f"{count} {noun if count != 1 else noun[:-1]}" for noun, count in counts.items())
    links = [el("a", heading, href=f"#{anchor}") for anchor, heading, _ in SECTIONS]
    problems += [problem for run in runs for problem in run.problems]
    body = [
        el("h1", title),
        el("p", lives if runs else "No life was found here."),
        el("nav", *links if runs else ()),
    ]
    body += [el("p", problem, class_="note") for problem in problems]
    body.append(config)
    for anchor, heading, section in SECTIONS if runs else ():
        body.append(el("section", el("h2", heading, id=anchor), section(runs, labels)))
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), body="\n".join(body))
    path = root / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, path)
    return path
