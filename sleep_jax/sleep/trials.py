"""Trials: what would the model be after learning from this dream? Isolated adapters, trained together.

Sleep (2606.03979) section 3.4 gives each dream its own instance of the model, theta' = SFT(theta, dream) by
LoRA. Here the instances are one mapped axis over a backbone that is there once: one compiled program trains
`at_once` of them in the time of a batch, where SEAL (2506.10943) trains one after another.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sleep_jax import cost, losses, optim, partition, rollout, steps, trees
from sleep_jax.bounds import at_least
from sleep_jax.data import encoding, packing
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import lora
from sleep_jax.model.lora import AdapterConfig
from sleep_jax.optim import OptimConfig
from sleep_jax.types import Batch, Memory, Model, Objective, Sampling, Tree

TRIALS = cost.Kind("a round of trials", cost.GRADIENT + "rem.trials.at_once or rem.trials.batch_rows")
ASKED = cost.Kind("answering in trials", "lower rem.trials.at_once, rem.questions or answer_tokens")
FITTING = cost.Kind("a step of one adapter", cost.GRADIENT + "rem.learn.batch_rows")


@dataclasses.dataclass(frozen=True)
class TrialConfig(AdapterConfig):
    """One trial.

    Raises:
      ValueError: a value outside its range.
    """

    steps: int = 20  # most updates
    batch_rows: int = 0  # rows of an update, taken in turns; 0 is all that the dream has
    at_once: int = 16  # trials that are trained together
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup=0.0)

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "", steps=1, at_once=1, batch_rows=0)


@dataclasses.dataclass(frozen=True)
class How:
    """How one trial studies what it is given, beside what all trials share.

    Raises:
      ValueError: a value outside its range.
    """

    rate: float = 1.0  # factor on the updates
    share: float = 1.0  # of the updates; the trial stands still for the rest
    prompt_weight: float = 1.0  # weight of predicting a prompt's tokens

    def __post_init__(self):
        if self.rate <= 0 or not 0 < self.share <= 1 or self.prompt_weight < 0:
            raise ValueError(f"{self}: rate must be above 0, share in (0, 1], prompt_weight not negative")


class Lesson(NamedTuple):
    """What I trials learn from, arrays with a leading axis I.

    Attributes:
      rows: of each [M, T], empty rows last.
      rate_I, share_I: as `How` has them.
    """

    rows: Batch
    rate_I: np.ndarray
    share_I: np.ndarray


@dataclasses.dataclass(frozen=True)
class FitConfig(AdapterConfig):
    """One adapter that learns from many rows.

    Raises:
      ValueError: a value outside its range.
    """

    epochs: int = 10  # passes over the rows
    batch_rows: int = 8  # rows per update
    optim: OptimConfig = OptimConfig(lr=5e-3)

    def __post_init__(self):
        super().__post_init__()
        at_least(self, "", epochs=1, batch_rows=1)


def objective(model: Model, scale: float) -> Objective:
    """Next-token prediction over an adapter alone; `frozen` is `(params, memory)`."""

    def totals(adapter, frozen, batch, key):
        del key
        params, memory = frozen
        return {"nll": losses.next_token(model, params, memory, batch, lora.scaled(adapter, scale))}, {}

    return Objective({"nll": 1.0}, lambda batch: {"nll": batch.weights_BT.sum()}, totals)


def lessons(dreams: Sequence[Sequence[Encoded]], row_length: int, how: Sequence[How] | None = None) -> Lesson:
    """What each trial learns from: every dream packed into rows, and padded with empty ones.

    M is the least power of two that holds the longest dream, so that few shapes are compiled.

    Args:
      dreams: for each of I trials its sequences.
      row_length: T.
      how: of each; None is all alike.

    Raises:
      ValueError: there is no trial, or one has nothing to learn from.
    """
    how = [How()] * len(dreams) if how is None else how
    packed = [
        packing.pack(encoded, row_length, weight_prompt=own.prompt_weight)[0]
        for encoded, own in zip(dreams, how, strict=True)
    ]
    if not packed:
        raise ValueError("there is no dream to try")
    for i, one in enumerate(packed):
        if not one.weights_BT.any():
            raise ValueError(f"dream {i} has no token to learn from")
    most = 1 << (max(len(one.tokens_BT) for one in packed) - 1).bit_length()

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, most - len(x)), (0, 0)])

    return Lesson(
        jax.tree.map(lambda *xs: np.stack([padded(x) for x in xs]), *packed),
        np.array([own.rate for own in how], np.float32),
        np.array([own.share for own in how], np.float32),
    )


@functools.lru_cache(maxsize=16)
def compiled(model: Model, config: TrialConfig):
    """`run(kind, start, (params, memory), lesson) -> (adapters, nll_IS)`, mapped over the trials."""

    def trial(start: Tree, frozen: Tree, lesson: Lesson):
        rows, rate, share = lesson
        last = jnp.maximum(jnp.round(share * config.steps), 1)
        optimizer = optax.chain(
            optim.make(config.optim, config.steps),
            optax.scale_by_schedule(lambda t: jnp.where(t < last, rate, 0.0)),
        )
        step = steps.make(objective(model, config.scale), optimizer)
        count = jnp.maximum((rows.weights_BT.sum(1) > 0).sum(), 1)  # empty rows stand last
        most = min(config.batch_rows, len(rows.tokens_BT))

        def update(state, n):
            batch = rows
            if most:
                turn = (n * most + jnp.arange(most)) % count
                batch = jax.tree.map(lambda x: x[turn], rows)
            state, metrics = step(state, frozen, batch, None)
            return state, metrics["nll"].value()

        state, nll_S = jax.lax.scan(update, steps.init(optimizer, start), jnp.arange(config.steps))
        return state.params, nll_S

    return cost.Program(jax.vmap(trial, in_axes=(None, None, 0)))


def together(count: int, at_once: int, params: Tree) -> int:
    """How many of `count` trials are taken at a time: `at_once`, or the least power of two that holds all.

    Where the mesh that `params` lie on splits rows, as many more as it takes for every device to have the
    same number.
    """
    split = partition.row_split(params)
    return -(-min(at_once, 1 << (count - 1).bit_length()) // split) * split


def in_turns(run: Callable[..., Tree], start: Tree, frozen: tuple, lesson: Tree, at_once: int) -> Tree:
    """`run(start, frozen, lesson)` of arrays [I, ...], `at_once` of I at a time: few shapes are compiled."""
    count, parts = len(jax.tree.leaves(lesson)[0]), []
    at_once = together(count, at_once, frozen[0])
    for first in range(0, count, at_once):
        index = np.arange(first, first + at_once)
        chosen = jax.tree.map(lambda x, index=index: x[np.where(index < count, index, 0)], lesson)
        parts.append(partition.fetch(run(start, frozen, partition.put_rows(chosen, frozen[0]))))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)


def train(
    model: Model, config: TrialConfig, params: Tree, memory: Memory | None, start: Tree, lesson: Lesson
) -> tuple[Tree, np.ndarray]:
    """The adapters after each trial, all begun at `start`; `faults` tells which of them went wrong.

    Args:
      model, config: of all trials.
      params, memory: the model that is tried on; nothing in it moves.
      start: an adapter, as `lora.init` makes it.
      lesson: of `lessons`.

    Returns:
      The adapters, arrays [I, ...], and nll_IS, the loss at each step in nats per token.
    """
    run = functools.partial(compiled(model, config), TRIALS)
    return in_turns(run, start, (params, memory), lesson, config.at_once)


def faults(adapters: Tree, start: Tree) -> list[str]:
    """Why each of some adapters [I, ...] must not be gone by, '' where it may.

    One that is not finite knows nothing, and one whose B never left zero has learnt nothing, and would be
    rewarded at random.
    """
    finite_I = np.all([np.isfinite(x).reshape(len(x), -1).all(1) for x in jax.tree.leaves(adapters)], axis=0)
    moved_I = sum(
        np.abs(x - np.asarray(start[name])).reshape(len(x), -1).max(1)
        for name, x in trees.named(adapters).items()
        if name.endswith("_b_NRO")
    )
    rates = "rem.trials.optim.lr or rem.learn.optim.lr"
    still_I = np.where(moved_I == 0, f"did not move: raise {rates}", "")
    return np.where(finite_I, still_I, f"is not finite: lower {rates}").tolist()


def check(adapters: Tree, start: Tree, names: Sequence[str]) -> None:
    """Better no night than one that goes by a broken adapter.

    Args:
      names: of the adapters, for a person.

    Raises:
      FloatingPointError: one has a fault.
    """
    for name, fault in zip(names, faults(adapters, start), strict=True):
        if fault:
            raise FloatingPointError(f"{name} {fault}")


def fit(
    model: Model,
    config: FitConfig,
    params: Tree,
    memory: Memory | None,
    start: Tree,
    rows: Batch,
    seed: int,
) -> tuple[Tree, float]:
    """One adapter after `config.epochs` passes over rows [M, T] in random order.

    Returns:
      The adapter, and its mean loss over the last pass in nats per token.

    Raises:
      FloatingPointError: as in `check`.
    """
    count = len(rows.tokens_BT)
    per_epoch = -(-count // config.batch_rows)
    optimizer = optim.make(config.optim, config.epochs * per_epoch)
    step = _fitting(model, config, config.epochs * per_epoch)
    state = steps.init(optimizer, jax.tree.map(jnp.copy, start))  # the step takes its state's memory
    draw, last = np.random.default_rng(seed), []
    for epoch in range(config.epochs):
        order = np.resize(draw.permutation(count), per_epoch * config.batch_rows)
        for index in order.reshape(per_epoch, config.batch_rows):
            batch = partition.put_rows(jax.tree.map(lambda x, index=index: x[index], rows), params)
            state, metrics = step(FITTING, state, (params, memory), batch, None)
            if epoch == config.epochs - 1:
                last.append(metrics["nll"])
    adapter = partition.fetch(state.params)
    check(jax.tree.map(lambda x: x[None], adapter), start, ["the adapter"])
    last = partition.fetch(last)
    return adapter, float(sum(m.total for m in last) / sum(m.count for m in last))


@functools.lru_cache(maxsize=16)
def _fitting(model: Model, config: FitConfig, count: int):
    optimizer = optim.make(config.optim, count)
    return cost.Program(steps.make(objective(model, config.scale), optimizer), donate=(0,))


def answers(
    model: Model,
    tok: Tokenizer,
    params: Tree,
    memory: Memory | None,
    adapters: Tree | None,
    questions: Sequence[Sequence[Example]],
    config: TrialConfig,
    *,
    max_new: int,
) -> list[list[str]]:
    """Greedy answers of every trial to its own questions.

    Args:
      adapters: arrays [I, ...] as `train` returns them; None asks the model without any.
      questions: for each of I trials.
      max_new: most tokens of an answer.

    Raises:
      ValueError: a prompt is blank, or does not leave room for `max_new` tokens in `model.max_len`.
    """
    if not questions:
        return []
    if not any(questions):
        return [[] for _ in questions]
    tokens, lengths = encoding.prompts(tok, [q for asked in questions for q in asked])
    ends = np.cumsum([len(asked) for asked in questions])
    starts, most = ends - [len(asked) for asked in questions], max(map(len, questions))
    said: list[list[str]] = []
    at_once = together(len(questions), config.at_once, params)
    for first in range(0, len(questions), at_once):
        trial = np.arange(first, first + at_once) % len(questions)
        # Every trial has the same number of rows: its questions, and the first again where it has fewer.
        at = starts[trial][:, None] + np.arange(most) % np.maximum(ends - starts, 1)[trial][:, None]
        rows = np.minimum(at.ravel(), len(tokens) - 1)  # who asks nothing comes last
        own = None
        if adapters is not None:
            own = lora.grouped(lora.scaled({k: x[trial] for k, x in adapters.items()}, config.scale))
        out = rollout.generate(
            model,
            params,
            memory,
            (tokens[rows], lengths[rows]),
            jax.random.key(0),
            Sampling(max_new, temperature=0.0),
            batch_size=len(rows),
            adapter=own,
            kind=ASKED,
        )
        texts = [tok.decode(ids).strip() for ids in rollout.completions(out, lengths[rows])]
        for i, trial_i in enumerate(trial[: len(questions) - first]):
            said.append(texts[i * most : i * most + len(questions[trial_i])])
    return said
