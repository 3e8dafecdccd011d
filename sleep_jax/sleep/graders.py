"""Graders of answers: how right is each, from 0 to 1? All work without a network."""

from collections.abc import Callable, Sequence

import numpy as np

from sleep_jax import cost, evals
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.sleep.imitate import Judge
from sleep_jax.types import Memory, Model, Tree

Grader = Callable[[Sequence[str], Sequence[str]], np.ndarray]

BY_TEXT: dict[str, Grader] = {
    "exact": evals.matches,
    "f1": evals.token_f1,
    "contains": evals.contains,
}
NAMES = (*BY_TEXT, "judge")
AT_ONCE = 32  # pairs that a judge reads at once
GRADING = cost.Kind("grading by a judge", "lower model.max_len, or set rem.grader to another")


def make(name: str, model: Model, params: Tree, memory: Memory | None, tok: Tokenizer) -> Grader:
    """`grade(answers, expected) -> grades` by name; "judge" asks the model itself whether both mean the same.

    Raises:
      ValueError: there is no such grader.
    """
    if name in BY_TEXT:
        return BY_TEXT[name]
    if name != "judge":
        raise ValueError(f"{name!r} is not a grader; there are {', '.join(NAMES)}")
    judge = Judge(model, params, tok, memory, GRADING)

    def grade(answers, expected):
        told = [[tok.encode(" " + text) for text in texts] for texts in (expected, answers)]
        parts = []
        for first in range(0, len(answers), AT_ONCE):  # the last is filled up: one shape is compiled
            rows = np.minimum(np.arange(first, first + AT_ONCE), len(answers) - 1)
            parts.append(judge(*([texts[i] for i in rows] for texts in told)))
        return np.concatenate([*parts, np.zeros(0)])[: len(answers)]

    return grade
