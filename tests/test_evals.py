import numpy as np
import pytest

from sleep_jax import evals
from sleep_jax.data.stream import Example, Experience


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The  Cat, sat!", "cat sat"),
        ("a man\n an apple\tthe end", "man apple end"),
        ("theatre anthem another", "theatre anthem another"),  # articles are words, not letters
        ("It's 3.5-fold", "its 35fold"),
        ("ÉCOLE", "école"),
        ("a-ha", "aha"),  # punctuation goes before articles
        ("A.", ""),
        ("", ""),
    ],
)
def test_normalising_is_squads(text, wanted):
    assert evals.normalise(text) == wanted
    assert evals.normalise(wanted) == wanted


def test_answers_match_after_normalisation_and_raw_where_it_leaves_nothing():
    expected = ["Oslo", "the  Oslo!", "Oslo", "the", "the", "!?"]
    answers = ["oslo.", "OSLO", "Bergen", "the ", "a", "?!"]
    found = evals.matches(answers, expected)
    assert found.dtype == bool and found.tolist() == [True, True, False, True, False, False]
    assert evals.matches([], []).shape == (0,)
    with pytest.raises(ValueError):
        evals.matches(["one"], ["one", "two"])


@pytest.mark.parametrize(
    "answer, wanted, f1, within",
    [
        ("the Oslo!", "oslo", 1.0, True),
        ("in Oslo, Norway", "Oslo", 2 * (1 / 3) / (1 / 3 + 1), True),
        ("Oslo Oslo", "Oslo", 2 / 3, True),  # a word counts as often as both have it
        ("Norway Oslo", "Oslo Norway", 1.0, False),  # in any order, but not in one piece
        ("Oslofjord", "Oslo", 0.0, False),  # words, not letters
        ("", "Oslo", 0.0, False),
        ("the", "a", 1.0, False),
        ("the", "the", 1.0, True),
    ],
)
def test_graders_by_hand(answer, wanted, f1, within):
    assert evals.token_f1([answer], [wanted]).tolist() == pytest.approx([f1])
    assert evals.contains([answer], [wanted]).tolist() == [within]


def test_a_match_has_all_of_f1_and_is_contained():
    words = ["Oslo", "the Oslo", "Oslo in the north", "north", "the", "", "In Oslo."]
    pairs = [(a, e) for a in words for e in words if e.strip()]
    answers, expected = zip(*pairs, strict=True)
    f1, within = evals.token_f1(answers, expected), evals.contains(answers, expected)
    hit = evals.matches(answers, expected)
    assert hit.any() and not hit.all()
    assert (f1[hit] == 1).all() and within[hit].all()
    np.testing.assert_allclose(f1, evals.token_f1(expected, answers))
    for grader in (evals.token_f1, evals.contains):
        with pytest.raises(ValueError):
            grader(["one"], ["one", "two"])


def test_overlap_is_one_minus_the_total_variation():
    given, wanted = ["Oslo", "oslo!", "Bergen", "Rome"], ["Bergen", "Oslo", "Paris"]
    total_variation = (abs(2 / 4 - 1 / 3) + abs(1 / 4 - 1 / 3) + 1 / 4 + 1 / 3) / 2
    assert evals.overlap(given, wanted) == pytest.approx(1 - total_variation)
    assert evals.overlap(wanted * 3, wanted) == pytest.approx(1)
    assert evals.overlap(["Oslo"], ["Rome"]) == 0
    with pytest.raises(ValueError, match="overlap of 0 answers with 3"):
        evals.overlap([], wanted)


def probes(*answers):
    return [Example(f"question {a}", a) for a in answers]


def test_answers_are_of_each_set_with_all_asked_at_once():
    asked = []

    def answerer(examples):
        asked.append(examples)
        return [e.prompt.removeprefix("question ").replace("wrong", "right") for e in examples]

    sets = [probes("one", "wrong 1"), probes("two"), probes("wrong 2", "wrong 3", "three", "four")]
    said = evals.answers(answerer, sets)
    assert said == [["one", "right 1"], ["two"], ["right 2", "right 3", "three", "four"]]
    assert asked == [[p for s in sets for p in s]]
    assert [evals.accuracy(answerer, s) for s in sets] == [0.5, 1.0, 0.5]
    assert type(evals.accuracy(answerer, sets[0])) is float


def test_what_a_later_experience_says_otherwise_is_right_from_then_on():
    def day(name, train, test):
        return Experience(name, *(tuple(Example(*pair) for pair in pairs) for pairs in (train, (), test)))

    first = day("first", [], [("Where is Ada?", "Oslo"), ("Who is Ada?", "a cook")])
    told = day("told", [("where is ADA", "Bath"), ("", "Where is Ada?")], [("Who is Bo?", "a judge")])
    asked = day("asked", [], [("Where is Ada?", "Riga"), ("Who is Bo?", "a cook")])

    def answers(*lived, ahead=()):
        return [[p.answer for p in probes] for probes in evals.latest(lived, ahead)]

    assert answers(first, ahead=[told]) == [["Oslo", "a cook"], ["a judge"]], "what is ahead is not so yet"
    assert answers(first, told) == [["Bath", "a cook"], ["a judge"]]
    assert answers(first, told, asked) == [["Riga", "a cook"], ["a cook"], ["Riga", "a cook"]]
    assert answers(asked, first) == [["Oslo", "a cook"], ["Oslo", "a cook"]], "later is what comes later"


def test_a_note_overrides_a_note_and_never_what_a_file_says():
    def day(answer, *noted):
        return Experience(answer, (), (), (Example("Where is Ada?", answer),), (), frozenset(noted))

    said, later, note, other = (
        day("Oslo"),
        day("Riga"),
        day("Bath", "where is ada"),
        day("Rome", "where is ada"),
    )

    def answers(*lived):
        return [probe.answer for (probe,) in evals.latest(lived)]

    assert answers(said, note) == ["Oslo", "Bath"]
    assert answers(note, other) == ["Rome", "Rome"]
    assert answers(note, said, other) == ["Oslo", "Oslo", "Rome"], "what a file says stands between them"
    assert answers(said, note, later) == ["Riga", "Riga", "Riga"]


def test_of_some_nothing_may_be_asked_but_not_of_all():
    def answerer(examples):
        return ["x"] * len(examples)

    assert evals.accuracy(answerer, []) is None
    assert evals.answers(answerer, [probes("one"), [], probes("two")]) == [["x"], [], ["x"]]
    with pytest.raises(ValueError, match="no probes"):
        evals.answers(answerer, [[], []])
