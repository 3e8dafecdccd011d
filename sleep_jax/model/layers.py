"""The layers of the decoder: RMSNorm, rotary attention with grouped heads, SwiGLU."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sleep_jax.model.config import ModelConfig
from sleep_jax.types import Array, Tree

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers and not NaN


def rotary(x_BTHK: Array, positions_BT: Array, theta: float) -> Array:
    """Rotary position embedding (Su et al. 2021, 2104.09864) in the half-split layout of Llama.

    Channel k < K/2 and channel k + K/2 form a pair, turned by position * theta^(-2k/K) radians.
    """
    half = x_BTHK.shape[-1] // 2
    angle_BTK = positions_BT[..., None] * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angle_BTK)[:, :, None], jnp.sin(angle_BTK)[:, :, None]
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


def attend(q_BTHK: Array, k_BSJK: Array, v_BSJK: Array, mask_BTS: Array) -> Array:
    """softmax(q k^T / sqrt(K)) v with H/J query heads per key/value head; softmax in float32."""
    B, T, H, K = q_BTHK.shape
    J = k_BSJK.shape[2]
    q_BTJGK = q_BTHK.reshape(B, T, J, H // J, K) * K**-0.5
    att_BJGTS = jnp.einsum("btjgk,bsjk->bjgts", q_BTJGK, k_BSJK).astype(jnp.float32)
    att_BJGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], att_BJGTS, MASKED), axis=-1)
    return jnp.einsum("bjgts,bsjk->btjgk", att_BJGTS.astype(v_BSJK.dtype), v_BSJK).reshape(B, T, H, K)


def project(x_BTD: Array, w: Array) -> Array:
    """x @ w over the last axis of x and the first of w, as one matrix product of B*T rows.

    XLA on CPU compiles the backward pass of the three-dimensional form to something twice as slow.
    """
    y = x_BTD.reshape(-1, w.shape[0]) @ w.reshape(w.shape[0], -1)
    return y.reshape(*x_BTD.shape[:-1], *w.shape[1:])


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (Zhang & Sennrich 2019, 1910.07467)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), c.param_dtype)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
        return (x32 * scale).astype(c.compute_dtype)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], fan_in: int = 1, delta: Array | None = None) -> Array:
    """A parameter with variance 1 / (product of its first `fan_in` axes), plus its fast-memory delta, in compute dtype.

    Names end in the stored layout: the leading N is the layer axis that the scan over depth adds.
    """
    c = module.config
    axes = tuple(range(fan_in)), tuple(range(fan_in, len(shape)))
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=axes[0], out_axis=axes[1])
    w = module.param(name, init, shape, c.param_dtype)
    if delta is not None:  # fast memory is float32 whatever the weights are
        w = w.astype(jnp.float32) + delta
    return w.astype(c.compute_dtype)


class Attention(nn.Module):
    """Causal grouped-query attention; returns the new keys and values for a cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: Array, positions_BT: Array, mask_BTS: Array, cache: tuple[Array, Array] | None
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config
        D, H, J, K = c.width, c.heads, c.kv_heads, c.head_size
        q_BTHK = project(x_BTD, weight(self, "q_NDHK", (D, H, K)))
        k_BTJK = project(x_BTD, weight(self, "k_NDJK", (D, J, K)))
        v_BTJK = project(x_BTD, weight(self, "v_NDJK", (D, J, K)))
        if c.qkv_bias:
            zeros = nn.initializers.zeros
            q_BTHK += self.param("q_bias_NHK", zeros, (H, K), c.param_dtype).astype(c.compute_dtype)
            k_BTJK += self.param("k_bias_NJK", zeros, (J, K), c.param_dtype).astype(c.compute_dtype)
            v_BTJK += self.param("v_bias_NJK", zeros, (J, K), c.param_dtype).astype(c.compute_dtype)
        if c.qk_norm:
            q_BTHK = RMSNorm(c, name="q_norm")(q_BTHK)
            k_BTJK = RMSNorm(c, name="k_norm")(k_BTJK)
        q_BTHK = rotary(q_BTHK, positions_BT, c.rope_theta)
        k_BTJK = rotary(k_BTJK, positions_BT, c.rope_theta)
        k_BSJK, v_BSJK = k_BTJK, v_BTJK
        if cache is not None:
            k_BSJK = jnp.concatenate([cache[0], k_BTJK], axis=1)
            v_BSJK = jnp.concatenate([cache[1], v_BTJK], axis=1)
        y_BTHK = attend(q_BTHK, k_BSJK, v_BSJK, mask_BTS)
        y_BTD = project(y_BTHK.reshape(*y_BTHK.shape[:2], H * K), weight(self, "o_NHKD", (H, K, D), fan_in=2).reshape(H * K, D))
        return y_BTD, (k_BTJK, v_BTJK)


class SwiGLU(nn.Module):
    """(silu(x Wg) * (x Wu)) Wd, each weight plus its fast-memory delta when one is given."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array, fast: Tree | None) -> Array:
        D, F = self.config.width, self.config.ff
        fast = fast or {}
        gate_BTF = project(x_BTD, weight(self, "gate_NDF", (D, F), delta=fast.get("gate_NDF")))
        up_BTF = project(x_BTD, weight(self, "up_NDF", (D, F), delta=fast.get("up_NDF")))
        return project(jax.nn.silu(gate_BTF) * up_BTF, weight(self, "down_NFD", (F, D), delta=fast.get("down_NFD")))
