import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slots import read_slot

from sleep_jax import optim, trees
from sleep_jax.optim import OptimConfig


def updates(config, steps, gradients, params=None):
    """The update of each step, for one gradient after the other."""
    params = jnp.ones(3) if params is None else params
    optimizer = optim.make(config, steps)
    state, update, seen = optimizer.init(params), jax.jit(optimizer.update), []
    for gradient in gradients:
        change, state = update(gradient, state, params)
        seen.append(change)
    return seen


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    # Adam's unbiased moments of a constant gradient are it and its square: a step is the rate itself.
    config = OptimConfig(lr=0.5, warmup=0.25, final=0.1)
    seen = [-float(u[0]) for u in updates(config, 16, [jnp.full(3, 0.01)] * 18)]
    share = np.clip((np.arange(18) - 4) / 12, 0, 1)
    wanted = 0.05 + 0.45 * (1 + np.cos(np.pi * share)) / 2
    wanted[:4] = 0.5 * np.arange(4) / 4
    np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_without_warm_up_the_first_step_is_at_the_peak(steps):
    (first,) = updates(OptimConfig(lr=0.5, warmup=0.0), steps, [jnp.full(3, 0.01)])
    np.testing.assert_allclose(first, -0.5, rtol=1e-4)


def test_gradients_beyond_the_clip_count_as_the_clip():
    config = OptimConfig(lr=0.5, warmup=0.0, clip=2.0)
    direction = jnp.array([0.6, 0.0, 0.8])
    steep, clipped, half = (updates(config, 9, [direction * g, direction]) for g in (1e4, 2.0, 1.0))
    np.testing.assert_allclose(steep[1], clipped[1], rtol=1e-5)
    assert np.abs(half[1] - clipped[1]).max() > 1e-2


def test_the_second_moment_decays_with_b2():
    config = OptimConfig(lr=0.5, warmup=0.0, final=1.0, b2=0.9, clip=9.0)
    second = updates(config, 9, [jnp.ones(3), jnp.full(3, 3.0)])[1]
    m, v = (0.9 * 0.1 + 0.1 * 3) / (1 - 0.9**2), (0.9 * 0.1 + 0.1 * 9) / (1 - 0.9**2)
    np.testing.assert_allclose(second, -0.5 * m / np.sqrt(v), rtol=1e-4)


def test_only_matrices_decay_and_stacking_over_layers_makes_no_matrix(tiny):
    model = tiny(qk_norm=True, qkv_bias=True, tie_embeddings=False)
    key = jax.random.key(0)
    memory = jax.eval_shape(model.init_memory, key)
    slot = jax.eval_shape(lambda m: read_slot(m, 0, 0), memory)
    tree = {"params": jax.eval_shape(model.init, key), "slot": slot, "bank": memory.bank}
    optimizer = optim.make(OptimConfig(lr=0.5, warmup=0.0, weight_decay=0.2), 10)

    @jax.jit
    def decay():
        ones, zeros = (jax.tree.map(lambda x: fill(x.shape), tree) for fill in (jnp.ones, jnp.zeros))  # noqa: B023
        return optimizer.update(zeros, optimizer.init(ones), ones)[0]

    change = jax.device_get(decay())
    decayed = {path.rsplit("/", 1)[-1] for path, x in trees.named(change).items() if x.any()}
    assert decayed == {
        "embed_VD", "head_DV", "q_NDHK", "k_NDJK", "v_NDJK", "o_NHKD", "gate_NDF", "up_NDF", "down_NFD",
        "a_NDR", "b_NRD", "a_NLEDR", "b_NLERD",
    }  # fmt: skip
    np.testing.assert_allclose(change["params"]["embed_VD"], -0.5 * 0.2, rtol=1e-5)
    kept = {path.rsplit("/", 1)[-1] for path in trees.paths(change)} - decayed
    assert kept == {
        "scale",
        "q_bias_NHK",
        "k_bias_NJK",
        "v_bias_NJK",
        "w_ND",
        "pool_ND",
        "bias_N",
        "w_NLDE",
        "pool_NLDE",
        "bias_NLE",
    }


def test_a_run_finds_the_minimum():
    optimizer = optim.make(OptimConfig(lr=0.1), 200)
    x = {"w_DF": jnp.array([[3.0, -2.0]])}
    state = optimizer.init(x)

    @jax.jit
    def step(x, state):
        change, state = optimizer.update(jax.grad(lambda x: jnp.sum((x["w_DF"] - 1) ** 2))(x), state, x)
        return optax.apply_updates(x, change), state

    for _ in range(200):
        x, state = step(x, state)
    np.testing.assert_allclose(x["w_DF"], 1, atol=0.02)


@pytest.mark.parametrize("key, value", [("lr", 0.0), ("clip", -1.0), ("warmup", 1.0)])
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        OptimConfig(**{key: value})


def test_small_steps_on_numbers_of_half_precision_add_up_as_in_float32():
    """A step of 1e-4 is far below the spacing of bfloat16 at 1 (0.008), a hundred of them are not."""
    params = {"w_DO": jnp.linspace(0.5, 2.0, 12).reshape(3, 4), "bias_O": jnp.full(4, -1.0)}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    config = OptimConfig(lr=1e-4, warmup=0.0, final=1.0, weight_decay=0.1)

    def trained(params, dtype):
        optimizer = optim.make(config, 400)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for n in range(400):
            gradient = jax.tree.map(lambda x, n=n: jnp.full(x.shape, 1 + n % 3, dtype), params)
            change, state = update(gradient, state, params)
            params = optax.apply_updates(params, change)
        return params

    got = trained(half, jnp.bfloat16)
    wanted = trained(jax.tree.map(lambda x: x.astype(jnp.float32), half), jnp.float32)
    for name, x in got.items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, wanted[name].astype(jnp.bfloat16))
        assert (np.asarray(x, float) < np.asarray(half[name], float)).all()
