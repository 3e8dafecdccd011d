"""How much a dream would move the model, and where to: one exact gradient per dream, of an adapter alone.

Sleep (2606.03979) section 3.4 ranks dreams by the "size/alignment" of their gradients and says no more. The
low-rank parameters are our reading: they are what a trial trains, and few enough to keep for every dream.
"""

import functools
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from sleep_jax import cost
from sleep_jax.sleep import trials
from sleep_jax.sleep.trials import TrialConfig
from sleep_jax.types import Batch, Memory, Model, Tree

GRADIENTS = cost.Kind(
    "ranking dreams by their gradients", cost.GRADIENT + "rem.trials.at_once or rem.trials.batch_rows"
)


BLOCK = 8  # times `at_once`: dreams whose gradients are on the host at a time, and the rest of their context


class Importance(NamedTuple):
    """Of the I dreams of one context, with gradients g_i of their mean loss per token.

    Attributes:
      norm_I: |g_i|.
      align_I: <g_i, g_val> with the gradient of what they should help with.
      gram_II: <g_i, g_j>.
    """

    norm_I: np.ndarray
    align_I: np.ndarray
    gram_II: np.ndarray


@functools.lru_cache(maxsize=16)
def _compiled(model: Model, scale: float, batch_rows: int):
    objective = trials.objective(model, scale)

    def gradient(adapter: Tree, frozen: Tree, rows: Batch):
        most = len(rows.tokens_BT)
        size = min(batch_rows or most, most)

        def split(x):
            padded = jnp.pad(x, [(0, -most % size), (0, 0)])
            return padded.reshape(-1, size, *x.shape[1:])

        def add(total_P, part: Batch):
            def nll(adapter):
                return objective.totals(adapter, frozen, part, None)[0]["nll"].total

            return total_P + jax.flatten_util.ravel_pytree(jax.grad(nll)(adapter))[0], None

        none = jnp.zeros_like(jax.flatten_util.ravel_pytree(adapter)[0])
        total_P, _ = jax.lax.scan(add, none, jax.tree.map(split, rows))
        return total_P / rows.weights_BT.sum()

    return cost.Program(jax.vmap(gradient, in_axes=(None, None, 0)))


def importance(
    model: Model,
    config: TrialConfig,
    params: Tree,
    memory: Memory | None,
    start: Tree,
    rows: Batch,
    validation: Batch,
    of_I: np.ndarray,
) -> list[Importance]:
    """The importance of the dreams of V contexts, `config.at_once` gradients at a time.

    Args:
      model, config, params, memory, start: as in `trials.train`. With a fresh adapter, whose B is 0, only the
        gradient of B is not 0.
      rows: of `trials.lessons`, [I, M, T]; `config.batch_rows` of them are in memory at once.
      validation: rows [V, M', T], what the dreams of each context should help with, likewise.
      of_I: the context of each dream, of 0 .. V - 1.

    Returns:
      For each context that of its dreams, in their order.
    """
    run, frozen = _compiled(model, config.scale, config.batch_rows), (params, memory)

    def gradients(rows: Batch, index: np.ndarray) -> np.ndarray:
        chosen = jax.tree.map(lambda x: x[index], rows)
        return trials.in_turns(functools.partial(run, GRADIENTS), start, frozen, chosen, config.at_once)

    count_V = np.bincount(of_I, minlength=len(validation.tokens_BT))
    block_V = np.maximum(np.cumsum(count_V) - 1, 0) // (BLOCK * config.at_once)
    found = []
    for block in np.unique(block_V):
        contexts = np.flatnonzero(block_V == block)
        mine = np.flatnonzero(np.isin(of_I, contexts))
        g_IP, g_VP = gradients(rows, mine), gradients(validation, contexts)
        for v, val_P in zip(contexts, g_VP, strict=True):
            own_IP = g_IP[of_I[mine] == v]
            found.append(Importance(np.linalg.norm(own_IP, axis=1), own_IP @ val_P, own_IP @ own_IP.T))
    return found
