import dataclasses
import types
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax import methods, phases, settings
from sleep_jax.data import noise, packing
from sleep_jax.data.stream import Example, Experience, Stream
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.fit import Account, tokens_in
from sleep_jax.methods import ewc, finetune, generative, icl
from sleep_jax.methods import sleep as sleep_method
from sleep_jax.model import memory as memory_lib
from sleep_jax.optim import OptimConfig
from sleep_jax.sleep import night
from sleep_jax.sleep.recall import Dream
from sleep_jax.types import Batch, Output, Rollout

KEY = jax.random.key(0)
ROW = 32


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["what is it? it is a whale. what sings? the whale sings"] * 3, 300)


def experience(name, count, start=0):
    """Examples of uneven length, all different."""
    pairs = (Example(f"what is {start + i}?", "a whale" * (1 + i % 2)) for i in range(count))
    return Experience(name, tuple(pairs), (), (Example("what?", "it"),))


@pytest.fixture(scope="module")
def material():
    sizes = (60, 20, 30, 25)
    names = ("birth", "day 1", "day 2", "day 3")
    parts = [experience(n, k, 1000 * i) for i, (n, k) in enumerate(zip(names, sizes, strict=True))]
    return Stream(parts[0], tuple(parts[1:]))


def bigram(vocab):
    """The smallest language model: its gradients are exact, and nothing takes long to compile."""

    def apply(params, tokens_BT, *, memory=None, adapter=None, segments_BT=None, positions_BT=None):
        logits_BTV = params["table_VV"][tokens_BT]
        return Output(logits_BTV, logits_BTV, None, None)

    table_VV = 0.5 * np.random.default_rng(0).normal(size=(vocab, vocab)).astype(np.float32)
    config = types.SimpleNamespace(logit_chunk=0)
    model = types.SimpleNamespace(apply=apply, unembed=lambda params, logits_BTV: logits_BTV, config=config)
    return model, {"table_VV": jnp.asarray(table_VV)}


@pytest.fixture
def world(tiny, tok, material, tmp_path):
    """`world(**baseline)`: what a life lives in, without a network of any size."""

    def make(seed=0, model=None, sleep=None, **baseline):
        shape = tiny(vocab_size=tok.vocab_size, max_len=64, periods=(64,))
        config = settings.Config(
            row_length=ROW,
            answer_tokens=8,
            model=shape.config,
            memory=shape.memory_config,
            sleep=sleep or settings.SleepConfig(steps=20, batch_rows=8),
            baseline=settings.BaselineConfig(**({"batch_rows": 4, "optim": OptimConfig()} | baseline)),
        )
        return types.SimpleNamespace(
            config=config,
            seed=seed,
            workdir=tmp_path,
            stream=material,
            tok=tok,
            model=model or shape,
            account=Account(),
        )

    return make


def test_an_unknown_method_is_told_the_nearest():
    assert methods.get("replay") is methods.METHODS["replay"]
    with pytest.raises(ValueError, match=r"'jiont' is not a method, did you mean 'joint'\? There are"):
        methods.get("jiont")
    with pytest.raises(ValueError, match="There are sleep, .*in_context"):
        methods.get("zzz")


# Elastic weight consolidation.


def gradients(world, params, examples):
    """d log p(example) / d table, one example after the other: counts minus what was expected."""
    table_VV = np.asarray(params["table_VV"], np.float64)
    p_VV = np.exp(table_VV) / np.exp(table_VV).sum(1, keepdims=True)
    found = []
    for e in examples:
        g_VV = np.zeros_like(table_VV)
        for read, said in zip(e.tokens[:-1], e.tokens[1:], strict=True):
            g_VV[read] -= p_VV[read]
            g_VV[read, said] += 1
        found.append(g_VV)
    return np.array(found)


@pytest.mark.parametrize("examples", [400, 10])
def test_the_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean(world, material, tok, examples):
    model, params = bigram(tok.vocab_size)
    here = world(model=model, ewc_examples=examples)
    found = np.asarray(ewc.fisher(here, params, material.days[0])["table_VV"])
    documents = finetune.documents(here, material.days[0].train)
    order = np.random.default_rng(here.seed).permutation(len(documents))[:examples]
    g_XVV = gradients(here, params, [documents[i] for i in order])
    assert len(g_XVV) == min(examples, 40), "each of 20 pairs in both directions"
    np.testing.assert_allclose(found, np.square(g_XVV).mean(0), rtol=1e-3, atol=1e-5)
    squared_batch = np.square(g_XVV.sum(0)) / len(g_XVV)
    assert np.abs(found - squared_batch).max() > 0.5


def test_the_penalty_is_a_paraboloid_around_the_anchor(world, material, tok):
    model, params = bigram(tok.vocab_size)
    here = world(model=model)
    objective = ewc.penalised(here, 3.0)
    batch = jax.tree.map(lambda x: x[:2], finetune.pack(here, material.days[0].train))
    rng = np.random.default_rng(0)
    fisher = {"table_VV": rng.random(params["table_VV"].shape).astype(np.float32)}
    frozen = {"fisher": fisher, "anchor": params}

    def penalty(params):
        mean = objective.totals(params, frozen, batch, None)[0]["penalty"]
        return objective.weights["penalty"] * mean.total / objective.counts(batch)["penalty"]

    look = jax.jit(jax.value_and_grad(penalty))
    value, slope = look(params)
    assert float(value) == 0 and not np.asarray(slope["table_VV"]).any()
    nudge = rng.normal(size=params["table_VV"].shape).astype(np.float32)
    value, slope = look({"table_VV": params["table_VV"] + nudge})
    assert float(value) == pytest.approx(3.0 / 2 * (fisher["table_VV"] * nudge**2).sum(), rel=1e-4)
    np.testing.assert_allclose(slope["table_VV"], 3.0 * fisher["table_VV"] * nudge, atol=1e-4)
    assert objective.weights["nll"] == 1
    part = jax.tree.map(lambda x: x[:1], batch)
    tokens = objective.totals(params, frozen, part, None)[0]["penalty"].count
    assert float(tokens) == float(objective.counts(part)["penalty"]), "micro-batches add up to one penalty"


def test_the_anchor_moves_and_the_fishers_add_up(world, material, tok, monkeypatch):
    model, params = bigram(tok.vocab_size)
    here = world(model=model)
    monkeypatch.setattr(ewc, "fisher", lambda world, params, e: {"table_VV": jnp.float32(len(e.train))})
    extra = ewc.extra(here, params)
    like = ewc.extra_like(params)
    assert jax.tree.structure(extra) == jax.tree.structure(like)
    moved = {"table_VV": params["table_VV"] + 1}
    seen = {}

    def fit_backbone(world, name, state, cycle, rows, objective, frozen):
        seen.update(frozen=frozen, objective=objective)
        return dataclasses.replace(state, params=moved)

    monkeypatch.setattr(finetune, "fit_backbone", fit_backbone)
    state = phases.State(params, None, extra=extra)
    state = ewc.train(here, "001-train", state, 1, material.days[0])
    assert seen["frozen"] is extra and seen["objective"].weights["penalty"] == 300
    assert float(state.extra["fisher"]["table_VV"]) == 60 + 20 and state.extra["anchor"] is moved


def test_the_baselines_read_as_many_blanks_as_they_are_told(world, material, monkeypatch):
    read = {}

    def fit(world, phase, cycle, step, state, frozen, batches, count):
        read[world.config.baseline.blanks] = np.concatenate([next(batches).tokens_BT for _ in range(16)])
        return state, {}

    monkeypatch.setattr(finetune, "fit", fit)
    state = phases.State({"table_VV": jnp.zeros((2, 2))}, None)
    for share in (0.0, 0.5):
        here = world(blanks=share)
        finetune.sequential(here, "001-train", state, 1, material.days[0])
    blank_BT, asked_BT = read[0.5] != read[0.0], noise.prompts(read[0.0], here.tok)
    assert abs(blank_BT.sum() / asked_BT.sum() - 0.5) < 0.15 and not (blank_BT & ~asked_BT).any()


# Replay.


def test_the_reservoir_is_bounded_deterministic_and_of_the_past_alone(world, material):
    here = world(replay_buffer=30)
    buffers = {cycle: finetune.reservoir(here, cycle) for cycle in (1, 2, 3)}
    for cycle, buffer in buffers.items():
        past = {*material.birth.train, *(e for d in material.days[: cycle - 1] for e in d.train)}
        assert len(buffer) == len(set(buffer)) == 30 and set(buffer) <= past
        assert buffer == finetune.reservoir(here, cycle)
    for cycle in (1, 2):
        day = set(material.days[cycle - 1].train)
        assert set(buffers[cycle + 1]) - set(buffers[cycle]) <= day, "what was lost never comes back"
    assert finetune.reservoir(world(seed=1, replay_buffer=30), 2) != buffers[2]
    assert finetune.reservoir(world(replay_buffer=500), 2) == [*material.birth.train, *material.days[0].train]


def test_every_example_of_the_past_is_in_the_reservoir_equally_often(world, material):
    lives = 400
    here = world(replay_buffer=20)
    counts = Counter()
    for seed in range(lives):
        here.seed = seed
        counts.update(finetune.reservoir(here, 3))
    past = [*material.birth.train, *material.days[0].train, *material.days[1].train]
    share = 20 / len(past)
    found = np.array([counts[e] for e in past]) / lives
    assert set(counts) == set(past)
    # Five standard deviations of a single share, and two for the means of birth, day 1 and day 2.
    assert np.abs(found - share).max() < 5 * np.sqrt(share * (1 - share) / lives)
    for part in (found[:60], found[60:80], found[80:]):
        assert part.mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_rows_are_mixed_in_shares_and_old_ones_repeat_evenly(share):
    new, old = (Batch(*[np.arange(k, k + n)] * 5) for k, n in ((100, 12), (0, 5)))
    rows = finetune.mixed(new, old, share, 3).tokens_BT
    assert rows[:12].tolist() == new.tokens_BT.tolist(), "the day is there once, and whole"
    assert (rows < 100).mean() == pytest.approx(share, abs=0.02)
    counts = Counter(rows[12:].tolist())
    assert max(counts.values()) - min(counts[i] for i in range(5)) <= 1
    assert finetune.mixed(new, old, share, 3).tokens_BT.tolist() == rows.tolist()
    if share == 0.75:
        assert finetune.mixed(new, old, share, 4).tokens_BT.tolist() != rows.tolist()


# Equal means.


@pytest.fixture
def spent(monkeypatch):
    """Fits that only count: `spent` lists the gradient tokens of each, and what was trained on."""
    fits = []

    def fit(world, phase, cycle, step, state, frozen, batches, count, **options):
        first = world.account.gradient
        for _ in range(count):
            world.account.gradient += tokens_in(next(batches))
        fits.append(types.SimpleNamespace(tokens=world.account.gradient - first, frozen=frozen, count=count))
        return state, {"steps": count}

    monkeypatch.setattr(finetune, "fit", fit)
    monkeypatch.setattr(sleep_method, "fit", fit)
    monkeypatch.setattr(ewc, "fisher", lambda world, params, e: params)
    return fits


def old_and_new(world, params, memory, past, awake, day, cycle, config):
    """A night's dreams: some kept, some not."""

    def dreams(self_, count):
        reasons = ("", "known", "")
        return [
            Dream(Example(f"dreamt {i}?", "a whale"), self_.name, "x", "dreamt", reasons[i % 3])
            for i in range(count)
        ]

    return [(past[0], dreams(past[0], 30))], dreams(awake, 12)


def test_all_methods_spend_the_same_gradient_tokens_to_within_a_batch(world, material, spent, monkeypatch):
    monkeypatch.setattr(night, "dream", old_and_new)
    here = world(gradient_tokens=3000)
    monkeypatch.setattr(night, "write_dreams", lambda *_: None)
    shape = here.model
    params = {"w_DD": np.zeros((2, 2), np.float32)}
    memory = shape.init_memory(KEY)
    for name in ("sequential", "joint", "replay", "ewc", "generative_replay"):
        method = methods.get(name)
        state = phases.State(params, memory, extra=method.extra(here, params))
        for phase, run in method.phases:
            state = run(here, f"002-{phase}", state, 2, material.days[1])
    batch = here.config.baseline.batch_rows * ROW
    assert len(spent) == 5
    assert all(abs(s.tokens - 3000) <= batch for s in spent), [s.tokens for s in spent]
    assert len({s.count for s in spent}) > 1 or len({s.tokens for s in spent}) > 1, (
        "rows are not equally full"
    )


def test_generative_replay_pays_for_its_waking_out_of_the_same_budget(world, material, spent, monkeypatch):
    monkeypatch.setattr(night, "dream", old_and_new)
    monkeypatch.setattr(night, "write_dreams", lambda *_: None)
    here = world(sleep=settings.SleepConfig(day_at_hand=False), gradient_tokens=20_000)
    state = phases.State({}, here.model.init_memory(KEY))
    for phase, run in methods.get("generative_replay").phases:
        state = run(here, f"002-{phase}", state, 2, material.days[1])
    waking, training = spent
    assert waking.tokens == finetune.waking(here, 2) > 4 * here.config.baseline.batch_rows * ROW
    assert abs(waking.tokens + training.tokens - 20_000) <= here.config.baseline.batch_rows * ROW


def test_the_budget_is_what_a_night_may_spend_unless_it_is_set(world):
    here = world()
    day = sum(len(e.tokens) for e in finetune.documents(here, here.stream.days[1].train))
    assert finetune.budget(here, 2) == here.config.wake.passes * day + 20 * 8 * ROW
    assert finetune.budget(world(gradient_tokens=77), 2) == 77


def test_steps_follow_from_how_full_the_rows_are(world, material):
    here = world(gradient_tokens=6000)
    packed = finetune.pack(here, material.days[0].train)
    sparse = packing.pack(finetune.documents(here, material.days[0].train)[:1], ROW)[0]
    for rows in (packed, sparse):
        full = (rows.segments_BT > 0).mean()
        assert finetune.steps_for(here, rows, 1) == round(6000 / (4 * ROW * full))
    assert finetune.steps_for(here, sparse, 1) > finetune.steps_for(here, packed, 1)
    assert finetune.steps_for(world(gradient_tokens=1), packed, 1) == 1


def test_the_day_is_on_the_account_once_for_every_method(world, material):
    here = world()
    finetune.read(here, material.days[0])
    assert here.account.source == sum(len(e.tokens) for e in finetune.documents(here, material.days[0].train))
    assert here.account.gradient == here.account.dreamt == 0


def seen_rows(world, monkeypatch):
    packed = []
    pack = finetune.pack
    monkeypatch.setattr(
        finetune, "pack", lambda w, examples: packed.append(list(examples)) or pack(w, examples)
    )
    return packed


def test_what_each_method_may_look_at(world, material, spent, monkeypatch):
    here, (first, second, _) = world(), material.days
    packed = seen_rows(here, monkeypatch)
    state = phases.State({"w_DD": np.zeros((2, 2), np.float32)}, None)
    finetune.sequential(here, "002-train", state, 2, second)
    finetune.joint(here, "002-train", state, 2, second)
    finetune.replay(here, "002-train", state, 2, second)
    sequential, joint, old, new = packed
    assert sequential == new == list(second.train)
    assert joint == [*material.birth.train, *first.train, *second.train]
    assert old == finetune.reservoir(here, 2)


def test_a_waking_day_reads_past_slots_that_are_not_in_use(world, material, monkeypatch):
    here, read = world(), []
    monkeypatch.setattr(sleep_method, "fit", lambda *a: read.append(a[5]) or (a[4], {}))
    memory = memory_lib.with_active(here.model.init_memory(KEY), np.array([[True, False, False]] * 2))
    params = here.model.init(KEY)
    evening = sleep_method.wake(here, "001-wake", phases.State(params, memory), 1, material.days[0])
    ((read_params, asleep),) = read
    assert read_params is params and asleep.fast is None and asleep.active_LE.tolist() == [[True, False]] * 2
    assert evening.memory.bank is memory.bank and evening.memory.active_LE is memory.active_LE


@pytest.mark.parametrize("at_hand", [True, False])
def test_generative_replay_has_sleeps_dreams_and_sleeps_access_to_the_day(
    world, material, spent, monkeypatch, at_hand
):
    numbers = {"steps": 20, "batch_rows": 8, "old_dreams": 90, "new_dreams": 9, "day_in_context": 2 * at_hand}
    sleep = settings.SleepConfig(day_at_hand=at_hand, **numbers)
    here, seen = world(sleep=sleep), {}
    packed = seen_rows(here, monkeypatch)

    def dream(world, params, memory, past, awake, day, cycle, config):
        seen.update(past=past, awake=awake, config=config)
        return old_and_new(world, params, memory, past, awake, day, cycle, config)

    monkeypatch.setattr(night, "dream", dream)
    monkeypatch.setattr(night, "write_dreams", lambda *_: None)
    memory = here.model.init_memory(KEY)
    awake = dataclasses.replace(memory, fast=jax.tree.map(jnp.ones_like, memory.fast))
    state = phases.State({"w_DD": np.zeros((2, 2), np.float32)}, awake)
    state = generative.train(here, "002-train", state, 2, material.days[1])
    assert [s.weight for s in seen["past"]] == [60 + 20], "all old dreams are its own"
    assert seen["config"].old_dreams == 90 and seen["config"].new_dreams == (0 if at_hand else 9)
    assert not seen["config"].day_at_hand, "its inputs need no answers: they have their own"
    assert seen["awake"].awake
    kept = [
        d
        for d in old_and_new(None, None, None, seen["past"], seen["awake"], None, 2, None)[0][0][1]
        if d.kept
    ]
    new = (
        list(material.days[1].train)
        if at_hand
        else [Example(f"dreamt {i}?", "a whale") for i in range(12) if i % 3 != 1]
    )
    assert packed == [new + [d.example for d in kept]]
    assert not any(x.any() for x in jax.tree.leaves(state.memory.fast)), "the day is forgotten in the morning"


# In context.


def contexts(world, lived, questions, monkeypatch):
    """The token sequences that the model is asked with."""
    caught = {}

    def generate(model, params, memory, prompts, key, sampling, *, batch_size):
        caught.update(prompts=prompts, sampling=sampling)
        tokens_BT = np.pad(prompts[0], ((0, 0), (0, sampling.max_new)))
        tokens_BT[np.arange(len(tokens_BT)), prompts[1]] = world.tok.eos
        return Rollout(tokens_BT, None, None, prompts[1] + 1, None)

    monkeypatch.setattr(icl.rollout, "generate", generate)
    answers = icl.answerer(world, phases.State({}, None), lived)(questions)
    assert answers == [""] * len(questions) and caught["sampling"].temperature == 0
    return [t[:n].tolist() for t, n in zip(*caught["prompts"], strict=True)], caught["sampling"].max_new


def test_a_context_fits_the_window_and_holds_whole_examples_of_the_days_so_far(
    world, material, tok, monkeypatch
):
    here = world()
    lived = [material.birth, material.days[0]]
    questions = [Example(f"what is {'a whale ' * (i % 4)}{i}?", "never looked at") for i in range(40)]
    prompts, max_new = contexts(here, lived, questions, monkeypatch)
    room = here.config.model.max_len - max_new
    known = {tuple(e.tokens.tolist()) for e in finetune.documents(here, [e for x in lived for e in x.train])}
    chosen = Counter()
    for prompt, question in zip(prompts, questions, strict=True):
        assert len(prompt) <= room
        starts = [i for i, t in enumerate(prompt) if t == tok.bos] + [len(prompt)]
        *examples, asked = (tuple(prompt[a:b]) for a, b in zip(starts, starts[1:], strict=False))
        assert starts[0] == 0 and set(examples) <= known
        assert asked == (tok.bos, *tok.encode(" " + question.prompt), tok.ans)
        assert room - len(prompt) < max(map(len, known)), "another example would have fitted"
        chosen.update(examples)
    assert len(chosen) > 20, "the same examples stand before every question"
    assert contexts(here, lived, questions, monkeypatch)[0] == prompts


def test_without_a_life_the_question_stands_alone(world, tok, monkeypatch):
    question = Example("what is it?", "?")
    free = Experience("text", (Example("", "it sings"),), (), ())
    for lived in ([], [free]):
        (prompt,), _ = contexts(world(), lived, [question], monkeypatch)
        assert prompt == [tok.bos, *tok.encode(" what is it?"), tok.ans]


def test_reading_in_context_changes_nothing_but_the_account(world, material):
    here = world()
    state = phases.State({}, None)
    assert icl.read(here, "001-read", state, 1, material.days[0]) is state and here.account.source > 0
