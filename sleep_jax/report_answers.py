"""The section of `report` about answers that are no longer what they were when they were first given."""

from collections.abc import Mapping, Sequence
from typing import Any

from sleep_jax.charts import Html, counted, el, foldable, join, table
from sleep_jax.runs import Labels, Run, sample

SHOWN = 60  # changes of a run
FATES = {
    (False, True): "learnt",
    (True, False): "lost",
    (True, True): "follows what was told since",
    (False, False): "wrong, otherwise",
}


def changes(
    mornings: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """Probes that are answered otherwise on the last morning than on the first after they were lived.

    Args:
      mornings: lines of answers/<cycle>.jsonl, by cycle: each asks one experience more, the last of them
        ahead of its day.
      names: of all experiences in their order; of some of them nothing may be asked.

    Returns:
      The last answer of each with `before`, `was` (what was expected then) and `fate`, corrections first; and
      the number of all probes that were asked twice.
    """
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    asked, changed = 0, []
    for cycle, lines in enumerate(mornings):
        lived = names[: cycle + 1]
        for line in lines:
            key = str(line.get("experience")), str(line.get("question"))
            if key[0] not in lived:
                continue
            then = first.setdefault(key, line)
            if cycle < len(mornings) - 1 or then is line:
                continue
            asked += 1
            if line.get("answer") != then.get("answer"):
                fate = FATES[bool(then.get("right")), bool(line.get("right"))]
                told = {"before": then.get("answer"), "was": then.get("expected"), "fate": fate}
                changed.append({**line, **told})
    return sorted(changed, key=lambda c: c["was"] == c.get("expected")), asked


def changed(runs: Sequence[Run], labels: Labels) -> Html:
    entries = []
    for run in (run for run in runs if run.answers):
        lines = (line for morning in run.answers for line in morning)
        names = run.columns or list(dict.fromkeys(str(line.get("experience")) for line in lines))
        found, asked = changes(run.answers, names)
        fates = [c["fate"] for c in found]
        counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in FATES.values() if fate in fates)
        corrected = [c for c in found if c["was"] != c.get("expected")]
        some = corrected[:SHOWN] + sample([c for c in found if c not in corrected], SHOWN, ("fate",))
        rows = [
            [
                c.get("experience", "?"), c.get("question", "?"), c["before"], c.get("answer", "?"),
                c.get("expected", "?") + (f" (was: {c['was']})" if c in corrected else ""), c["fate"],
            ]
            for c in some[:SHOWN]
        ]  # fmt: skip
        heads = "of", "question", "first answer", "now", "expected", "fate"
        content = table("twwwwt", heads, rows, [c["fate"] == "lost" for c in some[:SHOWN]])
        remark = f"{len(found):,} of {counted(asked, 'answer')} changed{': ' * bool(found)}{counts}"
        entries.append((labels[run.name], remark, content))
    if not entries:
        return el("p", "No answers/*.jsonl: nothing was asked here, or not written.", class_="note")
    intro = (
        "Questions that are answered otherwise now than on the first morning after their day. Where a later "
        "day told or asked something else, that is expected since, and they come first; of a run "
        f"{SHOWN} are shown."
    )
    return join([el("p", intro), foldable(entries)])
