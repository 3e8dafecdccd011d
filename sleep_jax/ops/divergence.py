"""Divergences between a teacher's and a student's next-token distributions, one number per token.

Teacher first in every signature; forward KL is KL(teacher || student). The teacher is data: nothing is
differentiated through it. The derivative with respect to the student's logits is written out (reverse mode
only, see `masked`): with h_v the slope of entry v in the student's log-probability,

    d/dz_v = h_v - q_v sum_u h_u
"""

import functools
import math
import numbers

import jax
import jax.numpy as jnp

from sleep_jax.ops.masked import LOG_ZERO, log_normaliser, log_probs, scale_gradient
from sleep_jax.types import Array

# What a token forbidden by the other distribution counts as, where infinity would make 0 * inf.
_LOG_LEAST = -3e38


def generalised_jsd(
    teacher_logits_BTV: Array, student_logits_BTV: Array, beta: float, clip: float | None = None
) -> Array:
    """Generalised Jensen-Shannon divergence of every token.

        M = beta P + (1 - beta) Q,    JSD_beta = beta KL(P || M) + (1 - beta) KL(Q || M)

    with P the teacher and Q the student (GKD, Agarwal et al. 2024, arXiv:2306.13649, Eq. 1). The formula
    vanishes at both ends, where it stands for its own limit after division by beta or 1 - beta: beta = 0 is
    forward KL(P || Q), beta = 1 reverse KL(Q || P). Close to the ends it is small but exact, KL times the
    distance to the end: beta acts as a learning rate.

    Args:
      teacher_logits_BTV: scores in nats, of any float dtype; no gradient flows into them. -inf forbids a
        token.
      student_logits_BTV: likewise, of the same shape; the leading axes are free.
      beta: weight of the teacher in the mixture, a Python number in [0, 1].
      clip: upper limit in nats of the contribution of each vocabulary entry (weights included); a clipped
        entry has no gradient. None leaves them whole. From on-policy self-distillation (Zhao et al. 2026,
        arXiv:2601.18734), which clips at about 0.05; a clipped divergence may be negative.

    Returns:
      divergence_BT: float32, in nats. Where a KL is infinite (the distribution that averages allows a token
        that the other forbids) it is finite but huge, of the order of 1e38.

    Raises:
      TypeError: if beta is not a Python number (it selects the formula, so it cannot be traced).
      ValueError: if beta is outside [0, 1], clip is not above 0, or the shapes differ.
    """
    if not isinstance(beta, numbers.Real):
        raise TypeError(f"generalised_jsd: beta must be a Python number, fixed before tracing: {type(beta)}")
    if not 0 <= beta <= 1:
        raise ValueError(f"generalised_jsd: beta must lie in [0, 1], got {beta}")
    if clip is not None and not clip > 0:
        raise ValueError(f"generalised_jsd: clip must be above 0 nats, or None for no clipping, got {clip}")
    if teacher_logits_BTV.shape != student_logits_BTV.shape:
        raise ValueError(
            f"generalised_jsd: teacher's logits have shape {teacher_logits_BTV.shape}, the student's "
            f"{student_logits_BTV.shape}; both must score the same tokens with the same vocabulary"
        )
    clip = None if clip is None else float(clip)
    return _divergence(float(beta), clip, teacher_logits_BTV, student_logits_BTV)


def _entries(beta: float, clip: float | None, logp_BTV: Array, logq_BTV: Array) -> tuple[Array, Array]:
    """Contribution of every vocabulary entry, and its slope in log q."""
    p_BTV, q_BTV = jnp.exp(logp_BTV), jnp.exp(logq_BTV)
    if beta == 0:
        value_BTV = p_BTV * (jnp.maximum(logp_BTV, LOG_ZERO) - jnp.maximum(logq_BTV, _LOG_LEAST))
        slope_BTV = -p_BTV
    elif beta == 1:
        value_BTV = q_BTV * (jnp.maximum(logq_BTV, LOG_ZERO) - jnp.maximum(logp_BTV, _LOG_LEAST))
        slope_BTV = value_BTV + q_BTV
    else:
        value_BTV, slope_BTV = _mixture_entries(beta, logp_BTV, logq_BTV, p_BTV, q_BTV)
    if clip is None:
        return value_BTV, slope_BTV
    return jnp.minimum(value_BTV, clip), jnp.where(value_BTV > clip, 0.0, slope_BTV)


def _mixture_entries(beta, logp_BTV, logq_BTV, p_BTV, q_BTV):
    """Entries of the divergence for 0 < beta < 1, with full relative precision at both ends.

    The mixture is taken relative to its larger part: log(m / major) = log((1 - w) + w minor / major). As a
    difference of log m and log major it would be rounding error for small w, and the loss silently zero.
    """
    logp_BTV, logq_BTV = jnp.maximum(logp_BTV, LOG_ZERO), jnp.maximum(logq_BTV, LOG_ZERO)
    teacher_is_major = beta >= 0.5
    w = 1 - beta if teacher_is_major else beta
    d_BTV = logq_BTV - logp_BTV if teacher_is_major else logp_BTV - logq_BTV
    major_BTV, minor_BTV = (p_BTV, q_BTV) if teacher_is_major else (q_BTV, p_BTV)
    # jnp.logaddexp tests for NaN, and the CPU compiler then stores its parts instead of fusing them.
    high, low_BTV = math.log1p(-w), math.log(w) + d_BTV
    over_major_BTV = jnp.maximum(high, low_BTV) + jnp.log1p(jnp.exp(-jnp.abs(high - low_BTV)))
    over_minor_BTV = over_major_BTV - d_BTV
    value_BTV = -(1 - w) * major_BTV * over_major_BTV - w * minor_BTV * over_minor_BTV
    slope_BTV = -(1 - beta) * q_BTV * (over_minor_BTV if teacher_is_major else over_major_BTV)
    return value_BTV, slope_BTV


def _slope_sum(beta, clip, value_BT, slope_BTV):
    """Sum of the slopes; of unclipped KLs without a pass over the vocabulary, as probabilities sum to 1."""
    if clip is None and beta == 0:
        return -jnp.ones_like(value_BT)
    if clip is None and beta == 1:
        return value_BT + 1
    return jnp.sum(slope_BTV, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergence(beta, clip, teacher_logits_BTV, student_logits_BTV):
    return _divergence_fwd(beta, clip, teacher_logits_BTV, student_logits_BTV)[0]


def _divergence_fwd(beta, clip, teacher_logits_BTV, student_logits_BTV):
    lse_BT = tuple(log_normaliser(z_BTV) for z_BTV in (teacher_logits_BTV, student_logits_BTV))
    logp_BTV, logq_BTV = log_probs(teacher_logits_BTV, lse_BT[0]), log_probs(student_logits_BTV, lse_BT[1])
    value_BTV, slope_BTV = _entries(beta, clip, logp_BTV, logq_BTV)
    value_BT = jnp.sum(value_BTV, axis=-1)
    slope_BT = _slope_sum(beta, clip, value_BT, slope_BTV)
    return value_BT, (teacher_logits_BTV, student_logits_BTV, lse_BT, slope_BT)


def _divergence_bwd(beta, clip, residuals, ct_BT):
    teacher_logits_BTV, student_logits_BTV, lse_BT, slope_BT = residuals
    if beta in (0, 1):
        # Recomputing a KL's probabilities is cheaper than storing them from the forward pass, which the
        # compiler would do on seeing the same expression twice (half the time on CPU; the mixture gains
        # nothing).
        lse_BT = jax.lax.optimization_barrier(lse_BT)
    logp_BTV, logq_BTV = log_probs(teacher_logits_BTV, lse_BT[0]), log_probs(student_logits_BTV, lse_BT[1])
    _, slope_BTV = _entries(beta, clip, logp_BTV, logq_BTV)
    gradient_BTV = slope_BTV - jnp.exp(logq_BTV) * slope_BT[..., None]
    return None, scale_gradient(ct_BT, gradient_BTV).astype(student_logits_BTV.dtype)


_divergence.defvjp(_divergence_fwd, _divergence_bwd)
