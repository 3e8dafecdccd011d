import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equality import bit_equal
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sleep_jax import checkpoint, partition
from sleep_jax.partition import MeshConfig, Partitioner, spec
from sleep_jax.types import Batch, Mean, TrainState

N, D, F, V, B, T = 2, 8, 16, 24, 16, 5
OPTIMIZER = optax.adam(1e-2)
SPLITS = [
    MeshConfig(),
    MeshConfig(fsdp=8),
    MeshConfig(model=8),
    MeshConfig(data=2, fsdp=-1, model=2),
    MeshConfig(mode="map"),
]


def params():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) * shape[-2] ** -0.5, jnp.float32)

    return {
        "embed": {"table_VD": normal(V, D)},
        "blocks": {
            "norm": {"scale": jnp.ones((N, D))},
            "mlp": {"up_NDF": normal(N, D, F), "down_NFD": normal(N, F, D)},
        },
        "head": {"kernel_DV": normal(D, V)},
    }


def batch(rows=B):
    rng = np.random.default_rng(0)
    tokens_BT, targets_BT = rng.integers(0, V, (2, rows, T)).astype(np.int32)
    weights_BT = (rng.random((rows, T)) < 0.5).astype(np.float32)
    weights_BT[: rows // 8] = 0  # one device of eight has nothing to count, so a mean of means would be wrong
    ones = np.ones((rows, T), np.int32)
    return Batch(tokens_BT, targets_BT, weights_BT, ones, ones)


def step(state, frozen, batch, key, *, reduce):
    def total(params):
        x_BTD = params["embed"]["table_VD"][batch.tokens_BT] + frozen["shift"]
        mlp = params["blocks"]["mlp"]
        for n in range(N):
            y_BTF = jax.nn.silu(x_BTD * params["blocks"]["norm"]["scale"][n] @ mlp["up_NDF"][n])
            x_BTD = x_BTD + y_BTF @ mlp["down_NFD"][n]
        logp_BTV = jax.nn.log_softmax(x_BTD @ params["head"]["kernel_DV"])
        nll_BT = -jnp.take_along_axis(logp_BTV, batch.targets_BT[..., None], -1)[..., 0]
        return (nll_BT * batch.weights_BT).sum()

    loss, grads = jax.value_and_grad(total)(state.params)
    loss, grads = reduce((Mean(loss, batch.weights_BT.sum()), grads))
    grads = jax.tree.map(lambda g: g / loss.count, grads)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    noise = Mean(jax.random.normal(key, ()), jnp.float32(1))
    return TrainState(state.step + 1, params, opt_state), {"loss": loss, "noise": noise}


def train(partitioner, steps=3):
    state = partitioner.put(TrainState(jnp.int32(0), params(), OPTIMIZER.init(params())))
    frozen = partitioner.put({"shift": jnp.float32(0.1)})
    traced = []

    def counted(*args, **kwargs):
        traced.append(True)
        return step(*args, **kwargs)

    run, seen = partitioner.compile(counted), []
    for i in range(steps):
        state, metrics = run(state, frozen, partitioner.put_batch(batch()), jax.random.key(i))
        seen.append({k: (m.total, m.count) for k, m in metrics.items()})
    assert len(traced) == 1, "state came back placed differently, so that the step was compiled again"
    return state, seen


@pytest.fixture(scope="module")
def single():
    return train(Partitioner(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("config", SPLITS, ids=lambda c: f"{c.data},{c.fsdp},{c.model},{c.mode}")
def test_every_split_gives_the_numbers_of_a_single_device(config, single):
    partitioner = Partitioner(config)
    state, metrics = train(partitioner)
    chex.assert_trees_all_close(jax.device_get(metrics), jax.device_get(single[1]), rtol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(single[0]), rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), jax.device_get(state.params), params())
    assert min(jax.tree.leaves(moved)) > 5e-3
    equivalent = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, partitioner.shardings(state)
    )
    assert all(jax.tree.leaves(equivalent))
    up_NDF = state.opt_state[0].mu["blocks"]["mlp"]["up_NDF"]
    fsdp, model = partitioner.mesh.shape["fsdp"], partitioner.mesh.shape["model"]
    assert {s.data.shape for s in up_NDF.addressable_shards} == {(N, D // fsdp, F // model)}


def test_a_single_device_is_plain_jit():
    partitioner = Partitioner(MeshConfig(), jax.devices()[3:4])
    run = partitioner.compile(step)
    assert type(run) is type(jax.jit(lambda: 0))
    assert partitioner.put({"anything": jnp.ones(3)})["anything"].devices() == {jax.devices()[3]}
    assert partitioner.put_batch(batch()).tokens_BT.devices() == {jax.devices()[3]}


def sum_up(state, frozen, batch, key, *, reduce):
    total = reduce((batch.weights_BT * frozen["scale"][0]).sum())
    return jax.tree.map(lambda x: x + total, state), {"sum": Mean(total, jnp.float32(B))}


@pytest.mark.parametrize(
    "config, devices", [(MeshConfig(), 1), (MeshConfig(), 8), (MeshConfig(mode="map"), 8)]
)
def test_only_the_donated_arguments_are_used_up(config, devices):
    partitioner = Partitioner(config, jax.devices()[:devices])
    source = {"scale": jnp.ones(8)}
    state, frozen = partitioner.put(source), partitioner.put(source)
    rows = partitioner.put_batch(batch())
    kept, _ = partitioner.compile(sum_up, donate=())(state, frozen, rows, jax.random.key(0))
    assert not state["scale"].is_deleted()
    out, metrics = partitioner.compile(sum_up)(state, frozen, rows, jax.random.key(0))
    assert state["scale"].is_deleted()
    assert not any(x.is_deleted() for x in (source["scale"], frozen["scale"], rows.tokens_BT))
    np.testing.assert_array_equal(out["scale"], kept["scale"])
    np.testing.assert_allclose(metrics["sum"].value(), batch().weights_BT.sum() / B, rtol=1e-6)


def test_lowering_tells_memory_before_the_first_step():
    partitioner = Partitioner(MeshConfig(fsdp=2))
    state = partitioner.abstract(jax.eval_shape(lambda: {"up_NDF": jnp.zeros((2, 8, 8))}))
    frozen = {"scale": jnp.ones(1)}
    traced = partitioner.compile(sum_up).trace(
        state, frozen, partitioner.put_batch(batch()), jax.random.key(0)
    )
    assert traced.lower().compile().memory_analysis().argument_size_in_bytes >= 2 * 8 * 8 * 4 // 2


def test_bare_specs_inside_a_step_find_the_mesh():
    def constrained(state, frozen, batch, key, *, reduce):
        return {"scale": jax.lax.with_sharding_constraint(state["scale"], P("model"))}, {}

    partitioner = Partitioner(MeshConfig(model=8))
    state, _ = partitioner.compile(constrained)(partitioner.put({"scale": jnp.arange(8.0)}), None, None, None)
    assert state["scale"].tolist() == list(range(8))


def test_a_mapped_step_that_never_reduces_is_an_error():
    partitioner = Partitioner(MeshConfig(mode="map"))
    with pytest.raises(ValueError, match="config.mesh.mode"):
        partitioner.compile(lambda state, frozen, batch, key, *, reduce: (state, {}))(
            partitioner.put(params()), None, partitioner.put_batch(batch()), jax.random.key(0)
        )


def test_a_batch_is_split_row_by_row():
    placed = Partitioner(MeshConfig(data=2, fsdp=2, model=2)).put_batch(batch())
    assert bit_equal(placed, batch()) == []
    assert {s.data.shape for s in placed.tokens_BT.addressable_shards} == {(B // 4, T)}


def test_rows_that_all_processes_hold_are_split_where_the_parameters_lie():
    rows = (np.arange(32.0).reshape(16, 2), np.arange(16))
    like = Partitioner(MeshConfig(data=2, fsdp=2, model=2)).put(params())
    placed = partition.put_rows(rows, like)
    assert {s.data.shape for s in placed[0].addressable_shards} == {(4, 2)}
    chex.assert_trees_all_equal(partition.fetch(placed), rows)
    short = (rows[0][:7], rows[1][:7])
    assert partition.put_rows(short, like) is short, "seven rows do not divide"
    single = Partitioner(MeshConfig(), jax.devices()[:1]).put(params())
    assert partition.put_rows(rows, single) is rows


def test_a_state_restores_from_another_split(tmp_path):
    first, second = Partitioner(MeshConfig(fsdp=8)), Partitioner(MeshConfig(model=4, fsdp=2))
    checkpoint.save_boundary(tmp_path, "a", first.put(params()), {})
    loaded, _ = checkpoint.load_boundary(tmp_path, "a", second.abstract(jax.eval_shape(params)))
    assert bit_equal(loaded, params()) == []
    assert jax.tree.map(lambda x: x.sharding, loaded) == second.shardings(params())


def test_mesh_axes_are_automatic():
    mesh = Partitioner(MeshConfig(model=2)).mesh
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "model": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"data": 3}, r"config.mesh.data=3 .* needs 3 devices, but there are 8"),
        ({"data": 4}, r"needs 4 devices, but there are 8"),
        ({"data": 4, "fsdp": 4}, r"needs 16 devices, but there are 8"),
        ({"fsdp": 3}, r"config.mesh.fsdp=3 .* needs a multiple of 3 devices, but there are 8"),
        ({"fsdp": 16}, r"needs a multiple of 16 devices, but there are 8"),
        ({"model": 0}, r"config.mesh.model=0 must be a positive number"),
        ({"fsdp": -1}, r"config.mesh.data and config.mesh.fsdp are both -1"),
        ({"mode": "pmap"}, r'config.mesh.mode="pmap" must be'),
        ({"mode": "map", "model": 2}, r"config.mesh.model=2"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_both_numbers(sizes, said):
    with pytest.raises(ValueError, match=said):
        Partitioner(MeshConfig(**sizes))


@pytest.mark.parametrize("config", [MeshConfig(data=4, fsdp=2), MeshConfig(mode="map")])
def test_a_batch_that_does_not_divide_says_both_numbers(config):
    with pytest.raises(
        ValueError, match=r"a batch of 12 rows .*config.mesh.data=\d \* config.mesh.fsdp=\d = 8 devices"
    ):
        Partitioner(config).put_batch(batch(12))


def test_an_array_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"no rule .* blocks/mlp/novel_NDX \[2, 3, 4\]"):
        Partitioner(MeshConfig()).put({"blocks": {"mlp": {"novel_NDX": jnp.zeros((2, 3, 4))}}})
    with pytest.raises(ValueError, match="rank"):
        Partitioner(MeshConfig()).put({"up_NDF": jnp.zeros((3, 4))})


@pytest.mark.parametrize("axis, dimension", [("fsdp", 1), ("model", 2)])
def test_a_dimension_that_does_not_divide_is_named(axis, dimension):
    tree = {"attn": {"k_NDJK": jnp.zeros((2, 6, 6, 4))}}
    with pytest.raises(ValueError) as error:
        Partitioner(MeshConfig(**{axis: 4})).put(tree)
    assert f"attn/k_NDJK [2, 6, 6, 4]: dimension {dimension} of size 6" in str(error.value)
    assert f"config.mesh.{axis}=4 or the size in config.model" in str(error.value)


@pytest.mark.parametrize("path, shape", [("mu/embed/table_VD", (6, 4)), ("head/kernel_DV", (4, 6))])
def test_the_number_of_words_is_the_tokenizers(path, shape):
    said = r"of size 6 .* config.mesh.model=4 or the tokenizer's size \(vocab_size\)"
    with pytest.raises(ValueError, match=said):
        spec(path, shape, {"data": 1, "fsdp": 4, "model": 4})


FSDP_MODEL = {
    "params/embed/table_VD": ("model", "fsdp"),
    "params/embed_VD": ("model", "fsdp"),
    "params/head/kernel_DV": ("fsdp", "model"),
    "params/blocks/attn/q_NDHK": (None, "fsdp", "model", None),
    "params/blocks/attn/k_NDJK": (None, "fsdp", "model", None),
    "params/blocks/attn/v_NDJK": (None, "fsdp", "model", None),
    "params/blocks/attn/o_NHKD": (None, "model", None, "fsdp"),
    "params/blocks/attn/q_bias_NHK": (None, "model", None),
    "params/blocks/attn/v_bias_NJK": (None, "model", None),
    "params/blocks/attn/q_norm/scale": (None, None),
    "params/blocks/attn_post_norm/scale": (None, None),
    "params/blocks/mlp_post_norm/scale": (None, None),
    "params/final_norm/scale": (None,),
    "opt_state/1/0/mu/blocks/mlp/gate_NDF": (None, "fsdp", "model"),
    "memory/fast/up_NDF": (None, "fsdp", "model"),
    "memory/fast/down_NFD": (None, "model", "fsdp"),
    "memory/bank/a_NLEDR": (None, None, None, "fsdp", None),
    "memory/bank/b_NLERD": (None, None, None, None, "fsdp"),
    "memory/bank/w_NLDE": (None, None, "fsdp", None),
    "memory/bank/bias_NLE": (None, None, None),
    "memory/active_LE": (None, None),
    "a_NDR": (None, "fsdp", None),
    "nu/b_NRD": (None, None, "fsdp"),
    "w_ND": (None, "fsdp"),
    "bias_N": (None,),
    "tokens_L": (None,),
    "opt_state/count": (),
}


@pytest.mark.parametrize("path", FSDP_MODEL)
def test_every_known_parameter_has_its_rule(path):
    wanted = FSDP_MODEL[path]
    found = tuple(spec(path, (8,) * len(wanted), {"data": 2, "fsdp": 2, "model": 2}))
    assert found + (None,) * (len(wanted) - len(found)) == wanted


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MeshConfig().data = 2


def test_batches_that_do_not_divide_are_named_with_their_keys():
    here = Partitioner(MeshConfig(data=2, fsdp=2, model=2))
    here.check_rows({"a.rows": 8, "b.rows": 4})
    with pytest.raises(ValueError, match=r"^b.rows = 6, c = 2 rows do not .* config.mesh.data=2 \* "):
        here.check_rows({"a.rows": 8, "b.rows": 6, "c": 2})
    Partitioner(MeshConfig(), jax.devices()[:1]).check_rows({"b.rows": 7})


def test_what_is_only_read_is_placed_without_a_copy():
    place, tree = Partitioner(MeshConfig(), jax.devices()[:1]), params()
    address = lambda tree: [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]  # noqa: E731
    assert address(place.placed(tree)) == address(tree)
    assert not set(address(place.put(tree))) & set(address(tree))
