import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.data.encoding import Encoded
from sleep_jax.model import lora
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
    found = importance(model, CONFIG, params, memory, start, rows, validation)
    g = np.stack([by_hand(d) for d in dreams[:3]])
    np.testing.assert_allclose(found.norm_I[:3], np.linalg.norm(g, axis=1), rtol=1e-3)
    np.testing.assert_allclose(found.gram_II[:3, :3], g @ g.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.align_IV[:3, 1], g @ by_hand(dreams[4]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.diagonal(found.align_IV[3:5]), found.norm_I[3:5] ** 2, rtol=1e-4)
    np.testing.assert_allclose(np.diagonal(found.gram_II), found.norm_I**2, rtol=1e-4)


@pytest.mark.parametrize("turns", [{"at_once": 4}, {"batch_rows": 1}, {"batch_rows": 3}])
def test_what_is_in_memory_at_once_does_not_matter(self_, start, dreams, turns):
    model, params, memory = self_
    rows = trials.lessons([*dreams[:5], [e for d in dreams for e in d]], ROW).rows  # of 1 to 6 rows
    whole, parts = (
        importance(model, dataclasses.replace(CONFIG, **how), params, memory, start, rows, rows)
        for how in ({"at_once": 6}, turns)
    )
    assert whole.align_IV.shape == whole.gram_II.shape == (6, 6)
    np.testing.assert_allclose(whole.align_IV, whole.gram_II, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.gram_II, whole.gram_II, rtol=1e-4, atol=1e-5)
