import dataclasses
import functools
import types
from collections import Counter

import jax
import numpy as np
import pytest

from sleep_jax import settings
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example, Experience
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.fit import Account
from sleep_jax.model import memory as memory_lib
from sleep_jax.sleep import night, recall, selves
from sleep_jax.sleep.recall import RecallConfig
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Rollout

KEY = jax.random.key(0)
CONFIG = RecallConfig(rounds=1, surplus=1.0, batch_size=4, answer_max_new=8, per_answer=100.0)
LONGEST = 32  # tokens of a dream that a row can hold


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" where is it? in Bath. what is dreamt is a word"] * 3, 300)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(vocab_size=300, max_len=64, slots=8, slow_levels=1)


@pytest.fixture(scope="module")
def memory(model):
    return model.init_memory(KEY)


def past_of(*nights, documents=(10, 10, 10, 10, 10, 10, 10), at_birth=20):
    slots = [Slot(0, n - 1, (n,), (f"day {n}",), d, 5) for n, d in zip(nights, documents, strict=False)]
    return selves.earlier(slots, (1, 8), "birth", at_birth)


def who(memory):
    """How many slots are open, and whether fast memory is: tells the selves of these tests apart."""
    return int(memory.active_LE.sum()), memory.fast is not None


@dataclasses.dataclass
class Stage:
    """A model that says what it is told to: `sampled` by round, and answers by who is asked."""

    sampled: list[list[list[int]]]
    answers: dict[tuple[int, bool], dict[str, str]]
    calls: list = dataclasses.field(default_factory=list)
    asked: list = dataclasses.field(default_factory=list)

    def generate(self, model, params, memory, prompts, key, sampling, *, batch_size, kind):
        del model, params, batch_size
        texts = self.sampled[len(self.calls)]
        self.calls.append((memory, prompts[0][:, 0].tolist(), np.asarray(jax.random.key_data(key)).tolist()))
        assert prompts[0].shape == (len(prompts[1]), 1)
        texts = [texts[i % len(texts)] for i in range(len(prompts[0]))]
        width = max(max(map(len, texts)), sampling.max_new)
        tokens_BT = np.zeros((len(texts), width), np.int32)
        for row, text in zip(tokens_BT, texts, strict=True):
            row[: len(text)] = text
        nothing = np.zeros_like(tokens_BT, np.float32)
        lengths_B = np.array([len(t) for t in texts], np.int32)
        return Rollout(tokens_BT, nothing, nothing, lengths_B, np.ones(len(texts), bool))

    def answer(self, model, tok, params, memory, questions, *, max_new, batch_size, whole, kind):
        del model, tok, params, max_new, batch_size
        self.asked += questions
        return [self.answers.get(who(memory), {}).get(q.prompt, "no idea") for q in questions]


@pytest.fixture
def on_stage(monkeypatch):
    def play(sampled, answers):
        stage = Stage(sampled, answers)
        monkeypatch.setattr(recall.rollout, "generate", stage.generate)
        monkeypatch.setattr(recall.rollout, "answer", stage.answer)
        return stage

    return play


def recalling(tok, prompt, answer):
    return encoding.encode_recalling(tok, Example(prompt, answer)).tokens.tolist()


def dream(model, tok, memory, past, quota, config=CONFIG, share_pairs=1.0, longest=LONGEST):
    before = past[-2] if len(past) > 1 else None
    return recall.recall(
        model, tok, {}, memory, past[-1], before, quota, share_pairs, KEY, config, longest=longest
    )


def test_every_dream_meets_its_fate(model, tok, memory, on_stage):
    says = functools.partial(recalling, tok)
    ended = says("where is it?", "in Bath")
    scripts = {
        "kept": ended,
        "malformed: it never ends": ended[:-1],
        "malformed: no separator": [t for t in ended if t != tok.say],
        "malformed: two questions": ended[:-1] + [tok.say, *tok.encode(" what?"), tok.eos],
        "malformed: longer than a row": says("z" * 40, "in Bath"),
        "kept, with its own answer": says("what is dreamt?", "a word"),
        "inconsistent: nobody dreamt of that answer": says("what is a word?", "it"),
        "malformed: it has no answer": says("is it?", "a word"),
        "known": says("what is it?", "it"),
        "duplicate": ended,
        "kept too": says("where?", "Bath"),
        "quota": says("where is Bath?", "in it"),
    }
    mine = {"where is it?": "In Bath!", "what is dreamt?": "it", "what is it?": "it", "where?": "the bath"}
    mine |= {"where is Bath?": "in it", "is it?": " ", "what is a word?": "at it"}
    stage = on_stage([list(scripts.values())], {(2, False): mine, (1, False): {"what is it?": "It."}})
    past = past_of(1, 2)
    dreams = dream(model, tok, memory, past, 3, dataclasses.replace(CONFIG, surplus=4.0))
    fates = [d.reason for d in dreams]
    fated = "", *["malformed"] * 4, "", "inconsistent", "malformed", "known", "duplicate", "", "quota"
    assert fates == list(fated)
    assert [d.kept for d in dreams] == [not f for f in fates]
    assert dreams[0].example == Example("where is it?", "In Bath!")
    assert dreams[5].example == Example("what is dreamt?", "it"), "as answered, not as dreamt"
    assert {(d.teacher, d.credited, d.source) for d in dreams} == {("night 2", "day 2", "dreamt")}
    assert "Bath" in dreams[1].text and dreams[1].example is None
    assert stage.calls[0][0].active_LE.tolist() == past[-1].active.tolist(), "as it was taught to recall"
    assert stage.calls[0][1] == [tok.recall] * 12


def test_the_first_self_has_no_one_before_it_who_might_know(model, tok, memory, on_stage):
    on_stage([[recalling(tok, "what?", "it")]], {(0, False): {"what?": "it"}})
    assert [d.reason for d in dream(model, tok, memory, past_of(), 1)] == [""]


def test_free_text_is_kept_when_it_is_whole_and_is_asked_of_nobody(model, tok, memory, on_stage):
    body = tok.encode(" what is dreamt")
    scripts = [
        [tok.bos, *body, tok.eos],
        [tok.bos, *body],
        [tok.bos, *body, tok.say, *body, tok.eos],
        [tok.bos, tok.eos],
        [tok.bos, *body, tok.eos],
    ]
    stage = on_stage([scripts], {})
    dreams = dream(model, tok, memory, past_of(), 5, share_pairs=0.0)
    assert [d.reason for d in dreams] == ["", "malformed", "malformed", "malformed", "duplicate"]
    assert dreams[0].example == Example("", "what is dreamt")
    assert stage.calls[0][1] == [tok.bos] * 5


def test_of_a_long_text_that_did_not_end_there_is_what_was_said(model, tok, memory, on_stage):
    body = tok.encode(" what is dreamt")
    on_stage([[[tok.bos, *body], [tok.bos], [tok.bos, *body, tok.say]]], {})
    dreams = recall.recall(
        model, tok, {}, memory, past_of()[0], None, 3, 0.0, KEY, CONFIG, longest=60, long=True
    )
    assert [d.reason for d in dreams[:3]] == ["", "malformed", "malformed"]
    assert dreams[0].example == Example("", "what is dreamt")


def test_what_is_longer_than_an_answer_is_taken_as_dreamt_only_where_that_is_wanted(
    model, tok, memory, on_stage
):
    long = "it is in the bath " * 4
    assert len(tok.encode(" " + long)) > CONFIG.answer_max_new
    says = [recalling(tok, "tell!", long.strip()), recalling(tok, "where?", "Bath")]
    for wanted in (False, True):
        stage = on_stage([says], {(0, False): {"tell!": "it", "where?": "bath"}})
        dreams = recall.recall(
            model, tok, {}, memory, past_of()[0], None, 2, 1.0, KEY, CONFIG, longest=60, long=wanted
        )
        assert [q.prompt for q in stage.asked] == ["tell!", "where?"][wanted:]
        first = ("", long.strip()) if wanted else ("inconsistent", "it")
        assert [(d.reason, d.example.answer) for d in dreams[:2]] == [first, ("", "bath")]


def test_the_share_of_pairs_opens_with_recall(model, tok, memory, on_stage):
    stage = on_stage([[recalling(tok, "what?", "it")]], {})
    dream(model, tok, memory, past_of(), 8, share_pairs=0.75)
    assert stage.calls[0][1] == [tok.recall] * 6 + [tok.bos] * 2


def test_rounds_go_on_until_the_quota_is_met_or_they_are_used_up(model, tok, memory, on_stage):
    prompts = [f"where is {i}?" for i in range(9)]
    says = [[recalling(tok, p, "it")] * 6 for p in prompts]
    knows = {(0, False): dict.fromkeys(prompts, "it")}
    config = dataclasses.replace(CONFIG, rounds=5)
    stage = on_stage(says, knows)
    dreams = dream(model, tok, memory, past_of(), 3, config)
    assert sum(d.kept for d in dreams) == 3 and len(stage.calls) == 3
    assert [len(set(map(str, part))) for part in zip(*[c[1:] for c in stage.calls], strict=True)] == [3, 3]
    assert [len(c[1]) for c in stage.calls] == [3, 2, 1], "only as many as are still wanted"
    stage = on_stage(says, knows)
    assert sum(d.kept for d in dream(model, tok, memory, past_of(), 9, config)) == len(stage.calls) == 5
    stage = on_stage(says, {(0, False): dict.fromkeys(prompts, " ")})
    assert not any(d.kept for d in dream(model, tok, memory, past_of(), 3, config))
    assert len(stage.calls) == 1, "nothing came up, and nothing more would"


def test_a_duplicate_of_an_earlier_round_is_a_duplicate(model, tok, memory, on_stage):
    stage = on_stage([[recalling(tok, "what?", "it")]] * 2, {(0, False): {"what?": "it"}})
    dreams = dream(model, tok, memory, past_of(), 2, dataclasses.replace(CONFIG, rounds=2))
    assert [d.reason for d in dreams] == ["", "duplicate", "duplicate"]
    assert [q.prompt for q in stage.asked] == ["what?"], "a prompt is asked once"


def test_what_is_known_stays_known_in_later_rounds(model, tok, memory, on_stage):
    known, new = recalling(tok, "what?", "it"), recalling(tok, "where?", "Bath")
    mine = {"what?": "it", "where?": "Bath"}
    stage = on_stage([[new, known], [known]], {(1, False): mine, (0, False): {"what?": "it"}})
    dreams = dream(model, tok, memory, past_of(1), 2, dataclasses.replace(CONFIG, rounds=2))
    assert [d.reason for d in dreams] == ["", "known", "known"]
    assert Counter(q.prompt for q in stage.asked) == {"what?": 2, "where?": 2}, "each self once"


def test_no_answer_gets_much_more_than_an_even_share(model, tok, memory, on_stage):
    often = [(f"where is {i}?", "Bath") for i in range(9)]
    pairs = [*often, ("what?", "a word"), ("what is it?", "it"), ("is it?", "is")]
    on_stage([[recalling(tok, *p) for p in pairs]], {(0, False): dict(pairs)})
    config = dataclasses.replace(CONFIG, per_answer=2.0, surplus=2.0)
    dreams = dream(model, tok, memory, past_of(), 6, config)
    # Four answers, six dreams wanted: an even share is 1.5 of each, and twice that is 3.
    assert Counter(d.example.answer for d in dreams if d.kept) == {"Bath": 3, "a word": 1, "it": 1, "is": 1}
    assert {d.reason for d in dreams if not d.kept} == {"quota"}


# The balance of a night.


def world_of(model, tok, **sleep):
    birth = Experience("birth", (Example("what?", "it"),), (), ())
    config = settings.Config(
        row_length=64,
        model=model.config,
        memory=dataclasses.replace(model.memory_config, periods=(64,)),
        sleep=settings.SleepConfig(**sleep),
    )
    stream = types.SimpleNamespace(birth=birth, days=())
    return types.SimpleNamespace(
        seed=0, config=config, model=model, tok=tok, stream=stream, account=Account()
    )


@pytest.fixture
def endless(monkeypatch, tok):
    """Every self has endlessly many good dreams, each its own, and no other self knows them."""
    count = iter(range(10**6))

    def generate(model, params, memory, prompts, key, sampling, *, batch_size, kind):
        self_ = 99 if memory.fast is not None else int(memory.active_LE.nonzero()[1].max(initial=-1)) + 1
        numbers = [next(count) for _ in prompts[0]]
        texts = [recalling(tok, f"{self_} {n}", str(n % 5)) for n in numbers]
        tokens_BT, lengths_B = recall.rollout.padded(texts)
        return Rollout(tokens_BT, None, None, lengths_B, None)

    def answer(model, tok, params, memory, questions, *, max_new, batch_size, whole, kind):
        open_slots = {0} | {int(i) + 1 for i in memory.active_LE.nonzero()[1]}
        open_slots |= {99} if memory.fast is not None else set()
        asked = [map(int, q.prompt.split()) for q in questions]
        return [str(number % 5) if self_ in open_slots else "?" for self_, number in asked]

    monkeypatch.setattr(recall.rollout, "generate", generate)
    monkeypatch.setattr(recall.rollout, "answer", answer)


def test_old_dreams_are_credited_in_proportion_to_what_each_self_learnt(model, tok, memory, endless):
    documents = (10, 40, 10, 25, 15)
    shares = {}
    for nights in range(6):
        past = past_of(*range(1, nights + 1), documents=documents, at_birth=100)
        awake = selves.awake(past, "today", 10)
        world = world_of(model, tok, old_dreams=300, new_dreams=20, day_at_hand=False)
        day = Experience("today", (), (), ())
        old, new = night.dream(world, {}, memory, past, awake, day, nights + 1, world.config.sleep)
        kept = Counter(d.credited for _, ds in old for d in ds if d.kept)
        learnt = dict(zip(["birth", *(f"day {n}" for n in range(1, 6))], (100, *documents), strict=True))
        total = sum(learnt[k] for k in kept)
        assert set(kept) == {k for s in past for k in s.knows}
        assert kept == {k: round(300 * learnt[k] / total) for k in kept}
        assert all(d.teacher == self_.name for self_, ds in old for d in ds), "who dreamt it teaches it"
        assert {d.teacher for d in new} == {"awake"} and {d.credited for d in new} == {"today"}
        assert sum(d.kept for d in new) == 20
        shares[nights] = {k: kept[k] / kept["birth"] for k in kept}
    for earlier, later in zip(range(5), range(1, 6), strict=True):
        for name, share in shares[earlier].items():
            assert shares[later][name] == pytest.approx(share, rel=0.05), "a night thinned out against birth"


def test_each_self_dreams_beside_the_one_before_it(model, tok, memory, monkeypatch):
    asked = []

    def recall_(model, tok, params, memory, self_, before, quota, *args, longest, beside, long):
        assert not beside and not long
        asked.append((self_.name, before and before.name, quota, longest))
        return []

    monkeypatch.setattr(night, "recall", recall_)
    past = past_of(1, 2)
    awake = selves.awake(past, "today", 10)
    world = world_of(model, tok, old_dreams=40, new_dreams=7, day_at_hand=False)
    world.config = dataclasses.replace(world.config, answer_tokens=20)
    night.dream(world, {}, memory, past, awake, Experience("today", (), (), ()), 3, world.config.sleep)
    # What is dreamt must fit a row of 64 tokens, and beside an answer of 20 into a model of 64.
    assert asked == [
        ("birth", None, 20, 44),
        ("night 1", "birth", 10, 44),
        ("night 2", "night 1", 10, 44),
        ("awake", "night 2", 7, 44),
    ]


# The day at hand.


def test_the_awake_self_dreams_beside_the_days_inputs_and_not_of_them(model, tok, memory, on_stage):
    says = functools.partial(recalling, tok)
    mine = {"where?": "Bath", "what?": "a word", "who?": "it"}
    stage = on_stage(
        [[says("the past?", "it")], [says("where?", "Bath"), says("who?", "it")]],
        {(0, False): {"the past?": "it"}, (0, True): mine},
    )
    day = Experience("today", (Example("where?", "Bristol"), Example("what?", "a bird")), (), ())
    world = world_of(model, tok, old_dreams=1, new_dreams=1, recall=dataclasses.replace(CONFIG, surplus=2.0))
    past = past_of()
    awake = selves.awake(past, "today", 2)
    [(_, old)], new = night.dream(world, {}, memory, past, awake, day, 1, world.config.sleep)
    fates = [(d.source, d.reason, d.example.prompt, d.example.answer) for d in new]
    assert fates[:2] == [("day", "", "where?", "Bath"), ("day", "", "what?", "a word")]
    assert set(fates[2:4]) == {("dreamt", "duplicate", "where?", "Bath"), ("dreamt", "", "who?", "it")}
    assert sum(d.kept for d in new) == 3
    asked = Counter(q.prompt for q in stage.asked)
    assert asked == {"the past?": 1, "where?": 1, "what?": 1, "who?": 2}, "who? also of the self before"
    sampled = [d.text for d in [*old, *new] if d.source == "dreamt"]
    assert world.account.dreamt == sum(len(tok.encode(text)) for text in sampled) > 0


DAY = (Example("where is it?", "in Bath"), Example("what is it?", "a word"), Example("where is it?", "it"))


def at_hand(model, tok, memory, documents, answers, on_stage, longest=LONGEST):
    stage = on_stage([], {(1, True): answers})
    awake = selves.awake(past_of(1), "today", len(documents))
    dreams = recall.day_at_hand(model, tok, {}, memory, awake, documents, CONFIG, longest=longest)
    assert not stage.calls
    assert not {q.answer for q in stage.asked} & {d.answer for d in documents}, "the answers were passed on"
    return dreams


def test_the_awake_self_answers_the_days_prompts_each_once(model, tok, memory, on_stage):
    says = {"where is it?": "who knows", "what is it?": " "}
    dreams = at_hand(model, tok, memory, DAY, says, on_stage)
    assert [(d.example, d.reason) for d in dreams] == [
        (Example("where is it?", "who knows"), ""),
        (Example("what is it?", " "), "malformed"),
    ]
    assert {(d.teacher, d.credited, d.source) for d in dreams} == {("awake", "today", "day")}


def test_the_days_answers_are_never_looked_at(model, tok, memory, on_stage):
    says = {"where is it?": "who knows", "what is it?": "it"}
    first = at_hand(model, tok, memory, DAY, says, on_stage)
    other = tuple(dataclasses.replace(e, answer=f"{i} else") for i, e in enumerate(DAY))
    assert at_hand(model, tok, memory, other, says, on_stage) == first


def test_an_answer_that_cannot_be_taught_is_malformed(model, tok, memory, on_stage):
    says = {"where is it?": "z" * 40, "what is it?": "a \ufffd word"}
    assert [d.reason for d in at_hand(model, tok, memory, DAY, says, on_stage)] == ["malformed"] * 2


def test_free_text_of_the_day_stays_as_it_is(model, tok, memory, on_stage):
    dreams = at_hand(model, tok, memory, (Example("", "it is a word"), *DAY[:1]), {}, on_stage)
    assert [d.example for d in dreams] == [Example("where is it?", "no idea"), Example("", "it is a word")]
    assert all(d.kept for d in dreams)


def test_seen_by_tells_the_selves_of_these_tests_apart(memory):
    past = past_of(1, 2)
    awake = selves.awake(past, "today", 1)
    assert [who(selves.seen_by(memory, s)) for s in (*past, awake)] == [
        (0, False), (1, False), (2, False), (2, True),
    ]  # fmt: skip
    assert who(memory_lib.rest(memory)) == (0, False)


# What the day puts aside.


def dreamt(prompt, answer, reason=""):
    return recall.Dream(Example(prompt, answer), "night 1", "day 1", "dreamt", reason)


def test_what_the_day_answers_otherwise_is_dreamt_no_more():
    old = [
        dreamt("Where is Ada?", "Oslo"), dreamt("where is ADA", "Bath!"), dreamt("Who is Ada?", "a cook"),
        dreamt("Where is Ada?", "Rome", "known"), dreamt("", "Ada is in Oslo"),
    ]  # fmt: skip
    new = [dreamt("Where is Ada?", "Bath"), dreamt("Who is Ada?", "a judge", "malformed"), dreamt("", "Ada")]
    found = recall.contradicted(old, new)
    assert [d.reason for d in found] == ["superseded", "", "", "known", ""]
    assert [d.example for d in found] == [d.example for d in old]


def test_what_is_kept_back_is_not_dreamt_by_anybody(model, tok, memory, on_stage):
    says = functools.partial(recalling, tok)
    on_stage(
        [[says("where?", "Oslo"), says("who?", "it")], [says("what?", "a word"), says("who?", "a judge")]],
        {(0, False): {"where?": "Oslo", "who?": "it"}, (0, True): {"what?": "a word", "who?": "a judge"}},
    )
    world = world_of(model, tok, old_dreams=2, new_dreams=2, recall=dataclasses.replace(CONFIG, surplus=1.0))
    day = Experience("today", (Example("where?", "Bristol"),), (), ())
    world.stream.days = (dataclasses.replace(day, barred=("what",)),)
    past = past_of()
    awake = selves.awake(past, "today", 1)
    [(_, old)], new = night.dream(world, {}, memory, past, awake, day, 1, world.config.sleep)
    assert {(d.example.prompt, d.reason) for d in new if d.source == "dreamt"} >= {("what?", "held back")}
    assert {(d.example.prompt, d.reason) for d in old} >= {("who?", "superseded")}
