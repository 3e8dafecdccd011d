"""Attention of grouped heads, with its gradient written out."""

import functools

import jax
import jax.numpy as jnp

from sleep_jax.ops.masked import MASKED
from sleep_jax.types import Array

FEW = 8  # queries that share a key, as one token of a step of decoding has them


def attend(q_BTHK: Array, mask_BTS: Array, k_BJSK: Array, v_BJSK: Array, scalar: int = 0) -> Array:
    """softmax(q k^T / sqrt(scalar)) v with H/J query heads per key/value head (2305.13245); float32 softmax.

    The queries of all heads that share a key lie below each other, so that keys and values are read as they
    lie in a cache, and neither repeated nor transposed: a copy at every token costs many times the products.
    Reverse mode only: `jax.jvp` of it raises.

    Args:
      q_BTHK: queries; head h reads key/value head h // (H / J).
      mask_BTS: bool, which of the S keys each query sees; one that sees none gets the mean of all values.
      k_BJSK, v_BJSK: keys and values.
      scalar: 0 is K.

    Returns:
      y_BTHK in the dtype of the queries.
    """
    B, T, H, K = q_BTHK.shape
    J = k_BJSK.shape[1]
    G = H // J
    q_BTJGK = (q_BTHK * (scalar or K) ** -0.5).reshape(B, T, J, G, K)
    q_BJMK = q_BTJGK.transpose(0, 2, 3, 1, 4).reshape(B, J, G * T, K)
    # Repeated for every head of a group: a mask that is broadcast through the split of M into G and T has
    # the CPU compiler divide at every score, and the whole take three times as long.
    mask_B1MS = jnp.tile(mask_BTS[:, None], (1, 1, G, 1))
    y_BJMK = _attend(G, q_BJMK, mask_B1MS, k_BJSK, v_BJSK)
    return y_BJMK.reshape(B, J, G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _scores(q_BJMK: Array, k_BJSK: Array) -> Array:
    """q k^T; of a step of decoding on CPU as (k q^T)^T.

    XLA packs the right-hand side of a product there at every call: of all keys for a handful of queries that
    takes longer than the product. The barrier keeps it from turning the product back.
    """
    if q_BJMK.shape[2] > FEW or jax.default_backend() != "cpu":
        return jnp.einsum("bjmk,bjsk->bjms", q_BJMK, k_BJSK)
    scores_BJSM = jax.lax.optimization_barrier(jnp.einsum("bjsk,bjmk->bjsm", k_BJSK, q_BJMK))
    return scores_BJSM.swapaxes(-1, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(groups: int, q_BJMK: Array, mask_B1MS: Array, k_BJSK: Array, v_BJSK: Array) -> Array:
    return _attend_fwd(groups, q_BJMK, mask_B1MS, k_BJSK, v_BJSK)[0]


def _attend_fwd(groups, q_BJMK, mask_B1MS, k_BJSK, v_BJSK):
    """y = (e v) / sum e with e = exp(z - max z): a division for every channel, and not for every score."""
    scores_BJMS = _scores(q_BJMK, k_BJSK).astype(jnp.float32)
    scores_BJMS = jnp.where(mask_B1MS, scores_BJMS, MASKED)
    e_BJMS = jnp.exp(scores_BJMS - scores_BJMS.max(-1, keepdims=True))
    total_BJM1 = e_BJMS.sum(-1, keepdims=True)
    e_BJMS = e_BJMS.astype(q_BJMK.dtype)
    y_BJMK = (jnp.einsum("bjms,bjsk->bjmk", e_BJMS, v_BJSK) / total_BJM1).astype(q_BJMK.dtype)
    return y_BJMK, (q_BJMK, k_BJSK, v_BJSK, e_BJMS, total_BJM1, y_BJMK)


def _attend_bwd(groups, residuals, dy_BJMK):
    """With w = e / sum e: dz = w (dy v^T - dy y^T), as the softmax has it (a masked key has w = 0)."""
    q_BJMK, k_BJSK, v_BJSK, e_BJMS, total_BJM1, y_BJMK = residuals
    B, J, M, S = e_BJMS.shape

    def by_key(weights_BJMS: Array, x_BJMK: Array) -> Array:
        """weights^T x, summed over the heads of a group last, and the few channels as rows: on a CPU half as
        long as one product over M."""
        weights_BHTS = weights_BJMS.reshape(B, J * groups, M // groups, S)
        x_BHTK = x_BJMK.reshape(B, J * groups, M // groups, -1)
        y_BHKS = jnp.einsum("bhtk,bhts->bhks", x_BHTK, weights_BHTS)
        return y_BHKS.reshape(B, J, groups, -1, S).sum(2).swapaxes(-1, -2)

    scaled_BJMK = dy_BJMK / total_BJM1
    along_BJM1 = (scaled_BJMK * y_BJMK).sum(-1, keepdims=True)
    scaled_BJMK = scaled_BJMK.astype(dy_BJMK.dtype)
    dz_BJMS = e_BJMS * (jnp.einsum("bjmk,bjsk->bjms", scaled_BJMK, v_BJSK) - along_BJM1)
    dz_BJMS = dz_BJMS.astype(dy_BJMK.dtype)
    dq_BJMK = jnp.einsum("bjms,bjsk->bjmk", dz_BJMS, k_BJSK)
    return dq_BJMK, None, by_key(dz_BJMS, q_BJMK), by_key(e_BJMS, scaled_BJMK)


_attend.defvjp(_attend_fwd, _attend_bwd)
