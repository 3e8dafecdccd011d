import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax.data.stream import Example
from sleep_jax.sleep import selves
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Memory, Output

SHAPE = (2, 4)


def slot(night, level=0, index=None, **fields):
    nights = night if isinstance(night, tuple) else (night,)
    index = nights[-1] - 1 if index is None else index
    of = {"experiences": tuple(f"day {n}" for n in nights), "documents": 10 * len(nights), "dreams": 5}
    return Slot(level, index, nights, **(of | fields))


def mask(*places):
    active_LE = np.zeros(SHAPE, bool)
    for place in places:
        active_LE[place] = True
    return active_LE.tolist()


def told(past):
    return {s.name: s.active.tolist() for s in past}


def test_each_self_has_the_slots_up_to_its_night_in_whatever_order_they_are_listed():
    past = selves.earlier([slot(3), slot(1), slot(2)], SHAPE, "infancy", 70)
    assert list(told(past).items()) == [
        ("birth", mask()),
        ("night 1", mask((0, 0))),
        ("night 2", mask((0, 0), (0, 1))),
        ("night 3", mask((0, 0), (0, 1), (0, 2))),
    ]
    assert [s.knows for s in past] == [("infancy",), ("day 1",), ("day 2",), ("day 3",)]
    assert [s.weight for s in past] == [70, 10, 10, 10]
    assert not any(s.awake for s in past)


def test_a_slot_index_says_nothing_about_time():
    past = selves.earlier([slot(1, index=3), slot(2, index=0)], SHAPE, "birth", 1)
    assert told(past) == {"birth": mask(), "night 1": mask((0, 3)), "night 2": mask((0, 0), (0, 3))}


def test_after_a_merge_the_merged_nights_are_one_self():
    merged = slot((1, 2), level=1, index=0)
    past = selves.earlier([slot(3, index=0), merged], SHAPE, "birth", 70)
    assert told(past) == {"birth": mask(), "night 2": mask((1, 0)), "night 3": mask((1, 0), (0, 0))}
    assert past[1].knows == ("day 1", "day 2") and past[1].weight == 20


def test_after_forgetting_no_self_has_the_forgotten_slot():
    past = selves.earlier([slot(1), slot(3)], SHAPE, "birth", 70)
    assert told(past) == {"birth": mask(), "night 1": mask((0, 0)), "night 3": mask((0, 0), (0, 2))}


def test_the_awake_self_has_all_open_slots_and_fast_memory():
    past = selves.earlier([slot(1), slot(2)], SHAPE, "birth", 70)
    awake = selves.awake(past, "day 3", 12)
    assert awake.awake and awake.knows == ("day 3",) and awake.weight == 12
    assert awake.active.tolist() == mask((0, 0), (0, 1))


def test_provenance_survives_json():
    merged = slot((1, 2), level=1, index=0)
    assert Slot.from_json(json.loads(json.dumps(dataclasses.asdict(merged)))) == merged


@pytest.fixture(scope="module")
def heard(tiny, grown):
    """`heard(self)`: logits and routes as this self has them, of a memory in which nothing is zero."""
    model = tiny(slots=4)
    params, memory = grown(model)
    tokens_BT = np.random.default_rng(0).integers(3, 40, (2, 6)).astype(np.int32)
    run = jax.jit(lambda params, memory: model.apply(params, tokens_BT, memory=memory))

    def ask(self_):
        seen = selves.seen_by(memory, self_)
        assert (seen.fast is not None) == self_.awake
        return run(params, seen)

    return ask


def test_fast_memory_is_heard_by_the_awake_self_alone(heard):
    past = selves.earlier([slot(1), slot(2)], SHAPE, "birth", 70)
    awake = selves.awake(past, "day 3", 12)
    resting = dataclasses.replace(awake, awake=False)
    assert np.abs(heard(awake).logits_BTV - heard(resting).logits_BTV).max() > 0.05
    np.testing.assert_array_equal(heard(resting).logits_BTV, heard(past[-1]).logits_BTV)


def test_a_self_is_routed_to_its_own_slots_alone(heard):
    past = selves.earlier([slot(1), slot(2), slot((3, 4), level=1, index=3)], SHAPE, "birth", 70)
    for self_ in past:
        used_LE = np.asarray(heard(self_).routes_BTLE).max((0, 1)) > 0
        assert not (used_LE & ~self_.active).any()
        assert used_LE.any() == self_.active.any()
    assert np.asarray(heard(past[-1]).routes_BTLE).max((0, 1))[0, :2].any(), "older slots are still heard"


class Signposts:
    """A model that tells of token t that slot t was chosen in the share `routes[t]` of the layers."""

    config = types.SimpleNamespace(max_len=8)
    routes_VE = np.zeros((16, 4), np.float32)
    routes_VE[[6, 7, 8, 9], [0, 1, 2, 3]] = [0.9, 0.8, 0.4, 0.6]

    def apply(self, params, tokens_BT, *, memory):
        routes_BTLE = jnp.asarray(self.routes_VE)[tokens_BT].reshape(*tokens_BT.shape, 1, 4)
        return Output(None, None, routes_BTLE, None)


def test_the_slot_chosen_most_where_an_answer_is_predicted_leads_it():
    words = {
        "six": [6],
        "seven": [7],
        "eight": [8],
        "nine": [9],
        "plain": [10],
        "long": [10, 10, 9, 9, 9, 9, 9],
    }
    tok = types.SimpleNamespace(bos=1, ans=3, encode=lambda text: [i for w in text.split() for i in words[w]])
    memory = Memory(fast=None, bank=None, active_LE=np.ones((1, 4), bool))

    def lead(*pairs):
        probes = [Example(p, "never looked at") for p, _ in pairs]
        return selves.leading(Signposts(), tok, {}, memory, probes, [a for _, a in pairs], 3).tolist()

    assert lead(("six", "seven seven seven")) == [[0, 1, 0, 0]], "questions are read, not answered"
    assert lead(("six", "plain")) == lead(("six", "eight")) == [[0, 0, 0, 0]], "none was chosen more often"
    many = [("six", "seven seven seven")] * 3 + [("seven", "six six")] * 2 + [("plain", "plain")] * 3
    assert lead(*many) == [[2 / 8, 3 / 8, 0, 0]], "the last batch is not full"
