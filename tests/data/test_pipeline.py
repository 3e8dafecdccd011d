import dataclasses
import itertools
import json

import numpy as np
import pytest

from sleep_jax.data.pipeline import batches
from sleep_jax.types import Batch


def rows(n, t=4):
    """Row i holds i + 1 everywhere: what is in a batch can be read off."""
    x = np.repeat(np.arange(1, n + 1, dtype=np.int32)[:, None], t, axis=1)
    return Batch(x, x, x.astype(np.float32), x, x)


def seen(batch):
    return batch.tokens_BT[:, 0].tolist()


def take(iterator, n):
    return [seen(b) for b in itertools.islice(iterator, n)]


def test_every_epoch_holds_every_row_in_another_order():
    flat = sum(take(batches(rows(10), 4, 0, epochs=None), 10), [])
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(e) == list(range(1, 11)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4


def test_seed_decides_and_neighbouring_seeds_are_not_shifted_epochs():
    a, b = (sum(take(batches(rows(12), 4, seed, epochs=None), 9), []) for seed in (0, 1))
    assert a == sum(take(batches(rows(12), 4, 0, epochs=None), 9), [])
    assert a[12:24] != b[:12] and a[24:] != b[12:24] and a[:12] != b[:12]


def test_last_batch_is_padded_with_zero_rows():
    got = list(batches(rows(5), 4, 0, epochs=1))
    assert len(got) == 2
    assert sorted(seen(got[0]) + seen(got[1])[:1]) == [1, 2, 3, 4, 5]
    for name in ("tokens_BT", "targets_BT", "weights_BT", "segments_BT", "positions_BT"):
        field = getattr(got[1], name)
        assert field.shape == (4, 4) and field.dtype == getattr(rows(5), name).dtype
        assert field[0].all() and not field[1:].any()


def test_finite_epochs_are_a_beginning_of_endless_ones():
    finite = take(batches(rows(5), 4, 3, epochs=4), 99)
    assert finite == take(batches(rows(5), 4, 3, epochs=None), 5)


def test_fewer_rows_than_a_batch():
    assert sorted(take(batches(rows(3), 6, 0, epochs=None), 1)[0]) == [1, 1, 2, 2, 3, 3]
    assert take(batches(rows(1), 2, 0, epochs=1), 9) == [[1, 0]]


def test_without_shuffle_the_order_is_kept():
    assert take(batches(rows(5), 2, 0, epochs=2, shuffle=False), 9) == [
        [1, 2],
        [3, 4],
        [5, 1],
        [2, 3],
        [4, 5],
    ]


@pytest.mark.parametrize("consumed", [0, 1, 4, 7])
def test_position_survives_json(consumed):
    first = batches(rows(10), 4, 0, epochs=None)
    take(first, consumed)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 6)
    again = batches(rows(10), 4, 0, epochs=None)
    take(again, 2)
    again.set_state(state)
    assert take(again, 6) == expected


@pytest.mark.parametrize("epochs", [None, 3])
def test_processes_together_are_one(epochs):
    whole = take(batches(rows(7), 6, 0, epochs=epochs), 4)
    parts = [
        take(batches(rows(7), 6, 0, epochs=epochs, process_index=p, process_count=3), 4) for p in range(3)
    ]
    assert [sum(step, []) for step in zip(*parts, strict=True)] == whole


def add(batch, draw):
    """The tokens are those of one row still, and differ from batch to batch by the draw."""
    return dataclasses.replace(
        batch, tokens_BT=batch.tokens_BT + draw.integers(100, 10**9, batch.tokens_BT.shape)
    )


def noisy(**options):
    return batches(rows(7), 6, 0, epochs=None, noise=add, **options)


def test_noise_is_of_the_seed_and_of_its_batch():
    plain, first, again = (
        list(itertools.islice(it, 20)) for it in (batches(rows(7), 6, 0, epochs=None), noisy(), noisy())
    )
    for a, b, c in zip(plain, first, again, strict=True):
        np.testing.assert_array_equal(b.tokens_BT, c.tokens_BT)
        np.testing.assert_array_equal(a.targets_BT, b.targets_BT)
    drawn = np.stack([b.tokens_BT - a.tokens_BT for a, b in zip(plain, first, strict=True)])
    assert len(np.unique(drawn)) == drawn.size, "every epoch draws anew, and every token its own"
    other = next(batches(rows(7), 6, 1, epochs=None, noise=add))
    assert not np.intersect1d(other.tokens_BT - other.targets_BT, drawn).size


def test_noise_goes_on_from_a_saved_position():
    first = noisy()
    list(itertools.islice(first, 3))
    state, expected = json.loads(json.dumps(first.get_state())), next(first)
    again = noisy()
    again.set_state(state)
    np.testing.assert_array_equal(next(again).tokens_BT, expected.tokens_BT)


def test_processes_share_the_noise_of_one():
    parts = [next(noisy(process_index=p, process_count=3)).tokens_BT for p in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), next(noisy()).tokens_BT)


def test_other_arrays_travel_with_their_rows():
    x = np.arange(1, 6)
    for batch in batches({"row": x, "square": {"deep": (x**2)[:, None, None]}}, 2, 0, epochs=3):
        np.testing.assert_array_equal(batch["square"]["deep"][:, 0, 0], batch["row"] ** 2)


def test_bad_input():
    with pytest.raises(ValueError, match="no rows"):
        batches(rows(0), 4, 0, epochs=None)
    with pytest.raises(ValueError, match=r"batch_size=5 .* number of processes, 2"):
        batches(rows(3), 5, 0, epochs=None, process_index=0, process_count=2)
    with pytest.raises(ValueError, match=r"process_index=2 is not one of process_count=2"):
        batches(rows(3), 4, 0, epochs=None, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        batches(rows(3), 0, 0, epochs=None)
    with pytest.raises(ValueError, match="epochs=0"):
        batches(rows(3), 4, 0, epochs=0)
