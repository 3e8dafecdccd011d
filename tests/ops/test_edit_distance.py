import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from sleep_jax.ops.edit_distance import imitation_reward, levenshtein

_T, _S, _B = 9, 6, 16
_tokens = st.integers(0, 3)
_pairs = st.lists(
    st.tuples(st.lists(_tokens, max_size=_T), st.lists(_tokens, max_size=_S)), min_size=_B, max_size=_B
)
_jitted = jax.jit(levenshtein)


def _pad(rows, width, fill):
    padded = np.full((len(rows), width), fill, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


@settings(max_examples=30, deadline=None)
@given(_pairs, st.integers(-1, 3), st.integers(-1, 3))
def test_equals_rapidfuzz_whatever_the_padding(pairs, fill_a, fill_b):
    a_BT, a_len_B = _pad([a for a, _ in pairs], _T, fill_a)
    b_BS, b_len_B = _pad([b for _, b in pairs], _S, fill_b)
    expected_B = [Levenshtein.distance(a, b) for a, b in pairs]
    distance_B = _jitted(a_BT, a_len_B, b_BS, b_len_B)
    assert distance_B.dtype == jnp.int32
    np.testing.assert_array_equal(distance_B, expected_B)
    np.testing.assert_array_equal(_jitted(b_BS, b_len_B, a_BT, a_len_B), expected_B)


def test_long_sequences():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 5, rng.integers(0, 65)).tolist() for _ in range(2)] for _ in range(32)]
    a_BT, a_len_B = _pad([a for a, _ in rows], 64, 0)
    b_BT, b_len_B = _pad([b for _, b in rows], 64, 0)
    expected_B = [Levenshtein.distance(a, b) for a, b in rows]
    np.testing.assert_array_equal(_jitted(a_BT, a_len_B, b_BT, b_len_B), expected_B)


@pytest.mark.parametrize("width_a, width_b", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_narrow_and_empty_arrays(width_a, width_b):
    a_BT, b_BS = jnp.zeros((2, width_a), jnp.int32), jnp.ones((2, width_b), jnp.int32)
    lengths_a_B, lengths_b_B = jnp.array([0, width_a]), jnp.array([width_b, width_b])
    expected_B = [width_b, max(width_a, width_b)]
    np.testing.assert_array_equal(levenshtein(a_BT, lengths_a_B, b_BS, lengths_b_B), expected_B)


def test_batches_that_differ():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 3\)"):
        levenshtein(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros((4, 3)), jnp.zeros(4))


def test_reward_is_equation_4():
    distance_B, len_a_B, len_b_B = (
        jnp.array([0, 2, 3, 4, 0, 5]),
        jnp.array([4, 8, 3, 4, 0, 0]),
        jnp.array([4, 5, 2, 4, 0, 5]),
    )
    reward_B = imitation_reward(distance_B, len_a_B, len_b_B, z0=3)
    assert reward_B.dtype == jnp.float32
    np.testing.assert_allclose(reward_B, [1.0, 1 - 2 / 8, 0.0, 0.0, 1.0, 0.0])
    everything_B = imitation_reward(distance_B, len_a_B, len_b_B, math.inf)
    np.testing.assert_allclose(everything_B, [1.0, 0.75, 0.0, 0.0, 1.0, 0.0])


def test_threshold_is_inclusive():
    reward = [imitation_reward(jnp.array([2]), jnp.array([4]), jnp.array([4]), z0)[0] for z0 in (1, 2, 2.5)]
    assert reward == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("z0", [-1, math.nan])
def test_negative_threshold(z0):
    with pytest.raises(ValueError, match=f"z0.*{z0}"):
        imitation_reward(jnp.zeros(1), jnp.ones(1), jnp.ones(1), z0)
