"""Policy gradient of whole sequences, with each group of samples as its own baseline."""

import jax
import jax.numpy as jnp

from sleep_jax.ops.masked import masked_mean
from sleep_jax.types import Array, Mean


def leave_one_out(rewards_PG: Array) -> Array:
    """Advantage of each sample over the others of its prompt.

        A_i = r_i - 1 / (G - 1) sum_{j != i} r_j

    RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740). The baseline does not depend on sample i,
    so the gradient stays unbiased. There is no division by the group's standard deviation (our reading,
    the paper does not say): with continuous rewards it amplifies noise.

    Args:
      rewards_PG: rewards of P prompts with G samples each.

    Returns:
      advantages_PG: float32, summing to 0 over each group, and exactly 0 in a group whose rewards are equal.

    Raises:
      ValueError: if there are not two axes, or fewer than two samples per prompt.
    """
    if jnp.ndim(rewards_PG) != 2:
        raise ValueError(
            f"leave_one_out: rewards need axes [prompts, samples], got shape {jnp.shape(rewards_PG)}"
        )
    group = rewards_PG.shape[1]
    if group < 2:
        raise ValueError(
            f"leave_one_out: {group} sample(s) per prompt, but the baseline is the mean of the others: "
            "set the number of samples per prompt to 2 or more"
        )
    rewards_PG = jnp.asarray(rewards_PG, jnp.float32)
    # Measured from the first sample, equal rewards cancel exactly instead of to rounding error.
    shifted_PG = rewards_PG - rewards_PG[:, :1]
    return (group * shifted_PG - jnp.sum(shifted_PG, axis=1, keepdims=True)) / (group - 1)


def reinforce_loss(logps_BT: Array, advantages_B: Array, where_BT: Array) -> Mean:
    """REINFORCE (Williams 1992) on sampled tokens: -sum_{b,t} A_b log pi(y_bt), counted in tokens.

    Its gradient is that of the expected reward, negated, when `logps_BT` come from the policy that sampled.
    Dividing by tokens rather than by sequences is our reading: normalisation is the same as that of the
    distillation terms.

    Args:
      logps_BT: log-probabilities of the tokens under the policy being trained, in nats.
      advantages_B: advantage of each sequence; no gradient flows into it.
      where_BT: 1 where the token was sampled by the policy, else 0; nothing else is used, not even NaN.

    Returns:
      `Mean` of the total loss and the number of sampled tokens.

    Raises:
      ValueError: if the shapes disagree.
    """
    if jnp.shape(advantages_B) != jnp.shape(logps_BT)[:1]:
        raise ValueError(
            f"reinforce_loss: advantages have shape {jnp.shape(advantages_B)}, log-probabilities "
            f"{jnp.shape(logps_BT)}; there must be one advantage for every row"
        )
    # Masked before the product: an undefined advantage of a row without samples would reach the gradient.
    advantages_BT = jnp.where(where_BT, jax.lax.stop_gradient(advantages_B)[:, None], 0.0)
    return masked_mean(-advantages_BT * logps_BT, where_BT)
