"""Sums over what counts, and the log-probabilities they are taken of.

The derivatives of the vocabulary-wide functions are written out. They keep the logits and one number per
token for the backward pass where automatic differentiation keeps further arrays of the size of the logits,
and they hold masked positions at exactly zero even where the logits there are not finite (0 * NaN is NaN).
Reverse mode only: `jax.jvp` of them raises.
"""

import chex
import jax
import jax.numpy as jnp

from sleep_jax.types import Array, Mean

# exp(-110) is 0 in float32, below its smallest subnormal: as a floor of log-probabilities it changes no
# probability, and keeps 0 log 0 and the difference of two forbidden tokens finite. A floor, because the CPU
# compiler fuses it into the sum over the vocabulary, where a select made it store further arrays of that size
# (1.5 to 3 times slower).
LOG_ZERO = -110.0
MASKED = -1e30  # for a score that is out: finite, so that where all are there are numbers and not NaN


def masked_mean(x: Array, where: Array) -> Mean:
    """Weighted mean of `x`, kept as sum(where * x) and sum(where).

    Args:
      x: values of any shape; cast to float32.
      where: weights of the same shape, bool or >= 0; what stands in `x` where it is 0 is never used,
        neither for the value nor for the gradient, so that it may be NaN or infinite.

    Returns:
      `Mean` of two float32 scalars. Without a counted entry both are 0, and so is `Mean.value()`.

    Raises:
      ValueError: if the shapes differ.
    """
    if jnp.shape(x) != jnp.shape(where):
        raise ValueError(f"masked_mean: values have shape {jnp.shape(x)}, their mask has {jnp.shape(where)}")
    weight = jnp.asarray(where, jnp.float32)
    kept = jnp.where(weight != 0, jnp.asarray(x, jnp.float32), 0.0)
    return Mean(total=jnp.sum(weight * kept), count=jnp.sum(weight))


def log_normaliser(logits_BTV: Array) -> Array:
    """Float32 logsumexp over the last axis, of logits of any float dtype; any leading axes."""
    return jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1)


def log_probs(logits_BTV: Array, lse_BT: Array) -> Array:
    """Float32 log-probabilities of every token, given the logits' `log_normaliser`."""
    return logits_BTV.astype(jnp.float32) - lse_BT[..., None]


def scale_gradient(cotangent_BT: Array, gradient_BTV: Array) -> Array:
    """cotangent * gradient, exactly 0 at positions whose cotangent is 0, whatever the gradient is there."""
    ct_BT1 = cotangent_BT[..., None]
    return jnp.where(ct_BT1 == 0, 0.0, ct_BT1 * gradient_BTV)


@jax.custom_vjp
def token_logps(logits_BTV: Array, tokens_BT: Array) -> Array:
    """Log-probability of given tokens, log p(y) = z_y - logsumexp(z).

    Args:
      logits_BTV: scores in nats, of any float dtype; leading axes may be any that `tokens_BT` has too. -inf
        forbids a token, as long as one remains.
      tokens_BT: integer ids in [0, V). At or above V they give NaN, which a mask removes and nothing else
        hides.

    Returns:
      logps_BT: float32, in nats.

    Raises:
      AssertionError: the leading axes differ; where one of them is 1, it would be taken for all.
    """
    chex.assert_shape(tokens_BT, logits_BTV.shape[:-1])
    return _token_logps_fwd(logits_BTV, tokens_BT)[0]


def _token_logps_fwd(logits_BTV, tokens_BT):
    lse_BT = log_normaliser(logits_BTV)
    chosen_BT1 = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1, mode="fill")
    return chosen_BT1[..., 0].astype(jnp.float32) - lse_BT, (logits_BTV, tokens_BT, lse_BT)


def _token_logps_bwd(residuals, ct_BT):
    logits_BTV, tokens_BT, lse_BT = residuals
    p_BTV = jnp.exp(log_probs(logits_BTV, lse_BT))
    hit_BTV = tokens_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
    return scale_gradient(ct_BT, hit_BTV - p_BTV).astype(logits_BTV.dtype), None


token_logps.defvjp(_token_logps_fwd, _token_logps_bwd)


@jax.custom_vjp
def entropy(logits_BTV: Array) -> Array:
    """Entropy of every token's distribution, H = -sum_v p_v log p_v with 0 log 0 = 0.

    Args:
      logits_BTV: scores in nats, of any float dtype; leading axes are free, -inf forbids a token.

    Returns:
      entropy_BT: float32, in nats, between 0 and log V.
    """
    return _entropy_fwd(logits_BTV)[0]


def _entropy_fwd(logits_BTV):
    lse_BT = log_normaliser(logits_BTV)
    logp_BTV = log_probs(logits_BTV, lse_BT)
    entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * jnp.maximum(logp_BTV, LOG_ZERO), axis=-1)
    return entropy_BT, (logits_BTV, lse_BT, entropy_BT)


def _entropy_bwd(residuals, ct_BT):
    logits_BTV, lse_BT, entropy_BT = residuals
    logp_BTV = log_probs(logits_BTV, lse_BT)
    gradient_BTV = -jnp.exp(logp_BTV) * (jnp.maximum(logp_BTV, LOG_ZERO) + entropy_BT[..., None])
    return (scale_gradient(ct_BT, gradient_BTV).astype(logits_BTV.dtype),)


entropy.defvjp(_entropy_fwd, _entropy_bwd)
