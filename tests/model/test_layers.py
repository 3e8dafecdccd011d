import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import ModelConfig
from sleep_jax.model.layers import (
    GLU,
    RMSNorm,
    Turned,
    frequencies,
    last_seen,
    project,
    rotary,
    rotation,
)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def test_rotary_turns_channel_pairs_as_complex_numbers():
    x_BTHK, theta = normal(2, 3, 2, 6), 100.0
    positions_BT = np.array([[0, 1, 2], [7, 3, 0]])
    half = x_BTHK[..., :3] + 1j * x_BTHK[..., 3:]
    turned = half * np.exp(1j * positions_BT[:, :, None, None] * theta ** (-2 * np.arange(3) / 6))
    wanted = np.concatenate([turned.real, turned.imag], axis=-1)
    angles = rotation(frequencies(ModelConfig(head_size=6, rope_theta=theta)), positions_BT)
    np.testing.assert_allclose(rotary(x_BTHK, *angles), wanted, rtol=1e-5, atol=1e-6)
    assert rotary(x_BTHK.astype(jnp.bfloat16), *angles).dtype == jnp.bfloat16


def test_rotary_scores_see_only_distances():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
    pairs = [(5, 2), (3, 0), (23, 20), (2, 5)]
    c = ModelConfig(head_size=8, rope_theta=50.0)
    q_BTHK, k_BTHK = (
        rotary(np.repeat(x, 4, axis=1), *rotation(frequencies(c), np.array(positions)[None]))
        for x, positions in zip((q, k), zip(*pairs, strict=True), strict=True)
    )
    scores = np.sum(q_BTHK * k_BTHK, axis=-1)[0, :, 0]
    np.testing.assert_allclose(scores[1:3], scores[0], rtol=1e-4)
    assert abs(scores[3] - scores[0]) > 1e-2


def test_of_the_keys_that_are_seen_a_window_keeps_the_latest():
    rng, S, window = np.random.default_rng(0), 7, 3
    mask_BTS = rng.random((2, 4, S)) < 0.6
    for newest in range(S):  # the newest slot of a ring is anywhere
        kept = np.zeros_like(mask_BTS)
        for b, t in np.ndindex(2, 4):
            back = [(newest - i) % S for i in range(S)]
            kept[b, t, [s for s in back if mask_BTS[b, t, s]][:window]] = True
        np.testing.assert_array_equal(last_seen(jnp.array(mask_BTS), window, newest), kept)


def test_project_is_the_einsum_over_the_inner_axis():
    x_BTD, w_DHK = normal(2, 3, 4), normal(4, 2, 5)
    np.testing.assert_allclose(project(x_BTD, w_DHK), np.einsum("btd,dhk->bthk", x_BTD, w_DHK), rtol=1e-5)
    turned = Turned(normal(6, 4))
    np.testing.assert_allclose(project(x_BTD, turned), x_BTD @ turned.w_OI.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_is_its_formula(dtype):
    config = ModelConfig(norm_eps=0.1, compute_dtype=dtype)
    x_TD, scale_D = normal(3, 8), 1 + 0.1 * normal(8)
    y_TD = RMSNorm(config).apply({"params": {"scale": scale_D}}, jnp.asarray(x_TD, dtype))
    x_TD = np.asarray(jnp.asarray(x_TD, dtype), np.float64)
    wanted = x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + 0.1) * scale_D
    np.testing.assert_allclose(y_TD.astype(jnp.float32), wanted, rtol=1e-6 if dtype == "float32" else 5e-3)
    assert y_TD.dtype == dtype


def swiglu(params, x_BTD, fast=None, **settings):
    config = ModelConfig(width=x_BTD.shape[-1], ff=params["gate_NDF"].shape[-1], **settings)
    return GLU(config).apply({"params": params}, x_BTD, fast)


def mlp(D, F, seed=0):
    shapes = {"gate_NDF": (D, F), "up_NDF": (D, F), "down_NFD": (F, D)}
    return {k: normal(*shape, seed=seed + i) for i, (k, shape) in enumerate(shapes.items())}


def test_width_sliced_levels_partition_the_units_and_sum_to_the_whole(tiny):
    model = tiny(periods=(4, 8, 16), reading="width", static_share=0.25)
    level_F = memory_lib.levels(model.config, model.memory_config)[0]
    assert sorted(np.unique(level_F)) == [-1, 0, 1, 2]
    params, x_BTD = mlp(16, 24), normal(2, 3, 16)
    units = {"gate_NDF": 1, "up_NDF": 1, "down_NFD": 0}
    masks = [level_F == level for level in range(-1, 3)]
    slices = [{k: np.compress(own, params[k], axis) for k, axis in units.items()} for own in masks]
    whole = swiglu(params, x_BTD)
    np.testing.assert_allclose(sum(swiglu(p, x_BTD) for p in slices), whole, rtol=1e-5, atol=1e-5)
    gate, up = (np.asarray(x_BTD @ params[k], np.float64) for k in ("gate_NDF", "up_NDF"))
    wanted = gate / (1 + np.exp(-gate)) * up @ params["down_NFD"]
    np.testing.assert_allclose(whole, wanted, rtol=1e-4, atol=1e-4)


def test_fast_deltas_are_added_before_the_cast():
    params, fast, x_BTD = mlp(8, 12), mlp(8, 12, seed=10), normal(1, 2, 8)
    joined = {k: params[k] + fast[k] for k in params}
    np.testing.assert_array_equal(swiglu(params, x_BTD, fast), swiglu(joined, x_BTD))
    # bfloat16 weights lose a delta below 2^-9 of their size, float32 sums of two of them do not.
    half = {k: jnp.ones_like(v, jnp.bfloat16) for k, v in params.items()}
    small = {k: jnp.full_like(v, 0.003, jnp.float32) for k, v in params.items()}
    settings = {"param_dtype": "bfloat16", "compute_dtype": "float32"}
    moved = swiglu(half, x_BTD, small, **settings) - swiglu(half, x_BTD, **settings)
    exact = {k: jnp.full_like(v, 1.003, jnp.float32) for k, v in params.items()}
    np.testing.assert_allclose(moved, swiglu(exact, x_BTD) - swiglu(half, x_BTD, **settings), rtol=1e-6)
    assert np.abs(moved).min() > 1e-3
