"""Levenshtein distance of batches of token sequences on the device, and the reward made of it."""

import jax
import jax.numpy as jnp

from sleep_jax.types import Array


def levenshtein(a_BT: Array, a_len_B: Array, b_BS: Array, b_len_B: Array) -> Array:
    """Fewest insertions, deletions and substitutions (cost 1 each) that turn one sequence into the other.

        D[i, j] = min(D[i-1, j] + 1, D[i, j-1] + 1, D[i-1, j-1] + [a_i != b_j]),  D[i, 0] = i, D[0, j] = j

    (Wagner & Fischer 1974). The cells of an anti-diagonal i + j depend on the two before only, so each is one
    vector operation over the batch: T + S steps of B * (min(T, S) + 1) cells.

    Args:
      a_BT: token ids; what stands at and after the length is never looked at.
      a_len_B: lengths in tokens, within 0..T.
      b_BS: token ids of the other sequences, possibly of another width.
      b_len_B: their lengths, within 0..S.

    Returns:
      distance_B: int32, in edits; max(a_len, b_len) at most.

    Raises:
      ValueError: if the four batches differ in size.
    """
    batches = {jnp.shape(x)[:1] for x in (a_BT, a_len_B, b_BS, b_len_B)}
    if len(batches) != 1 or jnp.ndim(a_BT) != 2 or jnp.ndim(b_BS) != 2:
        raise ValueError(
            f"levenshtein: sequences {jnp.shape(a_BT)} and {jnp.shape(b_BS)}, "
            f"their lengths {jnp.shape(a_len_B)} and {jnp.shape(b_len_B)}; "
            "they must be [B, T], [B, S] and twice [B], of one B"
        )
    if a_BT.shape[1] > b_BS.shape[1]:
        return levenshtein(b_BS, b_len_B, a_BT, a_len_B)
    (batch, width), steps = a_BT.shape, a_BT.shape[1] + b_BS.shape[1]
    beyond = steps + 1  # larger than any distance: cells left of the table never win a minimum

    # Row i of diagonal d meets b at j = d - i: backwards, and one further with every diagonal.
    flipped_BS = jnp.pad(jnp.flip(b_BS, axis=1), ((0, 0), (width, width)))

    def down(cells_BI):
        """The cells of row i - 1 moved to row i."""
        return jnp.pad(cells_BI[:, :-1], ((0, 0), (1, 0)), constant_values=beyond)

    def diagonal(carry, d):
        before_BI, last_BI, distance_B = carry
        facing_BT = jax.lax.dynamic_slice_in_dim(flipped_BS, steps + 1 - d, width, axis=1)
        differs_BI = jnp.pad((a_BT != facing_BT).astype(jnp.int32), ((0, 0), (1, 0)))
        cells_BI = jnp.minimum(jnp.minimum(last_BI, down(last_BI)) + 1, down(before_BI) + differs_BI)
        corner_B = jnp.take_along_axis(cells_BI, a_len_B[:, None], axis=1)[:, 0]
        return (last_BI, cells_BI, jnp.where(a_len_B + b_len_B == d, corner_B, distance_B)), None

    nothing_BI = jnp.full((batch, width + 1), beyond, jnp.int32)
    start = nothing_BI, nothing_BI.at[:, 0].set(0), jnp.zeros((batch,), jnp.int32)
    return jax.lax.scan(diagonal, start, jnp.arange(1, steps + 1))[0][2]


def imitation_reward(distance_B: Array, len_a_B: Array, len_b_B: Array, z0: float) -> Array:
    """Abstractive reward of learning to imitate (Behrouz et al. 2026, arXiv:2606.03979, Eq. 4).

        r = 1 - lev(a, b) / max(|a|, |b|)   if lev(a, b) <= z0,   else 0

    Two empty sequences, where the quotient is 0 / 0, imitate each other perfectly: 1 (our reading).

    Args:
      distance_B: Levenshtein distances in tokens.
      len_a_B: lengths of one side in tokens.
      len_b_B: lengths of the other side in tokens.
      z0: largest distance in tokens that is rewarded, >= 0; `math.inf` rewards all.

    Returns:
      reward_B: float32 in [0, 1].

    Raises:
      ValueError: if z0 is negative or NaN.
    """
    if not z0 >= 0:
        raise ValueError(f"imitation_reward: z0 is a distance in tokens and must be 0 or more, got {z0}")
    longest_B = jnp.maximum(jnp.maximum(len_a_B, len_b_B), 1)
    return jnp.where(distance_B <= z0, 1.0 - distance_B / longest_B, 0.0).astype(jnp.float32)
