import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_jax.data import encoding
from sleep_jax.data.encoding import encode_answering, encode_recalling, parse_answering, parse_recalling
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer

TEXTS = [" Where was Anna Kowal born?", " Bristol", " The city where Anna was born is Bristol."] * 4
TOK = Tokenizer.train(TEXTS, 300)
EX = Example("Where was Anna born?", "Bristol")
PARTS = st.text().filter(lambda s: s.strip() and "\ufffd" not in s)
DIRECTIONS = [(encode_answering, parse_answering), (encode_recalling, parse_recalling)]


@pytest.mark.parametrize(("encode", "parse"), DIRECTIONS)
@settings(max_examples=200, deadline=None)
@given(prompt=PARTS, answer=PARTS)
def test_parse_inverts_encode(encode, parse, prompt, answer):
    ex = Example(prompt, answer)
    assert parse(TOK, encode(TOK, ex).tokens) == ex


def test_layout_of_both_directions():
    prompt, answer = TOK.encode(" " + EX.prompt), TOK.encode(" " + EX.answer)
    a, r = encode_answering(TOK, EX), encode_recalling(TOK, EX)
    assert a.tokens.tolist() == [TOK.bos, *prompt, TOK.ans, *answer, TOK.eos]
    assert r.tokens.tolist() == [TOK.recall, *answer, TOK.say, *prompt, TOK.eos]
    assert (a.prompt_length, r.prompt_length) == (len(prompt) + 2, len(answer) + 2)
    assert a.tokens.dtype == r.tokens.dtype == np.int32
    # The word has the same tokens where it opens a part as inside one.
    assert TOK.encode(" The city is Bristol")[-len(answer) :] == answer


def bad_sequences(opening, separator):
    t, (x, y) = TOK, (TOK.encode(" x"), TOK.encode(" y"))
    yield [opening, *x, separator, *y]  # not closed
    yield [*x, separator, *y, t.eos]  # not opened
    yield [opening, *x, *y, t.eos]  # no separator
    yield [opening, *x, separator, *y, separator, *y, t.eos]  # two separators
    yield [opening, *x, separator, *y, t.eos, t.eos]  # closed twice
    yield [opening, *x, separator, *y, t.eos, *x]  # goes on
    yield [*x, opening, separator, *y, t.eos]  # begins too early
    yield [opening, separator, *y, t.eos]  # blank first part
    yield [opening, *x, separator, t.eos]  # blank second part
    yield [opening, *x, separator, *TOK.encode("  "), t.eos]
    yield [separator, *x, opening, *y, t.eos]
    yield [opening, *x, t.pad, separator, *y, t.eos]
    yield [opening, *x, separator, *TOK.encode(" é")[:-1], t.eos]  # half a character
    yield [opening, *x, separator, t.recall if opening == t.bos else t.bos, *y, t.eos]
    yield []
    yield [t.pad, t.pad]


def test_malformed_is_none_and_only_that():
    for parse, opening, separator, other in (
        (parse_answering, TOK.bos, TOK.ans, encode_recalling),
        (parse_recalling, TOK.recall, TOK.say, encode_answering),
    ):
        for ids in bad_sequences(opening, separator):
            assert parse(TOK, ids) is None, ids
        assert parse(TOK, other(TOK, EX).tokens) is None
        good = [opening, *TOK.encode(" x"), separator, *TOK.encode(" y"), TOK.eos]
        assert parse(TOK, good) is not None
        assert parse(TOK, np.array([*good, TOK.pad, TOK.pad])) == parse(TOK, good)


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=200).filter(str.strip), max_len=st.integers(3, 40))
def test_chunks_lose_nothing_and_are_even(text, max_len):
    chunks = encoding.encode_text(TOK, text, max_len)
    assert all(c.tokens[0] == TOK.bos and c.tokens[-1] == TOK.eos and c.prompt_length == 1 for c in chunks)
    inner = [c.tokens[1:-1] for c in chunks]
    assert TOK.decode(np.concatenate(inner)) == " " + text
    lengths = [len(i) for i in inner]
    assert max(lengths) <= max_len - 2 and max(lengths) - min(lengths) <= 1
    assert len(chunks) == -(-sum(lengths) // (max_len - 2))


def test_encode_mixes_questions_and_texts_in_order():
    text = "Anna was born in Bristol. " * 5
    got = encoding.encode(TOK, [EX, Example("", text), EX], 20)
    middle = encoding.encode_text(TOK, text, 20)
    assert len(middle) > 1
    expected = [encode_answering(TOK, EX), *middle, encode_answering(TOK, EX)]
    assert [(g.tokens.tolist(), g.prompt_length) for g in got] == [
        (e.tokens.tolist(), e.prompt_length) for e in expected
    ]


def test_texts_are_what_will_be_encoded():
    assert list(encoding.texts([EX, Example("", "a tale")])) == [
        " Where was Anna born?",
        " Bristol",
        " a tale",
    ]


def test_prompts_are_the_heads_of_the_answering_sequences():
    examples = [EX, Example("The city where Anna was born is", "Bristol"), Example("Who?", "Anna")]
    for width in (None, 30):
        tokens_BT, lengths_B = encoding.prompts(TOK, examples, width)
        for row, length, ex in zip(tokens_BT, lengths_B, examples, strict=True):
            whole = encode_answering(TOK, ex)
            assert length == whole.prompt_length
            assert row[:length].tolist() == whole.tokens[:length].tolist()
            assert (row[length:] == TOK.pad).all()
        assert tokens_BT.shape == (3, width or lengths_B.max())
        assert tokens_BT.dtype == lengths_B.dtype == np.int32
    assert encoding.prompts(TOK, [])[0].shape == (0, 0)


@pytest.mark.parametrize("encode", [encode_answering, encode_recalling])
def test_too_long_or_blank(encode):
    length = len(encode(TOK, EX).tokens)
    encode(TOK, EX, length)
    with pytest.raises(ValueError, match=rf"{length} tokens .* {length - 1} \(row_length\).*'Where was"):
        encode(TOK, EX, length - 1)
    for bad in (Example("", "text"), Example("x", " "), Example("\n", "x")):
        with pytest.raises(ValueError, match="blank"):
            encode(TOK, bad)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"model.max_len"):
        encoding.prompts(TOK, [EX], 5)
    with pytest.raises(ValueError, match="blank"):
        encoding.prompts(TOK, [Example("", "x")])
    with pytest.raises(ValueError, match="blank"):
        encoding.encode_text(TOK, " \n", 10)
    with pytest.raises(ValueError, match=r"max_len=2 leaves no room"):
        encoding.encode_text(TOK, "x", 2)
