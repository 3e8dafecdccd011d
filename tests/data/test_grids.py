import itertools

import numpy as np
import pytest

from sleep_jax.data import grids
from sleep_jax.data.grids import SYMMETRIES, Augmentation, Pair, Puzzle

X = grids.grid([[1, 2, 3], [4, 5, 0]])


def puzzle(count=3):
    draw = np.random.default_rng(0)
    made = [tuple(map(tuple, draw.integers(0, 10, (2, 3)).tolist())) for _ in range(2 * (count + 1))]
    pairs = tuple(Pair(a, b) for a, b in zip(made[::2], made[1::2], strict=True))
    return Puzzle("p", pairs[:-1], pairs[-1:])


def test_what_each_augmentation_does_to_a_grid():
    said = {
        SYMMETRIES[1]: ((3, 0), (2, 5), (1, 4)),
        SYMMETRIES[2]: ((0, 5, 4), (3, 2, 1)),
        SYMMETRIES[3]: ((4, 1), (5, 2), (0, 3)),
        SYMMETRIES[5]: ((3, 2, 1), (0, 5, 4)),  # left to right
        SYMMETRIES[7]: ((4, 5, 0), (1, 2, 3)),  # top to bottom
        SYMMETRIES[4]: ((1, 4), (2, 5), (3, 0)),
        SYMMETRIES[6]: ((0, 3), (5, 2), (4, 1)),
        Augmentation(colours=(9, 8, 7, 6, 5, 4, 3, 2, 1, 0)): ((8, 7, 6), (5, 4, 9)),
    }
    assert {a: a(X) for a in said} == said


def test_the_symmetries_of_a_square_are_eight():
    assert SYMMETRIES[0] == Augmentation() and len({a(X) for a in SYMMETRIES}) == 8


def test_every_augmentation_has_its_inverse():
    draw = np.random.default_rng(1)
    for shape, turns, transpose in itertools.product([(1, 1), (2, 5), (4, 4)], range(5), (False, True)):
        x = grids.grid(draw.integers(0, 10, shape).tolist())
        a = Augmentation(turns, transpose, grids.recoloured(draw))
        assert a.undo(a(x)) == x == a(a.undo(x))
        assert a.colours[0] == 0, "the background stays"


def test_a_puzzle_is_changed_in_every_grid():
    p, a = puzzle(), SYMMETRIES[1]
    changed = a.puzzle(p)
    for before, after in zip((*p.shown, *p.asked), (*changed.shown, *changed.asked), strict=True):
        assert after == Pair(a(before.given), a(before.wanted))
    assert changed.name == p.name


def test_leaving_out_asks_every_demonstration_and_never_what_the_puzzle_asks():
    p = puzzle(3)
    one, two = grids.left_out(p), grids.left_out(p, 2)
    assert [q.asked[0] for q in one] == list(p.shown)
    assert all(set(q.shown) == set(p.shown) - set(q.asked) for q in one)
    assert len(two) == 6 and all(len(q.shown) == 1 and q.asked[0] not in q.shown for q in two)
    assert not any(p.asked[0] in (*q.shown, *q.asked) for q in one + two)
    assert grids.left_out(puzzle(1)) == [], "nothing is left to learn the rule from"


def test_grids_come_back_from_their_text():
    draw = np.random.default_rng(2)
    for shape in [(1, 1), (3, 2), (30, 30)]:
        x = grids.grid(draw.integers(0, 10, shape).tolist())
        assert grids.read(grids.write(x)) == x
    assert grids.write(X) == "123 450"
    for no_grid in ("", "12 3", "1a 23", "-1 23", "١٢ ٣٤"):
        assert grids.read(no_grid) is None


def test_a_question_shows_the_demonstrations_and_not_the_answer():
    p = Puzzle("p", (Pair(((1,),), ((2,),)), Pair(((3, 4),), ((4,), (3,)))), (Pair(((5,),), ((6,),)),))
    (question,) = grids.questions(p)
    assert (question.prompt, question.answer) == ("1 > 2 | 34 > 4 3 | 5 >", "6")


def test_the_vote_goes_to_the_most_then_to_the_earliest():
    a, b = ((1,),), ((2,),)
    assert grids.vote([None, a, b, b]) == b
    assert grids.vote([None, b, a, a, b]) == b
    assert grids.vote([None, None]) is None and grids.vote([]) is None


@pytest.mark.parametrize(
    "rows", [[], [[]], [[1], [1, 2]], [[10]], [[-1]], [["1"]], [[1.0]], [[True]]], ids=str
)
def test_what_is_no_grid_is_an_error(rows):
    with pytest.raises(ValueError, match="rows of one length|colours are whole numbers"):
        grids.grid(rows)


def test_colours_that_are_no_permutation_are_an_error():
    with pytest.raises(ValueError, match="permutation of 0 to 9"):
        Augmentation(colours=(0,) * 10)
