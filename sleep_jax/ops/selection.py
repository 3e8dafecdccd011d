"""Which dreams are worth trying, from what their gradients say."""

import jax
import jax.numpy as jnp

from sleep_jax.types import Array


def greedy(gram_GG: Array, align_G: Array, lr: float, count: int) -> tuple[Array, Array]:
    """Picks one example after the other by the validation loss that a step on all picked ones would save.

    To second order, with the identity for the Hessian (GREATS, Wang et al., NeurIPS 2024),

        saved(S) = lr sum_{i in S} <g_i, g_val> - lr^2 / 2 sum_{i, j in S} <g_i, g_j>

    so an example that pulls the same way as one that is picked already is worth less than by itself.

    Args:
      gram_GG: float32 inner products of the examples' gradients.
      align_G: float32 inner products with the validation gradient.
      lr: size of the step, above 0.
      count: examples to pick, at most G.

    Returns:
      picked [count] int32, in the order picked, and gain [count] float32, what each added to `saved`.
    """
    gram_GG, align_G = jnp.asarray(gram_GG), jnp.asarray(align_G)
    own_G = lr * align_G - 0.5 * lr**2 * jnp.diagonal(gram_GG)

    def pick(state, _):
        crossed_G, free_G = state
        gain_G = jnp.where(free_G, own_G - lr**2 * crossed_G, -jnp.inf)
        i = jnp.argmax(gain_G).astype(jnp.int32)
        return (crossed_G + gram_GG[i], free_G.at[i].set(False)), (i, gain_G[i])

    start = jnp.zeros_like(align_G), jnp.ones(align_G.shape, bool)
    _, (picked, gain) = jax.lax.scan(pick, start, length=count)
    return picked, gain


def top_and_random(scores_G: Array, top: int, random: int, key: Array) -> Array:
    """Mask of the `top` largest scores and of `random` others, drawn without replacement.

    Args:
      scores_G: NaN ranks below everything.
      top, random: together at most G.
      key: of the draw.

    Returns:
      keep_G bool with top + random entries.
    """
    G = len(scores_G)
    order = jnp.argsort(-jnp.where(jnp.isnan(scores_G), -jnp.inf, scores_G), stable=True)
    best_G = jnp.zeros(G, bool).at[order[:top]].set(True)
    draw_G = jnp.where(best_G, -1.0, jax.random.uniform(key, (G,)))
    lucky = jnp.argsort(-draw_G)[:random]
    return best_G.at[lucky].set(True)
