import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_jax.data.encoding import Encoded
from sleep_jax.data.packing import pack


def sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(1, 1000, n).astype(np.int32), int(rng.integers(1, n + 1))) for n in lengths]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=40), st.integers(12, 40), st.integers(0, 99))
def test_packed_equals_unpacked(lengths, row_length, seed):
    encoded = sequences(lengths, seed)
    batch, places = pack(encoded, row_length, weight_prompt=0.25)
    covered = np.zeros(batch.tokens_BT.shape, int)
    for e, (row, segment) in zip(encoded, places, strict=True):
        at = np.nonzero(batch.segments_BT[row] == segment)[0]
        covered[row, at] += 1
        n = len(e.tokens)
        np.testing.assert_array_equal(at, np.arange(at[0], at[0] + n))
        np.testing.assert_array_equal(batch.tokens_BT[row, at], e.tokens)
        np.testing.assert_array_equal(batch.targets_BT[row, at], [*e.tokens[1:], 0])
        np.testing.assert_array_equal(batch.positions_BT[row, at], np.arange(n))
        weights = [0.25] * (e.prompt_length - 1) + [1.0] * (n - e.prompt_length) + [0.0]
        # A prompt as long as the sequence leaves no answer, and its last token predicts nothing either.
        np.testing.assert_array_equal(batch.weights_BT[row, at], weights[: n - 1] + [0.0])
    np.testing.assert_array_equal(covered, batch.segments_BT > 0)
    for x in (batch.tokens_BT, batch.targets_BT, batch.weights_BT, batch.positions_BT):
        assert not x[covered == 0].any()
    for row in batch.segments_BT:
        assert list(np.unique(row[row > 0])) == list(range(1, row.max() + 1))
    assert (batch.segments_BT[:, 0] == 1).all()


def test_types():
    batch, places = pack(sequences([5, 7]), 16)
    assert batch.weights_BT.dtype == np.float32
    for x in (batch.tokens_BT, batch.targets_BT, batch.segments_BT, batch.positions_BT, places):
        assert x.dtype == np.int32
    assert batch.weights_BT.sum() == 4 + 6


def test_first_fit_fills_rows():
    batch, _ = pack(sequences([3, 5, 8, 6, 2, 8]), 8)
    assert batch.tokens_BT.shape == (4, 8)
    assert (batch.segments_BT > 0).all()


def test_room_is_reserved_for_rows_that_stay_half_empty():
    # 310 tokens would fill 39 rows, but the 50 long ones share with nothing but short ones.
    batch, _ = pack(sequences([5] * 50 + [3] * 20), 8)
    assert batch.tokens_BT.shape == (50, 8)


def test_none_and_too_long():
    batch, places = pack([], 8)
    assert batch.tokens_BT.shape == batch.weights_BT.shape == (0, 8) and places.shape == (0, 2)
    with pytest.raises(ValueError, match=r"sequence 1 has 9 tokens.*row_length=8"):
        pack(sequences([4, 9]), 8)
    with pytest.raises(ValueError, match="sequence 1 has 1 tokens"):
        pack(sequences([4, 1]), 8)


def test_rows_of_short_texts_are_full():
    batch, _ = pack(sequences(np.random.default_rng(0).integers(8, 40, 1_000)), 128)
    assert (batch.segments_BT > 0).mean() > 0.95
