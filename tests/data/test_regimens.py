import itertools

import numpy as np
import pytest

from sleep_jax.data import grids, puzzles, regimens
from sleep_jax.data.grids import Pair, Puzzle
from sleep_jax.data.regimens import Regimen

(PUZZLE,) = puzzles.generated((0,), 1, ["shift"])


def draw(seed=0):
    return np.random.default_rng(seed)


def test_every_regimen_comes_back_from_its_text_and_nothing_else_does():
    assert len(regimens.TEXTS) == len(set(regimens.EVERY)) == 4 * 2 * 3 * 3 * 2
    for regimen in regimens.EVERY:
        assert regimens.read(f" {regimens.write(regimen)}\n") == regimen
    text = regimens.write(Regimen())
    assert text == "change by both, leave out 1, rate 0.3, steps 0.5, learn all"
    for other in ("", text[:-1], text + " and more", text.replace("0.3", "0.2")):
        assert regimens.read(other) is None


def parsed(example):
    """The demonstrations and the pair of a question."""
    *shown, asked = example.prompt.split(" | ")
    pairs = [tuple(grids.read(x) for x in pair.split(" > ")) for pair in shown]
    return pairs, (grids.read(asked.removesuffix(" >")), grids.read(example.answer))


@pytest.mark.parametrize("left_out", [1, 2])
def test_unchanged_copies_ask_each_demonstration_as_often_and_show_the_others(left_out):
    copies = regimens.copies(PUZZLE, Regimen("none", left_out), 12, draw())
    known = [(p.given, p.wanted) for p in PUZZLE.shown]
    asked = [parsed(e)[1] for e in copies]
    assert {pair: asked.count(pair) for pair in known} == dict.fromkeys(known, 4)
    for example in copies:
        shown, pair = parsed(example)
        assert set(shown) < set(known) - {pair} or left_out == 1 and set(shown) == set(known) - {pair}
    orders = {e.prompt for e in copies}
    assert len(orders) == 6, "who is shown comes in every order, or is another"


def test_copies_are_of_the_kind_that_is_asked_for():
    """Symmetries leave colours where they are, colours leave places; both change both."""

    def filled(x):
        return np.array(x) > 0

    def changes(augment):
        kinds = set()
        for example in regimens.copies(PUZZLE, Regimen(augment), 24, draw(1)):
            _, (given, _) = parsed(example)
            same_places = any(np.array_equal(filled(given), filled(p.given)) for p in PUZZLE.shown)
            counts = sorted(np.ravel(given).tolist())
            same_colours = any(counts == sorted(np.ravel(p.given).tolist()) for p in PUZZLE.shown)
            kinds.add((same_places, same_colours))
        return kinds

    assert changes("none") == {(True, True)}
    assert changes("symmetries") == {(True, True), (False, True)}
    assert changes("colours") >= {(True, False)} and not changes("colours") & {(False, True), (False, False)}
    assert (False, False) in changes("both")


def test_what_a_puzzle_asks_is_in_no_copy():
    asked = PUZZLE.asked[0]
    for augment, left_out in itertools.product(("none", "symmetries"), (1, 2)):
        for example in regimens.copies(PUZZLE, Regimen(augment, left_out), 30, draw()):
            shown, pair = parsed(example)
            for given, _ in (*shown, pair):
                assert sorted(np.ravel(given)) != sorted(np.ravel(asked.given))


def test_few_demonstrations_leave_out_what_they_can():
    two = Puzzle("two", PUZZLE.shown[:2], PUZZLE.asked)
    assert len(regimens.copies(two, Regimen("none", 2), 4, draw())) == 4
    with pytest.raises(ValueError, match="'one' has one demonstration"):
        regimens.copies(Puzzle("one", PUZZLE.shown[:1], PUZZLE.asked), Regimen(), 4, draw())


def test_the_first_vote_is_for_the_puzzle_as_it_is():
    first, *others = regimens.votes(6, draw())
    assert first(PUZZLE.asked[0].given) == PUZZLE.asked[0].given
    assert len({v(PUZZLE.asked[0].given) for v in others}) > 3
    for v in others:
        assert v.undo(v(PUZZLE.asked[0].given)) == PUZZLE.asked[0].given


def test_pairs_keep_their_rule_under_a_change():
    """A copy by symmetries of a colour rule obeys the same rule."""
    rule = {1: 4, 4: 1}
    swap = Puzzle(
        "swap",
        tuple(
            Pair(x, tuple(tuple(rule.get(c, c) for c in row) for row in x))
            for x in (((1, 0, 2), (4, 1, 0)), ((4, 4, 0), (0, 3, 1)), ((0, 1, 1), (2, 0, 4)))
        ),
        (),
    )
    for example in regimens.copies(swap, Regimen("symmetries"), 12, draw()):
        shown, pair = parsed(example)
        for given, wanted in (*shown, pair):
            assert wanted == tuple(tuple(rule.get(c, c) for c in row) for row in given)
