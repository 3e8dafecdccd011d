import numpy as np
import pytest

from sleep_jax.data import encoding, noise, packing
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" red green blue one two three"] * 3, 300)


@pytest.fixture(scope="module")
def rows(tok):
    pairs = [Example("red green blue green", "one two"), Example("blue red", "three")]
    texts = encoding.encode_text(tok, "green green red", 40)
    encoded = encoding.encode(tok, pairs, 40) + [encoding.encode_recalling(tok, p, 40) for p in pairs] + texts
    return packing.pack(encoded, 24)[0]


def by_hand(row, tok):
    """The tokens between <bos> and <ans>, one at a time."""
    found, open_at = [False] * len(row), None
    for i, token in enumerate(row):
        if token == tok.bos:
            open_at = i
        elif token == tok.ans and open_at is not None:
            found[open_at + 1 : i] = [True] * (i - open_at - 1)
        if token in (tok.eos, tok.pad, tok.recall):
            open_at = None
    return found


def test_prompts_stand_between_bos_and_ans(tok, rows):
    found_BT = noise.prompts(rows.tokens_BT, tok)
    assert found_BT.tolist() == [by_hand(row, tok) for row in rows.tokens_BT]
    said = [
        tok.decode(row[found].tolist()).strip() for row, found in zip(rows.tokens_BT, found_BT, strict=True)
    ]
    assert sorted(" ".join(said).split()) == ["blue", "blue", "green", "green", "red", "red"]


def test_blanks_change_their_share_of_the_prompts_and_nothing_else(tok, rows):
    many = type(rows)(*(np.tile(x, (400, 1)) for x in vars(rows).values()))
    out = noise.blanked(many, np.random.default_rng(0).random(many.tokens_BT.shape), tok, 0.3)
    changed_BT = out.tokens_BT != many.tokens_BT
    prompts_BT = noise.prompts(many.tokens_BT, tok)
    assert (out.tokens_BT[changed_BT] == tok.pad).all() and not (changed_BT & ~prompts_BT).any()
    n = prompts_BT.sum()
    assert abs(changed_BT.sum() / n - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    assert out.tokens_BT.dtype == many.tokens_BT.dtype
    for name in ("targets_BT", "weights_BT", "segments_BT", "positions_BT"):
        assert getattr(out, name) is getattr(many, name)


def test_no_share_no_blank(tok, rows):
    same = noise.blanked(rows, np.zeros(rows.tokens_BT.shape), tok, 0.0)
    np.testing.assert_array_equal(same.tokens_BT, rows.tokens_BT)
