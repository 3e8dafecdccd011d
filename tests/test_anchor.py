"""General text: what it is, and that its loss is the model's."""

import json

import jax
import lives
import numpy as np
import pytest

from sleep_jax import anchor, life
from sleep_jax.data import stream
from sleep_jax.data.tokenizer import Tokenizer

TEXTS = ["a cat is in the hat", "the hat is in the cat, and it is a big cat in a hat"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(TEXTS * 3, 280)


@pytest.fixture(scope="module")
def learner(tiny, grown, tok):
    model = tiny(vocab_size=tok.vocab_size)
    return model, *grown(model)


def test_the_loss_is_the_mean_over_tokens_whatever_the_batch(tok, learner):
    model, params, _ = learner
    rows = anchor.rows(tok, TEXTS, 12, 10_000)
    found = [anchor.loss(model, params, None, rows, n) for n in (1, 3, 64)]
    nll, count = 0.0, 0
    for text in TEXTS:
        ids = tok.encode(" " + text)
        for first in range(0, len(ids), 11):
            part = np.array([[tok.bos, *ids[first : first + 11]]])
            logps = jax.nn.log_softmax(model.apply(params, part).logits_BTV[0], -1)
            nll -= sum(float(logps[i, part[0, i + 1]]) for i in range(part.shape[1] - 1))
            count += part.shape[1] - 1
    assert count == sum(len(tok.encode(" " + text)) for text in TEXTS), "every token is predicted, no end is"
    np.testing.assert_allclose(found, nll / count, rtol=1e-5)


def test_no_more_tokens_than_asked_for(tok):
    first = len(tok.encode(" " + TEXTS[0]))
    assert anchor.rows(tok, TEXTS, 12, first + 3).weights_BT.sum() == first + 3
    assert anchor.rows(tok, TEXTS, 12, 2).weights_BT.sum() == 2


def test_what_a_model_says_is_text_that_fits_whatever_the_batch(tok, learner):
    """Of a model that has learnt nothing most bytes are no text: such are left out."""
    model, params, _ = learner
    said = anchor.said(model, tok, params, 60, 4, jax.random.key(0), 16)
    assert said == anchor.said(model, tok, params, 60, 4, jax.random.key(0), 60)
    assert 3 < len(said) < 60 and len(set(said)) > 3
    assert all(text.strip() and "\ufffd" not in text for text in said)
    assert max(len(tok.encode(" " + text)) for text in said) <= 4


def test_what_is_no_text_is_refused_with_its_key(tok, tmp_path):
    with pytest.raises(FileNotFoundError, match="anchor.text='x' is neither a file nor 'python'"):
        anchor.read("x")
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(ValueError, match="is blank"):
        anchor.read(str(tmp_path / "blank"))
    (tmp_path / "bytes").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="not UTF-8 at byte offset 3"):
        anchor.read(str(tmp_path / "bytes"))
    with pytest.raises(FileNotFoundError, match="had no anchor.text"):
        anchor.load(tmp_path, "self")
    anchor.save(tmp_path, "a.txt", ["a cat"], None)
    with pytest.raises(ValueError, match="anchor.text='self', but .* was born with 'a.txt'"):
        anchor.load(tmp_path, "self")
    with pytest.raises(ValueError, match="anchor.text='self': all that the model said .* is blank"):
        anchor.rows(tok, [], 12, 20)
    assert anchor.load(tmp_path, "a.txt") == (["a cat"], None)
    with pytest.raises(ValueError, match="anchor.rehearsed=3 texts of the untouched model.checkpoint"):
        lives.config(anchor={"rehearsed": 3})


def test_pythons_own_manual_is_text_that_is_everywhere(tok):
    texts = anchor.read("python")
    assert sum(map(len, texts)) > 100_000 and any("del_stmt" in text for text in texts)
    assert anchor.rows(tok, texts, 12, 500).weights_BT.sum() == 500


def test_a_life_measures_it_every_morning(compiled, tmp_path):
    text = tmp_path / "general.txt"
    text.write_text(" ".join(TEXTS))
    config = lives.config(
        anchor={"text": str(text), "tokens": 20}, stream={"days": 1}, method="sequential", birth={"epochs": 2}
    )
    with lives.quick(compiled):
        (ended,) = life.run(config, str(tmp_path / "life"))
    assert ended.anchor_untouched is None and len(ended.anchor) == 2
    assert ended.anchor[1] != ended.anchor[0], "a day of fine-tuning moves it"
    with lives.quick(compiled):
        newborn = life.birth(config, 0, tmp_path / "life" / "birth", stream.load(config.stream))
        world = life.world_of(config, 0, tmp_path / "x", stream.load(config.stream), newborn.tok, "x", True)
        first = anchor.loss(world.model, newborn.params, None, newborn.anchor, 4)
    assert ended.anchor[0] == pytest.approx(first, rel=1e-5)
    told = json.loads((tmp_path / "life" / "birth" / "anchor.json").read_text())
    assert told["texts"] == [text.read_text()]
    assert json.loads((tmp_path / "life" / "summary.json").read_text())["anchor"] == ended.anchor
