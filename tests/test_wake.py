import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleep_jax import wake
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.types import Batch

PERIODS, CHUNKS = (16, 32, 64), 8
ROWS, T = 2, 8  # a chunk of 16 positions
KEY = jax.random.key(0)


SILENT = 4  # the chunk of which no token counts


def chunk(i, rows=ROWS, length=T):
    rng = np.random.default_rng(i)
    tokens_BT = rng.integers(3, 40, (rows, length + 1)).astype(np.int32)
    segments_BT = np.where(np.arange(length) < 5, 1, 2) * np.ones((rows, 1), np.int32)
    positions_BT = np.where(np.arange(length) < 5, np.arange(length), np.arange(length) - 5)
    weights_BT = ((rng.random((rows, length)) < 0.7) & (i != SILENT)).astype(np.float32)
    positions_BT = np.broadcast_to(positions_BT, (rows, length)).astype(np.int32)
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, segments_BT, positions_BT)


@pytest.fixture(scope="module")
def setting(tiny):
    return functools.partial(tiny, layers=4, periods=PERIODS, static_share=0.25)


@pytest.fixture(scope="module")
def frozen(setting, grown):
    params, memory = grown(setting())
    return params, dataclasses.replace(memory, active_LE=memory.active_LE.at[0, 1].set(True))


@pytest.fixture(scope="module")
def token_losses(setting, frozen):
    """Jitted `(fast, batch, weights_BT) -> (sum of weighted losses, its gradient)`."""
    model, (params, memory) = setting(), frozen

    def loss(fast, batch, weights_BT):
        where = {"segments_BT": batch.segments_BT, "positions_BT": batch.positions_BT}
        out = model.apply(params, batch.tokens_BT, memory=dataclasses.replace(memory, fast=fast), **where)
        logp_BTV = jax.nn.log_softmax(out.logits_BTV)
        return -jnp.sum(weights_BT * jnp.take_along_axis(logp_BTV, batch.targets_BT[..., None], -1)[..., 0])

    return jax.jit(jax.value_and_grad(loss))


def morning(model, config, frozen):
    fast = jax.tree.map(jnp.zeros_like, frozen[1].fast)
    return wake.init(config, fast, len(model.memory_config.periods))


def live(model, config, frozen, chunks):
    """Every state and every metric of a day, before the first chunk and after each."""
    run = jax.jit(wake.make(model, config, len(chunks)))
    states, metrics = [morning(model, config, frozen)], []
    for batch in chunks:
        state, seen = run(states[-1], frozen, batch, KEY)
        states.append(state)
        metrics.append(seen)
    return states, metrics


# Who owns what: layers 0, 1, 2 for the reading "depth", thirds of the first 18 of 24 units for "width".
OWNED = {
    "depth": [{"gate_NDF": np.s_[n], "up_NDF": np.s_[n], "down_NFD": np.s_[n]} for n in range(3)],
    "width": [
        {
            "gate_NDF": np.s_[:, :, i : i + 6],
            "up_NDF": np.s_[:, :, i : i + 6],
            "down_NFD": np.s_[:, i : i + 6],
        }
        for i in (0, 6, 12)
    ],
}


def literal(token_losses, fast, chunks, owned, lr, final, clip):
    """Eq. 2 token by token in float64: a level counts its tokens and is written when its period is over."""
    positions = sum(batch.tokens_BT.size for batch in chunks)
    theta = {k: np.asarray(x, np.float64) for k, x in fast.items()}
    pending = [{k: np.zeros_like(theta[k][own[k]]) for k in own} for own in owned]
    counted, writes, i, history, losses, clipped = [0] * 3, [0] * 3, 0, [], [], set()
    for batch in chunks:
        loss = 0.0
        as_read = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)
        for at in np.ndindex(batch.tokens_BT.shape):
            i += 1
            if batch.weights_BT[at]:
                one = np.zeros_like(batch.weights_BT)
                one[at] = 1
                nll, gradient = token_losses(as_read, batch, one)
                loss += float(nll)
                for level, own in enumerate(owned):
                    counted[level] += 1
                    for k in own:
                        pending[level][k] += np.asarray(gradient[k][own[k]], np.float64)
            for level, own in enumerate(owned):
                if i % PERIODS[level] == 0:
                    mean = {k: g / max(counted[level], 1) for k, g in pending[level].items()}
                    norm = np.sqrt(sum((g**2).sum() for g in mean.values()))
                    rate = lr[level] + (final - 1) * lr[level] * i / positions
                    clipped |= {bool(norm > clip)} if norm else set()
                    for k in own:
                        theta[k][own[k]] -= rate * mean[k] * min(1, clip / max(norm, 1e-30))
                        pending[level][k][:] = 0
                    counted[level] = 0
                    writes[level] += 1
        history.append(({k: x.copy() for k, x in theta.items()}, tuple(writes)))
        losses.append(loss)
    return history, losses, clipped


@pytest.mark.parametrize(
    "reading, lr, final", [("depth", (0.1, 0.2, 0.4), 1.0), ("width", (0.2, 0.0, 0.8), 0.25)]
)
def test_a_day_is_the_literal_loop_over_tokens(reading, lr, final, setting, frozen, token_losses):
    model, clip = setting(reading=reading), 1.2
    config = wake.WakeConfig(lr=lr, final=final, clip=clip)
    chunks = [chunk(i) for i in range(CHUNKS)]
    states, metrics = live(model, config, frozen, chunks)
    history, losses, clipped = literal(token_losses, states[0].fast, chunks, OWNED[reading], lr, final, clip)
    assert clipped == {True, False}, "the clip should bind at some writes and not at others"

    for i, (state, (theta, writes)) in enumerate(zip(states[1:], history, strict=True)):
        for k, x in theta.items():
            np.testing.assert_allclose(state.fast[k], x, rtol=2e-4, atol=2e-6, err_msg=f"chunk {i} {k}")
        assert tuple(state.writes_L.tolist()) == writes == tuple((i + 1) * 16 // period for period in PERIODS)
        assert int(state.clock) == (i + 1) * 16
        assert [float(metrics[i][f"writes_{level}"].value()) for level in (1, 2, 3)] == list(writes)
        # The loss is of the weights before the write: predict, then update.
        np.testing.assert_allclose(metrics[i]["nll"].total, losses[i], rtol=1e-5)
        assert float(metrics[i]["nll"].count) == chunks[i].weights_BT.sum()

    for before, after in zip(states, states[1:], strict=False):
        for level, own in enumerate(OWNED[reading]):
            moved = any(bool((before.fast[k][own[k]] != after.fast[k][own[k]]).any()) for k in own)
            due = int(after.clock) % PERIODS[level] == 0
            silent = level == 0 and int(after.clock) == 16 * (SILENT + 1)
            assert moved == (due and lr[level] > 0 and not silent)
    static = {"depth": {"gate_NDF": np.s_[3], "down_NFD": np.s_[3]}, "width": {"up_NDF": np.s_[..., 18:]}}[
        reading
    ]
    for k, own in static.items():
        assert not states[-1].fast[k][own].any() and states[-1].gradient[k][own].any()


def test_the_evening_writes_what_slower_levels_have_gathered(setting, frozen):
    """Three chunks: level 2 was due after the second, level 3 never; both are written with the last."""
    config = wake.WakeConfig(lr=(0.1, 0.2, 0.4))
    longer, _ = live(setting(), config, frozen, [chunk(i) for i in range(4)])
    states, _ = live(setting(), config, frozen, [chunk(i) for i in range(3)])
    assert [s.writes_L.tolist() for s in longer[1:]] == [[1, 0, 0], [2, 1, 0], [3, 1, 0], [4, 2, 1]]
    assert [s.writes_L.tolist() for s in states[1:]] == [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
    chex.assert_trees_all_equal(states[2], longer[2])
    assert all(states[3].fast["up_NDF"][level].any() for level in range(3))
    assert not any(states[3].gradient["up_NDF"][level].any() for level in range(3))


def test_one_level_alone_is_as_two_of_its_period_and_keeps_no_gradient(setting, frozen):
    chunks = [chunk(i) for i in range(3)]
    ends = []
    for levels in (1, 2):
        config = wake.WakeConfig(rule="adam", lr=(0.1,) * levels, clip=1e9)
        ends.append(live(setting(periods=(16,) * levels), config, frozen, chunks)[0][-1])
    alone, two = ends
    chex.assert_trees_all_close(alone.fast, two.fast, rtol=1e-4, atol=1e-6)
    assert alone.gradient == {} and alone.writes_L.tolist() == [3] and two.writes_L.tolist() == [3, 3]


def test_the_adam_rule_is_optax_and_slow_moments_wait_for_their_writes(setting, frozen, token_losses):
    chunks = [chunk(0)] * 4
    states, metrics = live(setting(), wake.WakeConfig(lr=(0.01,) * 3, rule="adam", clip=0.5), frozen, chunks)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01, b1=0.9, b2=0.98))
    fastest = jax.tree.map(lambda x: x[0], states[0].fast)
    moments = optimizer.init(fastest)
    for before, after, batch in zip(states, states[1:], chunks, strict=False):
        _, gradient = token_losses(before.fast, batch, batch.weights_BT)
        mean = jax.tree.map(lambda g: g[0] / 11, gradient)
        assert batch.weights_BT.sum() == 11
        updates, moments = optimizer.update(mean, moments)
        fastest = optax.apply_updates(fastest, updates)
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], after.fast), fastest, rtol=1e-3, atol=2e-5)
        for level, period in enumerate(PERIODS):
            due = int(after.clock) % period == 0
            for old, new in zip(before.moments, after.moments, strict=True):
                assert bool((old["up_NDF"][level] != new["up_NDF"][level]).any()) == due
    # The first write of Adam is one step of size lr in the direction of the gradient, whatever came before.
    np.testing.assert_allclose(np.median(np.abs(states[4].fast["up_NDF"][2])), 0.01, rtol=1e-3)
    assert not any(m["up_NDF"][3].any() for m in states[4].moments)
    nll = [float(m["nll"].value()) for m in metrics]
    assert nll == sorted(nll, reverse=True) and nll[3] < nll[0] - 0.1, "what is read again is known better"


@pytest.fixture(scope="module")
def lived(setting, frozen):
    """`lived(partitioner)`: the state and the metrics after one chunk of eight rows."""
    model, config = setting(), wake.WakeConfig(lr=(0.5, 1.0, 2.0))

    def run(partitioner):
        state, step = (
            partitioner.put(morning(model, config, frozen)),
            partitioner.compile(wake.make(model, config, 1)),
        )
        batch = partitioner.put_batch(chunk(0, rows=8, length=2))
        return jax.device_get(step(state, partitioner.put(frozen), batch, KEY))

    return run


@pytest.fixture(scope="module")
def on_one_device(lived):
    return lived(Partitioner(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=2, fsdp=2, model=2), MeshConfig(mode="map")], ids=["jit", "map"]
)
def test_a_chunk_lived_on_eight_devices_is_the_chunk_lived_on_one(mesh, lived, on_one_device):
    chex.assert_trees_all_close(lived(Partitioner(mesh)), on_one_device, rtol=1e-3, atol=1e-5)
    assert on_one_device[0].fast["up_NDF"][0].any()


def test_a_chunk_is_whole_rows(setting):
    assert wake.rows_per_chunk(setting(), 8) == 2


@pytest.mark.parametrize(
    "settings",
    [{"rule": "rmsprop"}, {"passes": 0}, {"clip": 0.0}, {"lr": ()}, {"lr": (-1.0,)}, {"final": 1.5}],
)
def test_a_day_that_cannot_be_is_named(settings):
    with pytest.raises(ValueError, match=f"wake.{next(iter(settings))}="):
        wake.WakeConfig(**settings)
