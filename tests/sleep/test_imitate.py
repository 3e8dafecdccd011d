import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slots import read_slot

from sleep_jax import rollout, settings
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.fit import Account
from sleep_jax.model import memory as memory_lib
from sleep_jax.ops.masked import token_logps
from sleep_jax.sleep import consolidate, imitate, selves
from sleep_jax.sleep.imitate import ImitateConfig
from sleep_jax.sleep.recall import RecallConfig
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Output, Rollout

CONFIG = ImitateConfig(gamma=0.25, z0=8, prompts=4, samples=3, max_new=6, width=20, refresh=2)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["is it? yes it is. is it? no it is not. the blue whale sings"] * 3, 300)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(vocab_size=300, layers=1, max_len=64, slots=4, slow_levels=1)


# Rewards.


def finished(rows):
    tokens_BT, lengths_B = rollout.padded(rows, 8)
    return Rollout(tokens_BT, None, None, lengths_B, None)


def test_the_reward_is_equations_3_and_4():
    dreams = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8], [1, 2]]
    ends = [[1, 2, 3, 4, 5], [1, 9, 3], [1, 9, 9, 9, 9, 9, 7, 8], [1, 2, 3, 4, 5, 6]]
    distance = [0, 3, 5, 4]
    absolute = [1.0, 1 - 3 / 5, 0.0, 1 - 4 / 6]  # the third is further than z0 = 4
    asked = []

    def semantic(*pairs):
        asked.append(pairs)
        return np.array([0.0, 1.0, 1.0, 0.0], np.float32)

    parts = imitate.rewards(
        finished(ends), rollout.padded(dreams, 8), semantic, dataclasses.replace(CONFIG, z0=4)
    )
    assert parts["distance"].tolist() == distance
    np.testing.assert_allclose(parts["absolute"], absolute, rtol=1e-6)
    wanted = [0.25 * s + 0.75 * a for s, a in zip([0, 1, 1, 0], absolute, strict=True)]
    np.testing.assert_allclose(parts["reward"], wanted, rtol=1e-6)
    assert asked == [(dreams, ends)], "the reward model reads the dream first, and no padding"


def test_without_a_semantic_reward_the_edit_distance_is_all():
    parts = imitate.rewards(finished([[1, 2]]), rollout.padded([[1, 3]], 8), None, CONFIG)
    assert parts.keys() == {"distance", "absolute", "reward"} and parts["reward"].tolist() == [0.5]


def answering(tok, prompt, answer):
    return encoding.encode_answering(tok, Example(prompt, answer)).tokens.tolist()


def recalling(tok, prompt, answer):
    return encoding.encode_recalling(tok, Example(prompt, answer)).tokens.tolist()


def test_answers_match_after_normalisation(tok):
    cases = {
        "case, article and full stop": (
            answering(tok, "what?", "The Whale."),
            answering(tok, "what?", "whale"),
            1,
        ),
        "the prompt is not compared": (answering(tok, "what?", "whale"), answering(tok, "who?", "whale"), 1),
        "another word": (answering(tok, "what?", "whale"), answering(tok, "what?", "whales"), 0),
        "an answer that did not end": (
            answering(tok, "what?", "whale"),
            answering(tok, "what?", "whale")[:-1],
            1,
        ),
        "cut short": (answering(tok, "what?", "blue whale"), answering(tok, "what?", "blue whale")[:-3], 0),
        "recalled prompts": (recalling(tok, "Is it?", "whale"), recalling(tok, "is it", "sing"), 1),
        "other recalled prompts": (recalling(tok, "is it?", "whale"), recalling(tok, "is he?", "whale"), 0),
        "free text": (
            [tok.bos, *tok.encode(" It is."), tok.eos],
            [tok.bos, *tok.encode(" it is"), tok.eos],
            1,
        ),
        "other free text": ([tok.bos, *tok.encode(" It is."), tok.eos], [tok.bos, *tok.encode(" it")], 0),
    }
    dreams, ends, wanted = zip(*cases.values(), strict=True)
    found = imitate.AnswerMatch(tok)(dreams, ends)
    assert dict(zip(cases, found.tolist(), strict=True)) == dict(zip(cases, wanted, strict=True))


def test_the_hidden_cosine_is_that_of_the_means_over_true_tokens(model, grown):
    params, _ = grown(model)
    dreams, ends = [[7, 8, 9], [7, 8, 9], [10, 11]], [[7, 8, 9], [20, 21, 22, 23, 24], [11, 12, 13]]
    hidden = jax.jit(lambda x_BT: model.apply(params, x_BT).hidden_BTD)

    def mean(ids):
        h_D = np.asarray(hidden(rollout.padded([ids], 64)[0]))[0, : len(ids)].astype(np.float64).mean(0)
        return h_D / np.linalg.norm(h_D)

    cosines = np.array([mean(d) @ mean(e) for d, e in zip(dreams, ends, strict=True)])
    assert cosines[0] == pytest.approx(1) and (np.abs(cosines[1:] - 1) > 0.01).all()
    reward = imitate.HiddenCosine(model, params, 0.9999)
    assert reward(dreams, dreams).tolist() == [1, 1, 1]
    for threshold in (0.9999, *(np.sort(cosines[1:]) + 0.001), cosines[1:].min() - 0.001):
        reward.threshold = threshold
        assert reward(dreams, ends).tolist() == (cosines >= threshold).tolist(), threshold


@dataclasses.dataclass(frozen=True, eq=False)
class Stub:
    config: object
    apply: object
    unembed: object


def test_the_judge_weighs_yes_against_no_behind_the_question(tok):
    """The stub says yes at <ans> if "whale" was read twice before, and shouts yes everywhere else."""
    whale, yes, no = (tok.encode(f" {w}") for w in ("whale", "yes", "no"))
    assert len(whale) == 1

    def apply(params, tokens_BT, *, memory):
        assert [*params] == ["frozen"] and [*memory] == ["resting"]
        read_BT = jnp.cumsum(tokens_BT == whale[0], axis=1)
        sure_BT = jnp.where(tokens_BT == tok.ans, read_BT - 1.5, 99.0)
        logits_BTV = jax.nn.one_hot(yes[0], 300) * sure_BT[..., None]
        return Output(None, logits_BTV.at[..., no[0]].set(0.0), None, None)

    config = types.SimpleNamespace(max_len=96)
    stub = Stub(config, apply, lambda params, logits_BTV: logits_BTV)
    judge = imitate.Judge(stub, {"frozen": 1.0}, tok, {"resting": 1.0})
    dreams = [tok.encode(f" {w}") for w in ("whale", "whale", "it", "no")]
    ends = [tok.encode(f" {w}") for w in ("blue whale", "it", "whale", "yes")]
    assert judge(dreams, ends).tolist() == [1, 0, 0, 0]
    long = whale + tok.encode(" it sings" * 40)
    assert judge([long], [long]).tolist() == [1], "of two that are too long each keeps its beginning"
    assert judge([long], [long[1:]]).tolist() == [0]
    with pytest.raises(ValueError, match="leaves no room for two texts in model.max_len=8: raise it"):
        imitate.Judge(dataclasses.replace(stub, config=types.SimpleNamespace(max_len=8)), {}, tok)


def test_a_tokenizer_that_cannot_tell_yes_from_no_is_an_error(model):
    with pytest.raises(ValueError, match='semantic="judge".*begin with the same token'):
        imitate.Judge(model, {}, Tokenizer.train(["abc"], 300))


@pytest.mark.parametrize(
    "settings_, wanted",
    [
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"samples": 1}, "samples=1"),
        ({"prompts": 3}, "prompts=3"),
        ({"width": 24, "max_new": 24}, "width=24.*max_new=24"),
    ],
)
def test_a_setting_out_of_range_is_named(settings_, wanted):
    with pytest.raises(ValueError, match=f"sleep.imitate.{wanted}"):
        ImitateConfig(**settings_)


def test_what_is_sampled_must_fit_into_the_model(model):
    memory = dataclasses.replace(model.memory_config, periods=(64,))
    recall = RecallConfig(max_new=16)
    sleep = settings.SleepConfig(recall=recall, imitate=ImitateConfig(max_new=24, width=48))
    short = dataclasses.replace(model.config, max_len=24)
    with pytest.raises(ValueError, match="sleep.imitate.max_new=24.*model.max_len=24"):
        settings.Config(row_length=16, model=short, memory=memory, sleep=sleep)


# Practice.


def test_cuts_leave_one_to_max_new_tokens_and_a_prompt_that_fits():
    draw = np.random.default_rng(0)

    def cut(n, max_new, width):
        return imitate._cut(draw, encoding.Encoded(np.arange(n), 1), max_new, width - max_new)

    for _ in range(1000):
        width = int(draw.integers(2, 12))
        max_new = int(draw.integers(1, width))
        n = int(draw.integers(2, width + 1))
        at = cut(n, max_new, width)
        assert 1 <= at <= width - max_new and 1 <= n - at <= max_new
    assert {cut(10, 4, 11) for _ in range(50)} == {6, 7}, "every cut that is allowed comes up"
    assert {cut(3, 4, 11) for _ in range(50)} == {1, 2}


@pytest.fixture(scope="module")
def lessons(tok):
    """Old dreams hold "whale" and no "sings", new ones the other way round; one is too long to practise."""
    texts = ["blue whale", "the whale", "whale"], ["it sings", "sings", "no it sings"]
    old, new = ([encoded(tok, "what?", t) for t in part] for part in texts)
    return old, [*new, encoded(tok, "what?", "sings " * 14)]


def encoded(tok, prompt, answer):
    return encoding.encode_answering(tok, Example(prompt, answer))


def by_parity(dreams, ends):
    """A semantic reward that tells the babble of an untrained model apart."""
    del dreams
    return np.array([sum(e) % 2 for e in ends], np.float32)


@pytest.fixture(scope="module")
def bed(model, tok, grown, lessons):
    """`bed(**changes) -> Practiser`: birth and night 1 teach the old, the awake self the new."""
    params, memory = grown(model)
    past = selves.earlier([Slot(0, 1, (1,), ("day 1",), 10, 5)], (1, 4), "birth", 20)
    memory = memory_lib.with_active(memory, past[-1].active)
    awake = selves.awake(past, "day 2", 10)
    slot = read_slot(memory, 0, 2)
    student = memory_lib.rest(memory)
    score = consolidate.scorer(model)
    old, new = lessons

    def make(**changes):
        return imitate.Practiser(
            **{
                "model": model,
                "tok": tok,
                "params": params,
                "memory": memory,
                "student": lambda slot: (params, memory_lib.write_slot(student, slot, 0, 2)),
                "pools": ([(past[0], old[:1]), (past[1], old[1:])], [(awake, new)]),
                "semantic": by_parity,
                "config": CONFIG,
                "score": score,
                "seed": 5,
            }
            | changes
        )

    return types.SimpleNamespace(make=make, slot=slot, past=past, awake=awake)


@pytest.fixture(scope="module")
def practised(bed):
    """Round 3 of a practiser, with what was sampled and who taught."""
    seen = {}
    generate, teach = rollout.generate, imitate.Practiser._teach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            imitate.rollout, "generate", lambda *a, **k: seen.setdefault("rollout", generate(*a, **k))
        )

        def spy(self, tokens_BT, teachers):
            seen["teachers"] = teachers
            return teach(self, tokens_BT, teachers)

        patch.setattr(imitate.Practiser, "_teach", spy)
        practice, shown = bed.make().round(bed.slot, 3)
    return types.SimpleNamespace(practice=practice, shown=shown, **seen)


def test_a_round_is_a_function_of_seed_and_number_alone(bed, practised, monkeypatch):
    keys, generate = [], rollout.generate

    def spy(model, params, memory, prompts, key, sampling, **options):
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return generate(model, params, memory, prompts, key, sampling, **options)

    monkeypatch.setattr(imitate.rollout, "generate", spy)
    again = bed.make()
    other, _ = again.round(bed.slot, 4)
    practice, shown = again.round(bed.slot, 3)
    for a, b in zip(jax.tree.leaves(practice), jax.tree.leaves(practised.practice), strict=True):
        np.testing.assert_array_equal(a, b)
    assert shown == practised.shown
    elsewhere, _ = bed.make(seed=6).round(bed.slot, 3)
    assert len(set(keys)) == 3, "rounds are sampled with the same numbers"
    for different in (other, elsewhere):
        assert (different.tokens_BT != practice.tokens_BT).any()


def test_advantages_sum_to_zero_over_the_samples_of_each_prompt(practised):
    advantage_PG = practised.practice.advantage_B.reshape(-1, CONFIG.samples)
    assert len(advantage_PG) == CONFIG.refresh * CONFIG.prompts
    np.testing.assert_allclose(advantage_PG.sum(1), 0, atol=1e-6)
    assert np.abs(advantage_PG).max() > 0, "no two samples were told apart"


def test_each_step_finishes_as_many_old_dreams_as_new_and_samples_of_a_prompt_stand_together(
    practised, lessons
):
    practice = practised.practice
    prompts = []
    for tokens_T, sampled_T in zip(practice.tokens_BT, practice.sampled_BT, strict=True):
        assert set(np.diff(np.flatnonzero(sampled_T))) <= {1}
        prompts.append(tokens_T[: int(np.argmax(sampled_T)) + 1].tolist())  # the last true token predicts
        assert 1 <= sampled_T.sum() <= CONFIG.max_new
    groups = [prompts[i : i + CONFIG.samples] for i in range(0, len(prompts), CONFIG.samples)]
    assert all(g == [g[0]] * CONFIG.samples for g in groups)
    half = CONFIG.prompts // 2
    for i, (prompt, *_) in enumerate(groups):
        pool = lessons[i % CONFIG.prompts >= half]
        matching = [e for e in pool if e.tokens[: len(prompt)].tolist() == prompt]
        assert any(1 <= len(e.tokens) - len(prompt) <= CONFIG.max_new for e in matching), (i, prompt)
    awake = [t.awake for t in practised.teachers]
    assert awake == ([False] * half * CONFIG.samples + [True] * half * CONFIG.samples) * CONFIG.refresh


def test_practice_marks_the_positions_whose_next_token_was_sampled(bed, practised, model):
    practice, out = practised.practice, practised.rollout
    params, student = bed.make().student(bed.slot)
    hidden_BTD = bed.make().score(imitate.PRACTICE, params, student, None, practice.tokens_BT)
    logits_BTV = model.unembed(params, hidden_BTD)
    logps_BT = np.asarray(token_logps(logits_BTV, np.pad(practice.tokens_BT[:, 1:], ((0, 0), (0, 1)))))
    marked_BT = practice.sampled_BT[:, :-1] == 1
    np.testing.assert_allclose(logps_BT[:, :-1][marked_BT], out.logps_BT[:, 1:][marked_BT], atol=1e-4)
    assert practice.sampled_BT.sum() == out.sampled_BT.sum() and not practice.sampled_BT[:, -1].any()
    assert practised.shown["length"] == pytest.approx(out.sampled_BT.sum(1).mean())


def test_each_row_is_taught_by_its_own_teacher_and_by_no_other(bed, practised):
    practiser, tokens_BT = bed.make(), practised.practice.tokens_BT
    hidden = practised.practice.hidden_BTD
    assert {t.name for t in practised.teachers} == {"birth", "night 1", "awake"}
    teachers = [*bed.past, bed.awake]
    alone = {
        t.name: np.asarray(
            practiser.score(
                imitate.PRACTICE, practiser.params, selves.seen_by(practiser.memory, t), t.adapter, tokens_BT
            )
        )
        for t in teachers
    }
    for i, teacher in enumerate(practised.teachers):
        for name, hidden_BTD in alone.items():
            apart = np.abs(hidden_BTD[i] - hidden[i]).max()
            assert (apart < 1e-4) == (name == teacher.name), (teacher.name, name, apart)


def test_without_dreams_short_enough_in_one_pool_the_other_is_practised(bed, lessons, monkeypatch):
    old, new = lessons
    for pools in (([(bed.past[0], old)], []), ([(bed.past[0], old)], [(bed.awake, new[-1:])])):
        practice, _ = bed.make(pools=pools).round(bed.slot, 0)
        assert len(practice.tokens_BT) == CONFIG.refresh * CONFIG.prompts * CONFIG.samples
    with pytest.raises(ValueError, match="into the 20 tokens of sleep.imitate.width"):
        bed.make(pools=([], [(bed.awake, new[-1:])])).round(bed.slot, 0)


def test_a_stage_hands_out_the_steps_of_a_round_and_samples_anew_after_it(bed, practised, monkeypatch):
    rows = CONFIG.prompts * CONFIG.samples
    calls = []

    def round_(self, trainable, number):
        calls.append((trainable, number))
        return practised.practice, {"reward": float(number)}

    monkeypatch.setattr(imitate.Practiser, "round", round_)
    account = Account()
    stage = bed.make().stage(lambda: account)
    for step in range(5):
        batch, shown = stage(step, f"slot at {step}", "lesson")
        first = step % CONFIG.refresh * rows
        assert batch["lesson"] == "lesson" and shown == {"reward": step // 2}
        wanted = jax.tree.map(lambda x, first=first: x[first : first + rows], practised.practice)
        jax.tree.map(np.testing.assert_array_equal, batch["practice"], wanted)
    assert stage(4, "slot", None)[0].keys() == {"practice"}
    assert calls == [("slot at 0", 0), ("slot at 2", 1), ("slot at 4", 2)]
    assert account.dreamt == 3 * practised.practice.sampled_BT.sum()
