"""Sleep: by day fast memory follows the stream, by night it is consolidated into a fresh protected slot."""

import dataclasses
from collections.abc import Sequence

from sleep_jax import evals, metrics
from sleep_jax import wake as wake_lib
from sleep_jax.data import pipeline
from sleep_jax.data.stream import Example, Experience
from sleep_jax.fit import World, fit
from sleep_jax.methods import finetune
from sleep_jax.methods.base import Method
from sleep_jax.model import memory as memory_lib
from sleep_jax.phases import State
from sleep_jax.sleep import night, rem, selves
from sleep_jax.sleep.night import ask
from sleep_jax.sleep.seeding import Variant
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Memory, Tree

USED_PROBES = 300  # most probes that a slot's use is measured on


def method(variant: Variant) -> Method:
    """Sleep, or Sleep without what the variant leaves out."""

    def sleep(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
        return nights_sleep(world, name, state, cycle, experience, variant)

    return Method((("wake", wake), ("sleep", sleep)))


def dreams_on(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """Stage 2 of a night whose stage 1 has committed; after one that was rolled back nothing is new."""
    stage_1 = next(n.outcome for n in reversed(state.nights) if n.night == cycle and not n.rem)
    if stage_1 == "forgotten":  # taken out between the two stages
        return state
    if stage_1 == "rolled back":
        reason = "stage 1 was rolled back, and left nothing to dream on from"
        ended = metrics.Night(cycle, experience.name, "rolled back", reason, rem=True)
        return dataclasses.replace(state, nights=[*state.nights, ended])
    dreams = metrics.read_jsonl(world.workdir / state.slots[-1].dreams_file)[0]
    told = [Example(d["prompt"], d["answer"]) for d in dreams if d["kept"] and d["teacher"] == "awake"]
    outcome = rem.run(world, name, cycle, state.params, state.memory, state.slots, experience.name, told)
    lived = [world.stream.birth, *world.stream.days[:cycle]]
    slots = _used(world, outcome.params, outcome.memory, outcome.slots, [p for e in lived for p in e.test])
    return dataclasses.replace(
        state, memory=outcome.memory, slots=slots, nights=[*state.nights, outcome.night]
    )


def wake(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """Reads the day, `wake.passes` times, chunk by chunk."""
    c, model = world.config, world.model
    finetune.read(world, experience)
    rows = finetune.pack(world, experience.train)
    per_chunk = wake_lib.rows_per_chunk(model, c.row_length)
    batches = pipeline.batches(rows, per_chunk, world.seed * 1000 + cycle, epochs=c.wake.passes)
    chunks = -(-len(rows.tokens_BT) * c.wake.passes // per_chunk)
    levels = len(c.memory.periods)
    frozen = (state.params, memory_lib.without_locked(memory_lib.rest(state.memory)))
    step = wake_lib.make(model, c.wake, chunks)
    # Nothing but `fit` holds the morning: its arrays are let go as soon as the first step has its own.
    evening, _ = fit(
        world, name, cycle, step, wake_lib.init(c.wake, state.memory.fast, levels), frozen, batches, chunks
    )
    return dataclasses.replace(state, memory=dataclasses.replace(state.memory, fast=evening.fast))


def nights_sleep(
    world: World, name: str, state: State, cycle: int, experience: Experience, variant: Variant
) -> State:
    """The night, and where it lost what: measured on the probes, which nothing is decided by."""
    lived = [world.stream.birth, *world.stream.days[:cycle]]
    awake = evals.accuracy(ask(world, state.params, state.memory), experience.test)
    # A night that was rolled back has left its day at hand.
    first = max((n.night for n in state.nights if n.outcome == "committed" and not n.rem), default=0)
    days = world.stream.days[first:cycle]
    outcome = night.run(world, name, cycle, state.params, state.memory, state.slots, days, variant)
    student = None
    if outcome.place:
        forced = memory_lib.force_slot(outcome.memory, *outcome.place)
        student = evals.accuracy(ask(world, outcome.params, forced), experience.test)
    slots = _used(world, outcome.params, outcome.memory, outcome.slots, [p for e in lived for p in e.test])
    dreamt = [d.example.answer for d in outcome.new_dreams if d.example.prompt]
    wanted = [p.answer for p in experience.test]
    links = metrics.Links(
        night=cycle,
        experience=experience.name,
        awake=awake,
        recalled=evals.overlap(dreamt, wanted) if dreamt and wanted else None,
        student=student,
        after=None,  # these three: `life.publish`, from what the mornings before and after found
        old_before=None,
        old_after=None,
        new_before=awake,
    )
    return dataclasses.replace(
        state,
        params=outcome.params,
        memory=outcome.memory,
        slots=slots,
        nights=[*state.nights, outcome.night],
        links=[*state.links, links],
    )


def _used(
    world: World, params: Tree, memory: Memory, slots: Sequence[Slot], probes: Sequence[Example]
) -> list[Slot]:
    """The slots with their share of the answers to a sample of the probes, evenly spaced."""
    asked = probes[:: -(-len(probes) // USED_PROBES)]
    answers = ask(world, params, memory)(asked)
    batch_size = world.config.eval_batch // 4
    share_LE = selves.leading(world.model, world.tok, params, memory, asked, answers, batch_size)
    return [dataclasses.replace(s, share_of_answers=float(share_LE[s.level, s.index])) for s in slots]
