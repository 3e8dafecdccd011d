"""One night: dream, seed a fresh slot, judge, and commit or roll back."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import evals, metrics, optim, rng, rollout, steps, terminal, trees
from sleep_jax.data import encoding, pipeline
from sleep_jax.data.stream import Example, Experience, merge
from sleep_jax.fit import Early, World, fit
from sleep_jax.model import memory as memory_lib
from sleep_jax.settings import SleepConfig
from sleep_jax.sleep import consolidate, imitate, selves
from sleep_jax.sleep.recall import Dream, day_at_hand, recall
from sleep_jax.sleep.selves import Self, Slot
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


def dream(
    world: World,
    params: Tree,
    memory: Memory,
    past: Sequence[Self],
    awake: Self,
    experience: Experience,
    cycle: int,
    config: SleepConfig,
) -> tuple[list[tuple[Self, list[Dream]]], list[Dream]]:
    """The night's dreams: of every earlier self in proportion to what it learnt, and of the day."""
    key = rng.fold(rng.stream(world.seed, "sleep/dream"), cycle)
    share = _share_of_pairs(world.stream.birth.train)
    documents = sum(s.documents for s in past)
    longest = min(world.config.row_length, world.model.config.max_len - world.config.answer_tokens)
    sleeper = world.model, world.tok, params, memory
    ask = lambda who, before, quota, n: recall(  # noqa: E731
        *sleeper, who, before, quota, share, rng.fold(key, n), config.recall, longest=longest
    )
    old = []
    with terminal.progress(len(past) + 1, f"day {cycle} · dream") as bar:
        for i, self_ in enumerate(past):
            quota = max(round(config.old_dreams * self_.documents / documents), 1)
            old.append((self_, ask(self_, past[i - 1] if i else None, quota, i)))
            bar.advance()
        if config.day_at_hand:
            new = day_at_hand(*sleeper, awake, experience.train, config.recall, longest=longest)
        else:
            new = ask(awake, past[-1], config.new_dreams, len(past))
        bar.advance()
    world.account.dreamt += sum(
        len(world.tok.encode(d.text)) for _, ds in [*old, (awake, new)] for d in ds if d.source == "dreamt"
    )
    return old, new


def _share_of_pairs(examples: Sequence[Example]) -> float:
    return sum(bool(e.prompt) for e in examples) / len(examples)


@dataclasses.dataclass
class Seeding:
    """What `seed` came to."""

    memory: Memory
    params: Tree
    steps: int
    held_out_kl: float
    finite: bool


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
    config: SleepConfig,
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
    """
    c, model, tok = world.config, world.model, world.tok
    score = consolidate.scorer(model)
    seed_config = config.seed
    if not variant.imitate:
        seed_config = dataclasses.replace(seed_config, alpha=1.0)
    if variant.on_policy_only:
        seed_config = dataclasses.replace(seed_config, on_policy=1.0)

    def encoded(taught):
        return [(self_, consolidate.encode(tok, dreams, c.row_length)) for self_, dreams in taught if dreams]

    def lessons(taught):
        return consolidate.lessons(
            score, params, memory, encoded(taught), c.row_length, c.eval_batch // 4, seed_config.prompt_weight
        )

    rehearsed = old.train if variant.rehearse else []
    shares = [*_shares(new.train, config.new_share), *_shares(rehearsed, 1 - config.new_share)]
    parts = [lessons([(self_, dreams)]) for self_, dreams, _ in shares]
    if context:
        (awake, dreams), *_ = new.train
        told = consolidate.lessons_in_context(
            score,
            params,
            selves.seen_by(memory, awake),
            context,
            consolidate.encode(tok, dreams, c.row_length),
            c.row_length,
            model.config.max_len,
            c.eval_batch // 4,
            seed_config.prompt_weight,
        )
        parts[0] = jax.tree.map(lambda *xs: np.concatenate(xs), parts[0], told)
    train = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    order = pipeline.in_shares([len(p.hidden_BTD) for p in parts], [share for *_, share in shares])
    held_out = lessons([*old.held_out, *new.held_out])
    if variant.expand:
        key = rng.fold(rng.stream(world.seed, "sleep/expand"), cycle)
        start = memory_lib.fresh_slot(model.config, model.memory_config, key)
        join = consolidate.into_slot(*place)
    else:
        start = jax.tree.map(jnp.zeros_like, memory.fast)
        join = consolidate.into_backbone
    objective = consolidate.objective(model, seed_config, join)
    frozen = (params, student)
    pools = (encoded(old.train), encoded(new.train)) if variant.rehearse else (encoded(new.train),) * 2
    practiser = imitate.Practiser(
        model=model,
        tok=tok,
        params=params,
        memory=memory,
        student=lambda trainable: join(trainable, params, student),
        pools=pools,
        semantic=_semantic(world, params, config) if variant.semantic else None,
        config=config.imitate,
        score=score,
        seed=world.seed * 1000 + cycle,
    )
    held_out_kl = consolidate.mean_kl(objective, held_out, frozen, config.batch_rows)
    optimizer = optim.make(config.optim, config.steps)
    batches = pipeline.batches(order, config.batch_rows, world.seed * 1000 + cycle, epochs=None)
    early = Early(held_out_kl, config.validate_every, config.patience)
    practise = practiser.stage(lambda: world.account)
    alone = seed_config.alpha == 1 and seed_config.on_policy == 0  # nothing is learnt from own samples then

    def stage(step, trainable, rows_B):
        lesson = jax.tree.map(lambda x: x[rows_B], train)
        return ({"lesson": lesson}, {}) if alone else practise(step, trainable, lesson)

    try:
        step = steps.make(objective, optimizer)
        state, report = fit(
            world,
            phase,
            cycle,
            step,
            steps.init(optimizer, start),
            frozen,
            batches,
            config.steps,
            stage=stage,
            early=early,
        )
    except FloatingPointError:
        return Seeding(student, params, 0, float("nan"), False)
    trained = state.params
    finite = bool(trees.all_finite(trained))
    if variant.expand:
        written = memory_lib.write_slot(student, trained, *place)
        return Seeding(written, params, report["steps"], report["held_out_kl"], finite)
    mlp = jax.tree.map(jnp.add, params["blocks"]["mlp"], trained)
    merged = {**params, "blocks": {**params["blocks"], "mlp": mlp}}
    return Seeding(student, merged, report["steps"], report["held_out_kl"], finite)


def _shares(
    taught: Sequence[tuple[Self, list[Dream]]], whole: float
) -> list[tuple[Self, list[Dream], float]]:
    """The share of rows that each self teaches: by what it learnt, not by how many dreams were kept.

    Early nights then weigh the same however hard their dreams are to come by.
    """
    taught = [(self_, dreams) for self_, dreams in taught if dreams]
    total = sum(self_.documents for self_, _ in taught)
    return [(self_, dreams, whole * self_.documents / total) for self_, dreams in taught]


def _semantic(world: World, params: Tree, config: SleepConfig) -> imitate.SemanticReward:
    kind = config.imitate.semantic
    if kind == "hidden":
        return imitate.HiddenCosine(world.model, params, config.imitate.threshold)
    if kind == "judge":
        return imitate.Judge(world.model, params, world.tok)
    return imitate.AnswerMatch(world.tok)


def agreement(
    world: World, params: Tree, memory: Memory, taught: Sequence[tuple[Self, Sequence[Dream]]]
) -> float | None:
    """Share of held-out dreams with a prompt that this self answers as the dream does; None without any."""
    pairs = [d.example for _, dreams in taught for d in dreams if d.example.prompt]
    if not pairs:
        return None
    answers = ask(world, params, memory)(pairs)
    return float(evals.matches(answers, [p.answer for p in pairs]).mean())


def ask(world: World, params: Tree, memory: Memory | None) -> evals.Answerer:
    """Greedy answers of one self."""
    c = world.config
    return lambda probes: rollout.answer(
        world.model, world.tok, params, memory, probes, max_new=c.answer_tokens, batch_size=c.eval_batch
    )


def run(
    world: World,
    name: str,
    cycle: int,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    days: Sequence[Experience],
    variant: Variant,
) -> "Outcome":
    """One night as a transaction, for the day and for those before it whose nights were rolled back.

    1. Room is made: a full level is consolidated into the next, or merged if it is the slowest.
    2. Every self dreams what it knows; a share of the dreams is held out.
    3. A fresh slot is seeded, all else frozen.
    4. The sleeper is compared with its pre-sleep self on the held-out dreams. When the past got worse by more
       than `sleep.margin`, or anything is not finite, the memory stays as it was in the evening: the slot
       stays locked and the day stays in fast memory and at hand, for the next night.
    """
    config = world.config.sleep
    today = days[-1].name
    experience = merge(today, days)

    def rolled_back(reason: str, new_dreams: Sequence[Dream] = ()) -> Outcome:
        night = metrics.Night(cycle, today, "rolled back", reason)
        return Outcome(params, memory, slots, night, [d for d in new_dreams if d.kept], None)

    memory, slots, reason = make_room(world, name, cycle, params, memory, slots)
    if reason:
        return rolled_back(reason)
    shape = memory.active_LE.shape
    past = selves.earlier(slots, shape, world.stream.birth.name, len(world.stream.birth.train))
    awake = selves.awake(past, today, len(experience.train))
    old_dreams, new_dreams = dream(world, params, memory, past, awake, experience, cycle, config)
    dreams = [d for _, ds in old_dreams for d in ds] + new_dreams
    write_dreams(world, cycle, dreams)
    old = Taught.split(old_dreams, config.held_out, cycle)
    new = Taught.split([(awake, new_dreams)], config.held_out, cycle)
    if reason := new.lacking():
        return rolled_back(reason, new_dreams)
    resting = memory_lib.rest(memory)
    place = (0, free_slots(memory, 0)[0])
    student = resting if variant.mask_fast_before_seed else memory
    context = _days_text(world, experience, cycle, config.day_in_context)
    seeding = seed(world, name, cycle, params, memory, student, place, old, new, config, variant, context)
    slept = memory_lib.forget_day(dataclasses.replace(seeding.memory, fast=memory.fast))

    before = agreement(world, params, resting, old.held_out)
    after = agreement(world, seeding.params, slept, old.held_out)
    new_after = agreement(world, seeding.params, slept, new.held_out)
    judged = {"old_before": before, "old_after": after, "new_after": new_after}
    world.writer.write("judge", cycle, 0, {k: v for k, v in judged.items() if v is not None})
    if reason := verdict(seeding.finite, before, after, config.margin):
        return rolled_back(reason, new_dreams)
    if variant.expand:
        nights = tuple(range(cycle - len(days) + 1, cycle + 1))
        names = tuple(d.name for d in days)
        slots = [*slots, Slot(*place, nights, names, len(experience.train), sum(d.kept for d in dreams))]
    night = metrics.Night(cycle, today, "committed")
    kept_new = [d for d in new_dreams if d.kept]
    return Outcome(seeding.params, slept, slots, night, kept_new, place if variant.expand else None)


def _days_text(world: World, experience: Experience, cycle: int, count: int) -> list[int]:
    """Tokens of `count` random documents of the day, one after the other."""
    if not count:
        return []
    draw = np.random.default_rng([world.seed, cycle])
    chosen = draw.permutation(len(experience.train))[:count]
    encoded = encoding.encode(world.tok, [experience.train[i] for i in chosen], world.config.row_length)
    return [int(t) for e in encoded for t in e.tokens]


@dataclasses.dataclass
class Outcome:
    """What the morning finds: `place` is the slot that was written, None where none was."""

    params: Tree
    memory: Memory
    slots: list[Slot]
    night: metrics.Night
    new_dreams: list[Dream]
    place: tuple[int, int] | None


def verdict(finite: bool, before: float | None, after: float | None, margin: float) -> str:
    """Why a night must be rolled back; '' when it may be committed."""
    if not finite:
        return "a loss or a parameter was not finite"
    if before is not None and not after >= before - margin:
        fell = f"from {before:.3f} to {after:.3f}, by more than {margin}"
        return f"agreement on held-out dreams of the past fell {fell}"
    return ""


def free_slots(memory: Memory, level: int) -> list[int]:
    """Indices of the locked slots of a level."""
    return [int(i) for i in np.flatnonzero(~np.asarray(memory.active_LE[level]))]


def make_room(
    world: World, name: str, cycle: int, params: Tree, memory: Memory, slots: list[Slot], level: int = 0
) -> tuple[Memory, list[Slot], str]:
    """Sees to it that a level has a slot to fill beside the one kept for merging.

    A full level is distilled into one fresh slot, of the next slower level, or of itself if it is the
    slowest; then its own slots are reset. The teachers are all earlier selves, the student has the level's
    slots masked. A merge is a transaction as the night is: if what is known got worse by more than
    `sleep.margin`, or anything is not finite, nothing is reset.

    Returns:
      Memory and slots, and why there is no room; '' when there is.
    """
    if len(free_slots(memory, level)) > 1:
        return memory, slots, ""
    L, E = memory.active_LE.shape
    target = min(level + 1, L - 1)
    if target != level:
        memory, slots, reason = make_room(world, name, cycle, params, memory, slots, target)
        if reason:
            return memory, slots, reason
    moved = [s for s in slots if s.level == level]
    place = (target, free_slots(memory, target)[0])
    nights = tuple(n for s in moved for n in s.nights)
    print(
        f"night {cycle}: level {level + 1} is full; nights {nights} are merged into slot {place[1]} "
        f"of level {target + 1}"
    )
    config = world.config.sleep
    past = selves.earlier(slots, (L, E), world.stream.birth.name, len(world.stream.birth.train))
    nobody = dataclasses.replace(past[-1], documents=0)
    none = Experience("", (), (), ())
    dreams, _ = dream(
        world, params, memory, past, nobody, none, cycle, dataclasses.replace(config, day_at_hand=True)
    )
    merging = {n for s in moved for n in s.experiences}
    old = Taught.split([d for d in dreams if not merging & set(d[0].knows)], config.held_out, cycle)
    new = Taught.split([d for d in dreams if merging & set(d[0].knows)], config.held_out, cycle)
    refused = f"level {level + 1} is full (memory.slots={E}) and merging nights {nights} failed: "
    if reason := new.lacking():
        return memory, slots, refused + reason
    mask = np.zeros((L, E), bool)
    for s in moved:
        mask[s.level, s.index] = True
    student = memory_lib.with_active(memory_lib.rest(memory), memory.active_LE & ~mask)
    seeding = seed(
        world, f"{name}-merge{level}", cycle, params, memory, student, place, old, new, config, Variant()
    )
    merged = Slot(
        *place,
        nights,
        tuple(e for s in moved for e in s.experiences),
        sum(s.documents for s in moved),
        sum(s.dreams for s in moved),
    )
    after = memory_lib.clear_slots(dataclasses.replace(seeding.memory, fast=memory.fast), mask)
    held_out = [*old.held_out, *new.held_out]
    knew, knows = (agreement(world, params, memory_lib.rest(m), held_out) for m in (memory, after))
    shown = {"held_out_kl": seeding.held_out_kl, "slots": len(moved), "before": knew, "after": knows}
    world.writer.write("merge", cycle, level, {k: v for k, v in shown.items() if v is not None})
    if reason := verdict(seeding.finite, knew, knows, config.margin):
        return memory, slots, refused + reason
    return after, [*(s for s in slots if s not in moved), merged], ""


def write_dreams(world: World, cycle: int, dreams: Sequence[Dream]) -> None:
    """dreams/night-NN.jsonl: what was dreamt, by whom, kept or why not."""
    metrics.write_dreams(
        world.workdir,
        cycle,
        (
            metrics.Dream(
                night=cycle,
                teacher=d.teacher,
                prompt=d.example.prompt if d.example else "",
                answer=d.example.answer if d.example else d.text,
                credited=d.credited,
                reward=None,
                kept=d.kept,
                reason=d.reason,
            )
            for d in dreams
        ),
    )
