import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equality import bit_equal
from slots import read_slot

from sleep_jax import losses, steps
from sleep_jax.model import memory as memory_lib
from sleep_jax.ops.masked import masked_mean
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.sleep import consolidate
from sleep_jax.types import Batch, Mean, Memory, Objective, TrainState

KEY = jax.random.key(0)


# An objective of two terms that count differently, on a linear model.


def rows(n=8):
    rng = np.random.default_rng(0)
    x_BD = rng.normal(size=(n, 3)).astype(np.float32)
    near_B, far_B = (rng.random(n) < 0.7).astype(np.float32), rng.random(n).astype(np.float32)
    near_B[::4] = 0  # the first micro-batch of four counts nothing in one term
    return {"x_BD": x_BD, "near_B": near_B, "far_B": far_B}


def totals(params, frozen, batch, key):
    y_B = batch["x_BD"] @ params["w"] + frozen
    near = masked_mean((y_B - 1) ** 2, batch["near_B"])
    far = Mean(jnp.sum(jnp.abs(y_B) * batch["far_B"]), jnp.sum(batch["far_B"]))
    return {"near": near, "far": far}, {"noise": Mean(jax.random.normal(key, ()), jnp.float32(1))}


def counts(batch):
    return {"near": batch["near_B"].sum(), "far": batch["far_B"].sum()}


OBJECTIVE = Objective({"near": 0.3, "far": 2.0}, counts, totals)
START = {"w": jnp.array([0.5, -1.0, 2.0])}


def gradient(batch):
    """The gradient and the terms in numpy, term by term, of the means over the whole batch."""
    y_B = batch["x_BD"] @ np.asarray(START["w"]) + 0.25
    near, far = (batch[k] / max(batch[k].sum(), 1e-9) for k in ("near_B", "far_B"))
    of_y_B = 0.3 * near * 2 * (y_B - 1) + 2.0 * far * np.sign(y_B)
    return of_y_B @ batch["x_BD"], {"near": near @ (y_B - 1) ** 2, "far": far @ np.abs(y_B)}


def taken(batch, micro_batches):
    """The gradient that one step of plain descent at rate 1 took, and its metrics."""
    optimizer = optax.sgd(1.0)
    step = jax.jit(steps.make(OBJECTIVE, optimizer, micro_batches))
    state, metrics = step(steps.init(optimizer, START), jnp.float32(0.25), batch, KEY)
    assert int(state.step) == 1
    return np.asarray(START["w"] - state.params["w"]), metrics


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_micro_batches_take_the_step_of_the_whole_batch(micro_batches):
    got, metrics = taken(rows(), micro_batches)
    wanted, terms = gradient(rows())
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for name, value in terms.items():
        np.testing.assert_allclose(metrics[name].value(), value, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"].value(), np.linalg.norm(wanted), rtol=1e-5)
    assert float(metrics["noise"].count) == micro_batches


def test_counts_below_one_are_counts():
    batch = rows()
    batch["far_B"] *= 0.01
    assert 0 < batch["far_B"].sum() < 0.1
    np.testing.assert_allclose(taken(batch, 2)[0], gradient(rows())[0], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_batch_that_counts_nothing_has_no_gradient(micro_batches):
    batch = rows() | {"near_B": np.zeros(8, np.float32), "far_B": np.zeros(8, np.float32)}
    got, metrics = taken(batch, micro_batches)
    assert not got.any() and all(float(metrics[k].value()) == 0 for k in ("near", "far", "gradient_norm"))


def test_a_term_that_counts_nothing_leaves_the_other():
    batch = rows() | {"near_B": np.zeros(8, np.float32)}
    np.testing.assert_allclose(taken(batch, 2)[0], gradient(batch)[0], rtol=1e-5)


def test_rows_that_do_not_divide_are_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"8 rows .* does not divide into micro_batches=3 parts"):
        taken(rows(), 3)


# Next-token prediction of the transformer, sharded.


def packed(rows=16, T=6):
    rng = np.random.default_rng(1)
    tokens_BT = rng.integers(3, 40, (rows, T + 1)).astype(np.int32)
    segments_BT = np.tile(np.array([1, 1, 1, 2, 2, 0], np.int32), (rows, 1))
    positions_BT = np.tile(np.array([0, 1, 2, 0, 1, 0], np.int32), (rows, 1))
    weights_BT = (rng.random((rows, T)) < 0.6) * (segments_BT > 0).astype(np.float32)
    weights_BT[:2] = 0  # one device of eight has nothing to count, so a mean of means would be wrong
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, segments_BT, positions_BT)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(heads=8, kv_heads=8, head_size=2)


def awake(self_):
    params, memory = self_
    return params, Memory(memory.fast, None, None)


@pytest.fixture(scope="module")
def trained(model, grown):
    """`trained(partitioner, micro_batches) -> (state, metrics)` after one step, fast memory open."""
    params, memory = awake(grown(model))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, eps=1e-3))

    def run(partitioner, micro_batches=1):
        state = partitioner.put(steps.init(optimizer, params))
        step = partitioner.compile(steps.make(losses.supervised(model), optimizer, micro_batches))
        state, metrics = step(state, partitioner.put(memory), partitioner.put_batch(packed()), KEY)
        return jax.device_get((state, metrics))

    return run


@pytest.fixture(scope="module")
def single(trained):
    return trained(Partitioner(MeshConfig(), jax.devices()[:1]))


MESHES = {
    "data": (MeshConfig(), 1),
    "data and micro-batched": (MeshConfig(), 2),
    "fsdp": (MeshConfig(fsdp=8), 1),
    "model": (MeshConfig(model=8), 1),
    "mixed": (MeshConfig(data=2, fsdp=2, model=2), 1),
    "mapped and micro-batched": (MeshConfig(mode="map"), 2),
}


@pytest.mark.parametrize("mesh, micro_batches", MESHES.values(), ids=MESHES)
def test_every_mesh_takes_the_step_of_a_single_device(mesh, micro_batches, trained, single, model, grown):
    state, metrics = trained(Partitioner(mesh), micro_batches)
    chex.assert_trees_all_close(metrics, single[1], rtol=1e-4)
    chex.assert_trees_all_close(state, single[0], rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, jax.device_get(grown(model)[0]))
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_every_device_has_its_share_of_every_micro_batch(model, grown):
    """Of a part that lies on half of the devices, all would compute all."""
    params, memory = awake(grown(model))
    optimizer, partitioner = optax.sgd(1.0), Partitioner(MeshConfig())

    def flops(micro_batches):
        step = partitioner.compile(steps.make(losses.supervised(model), optimizer, micro_batches))
        state, frozen = partitioner.put(steps.init(optimizer, params)), partitioner.put(memory)
        traced = step.trace(state, frozen, partitioner.put_batch(packed()), KEY)
        return traced.lower().compile().cost_analysis()["flops"]  # of one device, loops once

    assert 2 * flops(2) < 1.3 * flops(1)


def test_the_loss_is_the_mean_over_counting_targets(model, grown, single):
    (params, memory), batch = awake(grown(model)), packed()
    where = {"segments_BT": batch.segments_BT, "positions_BT": batch.positions_BT}
    out = jax.jit(functools.partial(model.apply, **where))(params, batch.tokens_BT, memory=memory)
    logits_BTV = np.asarray(out.logits_BTV, np.float64)
    nll = []
    for at in map(tuple, np.argwhere(batch.weights_BT)):
        nll.append(np.log(np.exp(logits_BTV[at]).sum()) - logits_BTV[at][batch.targets_BT[at]])
    np.testing.assert_allclose(single[1]["nll"].value(), np.mean(nll), rtol=1e-4)
    assert float(single[1]["nll"].count) == len(nll) == losses.supervised(model).counts(batch)["nll"]


# Knowledge Seeding of one slot, with practice, sharded.

PLACE = 1, 2  # level and index of the slot


@pytest.fixture(scope="module")
def seeded(model, grown):
    """`seeded(partitioner, micro_batches) -> (state, metrics)`: two steps, the slot forced in the second."""
    params, memory = grown(model)
    memory = memory_lib.rest(memory_lib.with_active(memory, [[True, False, True], [True, False, False]]))
    config = consolidate.SeedConfig(alpha=0.6, on_policy=0.5, beta=0.3, forced=0.5)
    objective = consolidate.objective(model, config, consolidate.into_slot(*PLACE), PLACE)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, eps=1e-3))
    keys = [jax.random.key(i) for i in range(2)]
    assert [bool(jax.random.bernoulli(key, config.forced)) for key in keys] == [False, True]

    rng, rows, T = np.random.default_rng(2), 16, 6
    sampled_BT = np.tile(np.arange(T) > 2, (rows, 1)).astype(np.float32)
    sampled_BT[-3:] = 0  # another device than of the lesson's has nothing to count
    batch = {
        "lesson": consolidate.Lesson(
            packed(rows, T), rng.normal(size=(rows, T, 16)).astype(np.float32), np.arange(rows) % 3 == 0
        ),
        "practice": consolidate.Practice(
            tokens_BT=rng.integers(3, 40, (rows, T)).astype(np.int32),
            sampled_BT=sampled_BT,
            hidden_BTD=rng.normal(size=(rows, T, 16)).astype(np.float32),
            advantage_B=rng.normal(size=rows).astype(np.float32),
        ),
    }

    def run(partitioner, micro_batches=1):
        state = partitioner.put(steps.init(optimizer, read_slot(memory, *PLACE)))
        step = partitioner.compile(steps.make(objective, optimizer, micro_batches))
        frozen, rows, seen = partitioner.put((params, memory)), partitioner.put_batch(batch), []
        for key in keys:
            state, metrics = step(state, frozen, rows, key)
            seen.append(jax.device_get(metrics))
        return jax.device_get(state), seen

    return run


@pytest.fixture(scope="module")
def seeded_alone(seeded):
    return seeded(Partitioner(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("mesh, micro_batches", MESHES.values(), ids=MESHES)
def test_every_mesh_seeds_the_slot_of_a_single_device(
    mesh, micro_batches, seeded, seeded_alone, grown, model
):
    state, metrics = seeded(Partitioner(mesh), micro_batches)
    names = {"kl", "kl_on_policy", "imitation", "routing", "open_on_own", "open_on_others", "entropy"}
    names |= {"entropy_on_policy"}
    assert metrics[0].keys() == names | {"gradient_norm"}
    chex.assert_trees_all_close(metrics, seeded_alone[1], rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(state, seeded_alone[0], rtol=1e-3, atol=1e-4)
    before = jax.device_get(read_slot(grown(model)[1], *PLACE))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, before)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_the_state_before_the_first_step_is_zero_steps():
    state = steps.init(optax.adam(1.0), START)
    assert isinstance(state, TrainState) and int(state.step) == 0
    assert bit_equal(state.params, START) == []
