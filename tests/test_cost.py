import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sleep_jax import cost, losses, steps
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.types import Batch

B, T, LAYERS = 16, 6, 3
D, H, K, F, V = 16, 8, 4, 24, 40
A_23, B_34, C_33 = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((3, 3))


def twice(x_23):
    return x_23 @ C_33 @ C_33


def looped(x_23, times):
    return jax.lax.while_loop(lambda s: s[0] < times, lambda s: (s[0] + 1, s[1] @ C_33), (0, x_23))[1]


PROGRAMS = {
    "a product": (lambda: A_23 @ B_34, 2 * 2 * 3 * 4),
    "a batch of products": (lambda: jnp.einsum("bj,bjk->bk", A_23, jnp.ones((2, 3, 5))), 2 * 2 * 15),
    "no product": (lambda: jnp.exp(A_23).sum(), 0),
    "a scan": (lambda: jax.lax.scan(lambda x, _: (twice(x), None), A_23, length=5)[0], 5 * 2 * 36),
    "a scan in a scan": (
        lambda: jax.lax.fori_loop(0, 4, lambda _, x: jax.lax.fori_loop(0, 5, lambda _, y: y @ C_33, x), A_23),
        4 * 5 * 36,
    ),
    "the dearer branch": (lambda: jax.lax.cond(A_23[0, 0] > 0, twice, lambda x: x @ C_33, A_23), 2 * 36),
    "what nothing depends on": (lambda: jax.jit(lambda x: (x, twice(x)))(A_23)[0], 0),
}


@pytest.mark.parametrize("program, wanted", PROGRAMS.values(), ids=PROGRAMS)
def test_every_product_counts_as_often_as_it_is_taken(program, wanted):
    assert cost.flops(jax.jit(program).trace()) == wanted


def test_a_loop_of_unknown_length_counts_as_often_as_it_is_told():
    traced = jax.jit(lambda times: looped(A_23, times)).trace(4)
    assert cost.flops(traced, trips=4) == 4 * 36
    with pytest.raises(ValueError, match="`trips` does not say how often"):
        cost.flops(traced)
    idle = jax.jit(lambda times: jax.lax.while_loop(lambda i: i < times, lambda i: i + 1, 0)).trace(4)
    assert cost.flops(idle) == 0


def traced(model, partitioner=None, micro_batches=1):
    """A step of next-token prediction."""
    partitioner = partitioner or Partitioner(MeshConfig(), jax.devices()[:1])
    optimizer = optax.adam(1e-3)
    state = partitioner.put(steps.init(optimizer, jax.jit(model.init)(jax.random.key(0))))
    ones = np.ones((B, T), np.int32)
    batch = partitioner.put_batch(Batch(ones, ones, ones.astype(np.float32), ones, ones))
    run = partitioner.compile(steps.make(losses.supervised(model), optimizer, micro_batches))
    return run.trace(state, None, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def scanned(tiny):
    return cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=1)))


def test_layers_count_whether_they_are_scanned_or_unrolled(tiny, scanned):
    layer = 4 * D * H * K + 2 * H * K * T + 3 * D * F
    assert scanned == 3 * 2 * B * T * (LAYERS * layer + V * D)
    for unroll in (2, LAYERS):
        assert cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=unroll))) == scanned
    again = cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, remat=True)))
    assert again == scanned + 2 * B * T * LAYERS * (layer - F * D), "no gradient asks for a layer's output"


MESHES = {
    "jit": (MeshConfig(data=2, fsdp=2, model=2), 1),
    "map": (MeshConfig(mode="map"), 1),
    "micro-batches": (MeshConfig(fsdp=2), 2),
    "mapped micro-batches": (MeshConfig(mode="map"), 2),
}


@pytest.mark.parametrize("mesh, micro_batches", MESHES.values(), ids=MESHES)
def test_a_step_counts_the_same_however_it_is_split(mesh, micro_batches, tiny, scanned):
    model = tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=1)
    assert cost.flops(traced(model, Partitioner(mesh), micro_batches)) == scanned


def test_what_is_no_product_is_little_of_what_xla_counts(tiny):
    wide = tiny(layers=2, width=64, heads=2, kv_heads=2, head_size=32, ff=256, vocab_size=256, unroll=2)
    step = traced(wide)
    assert 0.9 < cost.flops(step) / step.lower().cost_analysis()["flops"] < 1


def test_a_compiled_program_comes_with_its_cost():
    run, found = cost.compiled(jax.jit(lambda a, b: twice(a) @ b), A_23, B_34)
    np.testing.assert_allclose(run(A_23, B_34), twice(A_23) @ B_34)
    assert found["flops"] == 2 * 36 + 48 and found["bytes"].keys() == {"argument", "output", "alias", "temp"}
    assert found["bytes"]["argument"] == A_23.nbytes + B_34.nbytes and found["bytes"]["output"] == 2 * 4 * 4


def test_what_is_handed_out_in_the_place_of_an_argument_is_taken_once():
    x = jnp.ones((64, 256))
    plain, donating = (
        cost.compiled(jax.jit(lambda x: x + 1, donate_argnums=d), x)[1]["bytes"] for d in ((), (0,))
    )
    assert cost.needed(plain) - plain["temp"] == 2 * x.nbytes
    assert cost.needed(donating) - donating["temp"] == x.nbytes


def test_a_step_that_does_not_fit_is_refused_with_what_to_lower(monkeypatch):
    sizes = {"argument": 3 << 30, "output": 3 << 30, "alias": 3 << 30, "temp": 1 << 30}
    monkeypatch.setattr(cost, "room", lambda: 4 << 30)
    assert cost.check("sleep", sizes) == "sleep: a step takes 4.00 GiB of the 4.00 GiB of each device"
    monkeypatch.setattr(cost, "room", lambda: (4 << 30) - 1)
    with pytest.raises(ValueError, match="3.00 GiB for parameters.*1.00 GiB while it runs.*micro_batches"):
        cost.check("sleep", sizes)


def test_the_room_of_a_cpu_device_is_its_share_of_what_the_process_may_take(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "CGROUP", tmp_path / "none")
    host = cost.room()
    assert 2**26 < host < 2**45
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cost, "CGROUP", limit)
    limit.write_text("max\n")
    assert cost.room() == host
    limit.write_text(f"{8 << 20}\n")
    assert cost.room() == (8 << 20) // len(jax.devices())
