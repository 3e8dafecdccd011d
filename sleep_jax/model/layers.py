"""The layers of the decoder: RMSNorm, rotary attention with grouped heads, gated MLP."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sleep_jax.model import lora
from sleep_jax.model.config import ModelConfig
from sleep_jax.ops.attention import attend
from sleep_jax.types import Array, Tree

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def frequencies(c: ModelConfig, windowed: bool = False) -> Array:
    """Radians per token of each of the K/2 pairs of channels, f_k = theta^(-2k/K), where stretched

        f_k (s_k + (1 - s_k) / factor),   s_k = clip((f_k original / 2 pi - low) / (high - low), 0, 1)

    as Llama 3.1 has it, with s = 0 where `rope_original` is 0 (position interpolation, 2306.15595). A layer
    that is `windowed` has the base `rope_local_theta`, if that is set, and nothing stretched.
    """
    half = c.head_size // 2
    power = -jnp.arange(half, dtype=jnp.float32) / half
    if windowed and c.rope_local_theta:
        return c.rope_local_theta**power
    f = c.rope_theta**power
    if c.rope_factor == 1:
        return f
    turns = f * (c.rope_original / (2 * jnp.pi))
    kept = jnp.clip((turns - c.rope_low) / (c.rope_high - c.rope_low), 0, 1) if c.rope_original else 0.0
    return f * (kept + (1 - kept) / c.rope_factor)


def rotation(frequency_K: Array, positions_BT: Array) -> tuple[Array, Array]:
    """cos and sin [B, T, K/2] of position * frequency_k, which all heads of all layers share.

    Divided by their length, which is 1: a real cosine the compiler takes to be cheap, and fuses it into its
    uses, that is, computes it for every head and layer; a quotient it keeps.
    """
    angle_BTK = positions_BT[..., None] * frequency_K
    cos, sin = jnp.cos(angle_BTK), jnp.sin(angle_BTK)
    length_BTK = jnp.sqrt(cos * cos + sin * sin)
    return cos / length_BTK, sin / length_BTK


def rotary(x_BTHK: Array, cos_BTK: Array, sin_BTK: Array) -> Array:
    """Rotary position embedding (Su et al. 2021, 2104.09864) in the half-split layout of Llama.

    Channel k < K/2 and channel k + K/2 form a pair, turned by the angle of `rotation`.
    """
    cos, sin = cos_BTK[:, :, None], sin_BTK[:, :, None]
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


def last_seen(mask_BTS: Array, window: int, newest: Array | int) -> Array:
    """Of the keys that each query sees, the `window` latest; which is which is counted, not told.

    Args:
      mask_BTS: bool; keys lie in slots in the order of their positions, or in a ring of slots.
      window: how many keys stay visible.
      newest: slot of the latest key of all.
    """
    turn = mask_BTS.shape[-1] - 1 - newest  # puts the newest key last
    seen_BTS = jnp.roll(mask_BTS, turn, axis=-1)
    later_BTS = jax.lax.cumsum(seen_BTS.astype(jnp.int32), axis=2, reverse=True)
    return jnp.roll(seen_BTS & (later_BTS <= window), -turn, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """The matrix w^T [out, in] where x @ w is to be computed as (w^T x^T)^T.

    For the few rows of a step of decoding on CPU, where XLA packs the right-hand side of a product anew at
    every call, and so does more for a weight than read it, but takes the left-hand side as it lies: two to
    four times as fast for 2 to 32 rows, and level from 64 on. `worth_turning` says where.
    """

    w_OI: Array


def worth_turning() -> bool:
    """Whether steps of decoding are to read weights laid out for them before the first.

    On CPU: see `Turned`, and slices of stacked weights are there copied at every step. The price is a second
    copy of the weights while texts are sampled, which elsewhere would buy nothing.
    """
    return jax.default_backend() == "cpu"


def project(x_BTD: Array, w: Array | Turned) -> Array:
    """x @ w over the last axis of x and the first of w, as one matrix product of B*T rows.

    XLA on CPU compiles the backward pass of the three-dimensional form to something twice as slow.
    """
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    if isinstance(w, Turned):
        # The barrier keeps the compiler from making one product of both, with the weight on the right.
        y_MO = jax.lax.optimization_barrier(w.w_OI @ x_MD.T).T
        return y_MO.reshape(*x_BTD.shape[:-1], -1)
    y = x_MD @ w.reshape(w.shape[0], -1)
    return y.reshape(*x_BTD.shape[:-1], *w.shape[1:])


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (Zhang & Sennrich 2019, 1910.07467).

    With `norm_plus_one` it is 1 + scale: added in float32, where bfloat16 would round the sum.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), c.param_dtype)
        if c.norm_plus_one:
            scale = 1 + scale.astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
        return (x32 * scale).astype(c.compute_dtype)


def summed(w: Array, delta: Array | None, dtype: str) -> Array:
    """A weight plus its fast-memory delta, if there is one, which is float32 whatever the weights are."""
    return (w if delta is None else w.astype(jnp.float32) + delta).astype(dtype)


def weight(
    module: nn.Module, name: str, shape: tuple[int, ...], fan_in: int = 1, delta: Array | None = None
) -> Array | Turned:
    """A parameter plus its fast-memory delta, a matrix in compute dtype; its variance at birth is 1 / fan-in.

    Args:
      module: whose parameter it is, unless its collection "turned" has a matrix ready; its `config` names the
        dtypes.
      name: ends in the stored layout, whose leading N is the layer axis that the scan over depth adds.
      shape: without that axis.
      fan_in: how many leading axes of `shape` are summed over.
      delta: float32 of the same shape, added before the cast.

    Returns:
      w [in, out], for `project`.
    """
    if module.has_variable("turned", name):
        return Turned(module.get_variable("turned", name))
    c = module.config
    axes = tuple(range(fan_in)), tuple(range(fan_in, len(shape)))
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=axes[0], out_axis=axes[1])
    w = summed(module.param(name, init, shape, c.param_dtype), delta, c.compute_dtype)
    return w.reshape(math.prod(shape[:fan_in]), -1)


# Parameters of a layer that read the same, by the module that holds them.
TOGETHER = {"attn": ("q_NDHK", "k_NDJK", "v_NDJK"), "mlp": ("gate_NDF", "up_NDF")}


def products(
    module: nn.Module, x_BTD: Array, outs: dict[str, tuple[int, ...]], deltas: Tree | None = None
) -> list[Array]:
    """x @ w of parameters that read the same, y [B, T, out] each: all as one product where the collection
    "turned" has them ready, below each other under their names joined by "+".

    Args:
      module: whose parameters they are.
      outs: by the name of each, its shape without the leading D.
      deltas: as in `weight`, by name.
    """
    if module.has_variable("turned", joint := "+".join(outs)):
        ends = np.cumsum([math.prod(out) for out in outs.values()])[:-1]
        return jnp.split(project(x_BTD, Turned(module.get_variable("turned", joint))), ends, axis=-1)
    D, deltas = x_BTD.shape[-1], deltas or {}
    weights = (weight(module, name, (D, *out), delta=deltas.get(name)) for name, out in outs.items())
    return [project(x_BTD, w) for w in weights]


class Attention(nn.Module):
    """Grouped-query attention (2305.13245); returns y_BTD and the pair of keys and values that were read.

    Without a cache these are the tokens' own, k_BJTK and v_BJTK. With one, `(k_BJSK, v_BJSK, at)`, they are
    the cache with the tokens' own written from slot `at` on: first written and then read, so that the
    compiler can do it in place. Keys are cached turned to their positions, behind the optional norms of
    queries and keys.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        rotation_BTK: tuple[Array, Array],
        mask_BTS: Array,
        cache: tuple[Array, Array, Array] | None,
        adapter: Tree | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config
        D, H, J, K = c.width, c.heads, c.kv_heads, c.head_size
        counts = {"q": H, "k": J, "v": J}
        outs = {name: (n, K) for name, n in zip(TOGETHER["attn"], counts.values(), strict=True)}
        q_BTHK, k_BTJK, v_BTJK = (
            (y_BTM + lora.added(x_BTD, adapter, name)).reshape(*x_BTD.shape[:2], n, K)
            for y_BTM, (name, n) in zip(products(self, x_BTD, outs), counts.items(), strict=True)
        )
        if c.qkv_bias:
            zeros = nn.initializers.zeros
            q_BTHK += self.param("q_bias_NHK", zeros, (H, K), c.param_dtype).astype(c.compute_dtype)
            k_BTJK += self.param("k_bias_NJK", zeros, (J, K), c.param_dtype).astype(c.compute_dtype)
            v_BTJK += self.param("v_bias_NJK", zeros, (J, K), c.param_dtype).astype(c.compute_dtype)
        if c.qk_norm:
            q_BTHK = RMSNorm(c, name="q_norm")(q_BTHK)
            k_BTJK = RMSNorm(c, name="k_norm")(k_BTJK)
        q_BTHK, k_BTJK = rotary(q_BTHK, *rotation_BTK), rotary(k_BTJK, *rotation_BTK)
        kv = k_BTJK.swapaxes(1, 2), v_BTJK.swapaxes(1, 2)
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache[2], axis=2)
            kv = write(cache[0], kv[0]), write(cache[1], kv[1])
        y_BTHK = attend(q_BTHK, mask_BTS, *kv, c.query_scalar)
        o_MD = weight(self, "o_NHKD", (H, K, D), fan_in=2)
        y_BTM = y_BTHK.reshape(*y_BTHK.shape[:2], H * K)
        y_BTD = project(y_BTM, o_MD) + lora.added(y_BTM, adapter, "o")
        return y_BTD, kv


class GLU(nn.Module):
    """(f(x Wg) * (x Wu)) Wd with f = SiLU, or GELU by `activation` (Shazeer 2020, 2002.05202).

    Each weight is taken plus its fast-memory delta, each product plus its adapter's, if there are any. GELU
    is its approximation by tanh (Hendrycks & Gimpel 2016, 1606.08415).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: Array, fast: Tree | None, adapter: Tree | None = None) -> Array:
        D, F = self.config.width, self.config.ff
        gate_BTF, up_BTF = products(self, x_BTD, dict.fromkeys(TOGETHER["mlp"], (F,)), fast)
        gate_BTF += lora.added(x_BTD, adapter, "gate")
        up_BTF += lora.added(x_BTD, adapter, "up")
        down_FD = weight(self, "down_NFD", (F, D), delta=(fast or {}).get("down_NFD"))
        y_BTF = ACTIVATIONS[self.config.activation](gate_BTF) * up_BTF
        return project(y_BTF, down_FD) + lora.added(y_BTF, adapter, "down")
