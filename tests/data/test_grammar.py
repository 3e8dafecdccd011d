import itertools

import numpy as np
import pytest

from sleep_jax.data.grammar import table


def accepted(next_ZV, eos):
    """Every text that the table allows."""
    texts, open_ = set(), [((), 0)]
    while open_:
        text, z = open_.pop()
        for token in np.flatnonzero(next_ZV[z] >= 0).tolist():
            said = (*text, token)
            if token == eos:
                texts.add(said)
            else:
                open_.append((said, int(next_ZV[z, token])))
    return texts


def test_the_table_accepts_these_texts_and_no_other():
    draw = np.random.default_rng(0)
    for _ in range(20):
        texts = {(*draw.integers(2, 6, draw.integers(0, 5)).tolist(), 1) for _ in range(12)}
        assert accepted(table(texts, 7), 1) == texts


def test_choices_that_do_not_depend_on_each_other_share_their_states():
    # Three slots of 4, 3 and 2 words of two tokens each: 24 texts, one state per slot and inside each word.
    slots = [[(5 + 10 * s + i, 40 + 10 * s + i) for i in range(n)] for s, n in enumerate((4, 3, 2))]
    texts = [sum(choice, ()) + (1,) for choice in itertools.product(*slots)]
    next_ZV = table(texts, 80)
    assert len(texts) == 24 and accepted(next_ZV, 1) == set(texts)
    assert len(next_ZV) == 1 + (4 + 1) + (3 + 1) + (2 + 1)


@pytest.mark.parametrize(
    ("texts", "words"),
    [([], "needs texts"), ([(), (1,)], "needs texts"), ([(2,), (2, 3)], "beginning of another")],
)
def test_what_is_no_grammar_is_an_error(texts, words):
    with pytest.raises(ValueError, match=words):
        table(texts, 5)
