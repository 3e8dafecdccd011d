"""Fine-tuning of the whole backbone: on the day alone, on everything so far, or with a small buffer."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from sleep_jax import losses, optim, steps
from sleep_jax.data import encoding, noise, packing, pipeline
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.stream import Example, Experience
from sleep_jax.fit import World, fit
from sleep_jax.phases import State
from sleep_jax.types import Batch, Objective, Tree


def documents(world: World, examples: Sequence[Example]) -> list[Encoded]:
    """Examples as every method reads them: in both directions, free text as it is."""
    length = world.config.row_length
    pairs = [encoding.encode_recalling(world.tok, e, length) for e in examples if e.prompt]
    return encoding.encode(world.tok, examples, length) + pairs


def waking(world: World, cycle: int) -> int:
    """Gradient tokens of a waking day: its documents, as often as they are read."""
    day = documents(world, world.stream.days[cycle - 1].train)
    return world.config.wake.passes * sum(len(e.tokens) for e in day)


def budget(world: World, cycle: int) -> int:
    """Gradient tokens of a cycle: what Sleep spends on waking, and on seeding full rows to the last step.

    Sleep's rows are never quite full, its nights may stop early, and the student's own samples and merges of
    slots come on top: what each life did spend is in its summary.
    """
    c = world.config
    if c.baseline.gradient_tokens:
        return c.baseline.gradient_tokens
    return waking(world, cycle) + c.sleep.steps * c.sleep.batch_rows * c.row_length


def steps_for(world: World, rows: Batch, cycle: int, spent: int = 0) -> int:
    """Steps that spend what is left of the budget on these rows, by how full they are."""
    full = float((rows.segments_BT > 0).mean())
    per_step = world.config.baseline.batch_rows * world.config.row_length * full
    return max(round((budget(world, cycle) - spent) / per_step), 1)


def mixed(new: Batch, old: Batch, share: float, seed: int) -> Batch:
    """Rows of which `share` are old, drawn with repetition where there are too few."""
    draw = np.random.default_rng(seed)
    want = max(round(len(new.tokens_BT) * share / (1 - share)), 1)
    pick = np.concatenate(
        [draw.permutation(len(old.tokens_BT)) for _ in range(-(-want // len(old.tokens_BT)))]
    )[:want]
    return jax.tree.map(lambda a, b: np.concatenate([a, b[pick]]), new, old)


def pack(
    world: World, examples: Sequence[Example], skills: Sequence[Example] = (), weight_prompt: float = 1.0
) -> Batch:
    """Packed rows of the examples, in both directions, and of skills as they are asked for."""
    encoded = [*documents(world, examples), *encoding.encode(world.tok, skills, world.config.row_length)]
    return packing.pack(encoded, world.config.row_length, weight_prompt=weight_prompt)[0]


def read(world: World, experience: Experience) -> None:
    """Puts the day's tokens on the account, each once."""
    world.account.source += sum(len(e.tokens) for e in documents(world, experience.train))


def batches(world: World, rows: Batch, batch_rows: int, seed: int, blanks: float) -> Iterator[Batch]:
    """Batches of the rows without end, a share of the prompts' tokens blanked."""

    def blank(batch: Batch, draw: np.random.Generator) -> Batch:
        return noise.blanked(batch, draw.random(batch.tokens_BT.shape), world.tok, blanks)

    return pipeline.batches(rows, batch_rows, seed, epochs=None, noise=blank if blanks else None)


def fit_backbone(
    world: World,
    name: str,
    state: State,
    cycle: int,
    rows: Batch,
    objective: Objective | None = None,
    frozen: Tree = None,
    spent: int = 0,
) -> State:
    """Trains the backbone on rows within what is left of the budget; by default on next-token prediction."""
    count = steps_for(world, rows, cycle, spent)
    c = world.config.baseline
    drawn = batches(world, rows, c.batch_rows, world.seed * 1000 + cycle, c.blanks)
    optimizer = optim.make(c.optim, count)
    objective = objective or losses.supervised(world.model)
    step = steps.make(objective, optimizer, world.config.micro_batches)
    trained, _ = fit(world, name, cycle, step, steps.init(optimizer, state.params), frozen, drawn, count)
    return dataclasses.replace(state, params=trained.params)


def sequential(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """The day alone: what every continual learner is measured against."""
    read(world, experience)
    return fit_backbone(world, name, state, cycle, pack(world, experience.train))


def joint(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """Everything lived so far, birth included, with nothing ever taken away: the upper bound."""
    read(world, experience)
    lived = [world.stream.birth, *world.stream.days[:cycle]]
    return fit_backbone(world, name, state, cycle, pack(world, [e for x in lived for e in x.train]))


def replay(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """Experience replay with a reservoir of real examples (Vitter 1985; Chaudhry et al. 2019, 1902.10486)."""
    read(world, experience)
    buffer = reservoir(world, cycle)
    old = pack(world, buffer)
    share = world.config.baseline.replay_share
    return fit_backbone(world, name, state, cycle, mixed(pack(world, experience.train), old, share, cycle))


def reservoir(world: World, cycle: int) -> list[Example]:
    """The buffer on the morning of a day: a uniform sample of all read before, by the seed alone."""
    draw = np.random.default_rng([world.seed, 7])
    buffer: list[Example] = []
    seen = 0
    for experience in [world.stream.birth, *world.stream.days[: cycle - 1]]:
        for example in experience.train:
            seen += 1
            if len(buffer) < world.config.baseline.replay_buffer:
                buffer.append(example)
            elif (at := draw.integers(seen)) < len(buffer):
                buffer[at] = example
    return buffer
