import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleep_jax import optim
from sleep_jax.data.encoding import Encoded
from sleep_jax.model import lora
from sleep_jax.optim import OptimConfig
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.sleep import trials
from sleep_jax.sleep.trials import How, TrialConfig

ROW = 16
CONFIG = TrialConfig(rank=2, alpha=6.0, steps=3, at_once=8, optim=OptimConfig(lr=0.02, warmup=0.0, clip=0.5))


@pytest.fixture(scope="module")
def self_(tiny, grown):
    model = tiny()
    return model, *grown(model)


@pytest.fixture(scope="module")
def dreams():
    """Dreams of one to several sequences: some fill a row, some need three."""
    draw = np.random.default_rng(0)

    def sequence(length):
        return Encoded(draw.integers(3, 40, length).astype(np.int32), 2)

    return [[sequence(n) for n in lengths] for lengths in ((5,), (16, 12, 9), (3, 4), (16,), (7, 7, 7, 7))]


@pytest.fixture(scope="module")
def start(self_):
    return lora.init(self_[0].config, CONFIG.rank, jax.random.key(3))


@pytest.fixture(scope="module")
def together(self_, start, dreams):
    model, params, memory = self_
    return trials.train(model, CONFIG, params, memory, start, trials.lessons(dreams, ROW))


def loop(self_, start, encoded):
    """One trial written out: sequences one by one, weights with A B added, a step at a time."""
    model, params, memory = self_
    stored = {"q": "q_NDHK", "k": "k_NDJK", "v": "v_NDJK", "o": "o_NHKD"}
    stored |= {"gate": "gate_NDF", "up": "up_NDF", "down": "down_NFD"}

    def loss(adapter):
        blocks = {k: dict(v) if isinstance(v, dict) else v for k, v in params["blocks"].items()}
        for name, key in stored.items():
            part = blocks["attn" if name in "qkvo" else "mlp"]
            product = jnp.einsum("nir,nro->nio", adapter[f"{name}_a_NIR"], adapter[f"{name}_b_NRO"])
            part[key] = part[key] + 3.0 * product.reshape(part[key].shape)
        total = count = 0
        for e in encoded:
            logits_TV = model.apply({**params, "blocks": blocks}, e.tokens[None], memory=memory).logits_BTV[0]
            logps_T = jax.nn.log_softmax(logits_TV)[jnp.arange(len(e.tokens) - 1), e.tokens[1:]]
            total, count = total - logps_T.sum(), count + len(logps_T)
        return total / count

    optimizer = optim.make(CONFIG.optim, CONFIG.steps)
    adapter, state, losses = start, optimizer.init(start), []
    for _ in range(CONFIG.steps):
        value, gradient = jax.jit(jax.value_and_grad(loss))(adapter)
        updates, state = optimizer.update(gradient, state, adapter)
        adapter = optax.apply_updates(adapter, updates)
        losses.append(float(value))
    return adapter, losses


@pytest.mark.parametrize("i", [0, 1])
def test_a_trial_is_a_plain_loop_over_its_own_dream(self_, start, dreams, together, i):
    adapter, losses = loop(self_, start, dreams[i])
    adapters, nll_IS = together
    np.testing.assert_allclose(nll_IS[i], losses, rtol=1e-4)
    for name, x in adapter.items():
        np.testing.assert_allclose(adapters[name][i], x, rtol=1e-2, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("at_once", [1, 2])
def test_trained_together_is_trained_alone(self_, start, dreams, together, at_once):
    model, params, memory = self_
    config = dataclasses.replace(CONFIG, at_once=at_once)
    adapters, nll_IS = trials.train(model, config, params, memory, start, trials.lessons(dreams, ROW))
    assert nll_IS.shape == (5, CONFIG.steps)
    np.testing.assert_allclose(nll_IS, together[1], rtol=1e-5)
    for name, x in adapters.items():
        np.testing.assert_allclose(x, together[0][name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_mesh_splits_the_trials(self_, start, dreams, together):
    model, params, memory = self_
    partitioner = Partitioner(MeshConfig())
    assert [trials.together(n, 2, params) for n in (1, 5)] == [1, 2]
    params, memory = partitioner.put(params), partitioner.put(memory)
    # Every device has as many, where five would be computed by all of them.
    assert [trials.together(n, at, params) for n, at in ((1, 2), (5, 2), (99, 12))] == [8, 8, 16]
    adapters, nll_IS = trials.train(model, CONFIG, params, memory, start, trials.lessons(dreams, ROW))
    np.testing.assert_allclose(nll_IS, together[1], rtol=1e-5)
    for name, x in adapters.items():
        np.testing.assert_allclose(x, together[0][name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_lessons_are_padded_to_a_power_of_two_rows(dreams):
    rows = trials.lessons(dreams, ROW).rows
    assert rows.tokens_BT.shape == (5, 4, ROW)
    assert rows.weights_BT.sum((1, 2)).tolist() == [sum(len(e.tokens) - 1 for e in d) for d in dreams]
    assert trials.lessons(dreams[:1], ROW).rows.tokens_BT.shape == (1, 1, ROW)


def test_every_dream_says_how_it_is_studied(self_, start, dreams, together):
    """Slower, shorter, or answers alone: as if all of them were studied so."""
    model, params, memory = self_
    how = [How(), How(share=2 / 3), How(rate=0.5), How(prompt_weight=0.0), How()]
    adapters, nll_IS = trials.train(model, CONFIG, params, memory, start, trials.lessons(dreams, ROW, how))

    def alone(i, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        return trials.train(model, config, params, memory, start, trials.lessons(dreams[i : i + 1], ROW))[0]

    def same(i, wanted):
        for name, x in wanted.items():
            np.testing.assert_allclose(adapters[name][i], x[0], rtol=1e-3, atol=1e-5, err_msg=name)

    same(0, {k: x[:1] for k, x in together[0].items()})
    same(2, alone(2, optim=dataclasses.replace(CONFIG.optim, lr=0.5 * CONFIG.optim.lr)))
    tokens = dreams[3][0].tokens
    logps_TV = jax.nn.log_softmax(model.apply(params, tokens[None], memory=memory).logits_BTV[0])
    of_answer = -logps_TV[jnp.arange(1, len(tokens) - 1), tokens[2:]]  # the first two are the prompt
    np.testing.assert_allclose(nll_IS[3, 0], of_answer.mean(), rtol=1e-5)


def test_a_trial_that_is_short_stands_still_for_the_rest(self_, start, dreams):
    model, params, memory = self_
    constant = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, final=1.0))
    lesson = trials.lessons(dreams[:2], ROW, [How(share=1 / 3), How()])
    short, nll_IS = trials.train(model, constant, params, memory, start, lesson)
    one = dataclasses.replace(constant, steps=1)
    wanted = trials.train(model, one, params, memory, start, trials.lessons(dreams[:2], ROW))[0]
    for name, x in wanted.items():
        np.testing.assert_allclose(short[name][0], x[0], rtol=1e-4, atol=1e-6, err_msg=name)
    assert nll_IS[0, 1] == nll_IS[0, 2] != nll_IS[0, 0] and len(set(nll_IS[1].tolist())) == 3


def test_rows_take_turns(self_, start):
    """Two rows of two sequences, one row an update: the first, the second, the first again."""
    model, params, memory = self_
    draw = np.random.default_rng(1)
    a, b = (Encoded(draw.integers(3, 40, ROW).astype(np.int32), 2) for _ in range(2))
    config = dataclasses.replace(CONFIG, batch_rows=1)
    lesson = trials.lessons([[a, b], [a], [a, b, a]], ROW)
    assert lesson.rows.tokens_BT.shape == (3, 4, ROW), "empty rows have no turn"
    nll_IS = trials.train(model, config, params, memory, start, lesson)[1]
    alone_a, alone_b = (
        trials.train(model, config, params, memory, start, trials.lessons([[x]], ROW))[1][0] for x in (a, b)
    )
    np.testing.assert_allclose(nll_IS[1], alone_a, rtol=1e-5)
    np.testing.assert_allclose(nll_IS[0, 0], alone_a[0], rtol=1e-5)
    assert abs(nll_IS[0, 1] - alone_b[0]) < abs(nll_IS[0, 1] - alone_a[1]), "the second update reads b"
    np.testing.assert_allclose(nll_IS[0], nll_IS[2], rtol=1e-5, err_msg="the third update reads a again")


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="no dream to try"):
        trials.lessons([], ROW)
    with pytest.raises(ValueError, match="dream 1 has no token to learn from"):
        trials.lessons([[Encoded(np.arange(3, 7, dtype=np.int32), 1)], []], ROW)


def test_a_trial_that_did_not_train_is_never_silent(self_, start, dreams, together):
    stuck = jax.tree.map(np.array, together[0])
    for name, x in start.items():
        stuck[name][3] = x
    assert not any(trials.faults(together[0], start))
    with pytest.raises(FloatingPointError, match="^d did not move: raise rem.trials.optim.lr"):
        trials.check(stuck, start, "abcde")
    stuck["q_a_NIR"][1, 0, 0] = np.nan
    assert [f.split(":")[0] for f in trials.faults(stuck, start)] == [
        "", "is not finite", "", "did not move", ""
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad", [{"rank": 0}, {"steps": 0}, {"at_once": 0}, {"alpha": 0.0}], ids=lambda bad: next(iter(bad))
)
def test_settings_out_of_range_name_their_key(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}=0"):
        TrialConfig(**bad)
