"""The optimisation loop of every phase that trains: resumable, accounted, watched."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sleep_jax import checkpoint, cost, metrics, rng, terminal
from sleep_jax.data.stream import Stream
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.partition import Partitioner, fetch
from sleep_jax.settings import Config
from sleep_jax.steps import Step
from sleep_jax.types import Model, Tree

# By the first word of a phase, the key to lower when its loss is not finite, and what a step is made of.
NIGHTS = "sleep", "rem", "single", "continued", "edits", "puzzles"
GROUPS = {"birth": "birth", "train": "baseline"} | dict.fromkeys(NIGHTS, "sleep")
RATES = {"wake": "wake.lr"} | {phase: f"{key}.optim.lr" for phase, key in GROUPS.items()}
ROWS = {"wake": "memory.periods"}
ROWS |= {phase: f"{key}.batch_rows, or raise micro_batches" for phase, key in GROUPS.items()}


@dataclasses.dataclass
class Account:
    """What a life has spent so far; compared between methods at equal `gradient` tokens.

    Attributes:
      source: tokens of documents read (each once, however often it was trained on).
      dreamt: tokens sampled.
      gradient: non-padding tokens that a gradient was taken on.
      flops: of training steps, as `cost.flops` counts them. What is sampled (dreams, practice, answers), what
        teachers score, looks at what is held out, the Fisher of EWC, trials of dreams and what a dreamer
        learns from are not in it.
    """

    source: int = 0
    dreamt: int = 0
    gradient: int = 0
    flops: float = 0.0


@dataclasses.dataclass
class World:
    """What a life lives in: everything but its state. Only `account`, `costs` and `writer` change.

    Attributes:
      workdir: of this life.
      of: what every checkpoint here is of: the method, the seed, and each experience, birth first.
      writer: None where a birth is given, which is read alone.
      newborn: the backbone as it was at birth, once there is one.
      costs: per compiled step its FLOPs and bytes, for the report.
    """

    config: Config
    seed: int
    workdir: pathlib.Path
    stream: Stream
    tok: Tokenizer
    model: Model
    partitioner: Partitioner
    writer: metrics.MetricsWriter | None
    account: Account
    of: Mapping[str, Sequence[str]]
    newborn: Tree = None
    costs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def compile(self, name: str, step, state: Tree, frozen: Tree, batch: Tree, key):
        """The step compiled for the mesh, its cost recorded before it first runs.

        Raises:
          ValueError: it takes more memory than a device has.
        """
        run = self.partitioner.compile(step)
        compiled, self.costs[name] = cost.compiled(run, state, frozen, batch, key)
        metrics.write_memory(self.workdir, self.costs)
        rows = ROWS.get(name.split("-")[0], "the batch")
        cost.tell(cost.Kind(f"a step of {name}", cost.GRADIENT + rows), self.costs[name]["bytes"])
        return compiled


@dataclasses.dataclass
class Early:
    """Stopping early: the best parameters by a held-out loss, and for how many looks nothing got better."""

    loss: Callable[[Tree], float]
    every: int
    patience: int


def tokens_in(batch: Tree) -> int:
    """Non-padding tokens of a batch: packed rows by their segments, sampled rows by what was sampled."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = jax.tree_util.keystr(path, simple=True, separator="/").rsplit("/", 1)[-1]
        if name == "segments_BT":
            total += int((np.asarray(leaf) > 0).sum())
        elif name == "sampled_BT":
            total += int(np.asarray(leaf).sum())
    return total


def fit(
    world: World,
    phase: str,
    cycle: int,
    step_fn: Step,
    state: Tree,
    frozen: Tree,
    batches: Iterator,
    count: int,
    *,
    stage: Callable[[int, Tree, Tree], tuple[Tree, dict[str, float]]] | None = None,
    early: Early | None = None,
) -> tuple[Tree, dict[str, float]]:
    """Runs `count` steps, or resumes them where a killed process left off.

    Args:
      world: where metrics, checkpoints and accounting go.
      phase: name such as "001-sleep"; also names the rolling checkpoints.
      cycle: number of the day.
      step_fn: `step(state, frozen, batch, key, *, reduce) -> (state, metrics)`, compiled here.
      state: arrays before the first step.
      frozen: everything else that the step reads; never moved.
      batches: a grain iterator; its position is checkpointed.
      count: most steps.
      stage: `stage(step, params, batch) -> (batch, shown)` completes a batch on the host.
      early: stop early, and give back the best `state.params` in place of the last.

    Returns:
      The state after the last step, and what is to be said of the run: steps and the best held-out loss.

    Raises:
      FloatingPointError: the loss or a gradient is not finite; names the learning rate to lower.
    """
    c, partitioner, name = world.config, world.partitioner, phase.split("-", 1)[1]
    rate = RATES.get(name.split("-")[0], "the learning rate")
    # The step donates its state, and what is handed in may live on elsewhere (as part of `frozen`, for one).
    state, frozen = partitioner.put(state), partitioner.placed(frozen)
    best, best_loss, stale, done = fetch(state.params) if early else (), float("inf"), 0, 0
    key = rng.fold(rng.stream(world.seed, phase))
    resumed = checkpoint.load_rolling(
        world.workdir, phase, jax.eval_shape(lambda: {"state": state, "best": best})
    )
    if resumed:
        done, tree, meta = resumed
        state, best = partitioner.put(tree["state"]), tree["best"]
        batches.set_state(meta["iterator"])
        world.account = Account(**meta["account"])
        best_loss, stale = meta["best_loss"], meta["stale"]
        world.writer.seek(meta["metrics"])
        if early and stale >= early.patience:  # killed after it had stopped, before the phase was over
            count = done
    run, pending, step = None, None, done

    def log(step, values, shown):
        scalars = {k: float(m.value()) for k, m in values.items()} | shown
        if not all(np.isfinite(v) for v in scalars.values()):
            raise FloatingPointError(f"{phase} step {step}: not finite: {scalars}: lower {rate}")
        world.writer.write(name, cycle, step, scalars)

    def save(step):
        meta = {
            "of": world.of,
            "iterator": batches.get_state(),
            "account": dataclasses.asdict(world.account),
            "best_loss": best_loss,
            "stale": stale,
            "metrics": world.writer.position(),
        }
        checkpoint.save_rolling(world.workdir, phase, step, {"state": state, "best": best}, meta)

    started = time.perf_counter()
    with terminal.progress(count, f"day {cycle} · {name}" if cycle else name, start=done) as bar:
        for step in range(done + 1, count + 1):
            batch, shown = next(batches), {}
            if stage:
                batch, shown = stage(step - 1, state.params, batch)
            world.account.gradient += tokens_in(batch)
            batch = partitioner.put_batch(batch)
            step_key = rng.fold(key, step)
            if run is None:
                run = world.compile(name, step_fn, state, frozen, batch, step_key)
            state, values = run(state, frozen, batch, step_key)
            world.account.flops += world.costs[name]["flops"]
            if pending:  # of the step before, so that the device never waits for the log
                log(*pending)
                pending = None
            if step % c.log_every == 0 or step == count:
                pending = (step, values, shown)
            look = early and (step % early.every == 0 or step == count)
            if look:
                loss = early.loss(state.params)
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"{phase} step {step}: the held-out loss is {loss}: lower {rate}"
                    )
                world.writer.write(name, cycle, step, {"held_out_kl": loss})
                if loss < best_loss:
                    best, best_loss, stale = fetch(state.params), loss, 0
                else:
                    stale += 1
            if step % c.checkpoint_every == 0 and step < count:
                if pending:
                    log(*pending)
                    pending = None
                save(step)
            bar.advance()
            if look and stale >= early.patience:
                break
        if pending:
            log(*pending)
    world.writer.time(f"{name}/fit", cycle, time.perf_counter() - started, steps=step - done)
    if early:
        state = dataclasses.replace(state, params=partitioner.put(best))
    return state, {"steps": step, "held_out_kl": best_loss}
