"""Pytrees seen as a flat table of named arrays ("blocks/mlp/gate_NDF")."""

import math

import jax
import jax.numpy as jnp

from sleep_jax.types import Array, Tree


def named(tree: Tree) -> dict[str, Array]:
    """Every leaf by its path, in the tree's own order.

    Raises:
      ValueError: two leaves share a path, because a dictionary key contains "/".
    """
    table = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in table:
            raise ValueError(f'two arrays are both called "{path}": no dictionary key may contain "/"')
        table[path] = leaf
    return table


def paths(tree: Tree) -> list[str]:
    """The path of every leaf, in the tree's own order."""
    return list(named(tree))


def size(tree: Tree) -> int:
    """How many numbers the tree holds; leaves may be abstract."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """How many bytes the numbers of the tree take; leaves may be abstract."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def all_finite(tree: Tree) -> Array:
    """Whether no array of the tree holds a NaN or an infinity: one boolean on the device."""
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack(finite).all() if finite else jnp.array(True)
