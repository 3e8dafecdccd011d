import dataclasses
import math

import jax
import numpy as np
import pytest
from equality import bit_equal
from scipy import special

from sleep_jax import rollout
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import lora
from sleep_jax.optim import OptimConfig
from sleep_jax.sleep import dream, graders, grounding, trials
from sleep_jax.sleep.dream import DreamConfig, Dreamt, Sleeper, Task
from sleep_jax.sleep.importance import Importance
from sleep_jax.sleep.trials import FitConfig, TrialConfig
from sleep_jax.types import Rollout

ROW, LONGEST, KEY = 24, 96, jax.random.key(5)
CONFIG = DreamConfig(
    per_context=3,
    top=1,
    random=1,
    max_new=40,
    random_expert=False,
    trials=TrialConfig(rank=2, alpha=4.0, steps=3, at_once=2, optim=OptimConfig(lr=0.02, warmup=0.0)),
    learn=FitConfig(rank=2, alpha=4.0, epochs=12, batch_rows=1, optim=OptimConfig(lr=0.05, warmup=0.0)),
)
ASKED = (Example("Where is it?", "Bath"), Example("What is it?", "a cat"))
TASKS = [Task("one", "it is in Bath", ASKED), Task("two", "a cat is it", ASKED)]


@pytest.fixture(scope="module")
def who(tiny, grown):
    tok = Tokenizer.train([" where is it? in Bath. what is it -> a cat. free text. yes no"] * 3, 300)
    model = tiny(vocab_size=tok.vocab_size, max_len=LONGEST)
    return Sleeper(model, tok, *grown(model), ROW, 8)


@pytest.fixture(scope="module")
def start(who):
    return lora.init(who.model.config, CONFIG.trials.rank, KEY)


def dreamt(task, text, **fields):
    return Dreamt(task, "free", task.context, text, tuple(dream.text.read(text)), **fields)


@pytest.fixture
def saying(monkeypatch, who):
    """`saying(*texts)`: what is sampled, in order; with … at its end it does not end. Gives the asked."""

    def speak(*texts):
        asked = []

        def generate(model, params, memory, prompts, key, sampling, *, batch_size, adapter, grammar_ZV, kind):
            asked.append((prompts, sampling, adapter))
            tokens, lengths = prompts
            assert len(tokens) == len(texts)
            rows = [
                [
                    *row[:n],
                    *who.tok.encode(" " + text.rstrip("…")),
                    *([] if text.endswith("…") else [who.tok.eos]),
                ]
                for row, n, text in zip(tokens, lengths, texts, strict=True)
            ]
            told, ends = rollout.padded(rows)
            ended = np.array([not text.endswith("…") for text in texts])
            return Rollout(told, np.zeros(told.shape), np.zeros(told.shape), ends, ended)

        monkeypatch.setattr(rollout, "generate", generate)
        return asked

    return speak


def test_every_dream_says_something_or_has_a_reason(who, saying):
    asked = saying("Where? -> Bath", "no end…", "->", "a cat", "a cat", "free text " * 20)
    made = dream.imagine(who, None, TASKS, CONFIG, KEY)
    reasons = ["", "it did not end", "it says nothing", "", "duplicate", ""]  # free text is cut into rows
    assert [d.reason for d in made] == reasons
    assert made[0].says == (Example("Where?", "Bath"),) and [d.task.name for d in made[::3]] == ["one", "two"]
    ((tokens, lengths), sampling, adapter) = asked[0]
    assert who.tok.decode(tokens[0][1 : lengths[0] - 1]).strip() == "it is in Bath"
    assert tokens[0][lengths[0] - 1] == who.tok.ans and sampling.max_new == 40 and adapter is None


def test_lines_that_are_not_grounded_are_struck_and_nothing_else_is(who, saying):
    sleeper = dataclasses.replace(who, common=frozenset({"where", "is"}))
    said = "Where is it? -> Bath\nWhere is Ann? -> Bath\nin Bath it is", "Where? -> Cork", "it is in"
    saying(*said)
    made = dream.imagine(sleeper, None, TASKS[:1], dataclasses.replace(CONFIG, common=0.5), KEY)
    assert made[0].says == (Example("Where is it?", "Bath"), Example("", "in Bath it is"))
    assert [d.struck for d in made] == [1, 1, 0]
    assert [d.reason for d in made] == ["", "nothing of it is grounded", ""]
    saying(*said)
    whole = dream.imagine(sleeper, None, TASKS[:1], CONFIG, KEY)
    assert [len(d.says) for d in whole] == [3, 1, 1] and not any(d.struck for d in whole)


def test_words_are_common_by_the_share_of_dreams_that_use_them():
    shown = (
        Example("Ann of Bath", "Who is Ann? -> a cat"),
        Example("Bo", "Is Bo, Bo a dog?"),
        Example("", "is"),
    )
    assert grounding.common(shown, 1.0) == {"is"}
    assert grounding.common(shown, 0.34) == {"is"} and grounding.common(shown, 0.33) >= {"bo", "ann", "dog"}
    assert "bath" not in grounding.common(shown, 0.01), "words of contexts are not words of dreams"


def test_a_question_that_is_too_long_is_not_tried(who, saying):
    saying("what is it " * 12 + "-> Bath", "a", "b", "c", "d", "e")
    assert dream.imagine(who, None, TASKS, CONFIG, KEY)[0].reason == "a line is longer than row_length=24"


def test_a_context_without_room_is_told_with_both_numbers(who, saying):
    saying("a", "b", "c")
    long = Task("long", "it is in Bath " * 30, ASKED)
    made = dream.imagine(who, None, [long, TASKS[0]], CONFIG, KEY)
    assert [bool(d.reason) for d in made] == [True] * 3 + [False] * 3
    assert "rem.max_new=40 leaves 56 of model.max_len=96" in made[0].reason


def test_no_task_is_an_error(who):
    with pytest.raises(ValueError, match="no task to dream of"):
        dream.imagine(who, None, [], CONFIG, KEY)


def test_a_random_expert_opens_where_the_settings_say_so_and_there_is_memory(who, saying):
    config, nobody = dataclasses.replace(CONFIG, random_expert=True), dataclasses.replace(who, memory=None)
    asked = saying("a", "b", "c")
    for sleeper, settings in ((who, config), (who, CONFIG), (nobody, config)):
        dream.imagine(sleeper, None, TASKS[:1], settings, KEY)
    assert [sampling.random_expert for _, sampling, _ in asked] == [True, False, False]


def test_roles_take_turns_and_the_dreamer_is_scaled(who, saying, start):
    asked = saying("a", "b", "c")
    config = dataclasses.replace(CONFIG, roles=("rewrite", "free"), temperature=0.5, top_p=0.9)
    moved = {k: x + 1 for k, x in start.items()}
    made = dream.imagine(who, moved, TASKS[:1], config, KEY)
    assert [d.role for d in made] == ["rewrite", "free", "rewrite"]
    assert made[0].prompt.endswith("it is in Bath") and made[0].prompt != made[1].prompt
    assert bit_equal(asked[0][2], lora.scaled(moved, 2.0)) == []
    assert (asked[0][1].temperature, asked[0][1].top_p) == (0.5, 0.9)


def ranked(monkeypatch, norms, align, gram):
    def importance(model, config, params, memory, start, rows, validation, of_I):
        assert len(rows.tokens_BT) == len(norms) and len(validation.tokens_BT) == np.shape(align)[1]
        mine = [np.flatnonzero(of_I == v) for v in range(np.shape(align)[1])]
        return [
            Importance(np.array(norms)[i], np.array(align)[i, v], np.array(gram)[np.ix_(i, i)])
            for v, i in enumerate(mine)
        ]

    monkeypatch.setattr(dream, "importance", importance)


@pytest.mark.parametrize(
    ("score", "best"), [("norm", {"b", "e"}), ("cosine", {"a", "d"}), ("greedy", {"a", "e"})]
)
def test_the_best_of_each_context_and_some_others_are_tried(who, start, monkeypatch, score, best):
    one, two = TASKS
    made = [dreamt(one, t) for t in "abc"] + [dreamt(two, t) for t in "def"]
    made[2].reason = "duplicate"
    # The alignment with the other context's gradient must not count.
    align = [[9.0, 0.0], [1.0, 99.0], [99.0, 9.0], [0.0, 12.0], [0.0, 2.0]]
    ranked(monkeypatch, [1.0, 2.0, 3.0, 5.0, 4.0], align, np.eye(5))
    dream.select(who, start, made, dataclasses.replace(CONFIG, score=score, random=0), KEY)
    assert {d.text for d in made if not d.reason} == best
    assert [d.reason for d in made if d.text == "c"] == ["duplicate"] and math.isnan(made[2].norm)
    assert made[0].align == 9.0 and made[3].align == 9.0 and made[4].norm == 5.0


def test_dreams_that_say_the_same_are_worth_less_together(who, start, monkeypatch):
    made = [dreamt(TASKS[0], t) for t in "abc"]
    ranked(monkeypatch, [1.0] * 3, [[3.0], [2.9], [2.0]], 200 * np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]))
    dream.select(who, start, made, dataclasses.replace(CONFIG, score="greedy", top=2, random=0), KEY)
    assert [d.reason for d in made] == ["", "not selected", ""]
    assert made[0].gain > made[2].gain > made[1].gain


@pytest.mark.parametrize("score", ["norm", "cosine", "greedy"])
def test_a_gradient_that_is_not_finite_costs_its_own_dream_alone(who, start, monkeypatch, score):
    made = [dreamt(TASKS[0], t) for t in "abc"] + [dreamt(TASKS[1], t) for t in "de"]
    gram = np.eye(5)
    gram[0] = gram[:, 0] = np.nan
    align = np.array([[np.nan, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, np.nan], [0.0, np.nan]])
    ranked(monkeypatch, [np.inf, 1.0, 1.1, 1.0, 1.0], align, gram)
    dream.select(who, start, made, dataclasses.replace(CONFIG, score=score, top=1, random=0), KEY)
    broken = "its gradient, or that of its context, is not finite"
    assert [d.reason for d in made] == [broken, "not selected", "", broken, broken]
    assert math.isfinite(made[1].gain) and math.isfinite(made[2].gain)


def test_lucky_ones_come_on_top(who, start, monkeypatch):
    kept = set()
    for seed in range(20):
        made = [dreamt(TASKS[0], t) for t in "abcd"]
        ranked(monkeypatch, [4.0, 3.0, 2.0, 1.0], np.zeros((4, 1)), np.eye(4))
        dream.select(who, start, made, CONFIG, jax.random.key(seed))
        tried = [d.text for d in made if not d.reason]
        assert len(tried) == 2 and tried[0] == "a"
        kept.add(tried[1])
    assert kept == {"b", "c", "d"}


@pytest.fixture
def graded(monkeypatch):
    """Trials that are not trained: `graded(answers)` gives what learnt texts answer; returns these texts."""

    def make(answer):
        learnt = []

        def train(model, config, params, memory, start, lesson):
            texts = ["|".join(str(t) for t in row[row > 0]) for row in lesson.rows.tokens_BT]
            learnt.append(texts)
            return {"rows": np.arange(len(texts)) + 10 * len(learnt)}, None

        def answers(model, tok, params, memory, adapters, questions, config, *, max_new):
            return [
                [answer(None if adapters is None else adapters["rows"][i], q) for q in asked]
                for i, asked in enumerate(questions)
            ]

        monkeypatch.setattr(trials, "train", train)
        monkeypatch.setattr(trials, "faults", lambda adapters, start: [""] * len(adapters["rows"]))
        monkeypatch.setattr(trials, "answers", answers)
        return learnt

    return make


def test_a_dream_is_rewarded_where_it_helps_beyond_its_context(who, start, graded):
    # 10, 11 have read a context alone; 20, 21, 22 have dreamt. Of two questions the first is about Bath.
    knows = {10: {"Bath"}, 11: set(), 20: {"Bath", "a cat"}, 21: {"Bath"}, 22: {"a cat"}}
    learnt = graded(lambda i, q: q.answer if q.answer in knows[i] else "?")
    made = [
        dreamt(TASKS[0], "a"),
        dreamt(TASKS[0], "b"),
        dreamt(TASKS[1], "c"),
        dreamt(TASKS[1], "d", reason="x"),
    ]
    dream.attempt(who, start, made, CONFIG)
    assert [(d.before, d.after, d.reward) for d in made[:3]] == [(0.5, 1, 1), (0.5, 0.5, 0), (0, 0.5, 1)]
    assert made[0].difference == 0.5 and made[0].error == pytest.approx(0.5)  # of 0 and 1
    assert math.isnan(made[3].before) and made[3].reason == "x"
    contexts, dreams = learnt
    assert len(contexts) == 2 and len(dreams) == 3
    alone = encoding.encode_text(who.tok, TASKS[0].context, ROW)[0].tokens
    assert "|".join(map(str, alone)) in contexts[0] and "|".join(map(str, alone)) in dreams[0]
    assert dreams[0] != contexts[0]


def test_without_rereading_the_untouched_model_is_what_counts(who, start, graded):
    learnt = graded(lambda i, q: q.answer if i is None else "?")
    made = [dreamt(TASKS[0], "a")]
    dream.attempt(who, start, made, dataclasses.replace(CONFIG, reread=False))
    assert len(learnt) == 1 and made[0].before == 1 and made[0].after == 0 and made[0].reward == 0


def test_a_grader_that_fails_costs_its_dreams_alone(who, start, graded, monkeypatch, capsys):
    graded(lambda i, q: "broken" if i == 21 else q.answer)

    def exact(answers, expected):
        if "broken" in answers:
            raise RuntimeError("no network")
        return graders.evals.matches(answers, expected)

    monkeypatch.setitem(graders.BY_TEXT, "exact", exact)
    made = [dreamt(TASKS[0], "a"), dreamt(TASKS[0], "b")]
    dream.attempt(who, start, made, CONFIG)
    assert [d.reason for d in made] == ["", "the grader failed: no network"] and made[1].reward == 0
    assert "one: the grader failed: no network (on ['broken', 'broken'])" in capsys.readouterr().out
    monkeypatch.setitem(graders.BY_TEXT, "exact", lambda answers, _: [math.nan] * len(answers))
    made = [dreamt(TASKS[0], "a")]
    dream.attempt(who, start, made, CONFIG)
    assert made[0].reason == "tau is not a number" and made[0].reward == 0


def test_a_context_that_breaks_who_reads_it_costs_its_dreams_alone(who, start, graded, monkeypatch):
    graded(lambda i, q: q.answer if i >= 20 else "?")

    def faults(adapters, start):
        return ["is not finite" if row == 11 else "" for row in adapters["rows"]]

    monkeypatch.setattr(trials, "faults", faults)
    made = [dreamt(task, text) for task in TASKS for text in "ab"]
    dream.attempt(who, start, made, CONFIG)
    broken = "the adapter that read its context alone is not finite"
    assert [d.reason for d in made] == ["", "", broken, broken]
    assert [d.reward for d in made] == [1, 1, 0, 0]


def test_a_trial_that_broke_costs_its_dream_alone(who, start, graded, monkeypatch):
    graded(lambda i, q: q.answer if i is None or i >= 20 else "?")
    config = dataclasses.replace(CONFIG, reread=False)
    monkeypatch.setattr(trials, "faults", lambda adapters, start: ["", "is not finite: lower it"])
    made = [dreamt(TASKS[0], "a"), dreamt(TASKS[1], "b")]
    dream.attempt(who, start, made, config)
    assert [d.reason for d in made] == ["", "its adapter is not finite: lower it"]
    assert made[0].before == 1 and math.isnan(made[1].after) and not made[1].reward
    with pytest.raises(FloatingPointError, match="the adapter of 'two' is not finite: lower it"):
        dream.instances(who, start, [(TASKS[0], made[:1]), (TASKS[1], made[1:])], config)


def test_what_the_dreamer_learns_from():
    made = [
        dreamt(TASKS[0], "a", before=0.0, after=0.5),
        dreamt(TASKS[0], "b", before=0.0, after=1.0),
        dreamt(TASKS[0], "c", before=0.0, after=1.0, reason="not selected"),
        dreamt(TASKS[1], "d", before=0.5, after=0.5),
        dreamt(TASKS[1], "e", before=0.5, after=0.5),
    ]
    assert [d.text for d in dream.examples(made, CONFIG)] == ["a", "b"]
    best_of_n = dataclasses.replace(CONFIG, best_of_n=True)
    assert [d.text for d in dream.examples(made, best_of_n)] == ["b", "d"], "one of every context"
    assert [d.text for d in dream.best(dream.rewarded(made))] == ["b"]


def test_the_dreamer_learns_what_to_say_to_a_context(who):
    good = [dreamt(TASKS[0], "a cat in Bath"), dreamt(TASKS[1], "what is it -> free")]
    unmoved, nll = dream.learn(who, None, [], CONFIG, KEY, 0)
    assert unmoved is None and math.isnan(nll)
    dreamer, nll = dream.learn(who, None, good, CONFIG, KEY, 0)

    @jax.jit
    def said_in(adapter, tokens_T):
        scaled = lora.scaled(adapter, CONFIG.learn.scale)
        return who.model.apply(who.params, tokens_T[None], memory=who.memory, adapter=scaled).logits_BTV[0]

    def loss(adapter, prompt, said):
        encoded = encoding.encode_answering(who.tok, Example(prompt, said))
        logps_TV = special.log_softmax(np.asarray(said_in(adapter, encoded.tokens)), axis=-1)
        logps = logps_TV[np.arange(len(encoded.tokens) - 1), encoded.tokens[1:]]
        return -float(logps[encoded.prompt_length - 1 :].mean())

    fresh = lora.init(who.model.config, 2, KEY)
    for d in good:
        assert loss(dreamer, d.prompt, d.text) < 0.7 * loss(fresh, d.prompt, d.text)
    assert nll < 0.7 * loss(fresh, good[0].prompt, good[0].text)


def test_one_adapter_on_all_rows_at_once_is_a_trial_on_them(who, start):
    encoded = [
        encoding.encode_text(who.tok, t, ROW)[0] for t in ("it is in Bath", "a cat is it", "free text")
    ]
    lesson = trials.lessons([encoded], ROW)
    together, nll_IS = trials.train(who.model, CONFIG.trials, who.params, who.memory, start, lesson)
    one = jax.tree.map(lambda x: x[0], lesson.rows)
    fit = FitConfig(2, 4.0, CONFIG.trials.steps, len(one.tokens_BT), CONFIG.trials.optim)
    alone, nll = trials.fit(who.model, fit, who.params, who.memory, start, one, seed=3)
    assert nll == pytest.approx(nll_IS[0, -1], rel=1e-4)
    for name, x in alone.items():
        np.testing.assert_allclose(x, together[name][0], rtol=1e-3, atol=1e-5, err_msg=name)


def test_graders_by_name(who):
    make = lambda name: graders.make(name, who.model, who.params, who.memory, who.tok)  # noqa: E731
    assert make("exact")(["in Bath", "Bath."], ["Bath", "bath"]).tolist() == [False, True]
    assert make("contains")(["in Bath", "?"], ["Bath", "bath"]).tolist() == [True, False]
    assert make("f1")(["in Bath"], ["Bath"]).tolist() == [pytest.approx(2 / 3)]
    verdict = make("judge")(["Bath"], ["Bath"])
    question = [
        who.tok.bos,
        *who.tok.encode(" " + graders.Judge.template.format(a="Bath", b="Bath")),
        who.tok.ans,
    ]
    run = jax.jit(who.model.apply)
    logits_V = run(who.params, np.array([question]), memory=who.memory).logits_BTV[0, -1]
    yes, no = (who.tok.encode(f" {word}")[0] for word in ("yes", "no"))
    assert verdict.tolist() == [float(logits_V[yes] > logits_V[no])]
    with pytest.raises(ValueError, match="'bleu' is not a grader; there are exact, f1, contains, judge"):
        make("bleu")


@pytest.mark.parametrize(
    "bad", [{"roles": ()}, {"per_context": 0}, {"top": 6}, {"top": 0, "random": 0}, {"temperature": 0.0},
            {"top_p": 0.0}, {"grader": "bleu"}, {"roles": ("poem",)}],
    ids=lambda bad: "-".join(bad),
)  # fmt: skip
def test_settings_out_of_range_name_their_key(bad):
    with pytest.raises(ValueError, match=next(iter(bad)) if "roles" not in bad else "roles|role"):
        DreamConfig(**bad)
