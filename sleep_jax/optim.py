"""Optimisers, each from one frozen setting."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sleep_jax.bounds import above_zero, at_least
from sleep_jax.types import Tree


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up, cosine decay and global-norm clipping.

    Raises:
      ValueError: a value outside its range, with the key that sets it.
    """

    lr: float = 1e-3  # peak learning rate
    warmup: float = 0.05  # share of the steps
    final: float = 0.1  # learning rate at the end, as a share of the peak
    weight_decay: float = 0.0  # on matrices only
    b2: float = 0.98  # decay of the second moment
    clip: float = 1.0  # largest global gradient norm

    def __post_init__(self):
        above_zero(self, "", "lr", "clip")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is a share of the steps and must be in [0, 1)")
        if not 0 <= self.b2 < 1:
            raise ValueError(f"b2={self.b2} is not in [0, 1)")
        at_least(self, "", final=0, weight_decay=0)


def _matrices(params: Tree) -> Tree:
    """Which arrays are matrices beside the stacking axes N, L and E, by the keys that their names end in."""

    def matrix(path, x):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        axes = name.rpartition("_")[2]
        return "bias" not in name and axes.isupper() and len(set(axes) - set("NLE")) >= 2

    return jax.tree_util.tree_map_with_path(matrix, params)


def make(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser for a run of `steps` updates (AdamW: Loshchilov & Hutter 2017, 1711.05101).

        eta_t = lr t / w                                                       t < w = warmup * steps
        eta_t = lr (final + (1 - final) (1 + cos(pi (t - w) / (steps - w))) / 2)               after
        theta <- theta - eta_t (m / (sqrt(v) + eps) + weight_decay theta)

    with m and v Adam's unbiased moments of the gradient, cut to the norm `clip`; eps and b1 are optax's. Only
    matrices decay. Parameters of less than float32 are the rounding of a float32 copy in the state (bfloat16
    ones then take 14 bytes each with both moments, where float32 ones take 12): a step of 1e-5 on a bfloat16
    number beyond 0.004 would round to none, however many there are.
    """
    warmup = int(config.warmup * steps)
    schedule = optax.warmup_cosine_decay_schedule(
        config.lr if warmup == 0 else 0.0, config.lr, warmup, max(steps, warmup + 1), config.lr * config.final
    )
    return _in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=_matrices),
        )
    )


class Widened(NamedTuple):
    """State of an optimiser whose parameters are kept in float32, `params`, beside their rounding."""

    params: Tree
    inner: optax.OptState


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` at work on a float32 copy of the parameters, where they are not float32 themselves."""

    def wide(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def narrow(params: Tree) -> bool:
        return any(x.dtype != jnp.float32 for x in jax.tree.leaves(params))

    def init(params: Tree) -> optax.OptState:
        if not narrow(params):
            return inner.init(params)
        copy = wide(params)
        return Widened(copy, inner.init(copy))

    def update(grads: Tree, state: optax.OptState, params: Tree) -> tuple[Tree, optax.OptState]:
        if not narrow(params):
            return inner.update(grads, state, params)
        change, after = inner.update(wide(grads), state.inner, state.params)
        master = optax.apply_updates(state.params, change)
        # In float32 the difference of two roundings, added to the one, rounds to the other (but where it is
        # tiny beside the one: then it does a step later).
        change = jax.tree.map(lambda m, p: wide(m.astype(p.dtype)) - wide(p), master, params)
        return change, Widened(master, after)

    return optax.GradientTransformation(init, update)
