"""What the parts of a study come to: means with standard errors, and differences between arms in pairs."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import rich.table

from sleep_jax import terminal

# Values of a row of "arms", and what stands above them; a line break parts long ones.
COLUMNS = {
    "single": "n = 1", "single_behind": "sleep is\nahead by", "continued": "many\nat once",
    "continued_behind": "sleep is\nahead by", "first_own": "first passage\nafter its edit",
    "first_end": "first passage\nafter the last", "birth_before": "birth\nbefore",
    "birth_after_continued": "birth after\nmany at once", "birth_after_edits": "birth after\nthe last edit",
}  # fmt: skip
# The same for rows of "arms" of the study of puzzles.
FEW_SHOT = {
    "by_puzzle": "mean over puzzles\n± standard error", "behind": "sleep is\nahead by",
    "in_context": "in context,\nno trial", "birth_before": "birth\nbefore", "birth_after": "birth\nafter",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean of n values, and its standard error s / sqrt(n); None where there are fewer than two."""

    mean: float
    error: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        values = np.asarray(values, float)
        error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(values.mean()), error, len(values))

    def percent(self) -> str:
        """0.784, 0.021 as "78.4 ± 2.1"."""
        return f"{100 * self.mean:.1f}" + ("" if self.error is None else f" ± {100 * self.error:.1f}")


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (1927), 95 % by default; everything where nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, around = hits / count, z**2 / count
    middle = (share + around / 2) / (1 + around)
    half = z / (1 + around) * math.sqrt(share * (1 - share) / count + around / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def by_passage(found: Mapping) -> np.ndarray:
    """The mean grade of each passage of a part: its questions depend on each other, passages do not."""
    return np.array([np.mean(hits) for hits in found["hits"]])


def kept(edits: Mapping) -> tuple[float, float]:
    """Accuracy on the first passage right after its own edit, and after the last one."""
    first = [float(np.mean(hits[0])) for hits in edits["hits"]]
    return (first[1], first[-1]) if len(first) > 1 else (first[0], first[0])


def incorporation(results: Sequence[Mapping]) -> dict[str, list[dict]]:
    """The tables of `studies.incorporation`, as rows of named values.

    Accuracies are means over passages, each the mean over seeds, with standard errors over the passages,
    which all seeds share; differences to "sleep" are taken passage by passage. What is measured
    once a seed has its standard error over the seeds.

    Args:
      results: of every seed and arm, as `incorporation.run` collects them.
    """
    arms = list(dict.fromkeys(r["arm"] for r in results))
    of = {arm: [r for r in results if r["arm"] == arm] for arm in arms}
    seeds = _seeds(results)
    tables: dict[str, list[dict]] = {"arms": [], "rounds": []}
    for arm, found in of.items():
        row: dict = {"arm": arm, "seeds": len(found)}
        for part in ("single", "continued"):
            own = np.mean([by_passage(r[part]) for r in found], axis=0)
            row[part] = Estimate.of(own)
            if arm != "sleep" and seeds["sleep"] == seeds[arm]:
                best = np.mean([by_passage(r[part]) for r in of["sleep"]], axis=0)
                row[f"{part}_behind"] = Estimate.of(best - own)
        row["birth_after_continued"] = Estimate.of([r["continued"]["elsewhere"][0] for r in found])
        row["birth_before"] = Estimate.of([r["edits"]["elsewhere"][0][0] for r in found])
        row["birth_after_edits"] = Estimate.of([r["edits"]["elsewhere"][-1][0] for r in found])
        own, end = zip(*(kept(r["edits"]) for r in found), strict=True)
        row["first_own"], row["first_end"] = Estimate.of(own), Estimate.of(end)
        by_edit = [[float(np.mean(hits[0])) for hits in r["edits"]["hits"]] for r in found]
        row["first_by_edit"] = np.mean(by_edit, axis=0).tolist()
        nights = [n for r in found for part in ("single", "continued", "edits") for n in r[part]["nights"]]
        row["rolled_back"] = sum(n["outcome"] != "committed" for n in nights) if nights else None
        tables["arms"].append(row)
        tables["rounds"] += _rounds(arm, found)
    return tables


def _seeds(results: Sequence[Mapping]) -> dict[str, list[str]]:
    """The seeds that each arm has, and "sleep" in any case: only the same ones are compared with it."""
    arms = dict.fromkeys(["sleep", *(r["arm"] for r in results)])
    return {arm: sorted(r["seed"] for r in results if r["arm"] == arm) for arm in arms}


def _rounds(arm: str, found: Sequence[Mapping]) -> list[dict]:
    """What was rewarded of what was tried, round by round over all seeds, with Wilson's interval."""
    rows = []
    for number, rounds in enumerate(zip(*(r["rounds"] for r in found), strict=True), 1):
        hits, tried = (sum(one[k] for one in rounds) for k in ("rewarded", "tried"))
        low, high = wilson(hits, tried)
        shares = {"share": hits / max(tried, 1), "low": low, "high": high}
        rows.append({"arm": arm, "round": number, "rewarded": hits, "tried": tried} | shares)
    return rows


def few_shot(results: Sequence[Mapping]) -> dict[str, list[dict]]:
    """The tables of `studies.few_shot`, as rows of named values.

    A trial is one regimen on one held-out puzzle. The interval is over trials; those of a puzzle depend on
    each other, so the share of each puzzle, over its trials and the seeds, has its mean and standard error
    over puzzles beside it, and differences to "sleep" are taken puzzle by puzzle.

    Args:
      results: of every seed and arm, as `comparing.collected` gives them.
    """
    arms = list(dict.fromkeys(r["arm"] for r in results))
    of = {arm: [r["tasks"] | {"rounds": r["rounds"]} for r in results if r["arm"] == arm] for arm in arms}
    seeds = _seeds(results)
    share = {
        arm: np.mean([[np.mean(t) for t in r["solved"]] for r in found], axis=0) for arm, found in of.items()
    }
    tables: dict[str, list[dict]] = {"arms": [], "rounds": []}
    for arm, found in of.items():
        trials = [hit for r in found for task in r["solved"] for hit in task]
        low, high = wilson(sum(trials), len(trials))
        row: dict = {
            "arm": arm, "seeds": len(found), "solved": sum(trials), "tried": len(trials),
            "share": sum(trials) / max(len(trials), 1), "low": low, "high": high,
            "by_puzzle": Estimate.of(share[arm]),
            "in_context": Estimate.of(np.mean([r["in_context"] for r in found], axis=0)),
            "birth_before": Estimate.of([r["birth"][0] for r in found]),
            "birth_after": Estimate.of([r["birth"][1] for r in found]),
        }  # fmt: skip
        if arm != "sleep" and seeds["sleep"] == seeds[arm]:
            row["behind"] = Estimate.of(share["sleep"] - share[arm])
        tables["arms"].append(row)
        tables["rounds"] += _rounds(arm, found)
    return tables


def rounds(rows: Sequence[Mapping]) -> list[rich.table.Table]:
    """The table of rewarded dreams for a terminal; none where nothing was learnt."""
    heads = ["arm", "round", "rewarded", "% (95 % interval)"]
    shown = [
        [
            row["arm"], str(row["round"]), f"{row['rewarded']} of {row['tried']}",
            f"{100 * row['share']:.0f} ({100 * row['low']:.0f} to {100 * row['high']:.0f})",
        ]
        for row in rows
    ]  # fmt: skip
    return [terminal.table("Rewarded dreams", heads, shown)] if shown else []
