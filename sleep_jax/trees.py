"""Pytrees seen as a flat table of named arrays ("blocks/mlp/gate_NDF")."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

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


def _content(leaf: Array) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def bit_equal(a: Tree, b: Tree) -> list[str]:
    """Paths at which two trees differ in presence, dtype, shape or any bit; equal trees give an empty list.

    NaN equals the same NaN, and 0.0 differs from -0.0.
    """
    left, right = named(a), named(b)
    missing = left.keys() ^ right.keys()
    return [
        path for path in {**left, **right} if path in missing or _content(left[path]) != _content(right[path])
    ]


def fingerprint(tree: Tree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of all leaves, as hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in sorted(named(tree).items()):
        dtype, shape, data = _content(leaf)
        digest.update(f"{len(path)} {path} {dtype} {shape}".encode())
        digest.update(data)
    return digest.hexdigest()
