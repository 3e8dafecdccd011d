"""Markup of the report: escaped elements, tables and inline SVG charts; knows nothing of lives and files."""

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sleep_jax.figures import percent, scaled

POINTS_DRAWN = 120


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


def table(
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


def mean(values: Iterable[Any], form: Callable[[float | None], str]) -> str:
    """Mean of the numbers among the values, and their sample standard deviation where they differ."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    spread = el("small", f"± {form(float(np.std(known, ddof=1))).lstrip('+')}") if len(set(known)) > 1 else ""
    return join([form(float(np.mean(known))).replace("-", "−"), spread])


def foldable(entries: Sequence[tuple[str, str, Html]]) -> Html:
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


def legend(keys: Iterable[tuple[str, str, str]]) -> Html:
    """A row of (label, colour, class of the key)."""
    items = [
        el("li", el("span", class_=f"key {kind}", style=f"--c:{colour}"), label)
        for label, colour, kind in keys
    ]
    return el("ul", *items, class_="legend")


def ticks(low: float, high: float) -> np.ndarray:
    """Three to six round numbers that span [low, high]."""
    size = max(abs(low), abs(high), 1e-30)
    raw = (high - low) / 4 if high - low > 1e-9 * size else size
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * 0.999)
    return step * np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS_DRAWN points: means of equal runs of neighbours; NaN where one of them is not finite."""
    bins = np.array_split(np.arange(len(x)), min(POINTS_DRAWN, len(x)))
    return [float(np.mean(np.array(x)[b])) for b in bins], [float(np.mean(np.array(y)[b])) for b in bins]


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


def line_chart(title: str, lines: Sequence[Line], names: Sequence[str] = (), share: bool = False) -> Html:
    """Lines over steps, or over named points (`names`); `share` fixes the vertical axis to 0..100 %."""
    width, height, left, right, top, bottom = 360, 210, 44, 10, 8, 24
    finite = np.array(
        [v for line in lines for v in (*line.y, *line.low, *line.high) if math.isfinite(v)] or [0.0]
    )
    at_y = np.linspace(0, 1, 6) if share else ticks(finite.min(), finite.max())
    all_x = np.array([x for line in lines for x in line.x] or [0.0])
    at_x = np.arange(len(names)) if names else ticks(all_x.min(), all_x.max())
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


def counted(count: int, noun: str) -> str:
    """So many of them: "1 night", "2,000 dreams"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def numbered(number: Any, name: str) -> str:
    """A name behind its number, which is not said twice: "2 · travel", but "day 2"."""
    return name if name.split()[-1:] == [str(number)] else f"{number} · {name}"


def heat_map(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Mapping[str, float]]]) -> Html:
    """A grid of shares, birth and then numbered: a row for what was lived, a column for what was asked."""
    numbers = [str(i) if i else name for i, name in enumerate(columns)]
    head = [el("th"), *(el("th", n, title=name) for n, name in zip(numbers, columns, strict=True))]
    body = []
    for index, (after, values) in enumerate(rows):
        cells = [el("th", numbered(index, after) if index else after, title=after)]
        for column, name in enumerate(columns):
            if (value := values.get(name)) is None:
                cells.append(el("td"))
                continue
            kind = "cell ahead" if column > index else "cell hot" if value >= 0.62 else "cell"
            level = f"--v:{100 * min(max(value, 0), 1):.0f}%"
            tip = f"{name} after {after}: {percent(value)} %"
            cells.append(el("td", f"{100 * value:.0f}", class_=kind, style=level, title=tip))
        body.append(el("tr", *cells))
    grid = el("table", el("thead", el("tr", *head)), el("tbody", *body), class_="heat")
    return el("figure", el("figcaption", el("b", title)), el("div", grid, class_="scroll"))


def leak_chart(
    title: str, nights: Sequence[tuple[str, Mapping[str, float] | None]], stages: Mapping[str, str]
) -> Html:
    """A bar a night, cut into what is known in the morning and what each link lost.

    Args:
      title: what the chart is about.
      nights: name, and shares by stage that add up to one, or None where they were not measured.
      stages: what each stage means; its colours are the CSS variables --<stage> and --on-<stage>.
    """
    width, label, row = 560, 150, 28
    marks = []
    for index, (name, shares) in enumerate(nights):
        y, x = index * row, float(label)
        marks.append(el("text", name if len(name) <= 24 else name[:23] + "…", x=0, y=y + 17))
        if shares is None:
            marks.append(el("text", "not measured", x=label, y=y + 17))
            continue
        for stage, share in shares.items():
            wide, tip = share * (width - label), el("title", f"{stages[stage]}: {percent(share)} %")
            box = {"x": round(x, 1), "y": y + 2, "width": round(max(wide - 2, 0), 1), "height": row - 6}
            marks.append(el("rect", tip, **box, style=f"fill:var(--{stage})"))
            if share >= 0.055:
                middle, ink = round(x + wide / 2 - 1, 1), f"fill:var(--on-{stage})"
                text = f"{100 * share:.0f}"
                marks.append(el("text", text, x=middle, y=y + 17, text_anchor="middle", style=ink))
            x += wide
    size = f"0 0 {width} {max(len(nights) * row, row)}"
    drawing = el("svg", *marks, viewBox=size, role="img", aria_label=title)
    return el("figure", el("figcaption", el("b", title)), drawing)
