"""What is as wide as the vocabulary, a few positions at a time.

The logits of B rows of T tokens over V words are B T V numbers, which for V = 151,936 is far more than all
else that a step needs, and they are wanted for one number per token. So they are made for some positions,
reduced, and made again in the backward pass.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sleep_jax.types import Array, Tree


def over_positions(fn: Callable[..., Tree], size: int, *arrays: Array) -> Tree:
    """`fn(*arrays)`, `size` positions at a time; nothing that `fn` makes on the way outlives its part.

    Args:
      fn: from arrays [B, t, ...] to a tree of arrays [B, t], each position by itself. What it closes over is
        differentiated too.
      size: t, positions of every row in a part; 0 is all of them at once, without recomputation.
      arrays: [B, T, ...].

    Returns:
      The tree of `fn`, arrays [B, T].

    Raises:
      AssertionError: the arrays differ in B or T.
    """
    chex.assert_equal_shape_prefix(arrays, 2)  # reshaped below, others would be taken apart elsewhere
    B, T = arrays[0].shape[:2]
    if not size or size >= T:
        return fn(*arrays)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, -T % size), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(B, -1, size, *x.shape[2:]), 1, 0)

    def part(_, xs: tuple[Array, ...]) -> tuple[None, Tree]:
        return None, fn(*xs)

    _, found = jax.lax.scan(jax.checkpoint(part, prevent_cse=False), None, tuple(map(split, arrays)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T], found)
