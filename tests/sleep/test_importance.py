import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.data.encoding import Encoded
from sleep_jax.model import lora
from sleep_jax.sleep import importance as importance_lib
from sleep_jax.sleep import trials
from sleep_jax.sleep.importance import importance
from sleep_jax.sleep.trials import TrialConfig

ROW = 12
CONFIG = TrialConfig(rank=2, alpha=6.0, at_once=4)


@pytest.fixture(scope="module")
def self_(tiny, grown):
    model = tiny()
    return model, *grown(model)


@pytest.fixture(scope="module")
def start(self_):
    return lora.init(self_[0].config, CONFIG.rank, jax.random.key(3))


@pytest.fixture(scope="module")
def dreams():
    draw = np.random.default_rng(1)
    sizes = ((5,), (12, 9), (3, 4), (12,), (6,), (8,))
    return [[Encoded(draw.integers(3, 40, n).astype(np.int32), 1) for n in lengths] for lengths in sizes]


@pytest.fixture(scope="module")
def by_hand(self_, start):
    """`by_hand(dream)`: gradient of its mean loss, its sequences one after the other."""
    model, params, memory = self_

    @jax.jit
    def summed(adapter, tokens_T, length):
        """Loss of a sequence whose padding, behind it, nothing before it sees."""
        scaled = lora.scaled(adapter, 3.0)
        logits_TV = model.apply(params, tokens_T[None], memory=memory, adapter=scaled).logits_BTV[0]
        logps_T = jnp.take_along_axis(jax.nn.log_softmax(logits_TV[:-1]), tokens_T[1:, None], axis=1)[:, 0]
        return -jnp.where(jnp.arange(1, ROW) < length, logps_T, 0.0).sum()

    gradient = jax.jit(jax.grad(summed))

    def of(encoded):
        each = [gradient(start, np.resize(e.tokens, ROW), len(e.tokens)) for e in encoded]
        count = sum(len(e.tokens) - 1 for e in encoded)
        return sum(np.concatenate([np.asarray(g[k]).ravel() for k in sorted(g)]) for g in each) / count

    return of


def test_gradients_are_those_of_each_dream_alone(self_, start, dreams, by_hand):
    model, params, memory = self_
    rows, validation = trials.lessons(dreams, ROW).rows, trials.lessons(dreams[3:5], ROW).rows
    of_I = np.array([0, 1, 0, 0, 1, 1])
    zero, one = importance(model, CONFIG, params, memory, start, rows, validation, of_I)
    g = np.stack([by_hand(d) for d in dreams])
    for found, v in ((zero, 0), (one, 1)):
        own = g[of_I == v]
        np.testing.assert_allclose(found.norm_I, np.linalg.norm(own, axis=1), rtol=1e-3)
        np.testing.assert_allclose(found.gram_II, own @ own.T, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.align_I, own @ g[3 + v], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("turns", [{"at_once": 4}, {"at_once": 1}, {"batch_rows": 1}, {"batch_rows": 3}])
def test_what_is_in_memory_at_once_does_not_matter(self_, start, dreams, turns, monkeypatch):
    monkeypatch.setattr(importance_lib, "BLOCK", 1)  # one context or two at a time
    model, params, memory = self_
    rows = trials.lessons([*dreams[:5], [e for d in dreams for e in d]], ROW).rows  # of 1 to 6 rows
    of_I = np.array([2, 0, 2, 1, 0, 2])
    whole, parts = (
        importance(model, dataclasses.replace(CONFIG, **how), params, memory, start, rows, rows, of_I)
        for how in ({"at_once": 6}, turns)
    )
    assert [len(x.norm_I) for x in whole] == [2, 1, 3, 0, 0, 0]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.align_I, b.align_I, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a.gram_II, b.gram_II, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(whole[2].gram_II), whole[2].norm_I ** 2, rtol=1e-4)
