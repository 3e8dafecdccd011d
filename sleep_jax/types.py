"""The words every other module shares: the dimension key and the containers that go from one to the other.

Dimension key, used as a suffix of array names of rank two and more (``logits_BTV``):

    B batch            T tokens (queries)      S memory / key length
    V vocabulary       D model width           F feed-forward width
    H query heads      J key/value heads       K head size
    N layers           L memory levels         E expert slots per level
    R low rank         G samples per prompt    P prompts            C experiences
    Q queue of prompts Z states of a grammar   I instances (trials), each with an adapter
    M what stands in a row of its own for the moment, as B T tokens laid out one after the other
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any  # a pytree of arrays


def _arrays(cls):
    """A frozen dataclass whose every field is a pytree of arrays."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_arrays
class Batch:
    """Packed rows of next-token prediction.

    Position t of a row reads `tokens_BT[:, t]` and predicts `targets_BT[:, t]`. Tokens attend to earlier
    tokens of the same segment only; segment 0 is padding. `weights_BT` is what each prediction weighs, 0
    where it does not count.
    """

    tokens_BT: Array
    targets_BT: Array
    weights_BT: Array
    segments_BT: Array
    positions_BT: Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      max_new: most tokens sampled per row.
      temperature: that logits are divided by; 0 means greedy.
      top_k: how many of the likeliest tokens may be drawn; 0 means all.
      top_p: the probability that those which may be drawn hold together; 1 means all.
      random_expert: each router opens one extra random active expert.

    Raises:
      ValueError: a number outside its range.
    """

    max_new: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    random_expert: bool = False

    def __post_init__(self):
        if self.max_new < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self}: max_new must be at least 1, temperature and top_k not negative, top_p in (0, 1]"
            )


@_arrays
class Rollout:
    """Prompts with what was sampled after them, right-padded.

    Attributes:
      tokens_BT: prompt and completion, one after the other without a gap.
      logps_BT: log-probability of `tokens_BT[:, t]` under the distribution it was sampled from; 0 elsewhere.
      sampled_BT: 1 where the token was sampled (the closing end-of-text token included), 0 elsewhere.
      length_B: number of tokens of prompt and completion.
      ended_B: whether the completion closed with the end-of-text token before the length limit.
    """

    tokens_BT: Array
    logps_BT: Array
    sampled_BT: Array
    length_B: Array
    ended_B: Array


@_arrays
class Memory:
    """What changes after birth, beside the frozen backbone.

    Attributes:
      fast: float32 deltas of the MLP weights, stacked over layers (`gate_NDF`, `up_NDF`, `down_NFD`).
      bank: expert slots of every slow level (`a_NLEDR`, `b_NLERD`, router `w_NLDE`, `pool_NLDE`,
        `bias_NLE`).
      active_LE: which slots are unlocked.
    """

    fast: Tree
    bank: Tree
    active_LE: Array


@_arrays
class TrainState:
    """Arrays of an optimisation in progress; no functions and no configuration."""

    step: Array
    params: Tree
    opt_state: Tree


@_arrays
class Mean:
    """A weighted mean kept as numerator and denominator, divided once at the edge.

    Masks, micro-batches and devices agree exactly because sums add and means do not.
    """

    total: Array
    count: Array

    def value(self) -> Array:
        """total / count, and 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.where(self.count > 0, self.count, 1), 0.0)


class Output(NamedTuple):
    """What the network says of its input.

    Attributes:
      logits_BTV: float32.
      hidden_BTD: last hidden states after the final norm.
      routes_BTLE: share of layers whose router chose the expert; None without a bank.
      router_NBTLE: float32 router scores of every layer, >= 0 where it opens the slot if that is unlocked.
    """

    logits_BTV: Array
    hidden_BTD: Array
    routes_BTLE: Array | None
    router_NBTLE: Array | None


class Model(NamedTuple):
    """A language model as pure functions.

    Attributes:
      config, memory_config: the frozen configurations it was built from.
      init: `init(key) -> params`.
      init_memory: `init_memory(key) -> Memory` with zero deltas and every slot locked.
      apply: `apply(params, tokens_BT, ...) -> Output`.
      unembed: `unembed(params, hidden_BTD) -> logits_BTV`, the last step of `apply` alone.
      decode: `decode(params, prompts_BT, lengths_B, keys_B, sampling, *, memory,
        adapter, grammar_ZV) -> Rollout`, one batch.
      drain: `drain(params, prompts_QT, lengths_Q, keys_Q, rows, seats_B, sampling, *, memory,
        adapter, grammar_ZV) -> Rollout`, a queue.
    """

    config: Any
    memory_config: Any
    init: Callable[..., Tree]
    init_memory: Callable[..., Memory]
    apply: Callable[..., Output]
    unembed: Callable[..., Array]
    decode: Callable[..., Rollout]
    drain: Callable[..., Rollout]


class Objective(NamedTuple):
    """sum_k weight_k * total_k / count_k, with every count known before the gradient is taken.

    A mean of micro-batch means is not the mean; dividing each total by the count of the *whole* batch first
    makes the gradient a plain sum over micro-batches and devices.

    Attributes:
      weights: weight of each term by name.
      counts: `counts(batch) -> {name: count}`, a function of the masks alone.
      totals: `totals(trainable, frozen, batch, key) -> ({name: Mean}, {metric: Mean})`.
    """

    weights: dict[str, float]
    counts: Callable[[Any], dict[str, Array]]
    totals: Callable[..., tuple[dict[str, Mean], dict[str, Mean]]]
