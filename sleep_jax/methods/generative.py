"""Generative replay as in LAMOL (Sun et al. 2020, 1909.03329).

The model writes its old examples, then trains on them and the day as if both were real.
"""

import dataclasses

from sleep_jax.data.stream import Experience
from sleep_jax.fit import World
from sleep_jax.methods import finetune, sleep
from sleep_jax.model import memory as memory_lib
from sleep_jax.phases import State
from sleep_jax.sleep import night, selves


def wake(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """A waking day where only dreams are at hand at night; otherwise the day is simply kept."""
    if world.config.sleep.day_at_hand:
        finetune.read(world, experience)
        return state
    return sleep.wake(world, name, state, cycle, experience)


def train(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """The same number of old dreams, and the same access to the day, as a night of Sleep.

    The old ones are sampled from the model as it is before the day, all knowledge at once: there are no
    earlier selves to ask. They get the same filters, and the answers that the model gives them.
    """
    config = world.config.sleep
    at_hand = config.day_at_hand
    if at_hand:  # then it is trained on as it is, and nothing of it is dreamt
        config = config.without_the_day()
    documents = len(world.stream.birth.train) + sum(len(d.train) for d in world.stream.days[: cycle - 1])
    past = selves.earlier([], state.memory.active_LE.shape, world.stream.birth.name, documents)
    awake = selves.awake(past, experience.name, len(experience.train))
    old, new = night.dream(world, state.params, state.memory, past, awake, experience, cycle, config)
    night.write_dreams(world, f"night-{cycle:02d}", cycle, [d for _, ds in old for d in ds] + new)
    pseudo = [d.example for _, ds in old for d in ds if d.kept]
    day = list(experience.train) if at_hand else [d.example for d in new if d.kept]
    rows = finetune.pack(world, day + pseudo)
    spent = 0 if at_hand else finetune.waking(world, cycle)
    state = finetune.fit_backbone(world, name, state, cycle, rows, spent=spent)
    return dataclasses.replace(state, memory=memory_lib.forget_day(state.memory))
