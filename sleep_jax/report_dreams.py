"""The sections of `report` about dreams: what stage 1 dreamt, what stage 2 tried, what a study comes to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sleep_jax.charts import Html, Line, counted, el, foldable, join, legend, line_chart, table
from sleep_jax.figures import percent
from sleep_jax.runs import Labels, Run, dicts, mapping, number, sample
from sleep_jax.studies import tables

DREAMS_SHOWN, CHARACTERS_SHOWN = 6, 240


def _clip(text: Any) -> str:
    text = str(text)
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"


def dreamt(runs: Sequence[Run], labels: Labels) -> Html:
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
            fates = [len(dreams), *map(by_kind.get, kinds), len(kept), *map(by_reason.get, reasons)]
            rewards = [r for r in (number(dream.get("reward")) for dream in dreams) if r is not None]
            average = f"{np.mean(rewards):.3f}".replace("-", "−") if rewards else "–"
            rows.append([_said(name), *(f"{c or 0:,}" for c in fates), average])
            # Of pairs, those that were held out: they carry a reward.
            told = [d for d in kept if number(d.get("reward")) is not None or not d.get("prompt")]
            some = sample(told or kept, DREAMS_SHOWN) + sample(dropped, DREAMS_SHOWN)
            heads = "teacher", "prompt", "answer", "credited to", "reward", "kept?"
            parts.append(el("h4", f"{_said(name)}: {len(some)} of {len(dreams):,}"))
            parts.append(table("twwtnt", heads, map(cells, some), [not d.get("kept") for d in some]))
        heads = ["night", "dreams", *(f"by {k}" for k in kinds), "kept", *(f"dropped: {r}" for r in reasons)]
        counts = table("t" + "n" * len(heads), [*heads, "mean reward (held out)"], rows)
        remark = f"{counted(len(total), 'dream')} in {counted(len(nights), 'night')}"
        entries.append((labels[run.name], remark, join([counts, *parts])))
    if not entries:
        return el("p", "No dreams/night-*.jsonl: nothing was dreamt here, or not written.", class_="note")
    intro = "Of every night a few dreams that were kept and a few that were not, of each teacher and reason."
    return join([el("p", intro), foldable(entries)])


def tried(runs: Sequence[Run], labels: Labels) -> Html:
    """Rounds of learning to dream: how many dreams were tried and rewarded, and some of them."""
    entries = []
    for run in (run for run in runs if any(run.trials.values())):
        rounds = {name: dreams for name, dreams in run.trials.items() if dreams}
        total = [dream for dreams in rounds.values() for dream in dreams]
        reasons = list(dict.fromkeys(str(d.get("reason")) for d in total if d.get("reason")))
        rows, parts = [], []
        for name, dreams in rounds.items():
            after = [d for d in dreams if number(d.get("reward")) is not None]
            hits = sum(number(d.get("reward")) == 1 for d in after)
            low, high = tables.wilson(hits, len(after))
            share = f"{percent(hits / len(after))} ({percent(low)} to {percent(high)})" if after else "–"
            fates = Counter(str(d.get("reason")) for d in dreams)
            measured = [_mean([number(d.get(key)) for d in after]) for key in ("before", "after")]
            counts = [len(dreams), *(fates[r] for r in reasons), len(after), hits]
            rows.append([_said(name), *(f"{c:,}" for c in counts), share, *measured])
            some = sample(dreams, 2 * DREAMS_SHOWN, ("reason", "reward"))
            parts.append(el("h4", f"{_said(name)}: {len(some)} of {len(dreams):,}"))
            heads = "task", "dream", "norm", "alignment", "gain", "without", "with", "difference", "fate"
            parts.append(
                table("twnnnnnnt", heads, map(_trial, some), [number(d.get("reward")) != 1 for d in some])
            )
        heads = ["round", "dreams", *reasons, "tried", "rewarded", "% (95 % interval)", "without", "with"]
        counted_table = table("t" + "n" * (len(heads) - 1), heads, rows)
        remark = f"{counted(len(total), 'dream')} in {counted(len(rounds), 'round')}"
        entries.append((labels[run.name], remark, join([counted_table, *parts])))
    if not entries:
        return ""
    intro = (
        "Stage 2: each dream was learnt by an instance of its own. “With” is the share of its task’s "
        "questions that this instance answers, “without” that of one that has read the context alone, or of "
        "the model as it was where contexts are not read again (rem.reread), in %. What raised it was "
        "rewarded, and the dreamer learnt from that. “Gain” is what a dream adds to those picked before it."
    )
    return join([el("p", intro), foldable(entries)])


def _said(file: str) -> str:
    return file.replace("-0", "-").replace("-", " ")


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return percent(float(np.mean(known))) if known else "–"


def _trial(dream: Mapping[str, Any]) -> list[Any]:
    scores = (number(dream.get(k)) for k in ("norm", "align", "gain"))
    shares = [percent(number(dream.get(k))) for k in ("before", "after")]
    difference, error = (number(dream.get(k)) for k in ("difference", "error"))
    paired = "–" if difference is None else f"{100 * difference:+.0f}".replace("-", "−")
    reward = {None: "learnt from, not tried", 1: "rewarded"}.get(number(dream.get("reward")), "not rewarded")
    return [
        dream.get("task", "?"), _clip(dream.get("text", "")),
        *("–" if v is None else f"{v:.3g}".replace("-", "−") for v in scores), *shares,
        paired + ("" if error is None or difference is None else f" ± {100 * error:.0f}"),
        dream.get("reason") or reward,
    ]  # fmt: skip


def passages(found: Mapping[str, Any]) -> Html:
    """The tables of `studies.incorporation`; '' where there are none."""
    arms = dicts(found.get("arms"))
    if not arms:
        return ""
    heads = ["arm", "seeds", *_heads(tables.COLUMNS), "nights rolled back"]
    rows = [
        [
            row.get("arm", "?"), row.get("seeds", "?"), *_cells(row, tables.COLUMNS),
            "–" if row.get("rolled_back") is None else row["rolled_back"],
        ]
        for row in arms
    ]  # fmt: skip
    after: dict[str, list[float]] = {}
    for row in arms:
        steps = [number(v) for v in row.get("first_by_edit") or ()]
        after[str(row.get("arm"))] = [float("nan") if v is None else v for v in steps]
    lines = [
        Line(arm, f"var(--s{i % 8})", range(len(y)), y)
        for i, (arm, y) in enumerate(after.items())
        if len(y) > 1
    ]
    names = [str(i) for i in range(max((len(line.y) for line in lines), default=0))]
    chart = [line_chart("The first passage, after each edit", lines, names, share=True)] if lines else []
    key = legend((line.label, line.c, "") for line in lines)
    return join([
        el("p", "Accuracy in %, mean and standard error over passages and seeds; questions are asked without "
           "the passage. “Ahead by” is paired, passage by passage."),
        table("t" + "n" * (len(heads) - 1), heads, rows), *([key] if lines else []),
        el("div", *chart, class_="grid"),
    ])  # fmt: skip


def puzzles(found: Mapping[str, Any]) -> Html:
    """The tables of `studies.few_shot`; '' where there are none."""
    arms = dicts(found.get("arms"))
    if not arms:
        return ""
    heads = ["arm", "seeds", "solved", "% (95 % interval)", *_heads(tables.FEW_SHOT)]
    rows = [
        [
            row.get("arm", "?"), row.get("seeds", "?"),
            f"{row.get('solved', '?')} of {row.get('tried', '?')}",
            f"{percent(number(row.get('share')))} ({percent(number(row.get('low')))} to "
            f"{percent(number(row.get('high')))})",
            *_cells(row, tables.FEW_SHOT),
        ]
        for row in arms
    ]  # fmt: skip
    return join([
        el("p", "Trials that solved a held-out puzzle. The interval is over trials; those of one puzzle are "
           "alike, so mean and standard error over puzzles stand beside it. “Ahead by” is paired, puzzle by "
           "puzzle. Birth: what was solved in context of the puzzles that birth was like."),
        table("t" + "n" * (len(heads) - 1), heads, rows),
    ])  # fmt: skip


def _heads(columns: Mapping[str, str]) -> list[str]:
    return [" ".join(head.split()) for head in columns.values()]


def _cells(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """Means with their standard errors in %."""

    def cell(key: str) -> str:
        mean, error = (number(mapping(row.get(key)).get(k)) for k in ("mean", "error"))
        return "–" if mean is None else tables.Estimate(mean, error, 0).percent().replace("-", "−")

    return [cell(key) for key in columns]
