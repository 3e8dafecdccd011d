"""Random keys from names and numbers, so that nothing random has to be checkpointed."""

import zlib

import jax
import jax.numpy as jnp

from sleep_jax.types import Array


def stream(seed: int, name: str) -> Array:
    """The key of a named stream ("sleep/rollout"): the same in every process, release and order of calls."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def fold(key: Array, *numbers: int | Array) -> Array:
    """A key for each tuple of numbers, such as (night, step); the order of the numbers counts."""
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def per_row(key: Array, n: int) -> Array:
    """keys_B for n rows; row i has the same key whatever n is, and wherever the row is computed.

    `jax.random.split` would tie every row's key to n where `jax_threefry_partitionable` is off.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
