import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_jax.ops import retention

# Rows: after birth, after the first experience, after the second.
R_CC = np.array([[0.9, 0.1, 0.3], [0.7, 0.8, 0.2], [0.8, 0.5, 0.6]])
EVERY = [
    retention.final_average_accuracy,
    retention.learning_accuracy,
    retention.backward_transfer,
    retention.forgetting_from_first,
    retention.forgetting_from_peak,
    lambda R_CC, weights_C=None: retention.forward_transfer(R_CC, np.zeros(len(R_CC)), weights_C),
]


def test_by_hand():
    assert retention.final_average_accuracy(R_CC) == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert retention.learning_accuracy(R_CC) == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert retention.backward_transfer(R_CC) == pytest.approx((-0.1 - 0.3) / 2)
    assert retention.forgetting_from_first(R_CC) == pytest.approx((0.1 + 0.3) / 2)
    assert retention.forgetting_from_peak(R_CC) == pytest.approx((0.1 + 0.3) / 2)
    baseline_C = np.array([np.nan, 0.05, 0.1])
    assert retention.forward_transfer(R_CC, baseline_C) == pytest.approx((0.1 - 0.05 + 0.2 - 0.1) / 2)


def test_weights_are_numbers_of_probes():
    probes_C, right_C = np.array([200, 10, 40]), np.array([160, 5, 24])
    assert retention.final_average_accuracy(R_CC, probes_C) == pytest.approx(right_C.sum() / probes_C.sum())
    assert retention.learning_accuracy(R_CC, probes_C) == pytest.approx((180 + 8 + 24) / 250)
    assert retention.backward_transfer(R_CC, probes_C) == pytest.approx((-20 - 3) / 210)
    assert retention.forgetting_from_first(R_CC, probes_C) == pytest.approx((20 + 3) / 210)
    assert retention.forward_transfer(R_CC, np.zeros(3), probes_C) == pytest.approx((1 + 8) / 50)


def test_the_two_kinds_of_forgetting_differ_when_the_peak_comes_later():
    risen_CC = np.array([[0.5, 0.9, 0.0], [0.8, 0.4, 0.0], [0.6, 0.6, 0.7]])
    assert retention.forgetting_from_first(risen_CC) == pytest.approx((-0.1 - 0.2) / 2)
    # The second experience was answered best before it was lived.
    assert retention.forgetting_from_peak(risen_CC) == pytest.approx((0.2 + 0.3) / 2)
    probes_C = np.array([3, 1, 5])
    assert retention.forgetting_from_peak(risen_CC, probes_C) == pytest.approx((3 * 0.2 + 0.3) / 4)


def test_forgetting_is_negative_where_the_end_is_best():
    gained_CC = np.array([[0.5, 0.0], [0.9, 0.7]])
    assert retention.forgetting_from_peak(gained_CC) == pytest.approx(-0.4)
    assert retention.forgetting_from_first(gained_CC) == pytest.approx(-0.4)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_relations(size, seed):
    rng = np.random.default_rng(seed)
    R_CC, weights_C = rng.random((size, size)), rng.integers(1, 9, size)
    first = retention.forgetting_from_first(R_CC, weights_C)
    assert first == pytest.approx(-retention.backward_transfer(R_CC, weights_C))
    assert retention.forgetting_from_peak(R_CC, weights_C) >= first - 1e-12
    for metric in EVERY:
        assert metric(R_CC, np.full(size, 7)) == pytest.approx(metric(R_CC))
    # Repeating an experience's weight equals repeating its column where only columns count.
    repeated_C = np.repeat(R_CC[-1], weights_C)
    assert retention.final_average_accuracy(R_CC, weights_C) == pytest.approx(repeated_C.mean())


def test_unmeasured_entries_matter_only_where_they_are_needed():
    lower_CC = np.where(np.tri(3, dtype=bool), R_CC, np.nan)
    for metric in EVERY[:-1]:
        assert metric(lower_CC) == pytest.approx(metric(R_CC))
    assert math.isnan(EVERY[-1](lower_CC))
    only_end_CC = np.full((3, 3), np.nan)
    only_end_CC[-1] = R_CC[-1]
    assert retention.final_average_accuracy(only_end_CC) == pytest.approx(1.9 / 3)
    for metric in EVERY[1:]:
        assert math.isnan(metric(only_end_CC))
    no_diagonal_CC = R_CC.copy()
    no_diagonal_CC[1, 1] = np.nan
    assert math.isnan(retention.forgetting_from_peak(no_diagonal_CC))


def test_an_experience_without_probes_takes_no_part():
    holed_CC = R_CC.copy()
    holed_CC[:, 1] = np.nan
    assert retention.final_average_accuracy(holed_CC, np.array([1, 0, 1])) == pytest.approx(0.7)
    assert math.isnan(retention.final_average_accuracy(holed_CC))


def test_birth_alone():
    assert retention.final_average_accuracy([[0.4]]) == retention.learning_accuracy([[0.4]]) == 0.4
    for metric in EVERY[2:]:
        assert math.isnan(metric(np.array([[0.4]])))


def test_arguments_are_left_alone():
    frozen_CC, weights_C = R_CC.copy(), np.array([1.0, 2.0, 3.0])
    frozen_CC.flags.writeable = weights_C.flags.writeable = False
    for metric in EVERY:
        assert isinstance(metric(frozen_CC, weights_C), float)


@pytest.mark.parametrize(
    "matrix, weights, word",
    [
        (np.zeros((3, 2)), None, r"\(3, 2\)"),
        (np.zeros(3), None, r"\(3,\)"),
        (np.zeros((0, 0)), None, r"\(0, 0\)"),
        (R_CC, np.ones(2), r"\(2,\).*\(3, 3\)"),
        (R_CC, np.array([1.0, -1.0, 1.0]), "-1.0"),
        (R_CC, np.array([1.0, np.nan, 1.0]), "nan"),
    ],
)
def test_bad_input(matrix, weights, word):
    for metric in EVERY:
        with pytest.raises(ValueError, match=word):
            metric(matrix, weights)


def test_baseline_of_another_length():
    with pytest.raises(ValueError, match=r"baseline.*\(2,\).*\(3, 3\)"):
        retention.forward_transfer(R_CC, np.zeros(2))
