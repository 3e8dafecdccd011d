"""What is asked of a learner: greedy answers to held-out probes, matched after normalisation."""

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sleep_jax.data.stream import Example, Experience

Answerer = Callable[[Sequence[Example]], list[str]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, articles and surplus space, as SQuAD does (1606.05250)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def matches(answers: Sequence[str], expected: Sequence[str]) -> np.ndarray:
    """Whether each answer equals the expected one after normalisation, as bool [n].

    Where normalisation leaves nothing of the expected answer, the raw texts are compared.
    """

    def match(answer: str, wanted: str) -> bool:
        if normalise(wanted):
            return normalise(answer) == normalise(wanted)
        return answer.strip() == wanted.strip()

    return np.array([match(a, e) for a, e in zip(answers, expected, strict=True)], bool)


def token_f1(answers: Sequence[str], expected: Sequence[str]) -> np.ndarray:
    """2 c / (a + e) for c words in common, each as often as both have it (SQuAD, 1606.05250), as float [n].

    Words after normalisation; where that leaves nothing of either text, 1 if nothing is left of both.
    """

    def f1(answer: str, wanted: str) -> float:
        a, e = Counter(normalise(answer).split()), Counter(normalise(wanted).split())
        if not a or not e:
            return float(a == e)
        return 2 * (a & e).total() / (a.total() + e.total())

    return np.array([f1(a, e) for a, e in zip(answers, expected, strict=True)], float)


def contains(answers: Sequence[str], expected: Sequence[str]) -> np.ndarray:
    """Whether the words of the expected answer stand in the answer, in one piece, as bool [n].

    After normalisation; where it leaves nothing of the expected answer, `matches` decides.
    """

    def within(answer: str, wanted: str) -> bool:
        if not normalise(wanted):
            return bool(matches([answer], [wanted])[0])
        return f" {normalise(wanted)} " in f" {normalise(answer)} "

    return np.array([within(a, e) for a, e in zip(answers, expected, strict=True)], bool)


def overlap(given: Sequence[str], wanted: Sequence[str]) -> float:
    """sum_a min(p(a), q(a)) over normalised answers a, p and q being how often each is given and wanted.

    1 where they agree, 0 where no answer is shared: 1 minus the total variation distance.

    Raises:
      ValueError: there is nothing on one side.
    """
    if not given or not wanted:
        raise ValueError(f"overlap of {len(given)} answers with {len(wanted)}")
    p, q = (Counter(map(normalise, texts)) for texts in (given, wanted))
    return sum(min(p[a] / len(given), q[a] / len(wanted)) for a in p)


def accuracy(answerer: Answerer, probes: Sequence[Example]) -> float | None:
    """Share of probes answered as expected; None where there is nothing to ask."""
    if not probes:
        return None
    return float(matches(answerer(probes), [p.answer for p in probes]).mean())


def latest(lived: Sequence[Experience], ahead: Sequence[Experience] = ()) -> list[tuple[Example, ...]]:
    """The probes of each experience, with the answers that hold since the last of them.

    What a later experience tells or asks with another answer than an earlier one is right from then on: the
    later one wins. What the learner noted itself, which it may have made up, wins over its own notes alone.

    Args:
      lived: in their order.
      ahead: that have not been lived; their answers hold for their own probes alone.
    """
    told: dict[str, str] = {}
    noted: dict[str, str] = {}

    def now(x: Experience, p: Example) -> Example:
        key = normalise(p.prompt)
        otherwise = noted.get(key, p.answer) if key in x.noted else p.answer
        return dataclasses.replace(p, answer=told.get(key, otherwise))

    probes = [x.test for x in ahead]
    for x in reversed(lived):
        probes.insert(0, tuple(now(x, p) for p in x.test))
        for e in (*x.train, *x.test):
            key = normalise(e.prompt)
            (noted if key in x.noted else told).setdefault(key, e.answer)
    return probes


def answers(answerer: Answerer, sets: Sequence[Sequence[Example]]) -> list[list[str]]:
    """What is answered to several sets of probes, asked in one go; a set may be empty.

    Raises:
      ValueError: all of them are.
    """
    if not any(sets):
        raise ValueError("answers to no probes: all experiences so far have an empty split")
    said = iter(answerer([p for probes in sets for p in probes]))
    return [[next(said) for _ in probes] for probes in sets]
