"""A night as a transaction: what rolls it back, what it may touch, and how full levels make room."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import lives
import numpy as np
import pytest
from equality import bit_equal
from slots import read_slot

from sleep_jax import checkpoint, life, metrics, phases, trees
from sleep_jax.data import encoding, noise, stream
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.methods import sleep
from sleep_jax.model import memory as memory_lib
from sleep_jax.ops import divergence
from sleep_jax.sleep import consolidate, night, seeding, selves
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.seeding import Seeding, Variant
from sleep_jax.sleep.selves import Slot

KEY = jax.random.key(0)


@pytest.fixture
def quickly(compiled):
    with lives.quick(compiled):
        yield


def waking(workdir, born, **changes):
    """The world of a life at its latest boundary, and its state there."""
    config = lives.config(birth={"checkpoint": str(born)}, **changes)
    tok = Tokenizer.load(born / "tokenizer.json")
    world = life.world_of(config, 0, workdir, stream.load(config.stream), tok, "sleep")
    shapes = (jax.eval_shape(init, jax.random.key(0)) for init in (world.model.init, world.model.init_memory))
    state = phases.load(world, checkpoint.boundaries(workdir)[-1], phases.State(*shapes))
    world.newborn = state.params
    return world, state


def test_a_night_that_is_not_finite_is_rolled_back_and_its_day_goes_into_the_next(
    lived, born, begun, tmp_path, monkeypatch, quickly
):
    begun(tmp_path, "000-birth", "001-wake")
    config = lives.config(birth={"checkpoint": str(born)})
    seed, rolling, paths = night.seed, checkpoint.save_rolling, set()

    def first_fails(world, phase, cycle, *args):
        with monkeypatch.context() as patch:
            if cycle == 1:
                patch.setattr(divergence, "generalised_jsd", lambda t, s, *_: jnp.full(t.shape[:-1], jnp.nan))
            return seed(world, phase, cycle, *args)

    def spied(workdir, phase, step, state, meta):
        if phase == "002-sleep":
            paths.update((path, x.shape) for path, x in trees.named(state["state"].opt_state).items())
        rolling(workdir, phase, step, state, meta)

    monkeypatch.setattr(night, "seed", first_fails)
    monkeypatch.setattr(checkpoint, "save_rolling", spied)
    [summary] = life.run(config, str(tmp_path))

    assert [(n["night"], n["outcome"]) for n in map(metrics.plain, summary.nights)] == [
        (1, "rolled back"),
        (2, "committed"),
    ]
    assert summary.nights[0].reason == "a loss or a parameter was not finite"
    evening, morning = (lives.arrays(tmp_path, f"001-{phase}") for phase in ("wake", "sleep"))
    assert bit_equal(evening, morning) == []
    assert np.asarray(morning["memory/fast/up_NDF"]).any()
    assert not np.asarray(lives.arrays(tmp_path, "002-sleep")["memory/fast/up_NDF"]).any()

    [slot] = json.loads((tmp_path / "slots.json").read_text())
    assert slot["merged_from"] == [1, 2] and slot["documents"] == 2 * 14
    dreams = metrics.read_jsonl(tmp_path / "dreams/night-02.jsonl")[0]
    days = stream.load(config.stream).days
    assert all({e.prompt for e in day.train} <= {x["prompt"] for x in dreams} for day in days)
    pairs = [x for x in dreams if x["kept"] and x["prompt"]]
    rewarded = [x for x in pairs if x["reward"] is not None]
    assert 0 < len(rewarded) < len(pairs) / 2, "those held out"
    assert all(0 <= x["reward"] <= 1 for x in rewarded)
    steps = metrics.read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert any("open_on_own" in x and "open_on_others" in x for x in steps)

    # Moments are those of one slot: no array has the axes of levels or slots, or of the backbone.
    slots = memory_lib.fresh_slot(config.model, config.memory, jax.random.key(0))
    shapes = {x.shape for x in slots.values()}
    assert {shape for _, shape in paths} == shapes | {()}


def test_a_night_that_costs_more_than_the_margin_changes_nothing(born, begun, tmp_path, monkeypatch, quickly):
    begun(tmp_path, "000-birth", "001-wake")
    world, state = waking(tmp_path, born, sleep={"margin": 0.2})
    agreed = iter([1.0, 0.5, 0.75, 1.0])  # the past and the day, before; the same after
    monkeypatch.setattr(night, "agreement", lambda *_: next(agreed))
    after = sleep.nights_sleep(world, "001-sleep", state, 1, world.stream.days[0], Variant())
    assert bit_equal(state.arrays(), after.arrays()) == []
    assert after.slots == [] and [n.outcome for n in after.nights] == ["rolled back"]
    reason = "agreement on held-out dreams of the past fell from 1.000 to 0.750, by more than 0.2"
    assert after.nights[0].reason == reason


def test_a_night_without_dreams_of_the_day_is_rolled_back(born, begun, tmp_path, monkeypatch, quickly):
    begun(tmp_path, "000-birth", "001-wake")
    world, state = waking(tmp_path, born)
    monkeypatch.setattr(night, "dream", lambda *_: ([], [told("awake", 1), told("awake", 2, "malformed")]))
    monkeypatch.setattr(night, "seed", None)  # must not be called
    args = world, "001-sleep", 1, state.params, state.memory, [], world.stream.days[:1], Variant()
    outcome = night.run(*args)
    assert outcome.night.reason == "only 1 dreams to learn from were kept, too few to hold one out"
    assert outcome.memory is state.memory and len(outcome.new_dreams) == 1


@pytest.mark.parametrize("epochs, share, long", [(60, 1.0, False), (0, 0.0, True)])
def test_a_checkpoint_that_read_nothing_at_birth_dreams_free_text(monkeypatch, epochs, share, long):
    """The selves behind it have read pairs; what it says may be longer than a dream."""
    asked = []

    def recall(*args, long, **_):
        asked.append((args[4].name, args[7], long))
        return []

    monkeypatch.setattr(night, "recall", recall)
    pair = Example("where?", "Bath")
    config = lives.config(model={"checkpoint": "here"}, birth={"epochs": epochs})
    day = stream.Experience("day 1", (pair,), (), ())
    world = types.SimpleNamespace(
        seed=0, config=config, model=types.SimpleNamespace(config=config.model), tok=None,
        stream=stream.Stream(stream.Experience("birth", (pair,), (), ()), (day,)),
        account=types.SimpleNamespace(dreamt=0),
    )  # fmt: skip
    past = selves.earlier([Slot(0, 0, (1,), ("day 1",), 1, 0)], (1, 3), "birth", 1, 1.0)
    awake = selves.awake(past, "day 2", 1)
    night.dream(world, None, None, past, awake, day, 2, config.sleep.without_the_day())
    assert asked == [("birth", share, long), (past[1].name, 1.0, long), ("awake", 1.0, long)]


@pytest.mark.parametrize("expand", [True, False])
def test_the_router_is_told_whose_rows_are_its_own(born, begun, tmp_path, monkeypatch, quickly, expand):
    begun(tmp_path, "000-birth", "001-wake")
    world, state = waking(tmp_path, born)
    lessons, places = [], []

    def lesson(*args):
        teachers, own = args[3], args[-1]
        lessons.append(({who.name for who, _ in teachers}, own))
        return consolidate_lessons(*args)

    def objective(model, config, join, place):
        places.append(place)
        return consolidate_objective(model, config, join, place)

    def no_time(*args, **kwargs):
        raise FloatingPointError

    consolidate_lessons, consolidate_objective = consolidate.lessons, consolidate.objective
    monkeypatch.setattr(consolidate, "lessons", lesson)
    monkeypatch.setattr(consolidate, "objective", objective)
    monkeypatch.setattr(seeding, "fit", no_time)
    days, variant = world.stream.days[:1], Variant(expand=expand)
    night.run(world, "001-sleep", 1, state.params, state.memory, [], days, variant)
    assert places == [(0, 0) if expand else None]
    assert [own for who, own in lessons if who == {"awake"}] == [True, True], "asked and recalled"
    assert {own for who, own in lessons if "birth" in who} == {False}


@pytest.mark.parametrize(
    "variant, keys",
    [
        (Variant(), {"lesson", "practice"}),
        (Variant(on_policy_only=True), {"lesson", "practice"}),  # whose router learns from the lesson
        (Variant(on_policy_only=True, expand=False), {"practice"}),
    ],
)
def test_what_has_no_weight_is_on_no_account(born, begun, tmp_path, monkeypatch, quickly, variant, keys):
    begun(tmp_path, "000-birth", "001-wake")
    batches = []

    def fit(world, phase, cycle, step, state, frozen, drawn, count, *, stage, early):
        batches.append(stage(0, state.params, next(drawn))[0])
        jax.eval_shape(functools.partial(step, reduce=lambda x: x), state, frozen, batches[-1], KEY)
        raise FloatingPointError

    monkeypatch.setattr(seeding, "fit", fit)
    monkeypatch.setattr(consolidate, "mean_kl", lambda *_: None)
    world, state = waking(tmp_path, born)
    night.run(world, "001-sleep", 1, state.params, state.memory, [], world.stream.days[:1], variant)
    assert batches[0].keys() == keys


@pytest.mark.parametrize("semantic", ["hidden", "answer"])
def test_the_awake_self_teaches_the_day_once_more_with_the_day_before_its_eyes(
    born, begun, tmp_path, monkeypatch, quickly, semantic
):
    begun(tmp_path, "000-birth", "001-wake")
    taught, told = [], consolidate.lessons_in_context
    monkeypatch.setattr(consolidate, "lessons_in_context", lambda *args: taught.append(args) or told(*args))
    sleep_ = {"day_in_context": 2, "imitate": {"semantic": semantic}}
    world, state = waking(tmp_path, born, model={"max_len": 96}, sleep=sleep_)
    days = world.stream.days[:1]
    outcome = night.run(world, "001-sleep", 1, state.params, state.memory, [], days, Variant())
    assert outcome.night.outcome == "committed"
    [(_, _, memory, context, encoded, *_)] = taught
    documents = [encoding.encode(world.tok, [e], 32) for e in days[0].train]
    said = [[int(t) for e in one for t in e.tokens] for one in documents]
    assert any(list(context) == a + b for a in said for b in said)
    assert memory.fast is not None and encoded


@pytest.mark.parametrize("seed", [{"alpha": 1.0, "on_policy": 0.0}, {}])
def test_blanks_are_the_students_alone(born, begun, tmp_path, monkeypatch, quickly, seed):
    begun(tmp_path, "000-birth", "001-wake")
    seen, held_out = [], []

    def fit(world, phase, cycle, step, state, frozen, batches, count, *, stage, early):
        first, second = next(batches), next(batches)
        seen.append([stage(n, state.params, b)[0]["lesson"] for n, b in enumerate((first, second))])
        seen[-1].append(np.array_equal(first[1], second[1]))
        raise FloatingPointError

    def mean_kl(objective, lesson, frozen, batch_size):
        held_out.append(lesson)

    monkeypatch.setattr(seeding, "fit", fit)
    monkeypatch.setattr(consolidate, "mean_kl", mean_kl)
    for blanks in (0.0, 0.5):
        world, state = waking(tmp_path, born, sleep={"blanks": blanks, "seed": seed})
        night.run(world, "001-sleep", 1, state.params, state.memory, [], world.stream.days[:1], Variant())
    for whole, blanked in zip(seen[0][:2], seen[1][:2], strict=True):
        np.testing.assert_array_equal(blanked.hidden_BTD, whole.hidden_BTD)
        np.testing.assert_array_equal(blanked.rows.targets_BT, whole.rows.targets_BT)
        blank_BT = blanked.rows.tokens_BT != whole.rows.tokens_BT
        asked_BT = noise.prompts(whole.rows.tokens_BT, world.tok)
        assert 0.2 < blank_BT.sum() / asked_BT.sum() < 0.8 and not (blank_BT & ~asked_BT).any()
    assert not seen[1][2], "drawn anew for every batch"
    np.testing.assert_array_equal(held_out[0].rows.tokens_BT, held_out[1].rows.tokens_BT)


def test_free_text_is_judged_by_its_likeliest_tokens_and_every_dream_counts_alike(
    born, begun, tmp_path, quickly
):
    begun(tmp_path, "000-birth")
    world, state = waking(tmp_path, born)
    texts = [
        Dream(Example("", t), "birth", "birth", "dreamt", "") for t in ("she was born in Oslo", "he is a")
    ]
    asked = told("birth", 1)
    resting = memory_lib.rest(state.memory)
    found = night.agreement(world, state.params, resting, [("birth", texts)])
    hits = total = 0
    for dream in texts:
        ids = np.array([world.tok.bos, *world.tok.encode(" " + dream.example.answer), world.tok.eos])
        logits_TV = world.model.apply(state.params, ids[None], memory=resting).logits_BTV[0]
        hits += int((np.asarray(logits_TV).argmax(-1)[:-1] == ids[1:]).sum())
        total += len(ids) - 1
    assert 0 < hits < total and found == pytest.approx(hits / total)
    alone = night.agreement(world, state.params, resting, [("birth", [asked])])
    both = night.agreement(world, state.params, resting, [("birth", [*texts, asked])])
    assert alone in (0.0, 1.0) and both == pytest.approx((2 * found + alone) / 3)
    assert night.agreement(world, state.params, resting, [("birth", [])]) is None


@pytest.mark.parametrize(
    "finite, before, after, said",
    [
        (True, 0.8, 0.7, ""),
        (True, 0.8, 0.69, "fell from 0.800 to 0.690, by more than 0.1"),
        (True, 0.8, float("nan"), "fell"),
        (False, 0.8, 0.9, "not finite"),
        (True, None, None, ""),
    ],
)
def test_the_verdict(finite, before, after, said):
    reason = night.verdict(finite, before, after, 0.1000001)
    assert said in reason and bool(said) == bool(reason)


def told(teacher, number, reason=""):
    return Dream(Example(f"what is {number}", f"it is {number}"), teacher, teacher, "dreamt", reason)


class Fake:
    """Nights in which nothing is trained: a slot is filled with the number of its night (or merge)."""

    def __init__(self, tiny, workdir, monkeypatch, levels):
        self.model = tiny(slow_levels=levels, slots=3)
        self.memory = self.model.init_memory(jax.random.key(0))
        self.slots, self.lines, self.teachers, self.finite, self.knows = [], [], [], True, [1.0, 1.0]
        self.variant = Variant(imitate=False)
        birth = types.SimpleNamespace(name="birth", train=(None,) * 10)
        self.world = types.SimpleNamespace(
            workdir=workdir,
            config=lives.config(),
            stream=types.SimpleNamespace(birth=birth),
            writer=types.SimpleNamespace(write=lambda *line: self.lines.append(line)),
        )
        self.asked = -1
        monkeypatch.setattr(night, "agreement", self.agreement)
        monkeypatch.setattr(night, "seed", self.seed)
        monkeypatch.setattr(night, "dream", self.dream)

    def agreement(self, *_):
        self.asked += 1
        return self.knows[self.asked % 2]  # before and after by turns

    def dream(self, world, params, memory, past, *_):
        return [(self_, [told(self_.name, i) for i in range(4)]) for self_ in past], []

    def seed(self, world, phase, cycle, params, memory, student, place, old, new, variant):
        assert variant is self.variant
        self.teachers.append([self_.name for self_, dreams in (*old.train, *new.train) if dreams])
        assert not np.asarray(student.active_LE)[place] and student.fast is None
        return Seeding(self.write(student, place, 100 + cycle), params, 0.1, self.finite)

    def write(self, memory, place, number):
        slot = jax.tree.map(lambda x: jnp.full_like(x, number), read_slot(memory, *place))
        return memory_lib.write_slot(memory, slot, *place)

    def sleep(self, number):
        before = self.memory, self.slots
        self.memory, self.slots, reason = night.make_room(
            self.world, f"{number:03d}-sleep", number, {}, self.memory, self.slots, self.variant
        )
        if reason:
            assert self.memory is before[0] and self.slots is before[1]
            return reason
        place = 0, night.free_slots(self.memory, 0)[0]
        self.memory = self.write(self.memory, place, number)
        self.slots = [*self.slots, Slot(*place, (number,), (f"day {number}",), 10, 4)]
        return ""

    def number(self, slot):
        content = read_slot(self.memory, slot.level, slot.index)
        [number] = {float(v) for x in content.values() for v in np.unique(np.asarray(x))}
        return number


@pytest.mark.parametrize("levels", [1, 2])
def test_full_levels_make_room_and_the_provenance_of_every_night_is_kept(levels, tiny, tmp_path, monkeypatch):
    fake = Fake(tiny, tmp_path, monkeypatch, levels)
    for n in range(1, 10):
        older = {(s.level, s.index): (s, fake.number(s)) for s in fake.slots}
        assert fake.sleep(n) == ""
        assert sorted(x for s in fake.slots for x in s.nights) == list(range(1, n + 1))
        assert all(s.experiences == tuple(f"day {x}" for x in s.nights) for s in fake.slots)
        assert sum(s.documents for s in fake.slots) == 10 * n
        places = np.zeros((levels, 3), bool)
        for s in fake.slots:
            if len(s.nights) > 1:
                written = metrics.read_jsonl(tmp_path / s.dreams_file)[0]
                assert s.dreams == sum(d["kept"] for d in written) > 0
            places[s.level, s.index] = True
            alone = s.nights == (n,)
            kept = older.get((s.level, s.index), (None, 0))
            assert fake.number(s) == (n if alone else kept[1] if kept[0] == s else 100 + n)
        assert np.asarray(fake.memory.active_LE).tolist() == places.tolist()
        assert not places.all(axis=1).any()  # each level keeps a slot to merge into
    assert all(names[0] == "birth" and len(names) > 1 for names in fake.teachers)
    assert max(s.level for s in fake.slots) == levels - 1
    assert len(fake.lines) == len(fake.teachers) >= 4


@pytest.mark.parametrize(
    "finite, knows, said",
    [(False, [1.0, 1.0], "not finite"), (True, [1.0, -1.0], "fell from 1.000 to -1.000, by more than 1.0")],
)
def test_a_merge_that_fails_resets_nothing_and_says_that_the_slots_are_exhausted(
    finite, knows, said, tiny, tmp_path, monkeypatch
):
    fake = Fake(tiny, tmp_path, monkeypatch, 1)
    assert fake.sleep(1) == fake.sleep(2) == ""
    fake.finite, fake.knows = finite, knows
    reason = fake.sleep(3)
    assert reason.startswith("level 1 is full (memory.slots=3) and merging nights (1, 2) failed: ")
    assert said in reason and [fake.number(s) for s in fake.slots] == [1, 2]


class Killed(BaseException):
    pass


def third_night(workdir, born, monkeypatch, kill=None):
    """The night after a day that was slept through, in which two nights are merged."""
    world, state = waking(workdir, born, stream={"days": 3})
    write = metrics.MetricsWriter.write

    def dying(self, phase, cycle, step, scalars):
        write(self, phase, cycle, step, scalars)
        if (phase, cycle, step) == kill:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsWriter, "write", dying)
        return phases.phase(
            world,
            "003-sleep",
            state,
            lambda s: sleep.nights_sleep(world, "003-sleep", s, 3, world.stream.days[2], Variant()),
        )


def test_a_merge_for_real_and_killed_behind_it_is_bit_for_bit_one_that_was_not(
    born, begun, tmp_path, monkeypatch, quickly
):
    material = stream.load(lives.config(stream={"days": 3}).stream)
    known = {e.name: [x for x in e.train if x.prompt][:6] for e in (material.birth, *material.days)}

    def ideal(model, tok, params, memory, self_, *_, **__):
        return [Dream(e, self_.name, self_.knows[-1], "dreamt", "") for n in self_.knows for e in known[n]]

    monkeypatch.setattr(night, "recall", ideal)
    done = []
    for name, kills in {"once": (), "again": (("sleep", 3, 3), ("sleep", 3, 5))}.items():
        begun(tmp_path / name, "000-birth", "001-wake", "001-sleep", "002-wake", "002-sleep")
        for kill in kills:
            with pytest.raises(Killed):
                third_night(tmp_path / name, born, monkeypatch, kill)
        # A merge shorter than checkpoint_every would have left none and be repeated.
        for path in (tmp_path / name / "ckpt").glob("003-sleep-merge0-*"):
            shutil.rmtree(path)
        done.append(third_night(tmp_path / name, born, monkeypatch))
    once, again = done
    assert bit_equal(once.arrays(), again.arrays()) == [] and once.record() == again.record()
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("once", "again")]
    assert lines[0] == lines[1] and '"phase": "merge"' in lines[0]
    assert [(s.index, s.nights) for s in once.slots] == [(2, (1, 2)), (0, (3,))]
    assert np.asarray(once.memory.active_LE).tolist() == [[True, False, True]]
    teachers = {line["teacher"] for line in metrics.read_jsonl(tmp_path / "once/dreams/night-03.jsonl")[0]}
    assert teachers == {"birth", "night 2", "awake"}
    assert dataclasses.asdict(once.nights[-1])["outcome"] == "committed"


def test_the_slot_that_leads_an_answer_is_the_one_chosen_most_where_it_is_written(tiny, grown):
    probes = [Example(f"who is {name}", name) for name in ("ada", "bea", "cyd", "dan", "eve")]
    answers = ["ada", "", "cyd is here", "d", "eve eve"]
    tok = Tokenizer.train([" ".join(answers)], 300)
    model = tiny(vocab_size=300, slow_levels=1, slots=3)
    params, memory = grown(model)
    memory = memory_lib.with_active(memory, np.array([[True, False, True]]))

    def share(memory, batch_size=2):
        return selves.leading(model, tok, params, memory, probes, answers, batch_size).tolist()

    routes = jax.jit(lambda tokens_BT: model.apply(params, tokens_BT, memory=memory).routes_BTLE)
    expected = np.zeros(4)
    for probe, answer in zip(probes, answers, strict=True):
        question = [tok.bos, *tok.encode(" " + probe.prompt), tok.ans]
        ids = [*question, *tok.encode(" " + answer)]
        padded_BT = np.array([[*ids, *[tok.pad] * (model.config.max_len - len(ids))]])
        written_TE = np.asarray(routes(padded_BT))[0, len(question) - 1 : len(ids), 0]
        expected[np.argmax([*written_TE.mean(0), 1 - written_TE.sum(1).mean()])] += 1 / len(probes)
    assert share(memory) == share(memory, 5) == [pytest.approx(expected[:3])]
    assert share(memory_lib.force_slot(memory, 0, 2)) == [[0, 0, 1]]
    assert share(memory_lib.with_active(memory, np.zeros((1, 3), bool))) == [[0, 0, 0]]
