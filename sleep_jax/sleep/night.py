"""One night: dream, seed a fresh slot, judge, and commit or roll back."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from sleep_jax import evals, metrics, rng, rollout, terminal
from sleep_jax.data import encoding, packing
from sleep_jax.data.stream import Example, Experience, merge
from sleep_jax.fit import World
from sleep_jax.model import memory as memory_lib
from sleep_jax.settings import SleepConfig
from sleep_jax.sleep import imitate, selves
from sleep_jax.sleep.consolidate import token_accuracy
from sleep_jax.sleep.recall import Dream, contradicted, day_at_hand, recall, without
from sleep_jax.sleep.seeding import Taught, Variant, seed, semantic_reward
from sleep_jax.sleep.selves import Self, Slot
from sleep_jax.types import Memory, Tree


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
    """The night's dreams: of every earlier self in proportion to what it learnt, and of the day.

    Args:
      past, awake: the selves, as `selves.earlier` and `selves.awake` give them.
      experience: of the day.
      config: `old_dreams` is the quota of all earlier selves together, `new_dreams` that of the day.

    Returns:
      Every earlier self with its dreams, and the dreams of the day; kept or not.
    """
    key = rng.fold(rng.stream(world.seed, "sleep/dream"), cycle)
    share = _share_of_pairs(world.stream.birth.train) * (1 - config.skill_share)
    born = share if world.config.birth.epochs else 0.0  # a checkpoint as it is has read no pairs
    weights = sum(s.weight for s in past)
    answer_room = max(world.config.answer_tokens, config.recall.answer_max_new)
    longest = min(world.config.row_length, world.model.config.max_len - answer_room)
    sleeper = world.model, world.tok, params, memory
    dreamt_by = lambda who, before, quota, n, share, beside=(): recall(  # noqa: E731
        *sleeper, who, before, quota, share, rng.fold(key, n), config.recall,
        longest=longest, beside=beside, long=config.skill_share > 0 or not world.config.birth.epochs,
    )  # fmt: skip
    old = []
    with terminal.progress(len(past) + 1, f"day {cycle} · dream") as bar:
        for i, self_ in enumerate(past):
            quota = max(round(config.old_dreams * self_.weight / weights), 1)
            before, pairs = (past[i - 1], share) if i else (None, born)
            old.append((self_, dreamt_by(self_, before, quota, i, pairs)))
            bar.advance()
        new = []
        if config.day_at_hand:
            new = day_at_hand(*sleeper, awake, experience.train, config.recall, longest=longest)
        new += dreamt_by(awake, past[-1], config.new_dreams, len(past), share, new)
        bar.advance()
    barred = {prompt for day in world.stream.days for prompt in day.barred}
    new = without(new, barred)
    old = [(self_, contradicted(without(ds, barred), new)) for self_, ds in old]
    world.account.dreamt += sum(
        len(world.tok.encode(d.text)) for _, ds in [*old, (awake, new)] for d in ds if d.source == "dreamt"
    )
    return old, new


def _share_of_pairs(examples: Sequence[Example]) -> float:
    return sum(bool(e.prompt) for e in examples) / len(examples)


def agreement(
    world: World, params: Tree, memory: Memory, taught: Sequence[tuple[Self, Sequence[Dream]]]
) -> float | None:
    """How much of the held-out dreams this self says as they do, each dream counting alike.

    Of a dream with a prompt whether it is answered so, 0 or 1; of free text the share of the tokens that are
    found likeliest, over all texts together. So a handful of pairs among many texts decides nothing alone.
    Dreams with a prompt that are longer than an answer may be are not asked for; None where nothing is left.
    """
    tok, longest, row_length = world.tok, world.config.answer_tokens, world.config.row_length
    examples = [d.example for _, dreams in taught for d in dreams]
    texts = [e for e in examples if not e.prompt]
    pairs = [e for e in examples if e.prompt and len(tok.encode(" " + e.answer)) < longest]
    agreed: list[float] = []
    if texts:
        rows = packing.pack(encoding.encode(tok, texts, row_length), row_length)[0]
        share = token_accuracy(world.model, params, memory, rows, world.config.eval_batch // 4)
        agreed += [share] * len(texts)
    if pairs:
        agreed += list(evals.matches(ask(world, params, memory)(pairs), [p.answer for p in pairs]))
    return float(np.mean(agreed)) if agreed else None


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
    4. The sleeper is compared with its pre-sleep self on the held-out dreams of the past and of the day. When
       the past got worse by more than `sleep.margin`, or anything is not finite, the memory stays as it was
       in the evening: the slot stays locked and the day stays in fast memory and at hand, for the next night.
       (Room that was made stays made: a merge has been judged by itself.)

    Args:
      world: of the life.
      name: "<cycle>-sleep", names the checkpoints.
      cycle: number of the night.
      params, memory, slots: of the evening, with the day in `memory.fast`.
      days: that this night is for, the last of them today.
      variant: what a method leaves out.

    Returns:
      The morning; of a night that was rolled back what went in, but for room that was made.

    Raises:
      ValueError: `sleep.day_in_context` documents are longer than the model's context.
    """
    config = world.config.sleep
    today = days[-1].name
    experience = merge(today, days)
    memory, slots, reason = make_room(world, name, cycle, params, memory, slots, variant)
    if reason:
        return Outcome(params, memory, slots, metrics.Night(cycle, today, "rolled back", reason))
    past = earlier(world, slots, memory.active_LE.shape)
    awake = selves.awake(past, today, len(experience.train))
    with world.writer.timed("sleep/dream", cycle):
        old, new = dream(world, params, memory, past, awake, experience, cycle, config)
    context = _days_text(world, experience, cycle, config.day_in_context)
    nights = tuple(range(cycle - len(days) + 1, cycle + 1))
    slot = Slot(0, 0, nights, tuple(d.name for d in days), len(experience.train), 0)
    asleep = params, memory, slots
    return settle(world, name, cycle, today, *asleep, slot, old, [(awake, new)], variant, context)


def settle(
    world: World,
    name: str,
    cycle: int,
    experience: str,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    slot: Slot,
    old_dreams: Sequence[tuple[Self, list[Dream]]],
    new_dreams: Sequence[tuple[Self, list[Dream]]],
    variant: Variant,
    context: Sequence[int] = (),
) -> "Outcome":
    """The second half of the transaction: seeds the first free slot with dreams, judges, commits or not.

    Args:
      experience: what the night is named after.
      memory: with a free slot, as `make_room` leaves it.
      slot: what is to be written down of it; its place and the number of its dreams are found here.
      old_dreams, new_dreams: of every self that teaches, kept or not.
    """
    config = world.config.sleep
    ended = functools.partial(metrics.Night, cycle, experience, rem=slot.rem)
    news = [d for _, ds in new_dreams for d in ds]
    dreams = [d for _, ds in old_dreams for d in ds] + news
    kept_new = [d for d in news if d.kept]

    def rolled_back(reason: str) -> Outcome:
        return Outcome(params, memory, slots, ended("rolled back", reason), kept_new)

    stage = name.split("-", 1)[1]
    file = f"{stage if slot.rem else 'night'}-{cycle:02d}"
    write_dreams(world, file, cycle, dreams)
    old = Taught.split(old_dreams, config.held_out, cycle)
    new = Taught.split(new_dreams, config.held_out, cycle)
    if slot.rem and not any(ds for _, ds in new.held_out):
        new = Taught(new.train, new.train)  # contexts that nothing was dreamt of are judged by themselves
    if reason := new.lacking():
        return rolled_back(reason)
    resting = memory_lib.rest(memory)
    place = (0, free_slots(memory, 0)[0])
    student = resting if variant.mask_fast_before_seed else memory
    seeding = seed(world, name, cycle, params, memory, student, place, old, new, variant, context)
    slept = memory_lib.forget_day(dataclasses.replace(seeding.memory, fast=memory.fast))

    with world.writer.timed(f"{stage}/judge", cycle):
        before, new_before = (agreement(world, params, resting, x.held_out) for x in (old, new))
        after, new_after = (agreement(world, seeding.params, slept, x.held_out) for x in (old, new))
        held_out = [d for _, ds in [*old.held_out, *new.held_out] for d in ds]
        semantic = semantic_reward(world) if variant.semantic else None
        rewards = rewarded(world, seeding.params, slept, held_out, semantic)
        path = write_dreams(world, file, cycle, dreams, rewards)
    kept = encoding.encode(world.tok, [d.example for d in dreams if d.kept], world.config.row_length)
    judged = {
        "old_before": before, "old_after": after, "new_before": new_before, "new_after": new_after,
        "reward": float(np.mean(list(rewards.values()))) if rewards else None,
        "length": float(np.mean([len(e.tokens) for e in kept])),
    }  # fmt: skip
    shown = {k: v for k, v in judged.items() if v is not None}
    world.writer.write("rem_judge" if slot.rem else "judge", cycle, 0, shown)
    if reason := verdict(seeding.finite, before, after, config.margin):
        return rolled_back(reason)
    if variant.expand:
        level, index = place
        count = sum(d.kept for d in dreams)
        slots = [*slots, dataclasses.replace(slot, level=level, index=index, dreams=count, dreams_file=path)]
    notes = []
    if before is None:
        notes.append("nothing of the past was held out to judge it by")
    if new_before is not None and not new_after > new_before:
        notes.append("what was held out of its own dreams is answered no better than before")
    night = ended("committed", "; ".join(notes))
    return Outcome(seeding.params, slept, slots, night, kept_new, place if variant.expand else None)


def earlier(world: World, slots: Sequence[Slot], shape: tuple[int, int]) -> list[Self]:
    birth = world.stream.birth
    return selves.earlier(slots, shape, birth.name, len(birth.train), world.config.sleep.night_weight)


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
    new_dreams: Sequence[Dream] = ()
    place: tuple[int, int] | None = None


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
    world: World,
    name: str,
    cycle: int,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    variant: Variant,
    level: int = 0,
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
        memory, slots, reason = make_room(world, name, cycle, params, memory, slots, variant, target)
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
    past = earlier(world, slots, (L, E))
    nobody = dataclasses.replace(past[-1], weight=0)
    none = Experience("", (), (), ())
    of_the_past = config.without_the_day()
    dreams, _ = dream(world, params, memory, past, nobody, none, cycle, of_the_past)
    file = f"merge-{cycle:02d}-{level + 1}"
    path = write_dreams(world, file, cycle, [d for _, ds in dreams for d in ds])
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
    seeding = seed(world, f"{name}-merge{level}", cycle, params, memory, student, place, old, new, variant)
    merged = Slot(
        *place,
        nights,
        tuple(e for s in moved for e in s.experiences),
        sum(s.documents for s in moved),
        sum(d.kept for _, ds in dreams for d in ds),
        path,
    )
    after = memory_lib.clear_slots(dataclasses.replace(seeding.memory, fast=memory.fast), mask)
    held_out = [*old.held_out, *new.held_out]
    knew, knows = (agreement(world, params, memory_lib.rest(m), held_out) for m in (memory, after))
    shown = {"held_out_kl": seeding.held_out_kl, "slots": len(moved), "before": knew, "after": knows}
    world.writer.write("merge", cycle, level, {k: v for k, v in shown.items() if v is not None})
    if reason := verdict(seeding.finite, knew, knows, config.margin):
        return memory, slots, refused + reason
    return after, [*(s for s in slots if s not in moved), merged], ""


def rewarded(
    world: World,
    params: Tree,
    memory: Memory,
    dreams: Sequence[Dream],
    semantic: imitate.SemanticReward | None,
) -> dict[Dream, float]:
    """The imitation reward of the sleeper for each dream that has a prompt."""
    c = world.config
    pairs = [d for d in dreams if d.example.prompt]
    found = imitate.retold(
        world.model,
        params,
        memory,
        [encoding.encode_answering(world.tok, d.example) for d in pairs],
        semantic,
        c.sleep.imitate,
        max_new=c.answer_tokens,
        batch_size=c.eval_batch,
    )
    return dict(zip(pairs, map(float, found), strict=True))


def write_dreams(
    world: World,
    name: str,
    cycle: int,
    dreams: Sequence[Dream],
    rewards: Mapping[Dream, float] = MappingProxyType({}),
) -> str:
    """dreams/<name>.jsonl: what was dreamt, by whom, kept or why not; of those held out, how the sleeper
    retells them. Returns its path in the life's directory.
    """
    return metrics.write_dreams(
        world.workdir,
        name,
        (
            metrics.Dream(
                night=cycle,
                teacher=d.teacher,
                prompt=d.example.prompt if d.example else "",
                answer=d.example.answer if d.example else d.text,
                credited=d.credited,
                reward=rewards.get(d),
                kept=d.kept,
                reason=d.reason,
            )
            for d in dreams
        ),
    )
