"""A life is asked: at its last boundary, before its last sleep, and who of its nights answers."""

import dataclasses
import io
import json
import sys

import jax
import lives
import pytest

from launch import ask
from sleep_jax import asking, rollout, standing
from sleep_jax.data.stream import Example
from sleep_jax.model import memory as memory_lib


@pytest.fixture(scope="module")
def life(lived, born):
    """The life of `lived`; its birth lies where its config.json says."""
    return standing.read(lived)


def known(life):
    """What the life has dreamt of its last night, whole pairs."""
    lines = map(json.loads, (life.workdir / "dreams" / "night-02.jsonl").open())
    return [d["prompt"] for d in lines if d["kept"] and d["prompt"] and d["teacher"] == "awake"]


def test_it_answers_as_its_boundaries_do(life, compiled):
    question = known(life)[0]
    with lives.quick(compiled):
        both = asking.Asker(life, compare=True)
        morning, awake, after = both(question)
        (alone,) = asking.Asker(life)(question)
        evening = life.state("002-wake")
        wanted = [
            rollout.answer(
                life.model, life.tok, state.params, memory, [Example(question, "")],
                max_new=life.config.answer_tokens, batch_size=1,
            )[0]
            for state, memory in (
                (evening, memory_lib.rest(evening.memory)),
                (evening, evening.memory),
                (life.state(), memory_lib.rest(life.state().memory)),
            )
        ]  # fmt: skip
    assert [morning.text, awake.text, after.text] == wanted and alone == after
    assert (morning.when, awake.when) == ("in the morning of 002, before it read", "awake, after 002-wake")
    assert after.when == "after 002-sleep"
    backbones = {id(leaf) for _, state, _ in both.moments for leaf in jax.tree.leaves(state.params)}
    assert len(backbones) == len(jax.tree.leaves(both.moments[0][1].params)), "Sleep never moves it"


def test_the_night_is_named_whose_expert_is_forced_open(life, compiled):
    with lives.quick(compiled):
        asker = asking.Asker(life)
        when, state, memory = asker.moments[0]
        told = {}
        for slot in state.slots:
            others = memory
            for other in state.slots:
                by = 1e6 if other is slot else -1e6
                others = memory_lib.lift_slot(others, other.level, other.index, by)
            asker.moments = [(when, state, others)]
            (said,) = asker(known(life)[0])
            told[slot.nights] = said.by
        closed = memory
        for slot in state.slots:
            closed = memory_lib.lift_slot(closed, slot.level, slot.index, -1e6)
        asker.moments = [(when, state, closed)]
        (said,) = asker(known(life)[0])
    assert told == {(1,): "night 1 (day 1)", (2,): "night 2 (day 2)"}
    assert said.by == "what it was born with"


def test_a_life_that_has_not_slept_since_it_read_has_nothing_to_compare(begun, tmp_path, lived, born):
    workdir = begun(tmp_path / "life", "000-birth", "001-wake", "001-sleep", "002-wake")
    (workdir / "config.json").write_text((lived / "config.json").read_text())
    life = standing.read(workdir)
    with pytest.raises(ValueError, match="has not slept since it read"):
        asking.Asker(life, compare=True)
    assert asking.Asker(life).moments[0][0] == "after 002-wake"


def test_a_life_that_does_not_speak_by_itself_is_not_asked(life):
    reading = dataclasses.replace(life, meta=life.meta | {"of": life.meta["of"] | {"method": ["in_context"]}})
    with pytest.raises(ValueError, match="config.method=in_context, which answers with its days"):
        asking.Asker(reading)


def test_the_prompt_goes_on_after_a_question_that_is_too_long(life, compiled, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where? " * 200 + "\nWhere?\n"))
    asked = []
    while question := ask.read():
        asked.append(question)
    assert len(asked) == 2 and asked[1] == "Where?"
    with lives.quick(compiled):
        asker = asking.Asker(life)
        with pytest.raises(ValueError, match="does not fit into|max_len"):
            ask.tell(asker(asked[0]))
        ask.tell(asker(asked[1]))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "[" in out and "after 002-sleep" not in out
