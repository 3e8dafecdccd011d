"""One waking day: fast memory follows the stream, chunk by chunk (Sleep, 2606.03979, Eq. 2)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from sleep_jax import losses
from sleep_jax.bounds import above_zero, at_least
from sleep_jax.model import memory as memory_lib
from sleep_jax.types import Array, Batch, Mean, Model, Tree

_B1, _B2, _EPS = 0.9, 0.98, 1e-8  # Adam's moments; kept short, a day is a few hundred writes


@dataclasses.dataclass(frozen=True)
class WakeConfig:
    """How fast memory learns.

    Raises:
      ValueError: a value outside its range.
    """

    passes: int = 1  # how often the day is read
    rule: Literal["sgd", "adam"] = "sgd"  # f of Eq. 2
    lr: tuple[float, ...] = (1.0,)  # per fast level, fastest first, in the morning
    final: float = 1.0  # of these in the evening, as a share; they fall linearly over the day
    clip: float = 1.0  # largest gradient norm of a level at a write
    notes: int = 0  # attempts to write down what each free text of a day says (`notes`); 0 takes none

    def __post_init__(self):
        if self.rule not in ("sgd", "adam"):
            raise ValueError(f"wake.rule={self.rule!r} is neither 'sgd' nor 'adam'")
        at_least(self, "wake.", notes=0, passes=1)
        above_zero(self, "wake.", "clip")
        if not min(self.lr, default=-1) >= 0:
            raise ValueError(f"wake.lr={self.lr} must be one rate per fast level, none of them negative")
        if not 0 <= self.final <= 1:
            raise ValueError(f"wake.final={self.final} is not in [0, 1]")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WakeState:
    """Fast memory and what it needs to be written.

    Attributes:
      fast: float32 deltas, as in `Memory`.
      gradient: sum of token gradients since each weight's level was last written; {} where there is one
        level, which every chunk writes.
      moments: first and second moments of the rule "adam", else empty.
      tokens_L: weighted tokens in `gradient`, per level.
      clock: positions lived, padding of packed rows included.
      writes_L: how often each level was written.
    """

    fast: Tree
    gradient: Tree
    moments: Tree
    tokens_L: Array
    clock: Array
    writes_L: Array


def init(config: WakeConfig, fast: Tree, levels: int) -> WakeState:
    """The state in the morning."""
    zeros = jax.tree.map(jnp.zeros_like, fast)
    moments = (zeros, zeros) if config.rule == "adam" else ()
    return WakeState(
        fast,
        zeros if levels > 1 else {},
        moments,
        jnp.zeros(levels),
        jnp.int32(0),
        jnp.zeros(levels, jnp.int32),
    )


def make(model: Model, config: WakeConfig, chunks: int):
    """A pure `step(state, frozen, batch, key, *, reduce) -> (state, metrics)` that lives one chunk.

        theta_l <- theta_l - eta_l clip(mean gradient of the last C_l tokens)   if C_l divides the clock   (2)

    and at the day's last chunk, whose evening would find a slower level's last gradients unwritten and the
    morning after it a memory that is empty.

    The chunk is one batch of packed rows of C_1 positions in all. Its loss is taken before any write
    (predict, then update), so no token sees an update that holds its own target. A slower level accumulates
    the gradients of the chunks in between, each taken at the then-current faster levels. Eq. 2 sums over the
    chunk; the mean (over tokens that count) and the clip are our reading, which makes eta independent of C_l,
    as are taking moments ("adam") for the paper's "error component of an arbitrary optimizer" and letting its
    eta_t fall linearly to `config.final` of the morning's with the day's last chunk.

    Args:
      model: its `memory_config` says which weights are written how often.
      config: how, with one learning rate per level.
      chunks: length of the day, over which the rates fall.

    Returns:
      The step. `frozen` is `(params, memory)`, whose own fast level is not read; metrics are the loss, the
      norm of the fastest level's mean gradient before clipping, and the writes of each level so far.
    """
    periods = model.memory_config.periods
    level_NF = memory_lib.levels(model.config, model.memory_config)
    owner = {"gate_NDF": level_NF[:, None], "up_NDF": level_NF[:, None], "down_NFD": level_NF[:, :, None]}
    lr_L = jnp.array(config.lr, jnp.float32)

    def spread(x_L: Array) -> Tree:
        """A number per level to a broadcastable array per weight; 0 for the static backbone."""
        x = jnp.append(x_L, jnp.zeros((), x_L.dtype))
        return {k: x[level] for k, level in owner.items()}

    def norms(tree: Tree) -> Array:
        """norm_L over all weights of a level."""

        def square(level: int) -> Array:
            return sum(jnp.sum(jnp.where(owner[k] == level, jnp.square(tree[k]), 0.0)) for k in owner)

        return jnp.sqrt(jnp.stack([square(level) for level in range(len(periods))]))

    def step(state: WakeState, frozen: Tree, batch: Batch, key: Array, *, reduce=lambda tree: tree):
        del key
        params, memory = frozen

        def loss(fast):
            nll = losses.next_token(model, params, dataclasses.replace(memory, fast=fast), batch)
            return nll.total, nll

        gradient, nll = reduce(jax.grad(loss, has_aux=True)(state.fast))
        if state.gradient:
            gradient = jax.tree.map(jnp.add, state.gradient, gradient)
        tokens_L = state.tokens_L + nll.count
        clock = state.clock + periods[0]
        due_L = (clock % jnp.array(periods) == 0) | (clock == periods[0] * chunks)

        per_token = spread(1 / jnp.where(tokens_L > 0, tokens_L, 1.0))
        mean = {k: gradient[k] * per_token[k] for k in owner}
        norm_L = norms(mean)
        shrink = spread(jnp.minimum(1.0, config.clip / jnp.maximum(norm_L, 1e-12)))
        change = {k: mean[k] * shrink[k] for k in owner}
        evening = jnp.minimum(clock / (periods[0] * chunks), 1.0)  # 1 at the day's last chunk
        due, rate = spread(due_L), spread(lr_L * (1 - (1 - config.final) * evening))
        moments = state.moments
        if config.rule == "adam":
            old1, old2 = moments
            new1 = {k: _B1 * old1[k] + (1 - _B1) * change[k] for k in owner}
            new2 = {k: _B2 * old2[k] + (1 - _B2) * jnp.square(change[k]) for k in owner}
            pairs = ((new1, old1), (new2, old2))
            moments = tuple({k: jnp.where(due[k], new[k], old[k]) for k in owner} for new, old in pairs)
            n_L = (state.writes_L + 1).astype(jnp.float32)
            unbias1, unbias2 = spread(1 / (1 - _B1**n_L)), spread(1 / (1 - _B2**n_L))
            change = {k: new1[k] * unbias1[k] / (jnp.sqrt(new2[k] * unbias2[k]) + _EPS) for k in owner}
        fast = {k: jnp.where(due[k], state.fast[k] - rate[k] * change[k], state.fast[k]) for k in owner}

        writes_L = state.writes_L + due_L
        metrics = {"nll": nll, "gradient_norm": Mean(norm_L[0], jnp.float32(1))}
        for level, count in enumerate(writes_L):
            metrics[f"writes_{level + 1}"] = Mean(count.astype(jnp.float32), jnp.float32(1))
        kept = {k: jnp.where(due[k], 0.0, gradient[k]) for k in state.gradient}
        tokens_L = jnp.where(due_L, 0.0, tokens_L)
        return WakeState(fast, kept, moments, tokens_L, clock, writes_L), metrics

    return step


def rows_per_chunk(model: Model, row_length: int) -> int:
    """Rows of a batch that make one chunk of C_1 positions, a multiple of `row_length`."""
    return model.memory_config.periods[0] // row_length
