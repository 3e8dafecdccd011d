"""Rounds of learning to dream, and what of it is kept; what a dream is and does, test_dream tells."""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest
from equality import bit_equal

from sleep_jax import metrics
from sleep_jax.data import dreams as text
from sleep_jax.data.stream import Example, Experience
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.methods import sleep
from sleep_jax.model import lora
from sleep_jax.phases import State
from sleep_jax.sleep import dream, night, rem, trials
from sleep_jax.sleep.dream import DreamConfig, Dreamt, Task
from sleep_jax.sleep.seeding import Variant

KEY = jax.random.key(3)
ASKED = (Example("Where is it?", "Bath"),)
TASKS = [Task("one", "it is in Bath", ASKED), Task("two", "a cat is it", ASKED)]
CONFIG = DreamConfig(rounds=2, per_context=2, top=1, random=1, recount=3)


def dreamt(task, said, **fields):
    return Dreamt(task, "free", task.context, said, tuple(text.read(said)), **fields)


class Rounds:
    """A loop in which the outcome of every trial is given: `before, after` of each dream of each round."""

    def __init__(self, monkeypatch, outcomes):
        self.outcomes, self.dreamers, self.keys, self.learnt = iter(outcomes), [], [], []
        for name in ("imagine", "select", "attempt", "learn"):
            monkeypatch.setattr(dream, name, getattr(self, name))

    def imagine(self, who, dreamer, tasks, config, key):
        self.dreamers.append(dreamer)
        self.keys.append(key)
        return [dreamt(t, f"{t.context} {n}") for t in tasks for n in range(2)]

    def select(self, who, start, made, config, key):
        self.keys.append(key)
        made[-1].reason = "not selected"

    def attempt(self, who, start, made, config):
        for d, (before, after) in zip(made, next(self.outcomes), strict=False):
            d.before, d.after, d.difference, d.error = before, after, after - before, 0.1

    def learn(self, who, dreamer, good, config, key, seed):
        self.keys.append(key)
        self.learnt.append([d.text for d in good])
        return (f"after {len(good)}", 0.5) if good else (dreamer, math.nan)


def test_every_round_is_dreamt_by_who_has_learnt_from_the_last(monkeypatch):
    outcomes = [[(0.0, 1.0), (0.5, 0.5), (0.2, 0.4)], [(0.0, 0.0)] * 3, [(0.0, 1.0)] * 3]
    fake, told = Rounds(monkeypatch, outcomes), []
    config = dataclasses.replace(CONFIG, rounds=3)
    dreamer, rounds = rem.learn_to_dream("who", "start", TASKS, config, KEY, 7, told.append)
    assert fake.dreamers == [None, "after 2", "after 2"] and dreamer == "after 3" and told == rounds
    assert fake.learnt[0] == ["it is in Bath 0", "a cat is it 0"] and not fake.learnt[1]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in fake.keys}) == 9, "nothing is drawn twice"
    assert [r.note for r in rounds] == [
        "",
        "none of 3 trials was rewarded: the dreamer stays as it is",
        "all 3 trials were rewarded: they tell the dreamer nothing of what helps",
    ]
    assert rem.summary(rounds[0]) == {
        "round": 1, "dreamt": 4, "tried": 3, "rewarded": 2, "before": pytest.approx(0.7 / 3),
        "after": pytest.approx(1.9 / 3), "nll": 0.5, "note": "",
    }  # fmt: skip


def test_without_a_reward_nobody_has_learnt_to_dream(monkeypatch):
    fake = Rounds(monkeypatch, [[(1.0, 1.0)] * 3, [(1.0, 0.5)] * 3])
    dreamer, rounds = rem.learn_to_dream("who", "start", TASKS, CONFIG, KEY, 7, lambda _: None)
    assert dreamer is None and fake.dreamers == [None, None]
    assert all(math.isnan(r.nll) for r in rounds)
    fake = Rounds(monkeypatch, [[(1.0, 0.5), (1.0, 1.0), (1.0, 1.0)]])
    config = dataclasses.replace(CONFIG, rounds=1, best_of_n=True)
    dreamer, rounds = rem.learn_to_dream("who", "start", TASKS, config, KEY, 7, lambda _: None)
    assert dreamer == "after 2" and fake.learnt == [["it is in Bath 1", "a cat is it 0"]]
    said = "none of 3 trials was rewarded: the dreamer learns from the best of each context"
    assert [r.note for r in rounds] == [said]


def test_a_round_in_which_nothing_could_be_tried_says_so(monkeypatch):
    fake = Rounds(monkeypatch, [[], []])

    def none(who, start, made, config, key):
        for d in made:
            d.reason = "it did not end"

    monkeypatch.setattr(dream, "select", none)
    dreamer, rounds = rem.learn_to_dream("who", "start", TASKS, CONFIG, KEY, 7, lambda _: None)
    assert dreamer is None and not any(fake.learnt)
    said = "none of 4 dreams could be tried (all of them: it did not end): the dreamer stays as it is"
    assert rounds[0].note == said
    assert rem.summary(rounds[0])["before"] is None and rem.summary(rounds[0])["tried"] == 0


def test_a_dream_is_written_down_with_its_fate():
    tried = dreamt(TASKS[0], "Where? -> Bath", before=0.0, after=0.5, difference=0.5, error=0.5, norm=2.0)
    told = rem.told_of(tried)
    assert (told.task, told.prompt, told.text, told.reward) == ("one", "it is in Bath", "Where? -> Bath", 1)
    assert (told.norm, told.before, told.after, told.difference, told.error) == (2.0, 0.0, 0.5, 0.5, 0.5)
    assert rem.told_of(dreamt(TASKS[0], "a", reason="not selected")).reward is None


@pytest.fixture
def remembered(tiny, grown, monkeypatch, tmp_path):
    """`remembered(learnt, config, more)`: what goes into the night, and what the instances were asked."""
    tok = Tokenizer.train([" where is it? in Bath. what is it -> a cat. free text. yes no"] * 3, 300)
    model = tiny(vocab_size=tok.vocab_size, max_len=64)
    params, memory = grown(model)
    start = lora.init(model.config, CONFIG.trials.rank, KEY)
    config = types.SimpleNamespace(row_length=24, answer_tokens=8, rem=CONFIG)
    world = types.SimpleNamespace(model=model, tok=tok, config=config, workdir=tmp_path)

    def run(learnt, config=CONFIG, more=(), broken=""):
        asked, settled = [], []

        def answers(model, tok, params, memory, adapters, questions, config, *, max_new):
            asked.extend(questions)
            return [
                [f"said {i}" if q.prompt != "Mute?" else " " for q in qs] for i, qs in enumerate(questions)
            ]

        def instances(who, begun, tasks, config):
            assert begun is start and tasks == learnt
            if broken:
                raise FloatingPointError(broken)
            return {k: np.stack([x + i for i in range(len(tasks))]) for k, x in start.items()}

        def imagine(who, dreamer, tasks, config, key):
            assert config.per_context == 3 and dreamer == "dreamer"
            return list(more)

        monkeypatch.setattr(dream, "instances", instances)
        monkeypatch.setattr(dream, "imagine", imagine)
        monkeypatch.setattr(trials, "answers", answers)
        monkeypatch.setattr(night, "settle", lambda *args: settled.append(args) or "morning")
        asleep = params, memory, ["slots"]
        morning = rem.remember(
            world, "004-rem", 4, "day 4", *asleep, start, "dreamer", learnt, "old", config, KEY
        )
        if broken:
            return morning
        assert morning == "morning"
        return settled[0], asked, start

    return run


def test_what_is_kept_is_the_context_the_free_lines_and_answers_of_the_instances(remembered):
    one, two = TASKS
    learnt = [(one, [dreamt(one, "Where? -> Rome"), dreamt(one, "in Bath it is")]), (two, [])]
    more = [
        dreamt(one, "Where? -> Said 0!"),  # asked already
        dreamt(one, "Where? -> Said 0!"),
        dreamt(one, "Who? -> said 0"),
        dreamt(one, "What? -> a cat"),
        dreamt(one, "No? -> x", reason="duplicate"),
        dreamt(two, "Mute? -> a"),
    ]
    (_, name, cycle, *settled), asked, start = remembered(learnt, more=more)
    experience, _, memory, slots, slot, old, new, variant = settled
    assert (name, cycle, experience) == ("004-rem", 4, "day 4")
    assert (slots, old, variant) == (["slots"], "old", Variant())
    assert [[q.prompt for q in qs] for qs in asked] == [["Where?", "Who?", "What?"], ["Mute?"]]
    kept = [[(d.example.prompt, d.example.answer) for d in ds if d.kept] for _, ds in new]
    assert kept == [
        [("", "it is in Bath"), ("", "in Bath it is"), ("Where?", "said 0"), ("Who?", "said 0")],
        [("", "a cat is it")],
    ]
    assert [d.reason for d in new[0][1]] == ["", "", "", "", "inconsistent"]
    assert [d.reason for d in new[1][1]] == ["", "malformed"]
    assert [(s.name, s.knows, s.awake, s.weight) for s, _ in new] == [
        ("awake: one", ("one",), False, 1.0),
        ("awake: two", ("two",), False, 1.0),
    ]
    for i, (self_, dreams) in enumerate(new):
        shifted = {k: x + i for k, x in start.items()}
        assert bit_equal(self_.adapter, lora.scaled(shifted, CONFIG.trials.scale)) == []
        np.testing.assert_array_equal(self_.active, np.asarray(memory.active_LE))
        assert {d.teacher for d in dreams} == {self_.name}
    assert (slot.nights, slot.experiences, slot.documents, slot.rem) == ((4,), ("one", "two"), 5, True)


def test_what_is_dreamt_to_be_asked_is_on_record(remembered, tmp_path):
    more = [dreamt(TASKS[0], "Who? -> x"), dreamt(TASKS[0], "y", reason="duplicate")]
    remembered([(TASKS[0], [dreamt(TASKS[0], "Where? -> Rome")])], more=more)
    lines = map(json.loads, (tmp_path / "dreams/004-rem-recount.jsonl").read_text().splitlines())
    assert [(d["text"], d["reason"]) for d in lines] == [
        ("Who? -> x", "its questions are asked"),
        ("y", "duplicate"),
    ]


def test_a_night_whose_adapters_fail_is_rolled_back(remembered):
    ended = remembered([(TASKS[0], [])], broken="an adapter is not finite")
    assert ended.night == metrics.Night(4, "day 4", "rolled back", "an adapter is not finite", rem=True)
    assert ended.slots == ["slots"] and not ended.new_dreams


def test_a_passage_that_nothing_was_dreamt_of_is_kept_as_it_was_read(remembered):
    (*_, new, _), asked, _ = remembered([(TASKS[0], [])], more=[dreamt(TASKS[0], "Where? -> x")])
    assert asked == [[]] and [d.example for d in new[0][1]] == [Example("", "it is in Bath")]


def known(name, place, year):
    return [
        Example(f"Where was {name} born?", place),
        Example(f"When was {name} born?", year),
        Example(f"{name}'s birthplace is?", place),
        Example(f"The year {name} was born in?", year),
    ]


PEOPLE = known("Ada", "Bath", "1815"), known("Bea", "Oslo", "1960"), known("Cyd", "Rome", "1922")


def test_a_task_of_a_night_is_gathered_round_one_dream():
    told = [e for facts in zip(*PEOPLE, strict=True) for e in facts]  # one of each by turns
    config = dataclasses.replace(CONFIG, tasks=12, lines=2, questions=2)
    tasks = rem.gathered(told, "day 1", config, 3)
    assert [t.name for t in tasks] == [f"day 1: {n}" for n in range(1, 13)]
    firsts = {text.read(t.context)[0] for t in tasks}
    assert firsts == set(told), "every dream is one task's first"
    for t in tasks:
        whole = [*text.read(t.context), *t.questions]
        assert len(set(whole)) == 4 and len(t.questions) == 2
        assert whole[1].answer == whole[0].answer, "the likest has the name and the rare answer"
    assert rem.gathered(told, "day 1", config, 3) == tasks != rem.gathered(told, "day 1", config, 4)


def test_what_cannot_be_a_line_is_in_no_task():
    told = [*PEOPLE[0], Example("a -> b", "c"), Example("two\nlines", "d"), Example("", "free text")] * 2
    config = dataclasses.replace(CONFIG, tasks=9, lines=2, questions=2)
    assert len(rem.gathered(told, "x", config, 0)) == 4
    assert rem.gathered(told, "x", dataclasses.replace(config, questions=3), 0) == []


class Lines:
    def __init__(self):
        self.lines = []

    def write(self, *line):
        self.lines.append(line)


@pytest.fixture
def nightly(tiny, grown, tmp_path, monkeypatch):
    """`nightly(told, outcomes, room)`: stage 2 of night 4, and what came of it."""
    model = tiny(max_len=64)
    params, memory = grown(model)
    config = dataclasses.replace(CONFIG, lines=2, questions=2, tasks=3)
    world = types.SimpleNamespace(
        model=model, tok=None, seed=0, workdir=tmp_path, writer=Lines(), account=None,
        config=types.SimpleNamespace(row_length=24, answer_tokens=8),
    )  # fmt: skip

    def run(told, outcomes, room="", further=()):
        fake = Rounds(monkeypatch, [outcomes, further])
        world.config.rem = dataclasses.replace(config, rounds=2 if further else 1)
        monkeypatch.setattr(night, "make_room", lambda *args: (args[4], args[5], room))
        monkeypatch.setattr(rem, "rehearsed", lambda *_: "old")
        monkeypatch.setattr(rem, "remember", lambda *args: args)
        return rem.run(world, "004-rem", 4, params, memory, ["slot"], "day 4", told), world, memory, fake

    return run


def test_a_night_keeps_what_was_rewarded(nightly, tmp_path):
    told = [e for p in PEOPLE for e in p]
    outcomes = [(0.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.0, 1.0)]
    kept, world, *_ = nightly(told, outcomes)
    experience, dreamer, learnt, old = kept[3], *kept[8:11]
    assert (experience, dreamer, old) == ("day 4", "after 2", "old")
    assert [(t.name, [d.text.rsplit(" ", 1)[1] for d in ds]) for t, ds in learnt] == [
        ("day 4: 1", ["0"]),
        ("day 4: 3", ["0"]),  # of its second dream, which was not selected, nothing is known
    ]
    [(phase, cycle, number, shown)] = world.writer.lines
    assert (phase, cycle, number, shown["tried"], shown["rewarded"]) == ("rem", 4, 1, 5, 2)
    assert len((tmp_path / "dreams/rem-04-round-1.jsonl").read_text().splitlines()) == 6
    [told] = json.loads((tmp_path / "dreams/rem-04-rounds.json").read_text())
    assert (told["round"], told["rewarded"], told["note"]) == (1, 2, "")


@pytest.mark.parametrize(
    "told, outcome, room, said",
    [
        (PEOPLE[0][:3], (0.0, 1.0), "", "the day left 3 dreams to gather, too few for a task of 4"),
        (PEOPLE[0], (1.0, 1.0), "", "none of 5 trials was rewarded"),
        (PEOPLE[0], (0.0, 1.0), "level 1 is full", "level 1 is full"),
    ],
)
def test_a_night_that_comes_to_nothing_says_why_and_changes_nothing(
    nightly, told, outcome, room, said, tmp_path
):
    ended, _, memory, fake = nightly(told, [outcome] * 6, room)
    if fake.dreamers:  # some were dreamt
        [told] = json.loads((tmp_path / "dreams/rem-04-rounds.json").read_text())
        helpless = "all 5 trials were rewarded: they tell the dreamer nothing of what helps"
        assert told["note"] == (helpless if room else ended.night.reason)
    assert ended.night.reason.startswith(said) and ended.night.rem and ended.night.outcome == "rolled back"
    assert ended.memory is memory and ended.slots == ["slot"]


def test_rewards_of_an_earlier_round_are_kept_where_the_last_has_none(nightly, monkeypatch):
    told, outcomes = [e for p in PEOPLE for e in p], [(0.0, 1.0)] + [(0.0, 0.0)] * 5
    kept, *_ = nightly(told, outcomes, further=[(0.0, 0.0)] * 6)
    assert [[d.text[-1] for d in dreams] for _, dreams in kept[9]] == [["0"]]


def test_rounds_are_on_record_as_each_ends(tmp_path, capsys):
    ended = rem.on_record(types.SimpleNamespace(workdir=tmp_path), "round", "rounds", "dreaming")
    for number, note in ((1, ""), (2, "none was rewarded")):
        ended(rem.Round(number, [], 0.5, note))
        told = json.loads((tmp_path / "rounds.json").read_text())
        assert [one["round"] for one in told] == list(range(1, number + 1)) and told[-1]["note"] == note
        assert (tmp_path / f"dreams/round-{number}.jsonl").exists()
    assert capsys.readouterr().out == "dreaming, round 2: none was rewarded\n"


def test_after_a_night_that_was_rolled_back_there_is_nothing_to_dream_on_from():
    lost = metrics.Night(3, "day 3", "rolled back", "why")
    state = State({"w": 1}, None, nights=[lost])
    forgotten = dataclasses.replace(state, nights=[lost, metrics.Night(3, "day 3", "forgotten")])
    after = sleep.dreams_on(None, "003-rem", state, 3, Experience("day 3", (), (), ()))
    why = "stage 1 was rolled back, and left nothing to dream on from"
    assert after.nights == [lost, metrics.Night(3, "day 3", "rolled back", why, rem=True)]
    assert dataclasses.replace(after, nights=[lost]) == state
    assert sleep.dreams_on(None, "003-rem", forgotten, 3, Experience("day 3", (), (), ())) is forgotten
