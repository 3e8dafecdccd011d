import itertools

import jax
import numpy as np
import pytest

from sleep_jax.ops import selection


def saved(gram, align, lr, chosen):
    """The formula, summed by hand."""
    first = sum(lr * align[i] for i in chosen)
    second = sum(gram[i, j] for i in chosen for j in chosen)
    return first - 0.5 * lr**2 * second


@pytest.fixture
def gradients():
    draw = np.random.default_rng(0)
    return draw.normal(size=(7, 5)), draw.normal(size=5)


def test_each_pick_is_the_best_next_one_and_its_gain_what_it_adds(gradients):
    g, val = gradients
    gram, align, lr = g @ g.T, g @ val, 0.3
    picked, gain = selection.greedy(gram.astype(np.float32), align.astype(np.float32), lr, 7)
    assert sorted(picked.tolist()) == list(range(7))
    for n, (i, added) in enumerate(zip(picked.tolist(), gain.tolist(), strict=True)):
        before = picked[:n].tolist()
        by_hand = {
            j: saved(gram, align, lr, [*before, j]) - saved(gram, align, lr, before)
            for j in range(7)
            if j not in before
        }
        assert i == max(by_hand, key=by_hand.get)
        assert added == pytest.approx(by_hand[i], rel=1e-4, abs=1e-5)


def test_a_step_on_a_quadratic_loss_saves_just_that(gradients):
    g, val = gradients
    gram, align, lr = g @ g.T, g @ val, 0.1
    theta = np.zeros(5)

    def loss(x):  # its gradient at theta is val, its Hessian the identity
        return x @ val + 0.5 * x @ x

    for chosen in itertools.combinations(range(7), 3):
        step = theta - lr * sum(g[i] for i in chosen)
        assert loss(theta) - loss(step) == pytest.approx(saved(gram, align, lr, chosen))


def test_a_copy_of_what_was_picked_is_worth_less():
    g = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5]])
    picked, _ = selection.greedy(g @ g.T, g @ np.array([1.0, 1.0]), 0.5, 2)
    assert picked.tolist() == [0, 2]
    picked, _ = selection.greedy(g @ g.T, g @ np.array([1.0, 1.0]), 1e-3, 2)
    assert picked.tolist() == [0, 1], "a tiny step does not overshoot"


def test_the_top_is_kept_and_the_rest_drawn_among_the_others():
    scores = np.array([0.1, np.nan, 3.0, 2.0, -1.0, 0.5], np.float32)
    drawn = np.zeros(6)
    for seed in range(300):
        keep = np.asarray(selection.top_and_random(scores, 2, 2, jax.random.key(seed)))
        assert keep.sum() == 4 and keep[2] and keep[3]
        drawn += keep
    np.testing.assert_allclose(drawn[[0, 1, 4, 5]] / 300, 0.5, atol=0.12)
    assert np.asarray(selection.top_and_random(scores, 5, 0, jax.random.key(0))).tolist() == [
        True, False, True, True, True, True
    ]  # fmt: skip
