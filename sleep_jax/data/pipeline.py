"""Batches of packed rows as a grain pipeline whose position can be saved and taken up again."""

from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np

from sleep_jax.types import Tree


def batches(
    rows: Tree,
    batch_size: int,
    seed: int,
    *,
    epochs: int | None,
    shuffle: bool = True,
    noise: Callable[[Tree, np.random.Generator], Tree] | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.DatasetIterator:
    """An iterator over batches of the rows, every one of the same shape.

    Rows are shuffled anew in each epoch, repeated, and then cut into batches: a batch may hold the end of one
    epoch and the beginning of the next. After the last of finitely many epochs, what is missing in the last
    batch is filled with rows of zeros, whose weights and segments are zero. Which row stands where depends on
    `seed` only: the batches of all processes, one after the other, are the batch of a single process.

    The position is `get_state()`, which JSON can hold, and `set_state()`. It counts batches: it is valid for
    the same rows, batch_size, seed, shuffle and noise.

    Args:
      rows: pytree of numpy arrays with n rows each, such as a `Batch`.
      batch_size: rows per batch over all processes together.
      seed: of the order and the noise, any integer from 0.
      epochs: how often each row comes; None = for ever.
      shuffle: False = the order of the rows.
      noise: `noise(batch, draw)` changes the batch of all processes; it draws by `seed` and by the
        number of batches before.
      process_index: which share to give; None = jax.process_index().
      process_count: of how many; None = jax.process_count().

    Returns:
      A grain iterator of the same pytree, with batch_size / process_count rows.

    Raises:
      ValueError: when there are no rows, or `batch_size` does not divide by `process_count`.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    total = len(jax.tree.leaves(rows)[0])
    if total == 0:
        raise ValueError("there are no rows to make batches of: the examples were empty, or none was kept")
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the number of processes, {count}"
        )
    if not 0 <= index < count:
        raise ValueError(f"process_index={index} is not one of process_count={count}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs} must be at least 1, or None for ever")
    local = batch_size // count

    # grain adds the number of the epoch to the seed; hashed first, so that seed 1 is not seed 0 an epoch
    # later.
    shuffling, drawing = (int(x) for x in np.random.SeedSequence(seed).generate_state(2))

    def take(order_B: np.ndarray) -> Tree:
        missing = batch_size - len(order_B)
        return jax.tree.map(lambda x: np.pad(x[order_B], [(0, missing), *[(0, 0)] * (x.ndim - 1)]), rows)

    order = grain.MapDataset.range(total)
    if shuffle:
        order = order.shuffle(seed=shuffling)
    plan = order.repeat(epochs).batch(batch_size).map(take)
    if noise:
        plan = plan.random_map(noise, seed=drawing)
    if count > 1:
        plan = plan.map(lambda batch: jax.tree.map(lambda x: x[index * local : (index + 1) * local], batch))
    # A batch is five look-ups in memory: a thread per element would cost more than it hides.
    return iter(plan.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def in_shares(sizes: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """Row numbers of several groups, one after the other, repeated until each has its share.

    The group that has most rows for its share comes once; of the others, rows are repeated in order.
    An epoch over the result then holds all groups in proportion.

    Args:
      sizes: rows of each group; a group without rows has no share.
      shares: of the result, in any unit.

    Returns:
      int32 row numbers.
    """
    starts = np.cumsum(sizes) - sizes
    longest = max((n / share for n, share in zip(sizes, shares, strict=False) if n and share > 0), default=0)
    return np.concatenate(
        [
            start + np.resize(np.arange(n), max(round(longest * share), n))
            for start, n, share in zip(starts, sizes, shares, strict=False)
            if n
        ]
    ).astype(np.int32)
