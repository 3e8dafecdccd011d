"""Which dreams are worth trying, from what their gradients say."""

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax.types import Array


def greedy(gram_GG: np.ndarray, align_G: np.ndarray, lr: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Picks one example after the other by the validation loss that a step on all picked ones would save.

    To second order, with the identity for the Hessian (GREATS, Wang et al., NeurIPS 2024),

        saved(S) = lr sum_{i in S} <g_i, g_val> - lr^2 / 2 sum_{i, j in S} <g_i, g_j>

    so an example that pulls the same way as one that is picked already is worth less than by itself. On the
    host: there are a few dozen of a context, another number of each, and every number would be compiled.

    Args:
      gram_GG: float32 inner products of the examples' gradients.
      align_G: float32 inner products with the validation gradient.
      lr: size of the step, above 0.
      count: examples to pick, at most G.

    Returns:
      picked [count] int32, in the order picked, and gain [count] float32, what each added to `saved`.
    """
    own_G = lr * align_G - 0.5 * lr**2 * np.diagonal(gram_GG)
    crossed_G, free_G = np.zeros_like(own_G), np.ones(own_G.shape, bool)
    picked, gain = np.empty(count, np.int32), np.empty(count, own_G.dtype)
    for n in range(count):
        gain_G = np.where(free_G, own_G - lr**2 * crossed_G, -np.inf)
        picked[n] = i = int(gain_G.argmax())
        gain[n], free_G[i] = gain_G[i], False
        crossed_G = crossed_G + gram_GG[i]
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
