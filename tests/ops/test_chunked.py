import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from sleep_jax.ops.chunked import over_positions
from sleep_jax.ops.masked import token_logps

B, T, D, V = 3, 7, 4, 50
RNG = np.random.default_rng(0)
HIDDEN_BTD, HEAD_DV = RNG.normal(size=(B, T, D)), RNG.normal(size=(D, V))
TOKENS_BT = RNG.integers(0, V, (B, T))


def logps(size, hidden_BTD, head_DV):
    return over_positions(lambda h, y: (token_logps(h @ head_DV, y), h[..., 0]), size, hidden_BTD, TOKENS_BT)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_parts_are_the_whole_with_its_gradients(size):
    def total(size, *args):
        logp_BT, first_BT = logps(size, *args)
        return (jnp.arange(T) * logp_BT + first_BT).sum()

    args = jnp.float32(HIDDEN_BTD), jnp.float32(HEAD_DV)
    for part, whole in zip(logps(size, *args), logps(0, *args), strict=True):
        assert part.shape == (B, T)
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-6)
    gradients = [jax.grad(total, (1, 2))(n, *args) for n in (size, 0)]
    for part, whole in zip(*gradients, strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-5)


def largest(jaxpr):
    """Elements of the largest array that a program makes, in its loops too."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [largest(part) for eqn in jaxpr.eqns for part in core.jaxprs_in_params(eqn.params)]
    return max(sizes + inner, default=0)


def test_nothing_as_large_as_all_logits_is_made():
    def total(size):
        return lambda h, w: logps(size, h, w)[0].sum()

    made = {n: largest(jax.make_jaxpr(jax.grad(total(n), (0, 1)))(HIDDEN_BTD, HEAD_DV).jaxpr) for n in (0, 2)}
    assert made[0] == B * T * V
    assert made[2] == max(B * 2 * V, D * V)
