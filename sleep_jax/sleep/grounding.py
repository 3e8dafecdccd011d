"""Which lines of a dream are grounded in what it is a dream of: a small model misspells names and invents."""

import functools
from collections import Counter
from collections.abc import Sequence

from sleep_jax import evals
from sleep_jax.data.stream import Example


def words(text: str) -> set[str]:
    """The words of a text after normalisation."""
    return set(evals.normalise(text).split())


@functools.lru_cache(maxsize=8)
def common(shown: tuple[Example, ...], share: float) -> frozenset[str]:
    """Words that at least this share of the dreams shown at birth use, whatever they are dreams of.

    Args:
      shown: contexts, as they are asked for, with their dreams (`Stream.skills`).
    """
    counts = Counter(word for e in shown for word in words(e.answer))
    return frozenset(word for word, n in counts.items() if n >= share * len(shown))


def grounded(lines: Sequence[Example], context: str, common: frozenset[str]) -> tuple[Example, ...]:
    """The lines of which every word stands in the context or is a common one.

    Our reading: Sleep (2606.03979) section 3.4 tries dreams and asks of none whether it is true. A trial pays
    for one line that names somebody else with those of its lines that do not.
    """
    known = words(context) | common
    return tuple(e for e in lines if words(f"{e.prompt} {e.answer}") <= known)
