"""Shapes and settings of the network, validated once."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from sleep_jax.bounds import above_zero, at_least


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-family decoder.

    Raises:
      ValueError: two settings disagree; the message names both and the keys that set them.
    """

    checkpoint: str = ""  # what a life starts from in place of random numbers; sizes are then its own
    vocab_size: int = 1024
    width: int = 128  # D
    layers: int = 4  # N
    heads: int = 4  # H
    kv_heads: int = 4  # J, divides heads
    head_size: int = 32  # K, even
    ff: int = 352  # F
    max_len: int = 64  # longest sequence, in tokens
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0  # that rotary wavelengths are stretched by; 1: not
    rope_original: int = 0  # tokens, context before stretching: short wavelengths stay; 0 stretches all alike
    rope_low: float = 1.0  # turns in that context below which a wavelength is stretched wholly
    rope_high: float = 4.0  # turns in that context above which it is not stretched
    rope_local_theta: float = 0.0  # in the layers of `window_layers`, not stretched; 0: as in the others
    window: int = 0  # tokens that the layers of `window_layers` look back, their own included
    window_layers: tuple[int, ...] = ()  # counted from 0; the others see all
    norm_eps: float = 1e-6
    norm_plus_one: bool = False  # norms multiply by 1 + what is stored
    post_norms: bool = False  # RMSNorm of what attention adds and of what the MLP adds
    tie_embeddings: bool = True
    scaled_embeddings: bool = False  # they enter the first layer times sqrt(width)
    qk_norm: bool = False
    qkv_bias: bool = False
    query_scalar: int = 0  # attention scores are divided by its square root; 0: by that of head_size
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: Literal["none", "dots", "full"] = "none"  # of a layer, what the backward pass computes again: all
    # but products with weights, or all
    unroll: int = 1  # layers per iteration of the scan over depth
    logit_chunk: int = 0  # positions of a row whose logits exist at once in a loss; 0 is all, see `families`

    def __post_init__(self):
        at_least(self, "model.", vocab_size=1, width=1, layers=1, heads=1, kv_heads=1, head_size=2, ff=1)
        at_least(self, "model.", max_len=1, norm_eps=0, unroll=1, logit_chunk=0)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: "
                "every key/value head serves the same number of query heads"
            )
        if self.head_size % 2:
            raise ValueError(
                f"model.head_size={self.head_size} is odd; rotary embeddings turn pairs of channels"
            )
        above_zero(self, "model.", "rope_theta", "rope_factor", "rope_low")
        at_least(self, "model.", rope_original=0)
        if not self.rope_high > self.rope_low:
            raise ValueError(f"model.rope_high={self.rope_high} must be above model.rope_low={self.rope_low}")
        if (self.window > 0) != bool(self.window_layers):
            raise ValueError(
                f"model.window={self.window} and model.window_layers={self.window_layers} go together: a "
                "length in tokens, and the layers that look back so far"
            )
        at_least(self, "model.", window=0, rope_local_theta=0, query_scalar=0)
        if self.rope_local_theta and not self.window:
            raise ValueError(
                f"model.rope_local_theta={self.rope_local_theta} is for the layers with a window, but "
                "model.window=0 says that there are none"
            )
        if wrong := [n for n in self.window_layers if not 0 <= n < self.layers]:
            raise ValueError(
                f"model.window_layers names {wrong[0]}, but model.layers={self.layers} counts 0 to "
                f"{self.layers - 1}"
            )
        if self.activation not in ("silu", "gelu_tanh"):
            raise ValueError(f"model.activation={self.activation!r} is neither 'silu' nor 'gelu_tanh'")
        if self.remat not in ("none", "dots", "full"):
            raise ValueError(f"model.remat={self.remat!r} is none of 'none', 'dots' and 'full'")
        for key in ("param_dtype", "compute_dtype"):
            if not _floating(getattr(self, key)):
                raise ValueError(f"model.{key}={getattr(self, key)!r} is not a floating-point type")

    def holding(self, words: int) -> "ModelConfig":
        """The same model with a tokenizer of so many words.

        A checkpoint may have rows for more than it has. A large one that must grow does so to a multiple of
        64, which divides over a mesh: nobody can choose how many words it has.
        """
        if self.checkpoint:
            rows = self.vocab_size
            spare = -words % 64 if words > rows > 4096 else 0
            words = max(words + spare, rows)
        return dataclasses.replace(self, vocab_size=words)


def _floating(name: str) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:  # the name of no type at all
        return False


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The memory levels between the context window (level 0) and the backbone (never updated).

    Levels of fast memory own existing MLP weights and learn awake, each with its update period C_l; levels of
    slow memory are banks of low-rank expert slots and learn asleep.

    Raises:
      ValueError: two settings disagree.
    """

    periods: tuple[int, ...] = (512,)  # C_l in tokens, fastest first; each divides the next
    reading: Literal["depth", "width"] = "depth"  # a period per layer, or per slice of hidden units
    static_share: float = 0.0  # share of layers (or slices) that no fast level owns
    slow_levels: int = 1  # L, banks of expert slots, fastest first
    slots: int = 6  # E, physical slots per bank; the last free one is kept for merging
    rank: int = 64  # R, hidden width of an expert
    expert_scale: float = 2.0  # alpha / R

    def __post_init__(self):
        if not self.periods or min(self.periods) < 1:
            raise ValueError(
                f"memory.periods={self.periods} must hold at least one period of at least 1 token"
            )
        for fast, slow in zip(self.periods, self.periods[1:], strict=False):
            if slow % fast:
                raise ValueError(
                    f"memory.periods={self.periods}: {fast} does not divide {slow}, so level updates misalign"
                )
        if self.reading not in ("depth", "width"):
            raise ValueError(f"memory.reading={self.reading!r} is neither 'depth' nor 'width'")
        if not 0 <= self.static_share < 1:
            raise ValueError(f"memory.static_share={self.static_share} is not in [0, 1)")
        if self.slots < 3:
            raise ValueError(
                f"memory.slots={self.slots}: a bank needs at least 3, one for what was merged, one to fill "
                "and one kept for merging"
            )
        at_least(self, "memory.", slow_levels=1, rank=1)
