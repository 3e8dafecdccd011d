"""Texts of a finite set as a table that sampling follows token by token."""

from collections.abc import Iterable, Sequence

import numpy as np


def table(texts: Iterable[Sequence[int]], vocab_size: int) -> np.ndarray:
    """The least automaton that accepts these texts and no other.

    Args:
      texts: tokens of each, the token that ends a text included.
      vocab_size: V.

    Returns:
      next_ZV int32: the state after each token in each of Z states, -1 where no text goes on so. State 0 is
      the beginning; after the last token of a text the state is 0 again, and nothing is read there.

    Raises:
      ValueError: there is no text, one is empty, or one is the beginning of another.
    """
    texts = {tuple(t) for t in texts}
    if not texts or () in texts:
        raise ValueError("a grammar needs texts, and none of them empty")
    states: dict[frozenset, int] = {}
    rows: list[dict[int, int]] = []

    def state(rest: frozenset) -> int:
        """The state in which these are what may follow; texts with one future share it."""
        if rest == {()}:
            return 0
        if () in rest:
            raise ValueError("a text is the beginning of another: close each with the token that ends a text")
        if rest not in states:
            states[rest] = len(rows)
            rows.append({})
            after: dict[int, set] = {}
            for text in rest:
                after.setdefault(text[0], set()).add(text[1:])
            rows[states[rest]].update({token: state(frozenset(tails)) for token, tails in after.items()})
        return states[rest]

    state(frozenset(texts))
    next_ZV = np.full((len(rows), vocab_size), -1, np.int32)
    for z, row in enumerate(rows):
        next_ZV[z, list(row)] = list(row.values())
    return next_ZV
