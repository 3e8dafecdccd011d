"""Sleep: by day fast memory follows the stream, by night it is consolidated into a fresh protected slot."""

import dataclasses

import numpy as np

from sleep_jax import evals, metrics
from sleep_jax import wake as wake_lib
from sleep_jax.data import pipeline
from sleep_jax.data.stream import Experience
from sleep_jax.fit import World, fit
from sleep_jax.methods import finetune
from sleep_jax.methods.base import Method
from sleep_jax.model import memory as memory_lib
from sleep_jax.phases import State
from sleep_jax.sleep import night
from sleep_jax.sleep.night import Variant, ask


def method(variant: Variant) -> Method:
    """Sleep, or Sleep without what the variant leaves out."""

    def sleep(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
        return nights_sleep(world, name, state, cycle, experience, variant)

    return Method((("wake", wake), ("sleep", sleep)))


def wake(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """Reads the day, `wake.passes` times, chunk by chunk."""
    c, model = world.config, world.model
    finetune.read(world, experience)
    rows = finetune.pack(world, experience.train)
    per_chunk = wake_lib.rows_per_chunk(model, c.row_length)
    batches = pipeline.batches(rows, per_chunk, world.seed * 1000 + cycle, epochs=c.wake.passes)
    chunks = -(-len(rows.tokens_BT) * c.wake.passes // per_chunk)
    morning = wake_lib.init(c.wake, state.memory.fast, len(c.memory.periods))
    frozen = (state.params, memory_lib.rest(state.memory))
    evening, _ = fit(world, name, cycle, wake_lib.make(model, c.wake), morning, frozen, batches, chunks)
    return dataclasses.replace(state, memory=dataclasses.replace(state.memory, fast=evening.fast))


def nights_sleep(
    world: World, name: str, state: State, cycle: int, experience: Experience, variant: Variant
) -> State:
    """The night, and where it lost what: measured on the probes, which nothing is decided by."""
    lived = [world.stream.birth, *world.stream.days[:cycle]]
    awake = evals.accuracies(ask(world, state.params, state.memory), [e.test for e in lived])
    resting = ask(world, state.params, memory_lib.rest(state.memory))
    old_before = evals.accuracy(resting, [p for e in lived[:-1] for p in e.test])
    outcome = night.run(world, name, cycle, state.params, state.memory, state.slots, experience, variant)
    after = evals.accuracies(ask(world, outcome.params, outcome.memory), [e.test for e in lived])
    student = None
    if outcome.place:
        forced = memory_lib.force_slot(outcome.memory, *outcome.place)
        student = evals.accuracy(ask(world, outcome.params, forced), experience.test)
    dreamt = {evals.normalise(d.example.answer) for d in outcome.new_dreams}
    links = metrics.Links(
        night=cycle,
        experience=experience.name,
        awake=awake[-1],
        recalled=float(np.mean([evals.normalise(p.answer) in dreamt for p in experience.test])),
        student=student,
        after=after[-1],
        old_before=old_before,
        old_after=float(np.average(after[:-1], weights=[len(e.test) for e in lived[:-1]])),
        new_before=awake[-1],
    )
    return dataclasses.replace(
        state,
        params=outcome.params,
        memory=outcome.memory,
        slots=outcome.slots,
        nights=[*state.nights, outcome.night],
        links=[*state.links, links],
    )
