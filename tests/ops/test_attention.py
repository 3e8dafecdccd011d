import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.ops.attention import attend


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def case(heads, kv_heads):
    """q_BTHK, mask_BTS, k_BJSK, v_BJSK; the second key is seen by every query."""
    mask_BTS = np.random.default_rng(3).random((2, 3, 5)) < 0.6
    mask_BTS[..., 1] = True
    keys, values = normal(2, kv_heads, 5, 4, seed=1), normal(2, kv_heads, 5, 4, seed=2)
    return normal(2, 3, heads, 4), mask_BTS, keys, values


def looped(q_BTHK, mask_BTS, k_BJSK, v_BJSK):
    """Head by head, of jax.numpy's own parts, which automatic differentiation takes its own way."""
    group = q_BTHK.shape[2] // k_BJSK.shape[1]
    heads = []
    for h in range(q_BTHK.shape[2]):
        k_BSK, v_BSK = k_BJSK[:, h // group], v_BJSK[:, h // group]
        scores_BTS = jnp.einsum("btk,bsk->bts", q_BTHK[:, :, h], k_BSK) / np.sqrt(q_BTHK.shape[-1])
        weights_BTS = jnp.where(mask_BTS, jnp.exp(scores_BTS), 0)
        heads.append(jnp.einsum("bts,bsk->btk", weights_BTS / weights_BTS.sum(-1, keepdims=True), v_BSK))
    return jnp.stack(heads, axis=2)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2), (6, 2)])
def test_attention_and_its_gradient_are_those_of_the_loop_over_heads(heads, kv_heads):
    q_BTHK, mask_BTS, *kv = case(heads, kv_heads)
    along_BTHK = normal(*q_BTHK.shape, seed=4)

    def both(function):
        y_BTHK, pull = jax.vjp(lambda q, *kv: function(q, mask_BTS, *kv), q_BTHK, *kv)
        return y_BTHK, *pull(along_BTHK)

    for got, wanted in zip(both(jax.jit(attend)), both(looped), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_scores_of_any_size_keep_numbers_and_gradients_finite():
    q_BTHK, mask_BTS, k_BJSK, v_BJSK = case(4, 2)
    y_BTHK, pull = jax.vjp(lambda q: attend(q, mask_BTS, k_BJSK, v_BJSK), 1e4 * q_BTHK)
    assert all(np.isfinite(x).all() for x in (y_BTHK, *pull(y_BTHK)))
    seen = np.abs(v_BJSK).max()
    assert np.abs(y_BTHK).max() <= seen * (1 + 1e-6)  # a mean of values is no larger than they are


def test_what_is_masked_moves_nothing():
    q_BTHK, mask_BTS, k_BJSK, v_BJSK = case(4, 2)
    mask_BTS[..., 3] = False
    pulled = jax.vjp(lambda k, v: attend(q_BTHK, mask_BTS, k, v), k_BJSK, v_BJSK)[1](normal(2, 3, 4, 4))
    for dx_BJSK in pulled:
        assert not np.asarray(dx_BJSK[:, :, 3]).any() and np.asarray(dx_BJSK[:, :, 1]).any()


def test_a_query_that_sees_nothing_gives_the_mean():
    k_BJSK, v_BJSK = normal(1, 1, 5, 4), normal(1, 1, 5, 4, seed=1)
    y_BTHK = attend(normal(1, 1, 2, 4), np.zeros((1, 1, 5), bool), k_BJSK, v_BJSK)
    np.testing.assert_allclose(y_BTHK[0, 0], np.tile(v_BJSK[0, 0].mean(0), (2, 1)), rtol=1e-5)


def test_half_precision_keeps_its_softmax_in_float32():
    q, k = normal(1, 1, 1, 4).astype(jnp.bfloat16), normal(1, 1, 2, 4).astype(jnp.bfloat16)
    mask = np.ones((1, 1, 2), bool)
    traced = jax.make_jaxpr(lambda q: attend(q, mask, k, k))(q)
    assert ":f32[1,1,1,2] = exp" in str(traced)
    dq = jax.grad(lambda q: attend(q, mask, k, k).sum().astype(jnp.float32))(q)
    assert traced.out_avals[0].dtype == dq.dtype == jnp.bfloat16
