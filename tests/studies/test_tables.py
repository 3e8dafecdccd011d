import math

import numpy as np
import pytest

from sleep_jax.studies import tables
from sleep_jax.studies.tables import Estimate


def part(*hits):
    return {"hits": [list(h) for h in hits], "elsewhere": [0.5, 0.25], "nights": []}


def result(arm, seed, hits, first, rounds=()):
    edits = {
        "hits": [[[f], [0.0]] for f in first],
        "elsewhere": [[0.9 - 0.1 * i, 0.0] for i in range(len(first))],
        "nights": [{"outcome": "committed"}, {"outcome": "rolled back"}] if arm == "sleep" else [],
    }
    return {"arm": arm, "seed": seed, "single": part(*hits), "continued": part(*hits), "edits": edits,
            "rounds": [{"rewarded": r, "tried": t} for r, t in rounds]}  # fmt: skip


def test_an_estimate_is_a_mean_with_its_standard_error():
    found = Estimate.of([0.1, 0.2, 0.6])
    assert found.mean == pytest.approx(0.3) and found.n == 3
    assert found.error == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3))
    assert found.percent() == "30.0 ± 15.3" and Estimate.of([0.5]).percent() == "50.0"


def test_wilsons_interval():
    low, high = tables.wilson(8, 10)  # the ends solve (p - 0.8)^2 = 1.96^2 p (1 - p) / 10
    for p in (low, high):
        assert (p - 0.8) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / 10)
    assert low < 0.8 < high and tables.wilson(0, 0) == (0.0, 1.0)
    assert tables.wilson(0, 5)[0] == 0 and tables.wilson(5, 5)[1] == 1


def test_differences_are_taken_passage_by_passage():
    # Passages differ by far more than the arms do.
    own = [[0, 0], [1, 1], [0, 1]]
    better = [[0, 1], [1, 1], [1, 1]]
    found = tables.incorporation(
        [result("seal", 0, own, [0.0, 1.0, 0.25]), result("sleep", 0, better, [0.0, 1.0, 0.75])]
    )
    seal, sleep = found["arms"]
    assert seal["single"].mean == 0.5 and sleep["single"].mean == pytest.approx(5 / 6)
    assert seal["single_behind"] == Estimate.of([0.5, 0.0, 0.5]) and "single_behind" not in sleep
    assert (seal["first_own"].mean, seal["first_end"].mean) == (1.0, 0.25) and sleep["first_end"].mean == 0.75
    assert seal["birth_before"].mean == 0.9 and seal["birth_after_edits"].mean == pytest.approx(0.7)


def test_rounds_are_counted_over_seeds():
    found = tables.incorporation(
        [result("sleep", s, [[1.0]], [0.0, 1.0], [(4, 10), (s + 8, 10)]) for s in range(2)]
    )
    first, second = found["rounds"]
    assert (first["round"], first["rewarded"], first["tried"], first["share"]) == (1, 8, 20, 0.4)
    assert (second["rewarded"], second["tried"]) == (17, 20)
    assert (second["low"], second["high"]) == tables.wilson(17, 20)
    assert found["arms"][0]["seeds"] == 2


def test_an_arm_that_learns_nothing_has_one_row_of_edits():
    (row,) = tables.incorporation([result("base", 0, [[0.0]], [0.125])])["arms"]
    assert row["first_own"].mean == row["first_end"].mean == 0.125


def test_trials_of_puzzles_are_counted_and_differences_taken_puzzle_by_puzzle():
    def result(arm, solved, birth):
        rounds = [{"rewarded": 1, "tried": 4}, {"rewarded": 3, "tried": 4}] if arm == "sleep" else []
        tasks = {"solved": solved, "in_context": [False, True], "birth": birth, "nights": []}
        return {"arm": arm, "seed": "s", "tasks": tasks, "rounds": rounds}

    found = tables.few_shot([
        result("ttt", [[True, False], [False, False]], [0.5, 0.5]),
        result("ttt", [[True, True], [False, False]], [0.7, 0.7]),
        result("sleep", [[True, True], [True, False]], [0.5, 0.4]),
        result("sleep", [[True, True], [True, False]], [0.7, 0.6]),
    ])  # fmt: skip
    ttt, sleep = found["arms"]
    assert (ttt["solved"], ttt["tried"], ttt["share"]) == (3, 8, 3 / 8)
    assert (ttt["low"], ttt["high"]) == tables.wilson(3, 8)
    assert ttt["by_puzzle"].mean == pytest.approx(3 / 8) and sleep["by_puzzle"].mean == pytest.approx(0.75)
    assert ttt["by_puzzle"].error == pytest.approx(3 / 8)  # 3/4 and 0 of the two puzzles
    assert ttt["behind"].mean == pytest.approx(3 / 8) and ttt["behind"].error == pytest.approx(1 / 8)
    assert "behind" not in sleep and sleep["birth_after"].mean == pytest.approx(0.5)
    assert [(r["arm"], r["rewarded"], r["tried"]) for r in found["rounds"]] == [
        ("sleep", 2, 8), ("sleep", 6, 8)
    ]  # fmt: skip
