"""Whether two pytrees are the same, bit for bit."""

import numpy as np

from sleep_jax import trees
from sleep_jax.types import Array, Tree


def _content(leaf: Array) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def bit_equal(a: Tree, b: Tree) -> list[str]:
    """Paths at which two trees differ in presence, dtype, shape or any bit; equal trees give an empty list.

    NaN equals the same NaN, and 0.0 differs from -0.0.
    """
    left, right = trees.named(a), trees.named(b)
    missing = left.keys() ^ right.keys()
    return [
        path for path in {**left, **right} if path in missing or _content(left[path]) != _content(right[path])
    ]
