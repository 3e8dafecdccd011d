import dataclasses

import jax
import numpy as np
import pytest

from sleep_jax.data.encoding import Encoded
from sleep_jax.model import lora
from sleep_jax.sleep import trials
from sleep_jax.sleep.importance import importance
from sleep_jax.sleep.trials import TrialConfig

pytestmark = pytest.mark.usefixtures("compiled_quickly")
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


def by_hand(self_, start, encoded):
    """Gradient of the mean loss of one dream, its sequences one after the other."""
    model, params, memory = self_

    def loss(adapter):
        total = count = 0
        for e in encoded:
            scaled = lora.scaled(adapter, 3.0)
            logits_TV = model.apply(params, e.tokens[None], memory=memory, adapter=scaled).logits_BTV[0]
            logps_TV = jax.nn.log_softmax(logits_TV)
            total -= sum(logps_TV[t, y] for t, y in enumerate(e.tokens[1:]))
            count += len(e.tokens) - 1
        return total / count

    gradient = jax.grad(loss)(start)
    return np.concatenate([np.asarray(gradient[k]).ravel() for k in sorted(gradient)])


def test_gradients_are_those_of_each_dream_alone(self_, start, dreams):
    model, params, memory = self_
    rows, validation = trials.lessons(dreams, ROW).rows, trials.lessons(dreams[3:5], ROW).rows
    found = importance(model, CONFIG, params, memory, start, rows, validation)
    g = np.stack([by_hand(self_, start, d) for d in dreams[:3]])
    np.testing.assert_allclose(found.norm_I[:3], np.linalg.norm(g, axis=1), rtol=1e-3)
    np.testing.assert_allclose(found.gram_II[:3, :3], g @ g.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found.align_IV[:3, 1], g @ by_hand(self_, start, dreams[4]), rtol=1e-3, atol=1e-4
    )
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
