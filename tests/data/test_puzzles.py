import json
import os
import pathlib

import numpy as np
import pytest

from sleep_jax.data import puzzles
from sleep_jax.data.grids import Pair

DATA = pathlib.Path(os.environ.get("SLEEP_JAX_DATA", "../shared/data"))
TASK = {
    "train": [{"input": [[1, 2]], "output": [[2], [1]]}, {"input": [[0]], "output": [[3]]}],
    "test": [{"input": [[4]], "output": [[5]]}],
}


def written(folder, entries, joined):
    (folder / "arc_agi1").mkdir()
    if joined:
        (folder / "arc_agi1" / "training.json").write_text(json.dumps(entries))
    else:
        (folder / "arc_agi1" / "training").mkdir()
        for name, entry in entries.items():
            (folder / "arc_agi1" / "training" / f"{name}.json").write_text(json.dumps(entry))
    return folder


@pytest.mark.parametrize("joined", [True, False])
def test_published_puzzles_are_read(joined, tmp_path):
    folder = written(tmp_path, {"b": TASK, "a": TASK | {"test": TASK["train"]}}, joined)
    a, b = puzzles.arc(folder, "training")
    assert (a.name, b.name) == ("a", "b") and a.asked == a.shown == b.shown
    assert b.shown == (Pair(((1, 2),), ((2,), (1,))), Pair(((0,),), ((3,),)))
    assert b.asked == (Pair(((4,),), ((5,),)),)
    assert puzzles.arc(folder, "training", ["b"]) == (b,)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "expected an object"),
        ({"a": {"train": [], "test": []}}, "a must hold train and test"),
        ({"a": TASK | {"test": [{"input": [[1]]}]}}, "a: a pair must hold input and output"),
        ({"a": TASK | {"test": [{"input": [1], "output": [[1]]}]}}, "a: a pair must hold"),
        ({"a": TASK | {"test": [{"input": [[1], [1, 2]], "output": [[1]]}]}}, "a: a grid needs rows"),
        ({"a": TASK | {"test": [{"input": [[11]], "output": [[1]]}]}}, "a: colours are"),
    ],
    ids=str,
)
def test_what_is_no_puzzle_is_an_error_that_names_it(entries, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        puzzles.arc(written(tmp_path, entries, True), "training")


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation.json.*folder.*data_dir"):
        puzzles.arc(tmp_path, "evaluation")
    with pytest.raises(ValueError, match="neither 'training' nor"):
        puzzles.arc(tmp_path, "test")
    folder = written(tmp_path, {"a": TASK}, True)
    with pytest.raises(ValueError, match="no puzzle b, c"):
        puzzles.arc(folder, "training", ["c", "a", "b"])
    (folder / "arc_agi1" / "training.json").write_text("{")
    with pytest.raises(ValueError, match="malformed JSON"):
        puzzles.arc(folder, "training")


@pytest.mark.skipif(not (DATA / "arc_agi1").exists(), reason=f"no arc_agi1 in {DATA}")
def test_the_real_puzzles_are_all_there():
    training, evaluation = (puzzles.arc(DATA, split) for split in ("training", "evaluation"))
    assert len(training) == len(evaluation) == 400
    assert [sum(len(p.asked) for p in x) for x in (training, evaluation)] == [416, 419]
    assert [len(puzzles.arc(DATA, s, puzzles.SEAL[s])) for s in ("training", "evaluation")] == [11, 8]


# Rules by hand on one grid.
X = np.array([[1, 0, 2], [0, 3, 0], [1, 1, 0]])


class Draws:
    """Stands in for a generator: gives these numbers, one after the other."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, *_):
        return self.numbers.pop(0)

    def choice(self, _):
        return self.numbers.pop(0)

    def permutation(self, _):
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("family", "numbers", "wanted"),
    [
        ("turn", (1, 0), [[2, 0, 0], [0, 3, 1], [1, 0, 1]]),
        ("turn", (0, 1), [[1, 0, 1], [0, 3, 1], [2, 0, 0]]),
        ("turn", (0, 0), [[0, 1, 1], [0, 3, 0], [2, 0, 1]]),
        ("recolour", ([1, 3],), [[3, 0, 2], [0, 1, 0], [3, 3, 0]]),
        ("fall", (0,), [[0, 0, 0], [1, 3, 0], [1, 1, 2]]),
        ("fall", (2,), [[1, 3, 2], [1, 1, 0], [0, 0, 0]]),
        ("frame", (7,), [[7, 7, 7], [7, 3, 7], [7, 7, 7]]),
        ("mirror", (0,), [[1, 0, 1], [0, 3, 0], [1, 1, 1]]),
        ("keep", (5,), [[5, 0, 5], [0, 5, 0], [5, 5, 0]]),
        ("shift", (0, 1), [[1, 1, 0], [1, 0, 2], [0, 3, 0]]),
        ("shift", (1, -1), [[0, 2, 1], [3, 0, 0], [1, 0, 1]]),
        ("edge", (0, 7), [[7, 7, 7], [0, 3, 0], [1, 1, 0]]),
        ("edge", (1, 7), [[1, 0, 7], [0, 3, 7], [1, 1, 7]]),
        ("inside", (7,), [[1, 0, 2], [0, 7, 0], [1, 1, 0]]),
        ("corners", (7,), [[7, 0, 7], [0, 3, 0], [7, 1, 7]]),
        ("count", (8,), [[9, 0, 1], [0, 2, 0], [9, 9, 0]]),
        ("count", (2,), [[3, 0, 4], [0, 5, 0], [3, 3, 0]]),
        ("fill", (7,), [[1, 7, 2], [7, 3, 7], [1, 1, 7]]),
        ("negative", (7,), [[0, 7, 0], [7, 0, 7], [0, 0, 7]]),
    ],
    ids=str,
)
def test_what_each_family_does(family, numbers, wanted):
    assert puzzles.FAMILIES[family](Draws(*numbers))(X).tolist() == wanted


def test_generated_puzzles_are_a_function_of_seed_and_number():
    families = tuple(puzzles.FAMILIES)
    few, many = puzzles.generated((0,), 5, families), puzzles.generated((0,), 40, families)
    assert many[:5] == few and puzzles.generated((1,), 5, families) != few
    assert {p.name.split()[0] for p in many} == set(families)
    for p in many:
        assert len(p.shown) == 3 and len(p.asked) == 1 and p.asked[0].given not in {s.given for s in p.shown}
        assert all(s.given != s.wanted for s in (*p.shown, *p.asked))
        assert {3, 4, 5, 6} >= {len(s.given) for s in p.shown} and len({len(s.given) for s in p.shown}) == 1


def test_two_steps_are_one_rule_after_the_other():
    assert puzzles.generated((3,), 1, ["frame"])[0].name == "frame 0"
    both = puzzles.generated((3,), 40, ["frame", "shift"], steps=2)
    assert len({p.name.split()[0] for p in both}) == 4

    def framed(x):
        x = np.array(x)
        return len({*x[0], *x[-1], *x[:, 0], *x[:, -1]}) == 1

    for p in both:
        last = p.name.split()[0].endswith("+frame")
        assert all(framed(x.wanted) for x in p.shown) == last, "a frame that is shifted is one no more"


def test_steps_that_undo_each_other_are_drawn_anew():
    for p in puzzles.generated((0,), 60, ["turn", "shift"], steps=2):
        assert all(s.given != s.wanted for s in (*p.shown, *p.asked))


def test_a_family_that_is_not_there_is_an_error():
    for families in (["turn", "spin"], []):
        with pytest.raises(ValueError, match="turn, recolour"):
            puzzles.generated((0,), 1, families)
