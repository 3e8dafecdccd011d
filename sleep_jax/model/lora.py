"""Low-rank adapters beside every linear layer of a block (LoRA, Hu et al. 2021, 2106.09685).

An adapter is a flat dict with two arrays per layer `name` of `SIZES`, stacked over the N blocks of the model:
`{name}_a_NIR` [N, in, R] and `{name}_b_NRO` [N, R, out]. Several adapters at once, for rows that belong to
different ones, have one axis more behind N (`grouped`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleep_jax.bounds import above_zero, at_least
from sleep_jax.model.config import ModelConfig
from sleep_jax.types import Array, Tree

SIZES: dict[str, Callable[[ModelConfig], tuple[int, int]]] = {
    "q": lambda c: (c.width, c.heads * c.head_size),
    "k": lambda c: (c.width, c.kv_heads * c.head_size),
    "v": lambda c: (c.width, c.kv_heads * c.head_size),
    "o": lambda c: (c.heads * c.head_size, c.width),
    "gate": lambda c: (c.width, c.ff),
    "up": lambda c: (c.width, c.ff),
    "down": lambda c: (c.ff, c.width),
}


# Where the backbone keeps the weights of each layer, stacked over N.
STORED = {
    "attn": {"q": "q_NDHK", "k": "k_NDJK", "v": "v_NDJK", "o": "o_NHKD"},
    "mlp": {"gate": "gate_NDF", "up": "up_NDF", "down": "down_NFD"},
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Size of an adapter.

    Raises:
      ValueError: a value outside its range.
    """

    rank: int = 16  # R
    alpha: float = 32.0  # the adapter's product is scaled by alpha / R

    def __post_init__(self):
        at_least(self, "", rank=1)
        above_zero(self, "", "alpha")

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank


def init(config: ModelConfig, rank: int, key: Array) -> Tree:
    """An adapter that changes nothing yet: A ~ N(0, 1/in), B = 0, float32."""
    adapter = {}
    for i, (name, size) in enumerate(SIZES.items()):
        inner, outer = size(config)
        draw = jax.random.normal(jax.random.fold_in(key, i), (config.layers, inner, rank), jnp.float32)
        adapter[f"{name}_a_NIR"] = draw * inner**-0.5
        adapter[f"{name}_b_NRO"] = jnp.zeros((config.layers, rank, outer), jnp.float32)
    return adapter


def scaled(adapter: Tree, scale: float) -> Tree:
    """The adapter with every B times alpha / R: what `Model.apply` and `Model.decode` take."""
    return {k: x * scale if k.endswith("_b_NRO") else x for k, x in adapter.items()}


def merged(params: Tree, adapter: Tree) -> Tree:
    """The backbone with a scaled adapter added to its weights: the same function in exact arithmetic."""
    blocks = {k: dict(v) if isinstance(v, dict) else v for k, v in params["blocks"].items()}
    for part, names in STORED.items():
        for name, key in names.items():
            product = jnp.einsum("nir,nro->nio", adapter[f"{name}_a_NIR"], adapter[f"{name}_b_NRO"])
            weight = blocks[part][key]
            blocks[part][key] = (weight + product.reshape(weight.shape)).astype(weight.dtype)
    return {**params, "blocks": blocks}


def grouped(adapters: Tree) -> Tree:
    """Adapters stacked on their first axis, moved behind N: row b of B then has adapter b // (B / count).

    Args:
      adapters: a tree of arrays [count, N, ...], as `jax.vmap` makes them.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), adapters)


def added(x_BTD: Array, layer: Tree | None, name: str) -> Array | float:
    """x A B of one block's adapter, to be added to the layer's own product; 0 without an adapter.

    Args:
      x_BTD: input of the layer; heads joined.
      layer: one block's part of an adapter, arrays of [in, R] and [R, out], or grouped with a leading axis
        that divides B.
      name: of the layer.

    Returns:
      y [B, T, out] in the dtype of x, or 0.
    """
    if layer is None:
        return 0.0
    a, b = (layer[key].astype(x_BTD.dtype) for key in (f"{name}_a_NIR", f"{name}_b_NRO"))
    groups = a.shape[0] if a.ndim == 3 else 1
    x_GMD = x_BTD.reshape(groups, -1, x_BTD.shape[-1])
    a, b = a.reshape(groups, *a.shape[-2:]), b.reshape(groups, *b.shape[-2:])
    return ((x_GMD @ a) @ b).reshape(*x_BTD.shape[:-1], -1)
