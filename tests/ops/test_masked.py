import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sleep_jax.ops import masked


def _logits(seed, *shape, scale=4.0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale


def test_masked_mean_equals_mean_of_what_remains():
    x_BT = _logits(0, 3, 7)
    where_BT = np.random.default_rng(1).random((3, 7)) < 0.5
    mean = masked.masked_mean(x_BT, where_BT)
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert mean.count == where_BT.sum()
    np.testing.assert_allclose(mean.value(), x_BT[where_BT].mean(), rtol=1e-6)


def test_masked_mean_weights_and_integers():
    mean = masked.masked_mean(jnp.array([1, 2, 4]), jnp.array([0.5, 0.0, 2.0]))
    assert (mean.total, mean.count) == (8.5, 2.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_entries_reach_neither_value_nor_gradient(bad):
    x = jnp.array([1.0, bad, 3.0])
    where = jnp.array([1.0, 0.0, 1.0])
    value, (grad_x, grad_where) = jax.value_and_grad(
        lambda x, where: masked.masked_mean(x, where).value(), argnums=(0, 1)
    )(x, where)
    assert value == 2.0
    np.testing.assert_array_equal(grad_x, [0.5, 0.0, 0.5])
    assert jnp.isfinite(grad_where).all()


def test_nothing_counted_is_zero_with_zero_gradient():
    x = jnp.array([jnp.nan, 1.0])
    value, grad = jax.value_and_grad(lambda x: masked.masked_mean(x, jnp.zeros(2)).value())(x)
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_masked_mean_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        masked.masked_mean(jnp.ones((2, 3)), jnp.ones(3))


def test_token_logps_refuse_to_broadcast():
    with pytest.raises(AssertionError):
        masked.token_logps(jnp.zeros((1, 3, 5)), jnp.zeros((2, 3), int))


def test_token_logps_and_entropy_match_scipy():
    logits_BTV, tokens_BT = _logits(2, 2, 5, 11), np.random.default_rng(3).integers(0, 11, (2, 5))
    logp_BTV = special.log_softmax(logits_BTV.astype(np.float64), axis=-1)
    expected_BT = np.take_along_axis(logp_BTV, tokens_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(masked.token_logps(logits_BTV, tokens_BT), expected_BT, atol=1e-5)
    np.testing.assert_allclose(
        masked.entropy(logits_BTV), special.entr(np.exp(logp_BTV)).sum(-1), rtol=1e-5, atol=1e-6
    )


def test_entropy_of_uniform_and_certain_distributions():
    logits_TV = jnp.array([[3.0] * 8, [0.0] + [-300.0] * 7, [1.0, 1.0] + [-jnp.inf] * 6])
    np.testing.assert_allclose(masked.entropy(logits_TV), [np.log(8), 0.0, np.log(2)], atol=1e-6)


def test_written_gradients_equal_automatic_ones():
    logits_BTV, tokens_BT = _logits(4, 2, 3, 9), np.random.default_rng(5).integers(0, 9, (2, 3))
    weights_BT = _logits(6, 2, 3)

    def automatic_logps(logits_BTV):
        return jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), tokens_BT[..., None], -1)[..., 0]

    def automatic_entropy(logits_BTV):
        return -jnp.sum(jax.nn.softmax(logits_BTV) * jax.nn.log_softmax(logits_BTV), -1)

    for ours, automatic in [
        (lambda z: masked.token_logps(z, tokens_BT), automatic_logps),
        (masked.entropy, automatic_entropy),
    ]:
        gradients = [
            jax.grad(lambda z, f=f: jnp.sum(weights_BT * f(z)))(logits_BTV) for f in (ours, automatic)
        ]
        np.testing.assert_allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("function", [lambda z: masked.token_logps(z, jnp.array([[1, 0]])), masked.entropy])
def test_a_masked_position_of_bad_logits_has_zero_gradient(function):
    logits_BTV = jnp.array([[[1.0, 2.0, -jnp.inf], [jnp.nan, jnp.inf, 0.0]]])
    where_BT = jnp.array([[1.0, 0.0]])

    def loss(logits_BTV):
        return masked.masked_mean(function(logits_BTV), where_BT).value()

    value, gradient_BTV = jax.value_and_grad(loss)(logits_BTV)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient_BTV).all()
    assert jnp.any(gradient_BTV[0, 0] != 0)
    np.testing.assert_array_equal(gradient_BTV[0, 1], 0.0)


def test_token_logps_of_a_token_outside_the_vocabulary_is_visible():
    assert jnp.isnan(masked.token_logps(jnp.zeros((1, 4)), jnp.array([4]))[0])


def test_low_precision_logits_are_summed_in_float32():
    logits_TV = jnp.zeros((1, 1000), jnp.bfloat16)
    np.testing.assert_allclose(masked.token_logps(logits_TV, jnp.array([3])), -np.log(1000), rtol=1e-6)
    np.testing.assert_allclose(masked.entropy(logits_TV), np.log(1000), rtol=1e-5)
    gradient_TV = jax.grad(lambda z: masked.token_logps(z, jnp.array([3]))[0])(logits_TV)
    assert gradient_TV.dtype == jnp.bfloat16
