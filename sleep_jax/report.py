"""One self-contained page, report.html, about all lives below a work directory.

It reads what `metrics` writes, draws with inline SVG, fetches nothing, and needs neither jax nor a script.
What is missing or unreadable is said on the page. What comes out of a file is escaped on its way in (`el`).
"""

import functools
import html
import json
import math
import os
import pathlib
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sleep_jax import report_answers, report_dreams
from sleep_jax.charts import (
    Html,
    Line,
    counted,
    el,
    foldable,
    heat_map,
    join,
    leak_chart,
    legend,
    line_chart,
    mean,
    numbered,
    table,
    thin,
)
from sleep_jax.figures import duration, percent, scaled
from sleep_jax.runs import Labels, Run, by_method, dicts, find_runs, leaks, mapping, number

TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html"
PANELS_DRAWN, COLOURS = 24, 8
CURVES = "nll", "kl", "entropy", "length", "reward", "grad", "loss", "accuracy"
STAGES = {
    "kept": "known after the night",
    "router": "lost: router does not find it",
    "student": "lost: student did not take it over",
    "dreams": "lost: dreams did not recall it",
    "awake": "lost: awake self had not learnt it",
}
# Sections of the page: each takes the runs and returns what stands below its heading.


def _missing(what: str, runs: Iterable[Run], labels: Labels) -> str:
    """Says which runs lack a part; nothing if none does."""
    names = ", ".join(labels[run.name] for run in runs)
    return el("p", f"No {what}: {names}.", class_="note") if names else ""


def _colours(runs: Sequence[Run]) -> dict[str, tuple[str, bool]]:
    """A colour a method, the same in every chart; dashed once the colours have been round."""
    return {m: (f"var(--s{i % COLOURS})", i >= COLOURS) for i, m in enumerate(by_method(runs))}


def _methods(runs: Sequence[Run], labels: Labels) -> Html:
    groups = by_method(run for run in runs if run.summary)
    if not groups:
        return el("p", "No summary.json yet: no life has ended.", class_="note")
    names = list(dict.fromkeys(n for run in runs for n in mapping(run.summary.get("experiences"))))
    signed = functools.partial("{:+.1f}".format)
    scalars = [
        ("everything", "final_accuracy", percent), ("birth before", "birth_before", percent),
        ("birth after", "birth_after", percent), ("learning", "learning_accuracy", percent),
        ("backward transfer", "backward_transfer", lambda v: signed(100 * v)),
        ("forward transfer", "forward_transfer", lambda v: signed(100 * v)),
        ("forgetting from first", "forgetting_from_first", lambda v: signed(100 * v)),
        ("forgetting from peak", "forgetting_from_peak", lambda v: signed(100 * v)),
    ]  # fmt: skip
    key = {
        m: el("span", class_="key dashed" if dashed else "key", style=f"--c:{colour}")
        for m, (colour, dashed) in _colours(runs).items()
    }

    def by_columns(columns: Sequence[tuple[str, Callable[[Run], Any], Callable]]) -> Html:
        rows = [
            [
                join([key[m], m]),
                len(group),
                *(mean(map(number, map(get, group)), form) for _, get, form in columns),
            ]
            for m, group in groups.items()
        ]
        return table(
            "t" + "n" * (len(columns) + 1), ["method", "seeds", *(head for head, *_ in columns)], rows
        )

    def inner(outer: str, name: str) -> Callable[[Run], Any]:
        return lambda run: mapping(run.summary.get(outer)).get(name)

    def scalar(name: str) -> Callable[[Run], Any]:
        return lambda run: run.summary.get(name)

    def wall(run: Run) -> float:
        return sum(number(v) or 0.0 for v in mapping(run.summary.get("wall_s")).values())

    def rolled_back(run: Run) -> int:
        nights = dicts(run.summary.get("nights"))
        return sum(night.get("outcome") == "rolled back" and not night.get("rem") for night in nights)

    costs = [
        *((f"{n} tokens", inner("tokens", n), scaled) for n in ("source", "dreamt", "gradient")),
        ("FLOPs of training steps", scalar("flops"), scaled), ("wall time", wall, duration),
        ("peak memory", scalar("peak_rss_bytes"), functools.partial(scaled, unit="B")),
        ("nights rolled back", rolled_back, "{:.3g}".format),
    ]  # fmt: skip
    return join([
        el("p", "At the end of life, in %. ± is the standard deviation over seeds. “Everything” is all "
           "that was ever learnt, birth included."),
        by_columns([(head, scalar(name), form) for head, name, form in scalars]),
        el("h3", "Each experience at the end, in %"),
        by_columns([(name, inner("experiences", name), percent) for name in names]),
        el("h3", "What it took"), by_columns(costs),
        _missing("summary.json (not ended)", [run for run in runs if not run.summary], labels),
    ])  # fmt: skip


def _nights(runs: Sequence[Run], labels: Labels) -> Html:
    """Accuracy after birth and each experience: all so far, birth, what came since; a line a method."""
    lived = [run for run in runs if run.rows]
    if not lived:
        return el("p", "No retention.csv yet.", class_="note")
    length = max(len(run.rows) for run in lived)

    def lines(mornings: Callable[[Run], list[float]], some_runs: Sequence[Run] = lived) -> Iterator[Line]:
        for method, group in by_method(some_runs).items():
            known = [mornings(run)[:length] for run in group]
            values = np.array([told + [math.nan] * (length - len(told)) for told in known])
            some = np.isfinite(values).any(axis=0)
            stats = [np.full(length, math.nan) for _ in range(3)]
            for out, f in zip(stats, (np.nanmean, np.nanmin, np.nanmax), strict=True):
                out[some] = f(values[:, some], axis=0)
            band = stats[1:] if len(group) > 1 else ((), ())
            colour, dashed = _colours(runs)[method]
            yield Line(method, colour, range(length), stats[0], *band, dashed=dashed)

    names = ["birth", *map(str, range(1, length))]
    parts = {
        "Everything so far": slice(None),
        "Known from birth": slice(1),
        "Learnt since birth": slice(1, None),
    }
    charts = [
        line_chart(title, list(lines(lambda run, part=part: run.accuracy(part))), names, share=True)
        for title, part in parts.items()
    ]
    if general := [run for run in lived if _general(run)]:
        charts.append(line_chart("General text, nats a token", list(lines(_general, general)), names))
    used = by_method(lived)
    keys = [(m, c, "dashed" if d else "") for m, (c, d) in _colours(runs).items() if m in used]
    return join([
        el("p", "Accuracy on all questions so far, after birth and after each experience, and what that cost "
           "in general text where it was measured. Bands run from the lowest to the highest seed."),
        legend(keys), el("div", *charts, class_="grid"), _untouched(general),
    ])  # fmt: skip


def _untouched(runs: Sequence[Run]) -> Html:
    """What general text took the checkpoint that births began with; '' where they began with none."""
    told = {number(run.summary.get("anchor_untouched")) for run in runs} - {None}
    if not told:
        return Html("")
    losses = ", ".join(f"{v:.3f}" for v in sorted(told))
    return el("p", f"The checkpoint itself, before birth, took {losses} nats a token of general text.")


def _general(run: Run) -> list[float]:
    """The loss on general text, morning by morning; empty where none was measured."""
    told = run.summary.get("anchor")
    return [number(v) or math.nan for v in told] if isinstance(told, list) else []


def _heat(runs: Sequence[Run], labels: Labels) -> Html:
    grids = [heat_map(labels[run.name], run.columns, run.rows) for run in runs if run.rows]
    wide = 9 + 2.2 * max((len(run.columns) for run in runs), default=0)
    return join([
        el("p", "Accuracy in % on each experience (columns, numbered as the rows) after each one (rows). "
           "Faint: asked before it was ever lived."),
        el("div", *grids, class_="grid", style=f"--least:{wide:.0f}rem"),
        _missing("retention.csv", [run for run in runs if not run.rows], labels),
    ])  # fmt: skip


def _lost(runs: Sequence[Run], labels: Labels) -> Html:
    slept = [run for run in runs if run.links]
    if not slept:
        return el("p", "No links.jsonl: no life here has slept.", class_="note")
    charts = [
        leak_chart(
            labels[run.name],
            [(numbered(n.get("night", "?"), str(n.get("experience", "?"))), leaks(n)) for n in run.links],
            STAGES,
        )
        for run in slept
    ]
    tables = []
    for run in slept:
        nights = dicts(run.summary.get("nights"))
        ends, dreamt_on = (
            {n.get("night"): n for n in nights if bool(n.get("rem")) is rem} for rem in (False, True)
        )
        rows, off = [], []
        for night in run.links:
            shares, end = leaks(night) or {}, ends.get(night.get("night"), {})
            worst = max((s for s in shares if s != "kept"), key=lambda s: shares[s], default=None)
            of = [percent(number(night.get(k))) for k in ("awake", "recalled", "student", "after")]
            old = [percent(number(night.get(k))) for k in ("old_before", "old_after")]
            end_text = _ending(end)
            leak = "–" if worst is None else f"{worst} {percent(shares[worst])}"
            new = percent(number(night.get("new_before")))
            rows.append(
                [night.get("night", "?"), night.get("experience", "?"), *of, leak, new, *old, end_text]
            )
            off.append(end.get("outcome") == "rolled back")
            if further := dreamt_on.get(night.get("night")):
                about = f"{night.get('experience', '?')}, dreamt on"
                rows.append([night.get("night", "?"), about, *["–"] * 8, _ending(further)])
                off.append(further.get("outcome") == "rolled back")
        heads = ["night", "experience", "awake", "recalled", "student", "after", "largest leak", "new before",
                 "old before", "old after", "outcome"]  # fmt: skip
        tables.append(
            (labels[run.name], counted(len(run.links), "night"), table("ntnnnntnnnw", heads, rows, off))
        )
    return join([
        el("p", "Of the day's probes: what the awake self knew, how evenly their answers came up in its "
           "dreams, what the student knows with its new slot forced on, and what is left when the router "
           "decides. Every stage is raised to what a later one reaches, so that the parts add up; the tables "
           "have the values as measured."),
        legend((text, f"var(--{stage})", "block") for stage, text in STAGES.items()),
        el("div", *charts, class_="grid", style="--least:30rem"), foldable(tables),
    ])  # fmt: skip


def _ending(night: Mapping[str, Any]) -> str:
    return " · ".join(str(night[k]) for k in ("outcome", "reason") if night.get(k)) or "–"


def _curves(runs: Sequence[Run], labels: Labels) -> Html:
    entries = []
    for run in runs:
        curves = run.curves()
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
            line_chart(
                f"{key[0]} · {key[1]}",
                [
                    Line(f"day {c}", colour[c], *thin(*zip(*curves[key][c], strict=True)))
                    for c in sorted(curves[key])
                ],
            )
            for key in drawn[:PANELS_DRAWN]
        ]
        keys = [(f"day {c}" if c else "birth", colour[c], "") for c in cycles]
        rest = len(curves) - len(charts)
        note = el("p", f"{rest} more scalars in metrics.jsonl only.") if rest else ""
        content = join([legend(keys), el("div", *charts, class_="grid"), note])
        entries.append((labels[run.name], f"{len(run.metrics):,} lines of metrics", content))
    if not entries:
        return el("p", "No metrics.jsonl with a curve in it.", class_="note")
    intro = "Over the steps of a phase; a line a day and the night after it."
    return join([el("p", intro), foldable(entries)])


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
        entries.append((labels[run.name], counted(len(rows), "slot"), table("nnntnnttnt", heads, rows, off)))
    if not entries:
        return el("p", "No slots.json: no life here has opened a slot.", class_="note")
    intro = "Which night, experience and dreams wrote each slot, and what share of answers it gives now."
    return join([el("p", intro), foldable(entries)])


def _costs(runs: Sequence[Run], labels: Labels) -> Html:
    seconds = {run.name: run.seconds() for run in runs}
    phases = list(dict.fromkeys(phase for spent in seconds.values() for phase in spent))
    rows = [
        [method, *(mean([seconds[r.name].get(p) for r in group], duration) for p in phases),
         mean([sum(seconds[r.name].values()) for r in group], duration)]
        for method, group in by_method(run for run in runs if seconds[run.name]).items()
    ]  # fmt: skip
    times = table("t" + "n" * (len(phases) + 1), ["method", *phases, "all"], rows)
    parts = [
        el(
            "p",
            "A birth is made once a seed and shared; the birth of a method is what it prepares, and its "
            "first questions.",
        ),
        el("h3", "Wall time by phase"),
        times if rows else el("p", "Neither wall_s nor timings.jsonl.", class_="note"),
    ]
    steps = []
    for method, group in by_method(run for run in runs if run.memory).items():
        for name, step in group[0].memory.items():
            sizes = mapping(mapping(step).get("bytes"))
            used = [scaled(number(sizes.get(k)), "B") for k in ("argument", "output", "temp")]
            steps.append([method, name, scaled(number(mapping(step).get("flops"))), *used])
    parts.append(el("h3", "Compiled steps"))
    heads = "method", "step", "FLOPs", "arguments", "output", "temporary"
    parts.append(table("ttnnnn", heads, steps) if steps else el("p", "No memory.json.", class_="note"))
    return join(parts)


def _config(runs: Sequence[Run], root: pathlib.Path, problems: list[str]) -> Html:
    """The configuration of all lives; a key in which they differ has all its values."""
    top = [] if any(run.path == root for run in runs) else [Run(root, ".")]
    problems += [problem for run in top for problem in run.problems]
    configs = [run.settings() for run in (*runs, *top) if run.config]
    if not configs:
        return el("p", "No config.json.", class_="note")
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        rows.append([key, " | ".join(dict.fromkeys(config[key] for config in configs if key in config))])
    summary = el("summary", "Configuration", el("span", f"{len(rows)} keys", class_="soft"))
    return el("details", summary, table("tw", ["key", "value"], rows))


def _study(root: pathlib.Path, name: str, problems: list[str]) -> Mapping[str, Any]:
    """What a study came to, where this is the directory of one."""
    path = root / f"{name}.json"
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return {}


# A section that returns '' is left out.
SECTIONS = (
    ("methods", "Methods", _methods),
    ("nights", "Accuracy over nights", _nights),
    ("retention", "What is retained", _heat),
    ("lost", "Where it is lost", _lost),
    ("answers", "Answers that changed", report_answers.changed),
    ("dreams", "What was dreamt", report_dreams.dreamt),
    ("tried", "What was tried", report_dreams.tried),
    ("curves", "Learning curves", _curves),
    ("slots", "Slots and where they come from", _slots),
    ("costs", "Time and memory", _costs),
)
OF_ALL = "dreams", "tried", "curves", "costs"  # that births and parts of studies have as well


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
    found = find_runs(root)
    runs = [run for run in found if run.is_life]
    seeds = len({run.seed for run in runs})
    labels = {run.name: run.method if seeds == 1 else f"{run.method} · seed {run.seed}" for run in found}
    problems: list[str] = []
    config = _config(runs, root, problems)
    title = f"Life report: {root.resolve().name}"
    counts = {"run": len(runs), "method": len(by_method(runs)), "seed": seeds}
    lives = " · ".join(counted(count, noun) for noun, count in counts.items())
    problems += [problem for run in found for problem in run.problems]
    sections = [
        ("passages", "Passages", report_dreams.passages(_study(root, "incorporation", problems))),
        ("puzzles", "Puzzles", report_dreams.puzzles(_study(root, "few_shot", problems))),
    ]
    for anchor, heading, section in SECTIONS:
        about = found if anchor in OF_ALL else runs
        sections.append((anchor, heading, section(about, labels) if about else ""))
    sections = [part for part in sections if part[2]]
    links = [el("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections]
    body = [
        el("h1", title),
        el("p", lives if found else "No life was found here."),
        el("nav", *links),
    ]
    body += [el("p", problem, class_="note") for problem in problems]
    body.append(config)
    body += [el("section", el("h2", heading, id=anchor), content) for anchor, heading, content in sections]
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), body="\n".join(body))
    path = root / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8", errors="replace")
    os.replace(partial, path)
    return path
