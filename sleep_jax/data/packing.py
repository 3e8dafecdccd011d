"""Several short sequences per row, so that little of a batch is padding."""

from collections.abc import Sequence

import grain
import numpy as np

from sleep_jax.data.encoding import Encoded
from sleep_jax.types import Batch


def pack(
    encoded: Sequence[Encoded], row_length: int, *, weight_prompt: float = 1.0
) -> tuple[Batch, np.ndarray]:
    """First-fit packing in order of decreasing length, by grain.

    Within a segment, position p predicts token p + 1; the last token of a segment predicts nothing. The
    weight of a prediction is `weight_prompt` for tokens of the prompt and 1 for those after it. Sorting by
    length first also scatters examples that stand together in a file (of one class, say) over the rows.

    Args:
      encoded: n sequences.
      row_length: T, tokens per row.
      weight_prompt: weight of predicting tokens before `prompt_length`.

    Returns:
      A Batch of numpy arrays [rows, T]: int32, weights float32; segments count from 1 in each row, positions
      restart in each segment, padding is all zeros. And int32 [n, 2], the row and the segment of each
      sequence, in the order given. No sequences give no rows.

    Raises:
      ValueError: when a sequence is longer than a row or shorter than two tokens.
    """
    lengths_B = np.array([len(e.tokens) for e in encoded], np.int64)
    if lengths_B.max(initial=0) > row_length:
        raise ValueError(
            f"sequence {lengths_B.argmax()} has {lengths_B.max()} tokens, but a row holds "
            f"row_length={row_length}; encode with max_len at most the row length"
        )
    if lengths_B.min(initial=2) < 2:
        raise ValueError(
            f"sequence {lengths_B.argmin()} has {lengths_B.min()} tokens; a prediction needs two"
        )
    if not len(encoded):
        empty = np.zeros((0, row_length), np.int32)
        return Batch(empty, empty, empty.astype(np.float32), empty, empty), np.zeros((0, 2), np.int32)

    order = np.argsort(-lengths_B, kind="stable")
    source = grain.MapDataset.source(order).map(lambda i: {"index": np.full(lengths_B[i], i, np.int32)})
    # First-fit leaves at most one row half empty, so twice the tokens is room for all: one batch of bins.
    bins = min(len(encoded), 2 * int(lengths_B.sum()) // row_length + 1)
    rows = list(
        grain.experimental.FirstFitPackIterDataset(
            source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
            length_struct={"index": row_length},
            num_packing_bins=bins,
            shuffle_bins=False,
        )
    )
    index_BT, segments_BT, positions_BT = (
        np.stack([row[key] for row in rows]) for key in ("index", "index_segment_ids", "index_positions")
    )
    # Only the places are packed by grain, one number per token; the arrays are then gathered at once, which
    # takes a quarter of the time of packing them all.
    inside_BT = segments_BT > 0
    predicts_BT = inside_BT & (positions_BT + 1 < lengths_B[index_BT])
    flat = np.concatenate([e.tokens for e in encoded])
    at_BT = (np.cumsum(lengths_B) - lengths_B)[index_BT] + positions_BT
    prompt_BT = positions_BT + 1 < np.array([e.prompt_length for e in encoded])[index_BT]
    batch = Batch(
        tokens_BT=np.where(inside_BT, flat[at_BT], 0).astype(np.int32),
        targets_BT=np.where(predicts_BT, flat[np.where(predicts_BT, at_BT + 1, 0)], 0).astype(np.int32),
        weights_BT=np.where(predicts_BT, np.where(prompt_BT, weight_prompt, 1.0), 0.0).astype(np.float32),
        segments_BT=segments_BT.astype(np.int32),
        positions_BT=positions_BT.astype(np.int32),
    )
    row, column = np.nonzero(inside_BT & (positions_BT == 0))
    places = np.zeros((len(encoded), 2), np.int32)
    places[index_BT[row, column]] = np.stack([row, segments_BT[row, column]], axis=1)
    return batch, places
