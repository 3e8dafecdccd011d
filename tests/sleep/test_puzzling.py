"""Puzzles as tasks: what a dream of one gives to learn, and when it counts as solved."""

import dataclasses

import jax
import numpy as np
import pytest

from sleep_jax.data import grids, puzzles, regimens
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import lora
from sleep_jax.sleep import dream, graders
from sleep_jax.sleep.dream import DreamConfig, Sleeper
from sleep_jax.sleep.puzzling import PuzzleTask, grammar_of
from sleep_jax.sleep.trials import How, TrialConfig

MADE = puzzles.generated((1,), 2, ["recolour", "keep"], sides=(3, 3))
TASKS = [PuzzleTask.of(p, 3, 4, (i,)) for i, p in enumerate(MADE)]
CONFIG = DreamConfig(
    roles=("regimen",), per_context=4, top=2, random=1, reread=False, recount=0, max_new=80, batch_size=8,
    trials=TrialConfig(rank=2, alpha=4.0, steps=4, batch_rows=1, at_once=4),
)  # fmt: skip
EXACT = graders.BY_TEXT["exact"]


@pytest.fixture(scope="module")
def who(tiny, grown):
    tok = Tokenizer.train([" 0123456789 > |"], 262)
    model = tiny(vocab_size=tok.vocab_size, max_len=256, heads=2, kv_heads=1, head_size=8)
    params, memory = grown(model)
    return Sleeper(model, tok, params, memory, 192, 16, grammar_of(tok, model.config.vocab_size))


def test_a_dream_is_a_regimen_whatever_the_model_is(who):
    made = dream.imagine(who, None, TASKS, CONFIG, jax.random.key(0))
    assert len(made) == 8 and not any(d.reason for d in made)
    for i, d in enumerate(made):
        regimen = regimens.read(d.text)
        draw = np.random.default_rng([i // 4, 1, i % 4])
        assert d.says == tuple(regimens.copies(d.task.puzzle, regimen, 4, draw))
        assert d.how == How(regimen.rate, regimen.share, float(regimen.learn == "all"))
    assert len({d.text for d in made}) > 1


def test_dreams_that_say_the_same_are_trials_of_their_own(who):
    copies = {TASKS[0].read(regimens.write(regimens.Regimen()), n)[0] for n in range(3)}
    assert len(copies) == 3
    assert TASKS[0].read("nothing", 0) == ((), How())


def test_what_is_dreamt_is_selected_tried_and_graded(who):
    made = dream.imagine(who, None, TASKS, CONFIG, jax.random.key(1))
    start = lora.init(who.model.config, 2, jax.random.key(2))
    dream.select(who, start, made, CONFIG, jax.random.key(3))
    assert [d.reason for d in made].count("not selected") == 2
    dream.attempt(who, start, made, CONFIG)
    tried = [d for d in made if not d.reason]
    assert len(tried) == 6 and all(d.after in (0.0, 1.0) and d.before == 0.0 for d in tried)


def test_a_question_is_asked_under_every_change_and_answered_by_their_vote():
    task, pair = TASKS[0], MADE[0].asked[0]
    assert len(task.questions) == 3 and task.questions[0] == grids.questions(MADE[0])[0]
    right = [q.answer for q in task.questions]
    assert [grids.read(a) for a in right] == [v(pair.wanted) for v in task.votes]
    assert task.graded(right, EXACT).tolist() == [1.0]
    assert task.graded([right[0], right[1], "000 000 000"], EXACT).tolist() == [1.0]
    assert task.graded(["000 000 000", right[1], right[2]], EXACT).tolist() == [1.0]
    wrong = [grids.write(v(grids.read("111 111 111"))) for v in task.votes]
    assert task.graded([right[0], *wrong[1:]], EXACT).tolist() == [0.0]
    assert task.graded(["", "no grid", "1"], EXACT).tolist() == [0.0]


def test_two_questions_of_a_puzzle_have_a_grade_each():
    both = dataclasses.replace(MADE[0], asked=(MADE[0].asked[0], MADE[0].shown[0]), shown=MADE[0].shown[1:])
    task = PuzzleTask.of(both, 2, 4, (0,))
    right = [q.answer for q in task.questions]
    assert len(right) == 4 and task.graded(right, EXACT).tolist() == [1.0, 1.0]
    assert task.graded([*right[:2], "1", "2"], EXACT).tolist() == [1.0, 0.0]


def test_the_context_reads_as_its_demonstrations_asked_for_under_every_change():
    task, puzzle = TASKS[0], MADE[0]
    asked = task.reading()
    assert [grids.read(q.answer) for q in asked] == [v(p.wanted) for v in task.votes for p in puzzle.shown]
    hidden = grids.write(puzzle.asked[0].given)
    assert asked[0].prompt.strip() and not any(hidden in q.prompt for q in asked[: len(puzzle.shown)])


def test_what_a_context_would_be_helped_by_is_its_answers_not_its_prompts(who, monkeypatch):
    seen = []

    def importance(*args):
        seen.append(args[-2].weights_BT.sum())
        return real(*args)

    real = dream.importance
    monkeypatch.setattr(dream, "importance", importance)
    made = dream.imagine(who, None, TASKS, CONFIG, jax.random.key(1))
    dream.select(who, lora.init(who.model.config, 2, jax.random.key(2)), made, CONFIG, jax.random.key(3))
    answers = sum(len(who.tok.encode(" " + q.answer)) + 1 for t in TASKS for q in t.reading())
    assert seen == [answers]


def test_an_instance_is_asked_what_it_learnt_from_and_what_the_puzzle_asks(who):
    (made, *_) = dream.imagine(who, None, TASKS[:1], CONFIG, jax.random.key(0))
    asked = [q.prompt for q in TASKS[0].asked_again([made])]
    assert asked == [*dict.fromkeys(e.prompt for e in made.says), *(q.prompt for q in TASKS[0].questions)]
