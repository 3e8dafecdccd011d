"""Knowledge Seeding over a night's dreams: who teaches how much, what is held out, and the training."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import optim, rng, steps, trees
from sleep_jax.data import encoding, noise, pipeline
from sleep_jax.fit import Early, World, fit
from sleep_jax.model import memory as memory_lib
from sleep_jax.sleep import consolidate, imitate
from sleep_jax.sleep.consolidate import SeedConfig
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.selves import Self, seen_by
from sleep_jax.types import Memory, Tree


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a method leaves out of a night; the default is Sleep itself."""

    expand: bool = True  # a fresh slot; otherwise the MLP weights are trained
    imitate: bool = True
    semantic: bool = True
    rehearse: bool = True  # old dreams beside the new
    on_policy_only: bool = False
    mask_fast_before_seed: bool = True  # False: the printed order, seed and only then reset

    def objective(self, config: SeedConfig) -> SeedConfig:
        """The objective's weights without what is left out."""
        if not self.imitate:
            config = dataclasses.replace(config, alpha=1.0)
        return dataclasses.replace(config, on_policy=1.0) if self.on_policy_only else config


@dataclasses.dataclass
class Taught:
    """Dreams split into what is trained on and what is held out, with their teachers.

    Of two dreams or more of one teacher at least one is held out.
    """

    train: list[tuple[Self, list[Dream]]]
    held_out: list[tuple[Self, list[Dream]]]

    @classmethod
    def split(cls, taught: Sequence[tuple[Self, Sequence[Dream]]], share: float, seed: int) -> "Taught":
        draw = np.random.default_rng(seed)
        train, held_out = [], []
        for self_, dreams in taught:
            kept = [d for d in dreams if d.kept]
            order = draw.permutation(len(kept))
            cut = max(round(len(kept) * share), int(len(kept) > 1))
            held_out.append((self_, [kept[i] for i in order[:cut]]))
            train.append((self_, [kept[i] for i in order[cut:]]))
        return cls(train, held_out)

    def lacking(self) -> str:
        """Why nothing can be learnt from these dreams; '' when something can."""
        counts = {k: sum(len(dreams) for _, dreams in getattr(self, k)) for k in ("train", "held_out")}
        if all(counts.values()):
            return ""
        return f"only {sum(counts.values())} dreams to learn from were kept, too few to hold one out"


@dataclasses.dataclass
class Seeding:
    """What `seed` came to."""

    memory: Memory
    params: Tree
    held_out_kl: float
    finite: bool


Encoded = list[tuple[Self, list[encoding.Encoded]]]


def seed(
    world: World,
    phase: str,
    cycle: int,
    params: Tree,
    memory: Memory,
    student: Memory,
    place: tuple[int, int],
    old: Taught,
    new: Taught,
    variant: Variant,
    context: Sequence[int] = (),
) -> Seeding:
    """Knowledge Seeding of one slot (or, without expansion, of the MLP weights).

    Args:
      phase: names the checkpoints.
      memory: with fast memory, as the teachers have it.
      student: the memory that the slot joins.
      place: level and index of the slot.
      old, new: dreams of the past and of the day, each with its teachers.
      context: tokens of the day; reading them first, the awake self teaches the day once more.

    Returns:
      The student after it, whether or not all of it is finite.

    Raises:
      ValueError: the context is longer than the model's, or no dream is short enough to be practised.
    """
    model, config = world.model, world.config.sleep
    if variant.expand:
        key = rng.fold(rng.stream(world.seed, "sleep/expand"), cycle)
        start = memory_lib.fresh_slot(model.config, model.memory_config, key)
        join = consolidate.into_slot(*place)
    else:
        start = jax.tree.map(jnp.zeros_like, memory.fast)
        join = consolidate.into_backbone
    objective = consolidate.objective(
        model, variant.objective(config.seed), join, place if variant.expand else None
    )
    in_use = np.asarray(student.active_LE).any(0).nonzero()[0]
    frozen = (params, memory_lib.only_slots(student, np.arange(1 + max([place[1], *in_use]))))

    # What earlier selves recall is dreamt by them. The fresh slot recalls its own day, so that this is what
    # comes up in its self. Where everything goes into the same weights, all of it must come up.
    past, today = _encoded(world, old.train), _encoded(world, new.train)
    past_recalled = [] if variant.expand else _encoded(world, old.train, consolidate.encode_recalling)
    today_recalled = _encoded(world, new.train, consolidate.encode_recalling)
    # Nights stop early by the divergence from the teachers alone: whose rows they are is not looked at.
    held_out = _lesson(world, params, memory, _encoded(world, [*old.held_out, *new.held_out]), False)
    groups = [(today, today_recalled, config.new_share, True)]
    if variant.rehearse:
        groups.append((past, past_recalled, 1 - config.new_share, False))
    train, order = _lessons(world, params, memory, groups, context)

    def drawn(rows_B: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return rows_B, draw.random((len(rows_B), world.config.row_length))

    batches = pipeline.batches(order, config.batch_rows, world.seed * 1000 + cycle, epochs=None, noise=drawn)
    practiser = imitate.Practiser(
        model=model,
        tok=world.tok,
        params=params,
        memory=memory,
        student=lambda trainable: join(trainable, params, student),
        pools=(past + past_recalled if variant.rehearse else [], today + today_recalled),
        semantic=semantic_reward(world) if variant.semantic else None,
        config=config.imitate,
        score=consolidate.scorer(model),
        seed=world.seed * 1000 + cycle,
    )
    practise = practiser.stage(lambda: world.account)
    practised = objective.weights["imitation"] or objective.weights["kl_on_policy"]
    taught = objective.weights["kl"] or objective.weights.get("routing")

    def stage(step: int, trainable: Tree, batch: tuple[np.ndarray, np.ndarray]):
        rows_B, draws_BT = batch
        if not taught:  # what has no weight is not computed, and is on no account
            return practise(step, trainable, None)
        lesson = jax.tree.map(lambda x: x[rows_B], train)
        rows = noise.blanked(lesson.rows, draws_BT, world.tok, config.blanks)
        lesson = dataclasses.replace(lesson, rows=rows)
        return practise(step, trainable, lesson) if practised else ({"lesson": lesson}, {})

    optimizer = optim.make(config.optim, config.steps)
    # At the temperature that is trained at: looks at another one would stop before the rates have fallen.
    held_out_kl = consolidate.mean_kl(objective, held_out, frozen, config.batch_rows)
    try:
        state, report = fit(
            world,
            phase,
            cycle,
            steps.make(objective, optimizer, world.config.micro_batches),
            steps.init(optimizer, start),
            frozen,
            batches,
            config.steps,
            stage=stage,
            early=Early(held_out_kl, config.validate_every, config.patience),
        )
    except FloatingPointError:
        return Seeding(student, params, float("nan"), False)
    finite = bool(trees.all_finite(state.params))
    if variant.expand:
        student = memory_lib.write_slot(student, state.params, *place)
    else:
        params = memory_lib.merged(params, state.params)
    return Seeding(student, params, report["held_out_kl"], finite)


def _lesson(world: World, params: Tree, memory: Memory, encoded: Encoded, own: bool) -> consolidate.Lesson:
    c = world.config
    score, weight = consolidate.scorer(world.model), c.sleep.seed.prompt_weight
    return consolidate.lessons(score, params, memory, encoded, c.row_length, c.eval_batch // 4, weight, own)


def _lessons(
    world: World,
    params: Tree,
    memory: Memory,
    groups: Sequence[tuple[Encoded, Encoded, float, bool]],
    context: Sequence[int],
) -> tuple[consolidate.Lesson, np.ndarray]:
    """The rows of all teachers, and the numbers of those that make an epoch in due shares.

    Args:
      groups: dreams as they are asked, the same as they are recalled, the share of both together, and
        whether the fresh slot is for them.
      context: in which the first teacher of the first group teaches once more.
    """
    c = world.config
    parts, shares = [], []
    for asked, recalled, whole, own in groups:
        recalling = c.sleep.recall_share if recalled else 0.0
        for taught, share in ((asked, whole * (1 - recalling)), (recalled, whole * recalling)):
            parts += [_lesson(world, params, memory, [one], own) for one in taught]
            shares += _shares(taught, share)
    if context:
        awake, encoded = groups[0][0][0]
        told = consolidate.lessons_in_context(
            consolidate.scorer(world.model),
            params,
            seen_by(memory, awake),
            context,
            encoded,
            c.row_length,
            world.model.config.max_len,
            c.eval_batch // 4,
            c.sleep.seed.prompt_weight,
        )
        parts[0] = jax.tree.map(lambda *xs: np.concatenate(xs), parts[0], told)
    order = pipeline.in_shares([len(p.hidden_BTD) for p in parts], shares)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts), order


def _encoded(world: World, taught: Sequence[tuple[Self, list[Dream]]], encode=consolidate.encode) -> Encoded:
    every = [(self_, encode(world.tok, dreams, world.config.row_length)) for self_, dreams in taught]
    return [(self_, sequences) for self_, sequences in every if sequences]


def _shares(taught: Encoded, whole: float) -> list[float]:
    """The share of rows that each self teaches: by what it learnt, not by how many dreams were kept.

    Early nights then weigh the same however hard their dreams are to come by.
    """
    total = sum(self_.weight for self_, _ in taught)
    return [whole * self_.weight / total for self_, _ in taught]


def semantic_reward(world: World) -> imitate.SemanticReward:
    """What `sleep.imitate.semantic` names, with the frozen birth model where it takes one."""
    params = world.newborn
    config = world.config.sleep.imitate
    if config.semantic == "hidden":
        return imitate.HiddenCosine(world.model, params, config.threshold)
    if config.semantic == "judge":
        return imitate.Judge(world.model, params, world.tok)
    return imitate.AnswerMatch(world.tok)
