import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.ops import masked, policy_gradient


def test_leave_one_out_is_reward_minus_mean_of_the_others():
    rewards_PG = np.random.default_rng(0).random((3, 5))
    expected_PG = [[row[i] - np.delete(row, i).mean() for i in range(5)] for row in rewards_PG]
    advantages_PG = policy_gradient.leave_one_out(rewards_PG)
    np.testing.assert_allclose(advantages_PG, expected_PG, atol=1e-6)
    np.testing.assert_allclose(advantages_PG.sum(1), 0.0, atol=1e-6)


def test_a_group_that_agrees_teaches_exactly_nothing():
    rewards_PG = jnp.array([[0.1] * 7, [0.3] * 7])
    np.testing.assert_array_equal(policy_gradient.leave_one_out(rewards_PG), 0.0)


def test_two_samples_and_integer_rewards():
    np.testing.assert_array_equal(policy_gradient.leave_one_out(jnp.array([[1, 0]])), [[1.0, -1.0]])


@pytest.mark.parametrize("shape, word", [((4, 1), "1 sample"), ((4, 0), "0 sample"), ((4,), r"\(4,\)")])
def test_leave_one_out_needs_others(shape, word):
    with pytest.raises(ValueError, match=word):
        policy_gradient.leave_one_out(jnp.zeros(shape))


def test_reinforce_loss_by_hand():
    logps_BT = jnp.array([[-1.0, -2.0, jnp.nan], [-4.0, -8.0, -16.0]])
    where_BT = jnp.array([[1, 1, 0], [0, 1, 0]])
    loss = policy_gradient.reinforce_loss(logps_BT, jnp.array([2.0, -0.5]), where_BT)
    assert (loss.total, loss.count) == (2.0 * 3.0 - 0.5 * 8.0, 3.0)


def test_reinforce_gradient_stays_within_sampled_tokens_and_out_of_the_advantages():
    logps_BT = jnp.array([[-1.0, -jnp.inf], [jnp.nan, jnp.nan]])
    where_BT = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    advantages_B = jnp.array([3.0, jnp.nan])  # the second row sampled nothing

    def loss(logps_BT, advantages_B):
        return policy_gradient.reinforce_loss(logps_BT, advantages_B, where_BT).value()

    value, (gradient_BT, gradient_B) = jax.value_and_grad(loss, argnums=(0, 1))(logps_BT, advantages_B)
    assert value == 3.0
    np.testing.assert_array_equal(gradient_BT, [[-3.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(gradient_B, 0.0)


def test_gradient_of_expected_reward():
    """Summed over all pairs of samples with their probabilities, the estimate is the exact gradient."""
    logits_V, reward_V = jnp.array([0.3, -0.7, 1.1]), jnp.array([0.2, 1.0, 0.5])
    exact_V = jax.grad(lambda z: jax.nn.softmax(z) @ reward_V)(logits_V)
    first, second = (x.ravel() for x in np.meshgrid(np.arange(3), np.arange(3)))
    p_V = jax.nn.softmax(logits_V)
    estimate_V = 0.0
    for pair in np.stack([first, second], 1):
        advantages_B = policy_gradient.leave_one_out(reward_V[pair][None])[0]

        def loss(z_V, pair=pair, advantages_B=advantages_B):
            logps_BT = masked.token_logps(jnp.broadcast_to(z_V, (2, 1, 3)), pair[:, None])
            return policy_gradient.reinforce_loss(logps_BT, advantages_B, jnp.ones((2, 1))).value()

        estimate_V -= p_V[pair[0]] * p_V[pair[1]] * jax.grad(loss)(logits_V)
    np.testing.assert_allclose(estimate_V, exact_V, atol=1e-6)


def test_one_advantage_per_row():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 4\)"):
        policy_gradient.reinforce_loss(jnp.zeros((2, 4)), jnp.zeros(3), jnp.ones((2, 4)))
