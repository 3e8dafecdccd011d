"""Nights taken out of a life: exactly, for good, and refused where one cannot go alone."""

import dataclasses
import json
import subprocess
import sys

import jax
import lives
import numpy as np
import pytest
from equality import bit_equal
from slots import read_slot

from sleep_jax import checkpoint, forgetting, life, settings
from sleep_jax.data import encoding, stream
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.build import build
from sleep_jax.phases import State
from sleep_jax.sleep.selves import Slot

NIGHTS = "000-birth", "001-wake", "001-sleep", "002-wake", "002-sleep"


@pytest.fixture
def quickly(compiled):
    with lives.quick(compiled):
        yield


@pytest.fixture
def ended(lived, begun, tmp_path):
    """The work directory of two days and nights, as `lived`, to be changed."""
    begun(tmp_path, *NIGHTS)
    for name in ("config.json", "summary.json", "slots.json", "retention.csv"):
        (tmp_path / name).write_bytes((lived / name).read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def model(born):
    config = lives.config()
    tok = Tokenizer.load(born / "tokenizer.json")
    return build(dataclasses.replace(config.model, vocab_size=tok.vocab_size), config.memory, eos=tok.eos)


@pytest.fixture(scope="module")
def logits(model, born):
    """`logits(state, memory)` of what was read on the days."""
    days = stream.load(lives.config().stream).days
    tok = Tokenizer.load(born / "tokenizer.json")
    tokens_BT, _ = encoding.prompts(tok, [e for day in days for e in day.train if e.prompt])
    run = jax.jit(lambda params, memory: model.apply(params, tokens_BT, memory=memory).logits_BTV)
    return lambda state, memory: np.asarray(run(state.params, memory))


def at(model, workdir, name=None):
    """The state at a boundary, by default the last."""
    name = name or checkpoint.boundaries(workdir)[-1]
    shapes = (jax.eval_shape(init, jax.random.key(0)) for init in (model.init, model.init_memory))
    arrays, meta = checkpoint.load_boundary(workdir, name, State(*shapes).arrays())
    return State.restore(arrays, meta["state"])


def read(path):
    return json.loads(path.read_text())


def test_the_last_night_taken_out_restores_the_evening_before_bit_for_bit(ended, model, logits):
    evening, morning = at(model, ended, "002-wake"), at(model, ended)
    before = logits(evening, memory_lib.rest(evening.memory))
    forced = memory_lib.force_slot(memory_lib.rest(morning.memory), 0, 1)
    assert (before != logits(morning, forced)).any()  # the night had written something
    said = forgetting.forget(ended, [2])
    after = at(model, ended)
    assert checkpoint.boundaries(ended)[-1] == "002-forget-2"
    assert bit_equal(before, logits(after, memory_lib.rest(after.memory))) == []
    assert bit_equal(evening.params, after.params) == []
    assert not any(np.asarray(x).any() for x in read_slot(after.memory, 0, 1).values())
    assert [s.nights for s in after.slots] == [(1,)] and [s.nights for s in after.forgotten] == [(2,)]
    assert after.retention == morning.retention[:2]
    assert [(n.night, n.outcome) for n in after.nights][-1] == (2, "forgotten")

    slots = {s["night"]: (s["slot"], s["forgotten"]) for s in read(ended / "slots.json")}
    assert slots == {1: (0, False), 2: (1, True)}
    summary = read(ended / "summary.json")
    assert summary["nights"][-1]["outcome"] == "forgotten" and summary["birth_before"] == 1.0
    assert summary["final_accuracy"] is None and summary["experiences"] == {"day 1": None, "day 2": None}
    assert "night 2 (day 2) is out: slot 1 of level 1 is locked and empty" in said
    assert "phases/002-forget-2 stands in for phases/002-sleep" in said
    assert "forgotten" in (ended / "report.html").read_text()


def test_an_earlier_night_leaves_the_later_ones_as_they_are(ended, model, logits):
    morning = at(model, ended)
    forgetting.forget(ended, [1])
    after = at(model, ended)
    assert np.asarray(after.memory.active_LE).tolist() == [[False, True, False]]
    kept = (read_slot(s.memory, 0, 1) for s in (morning, after))
    assert bit_equal(*kept) == []
    masked = memory_lib.with_active(morning.memory, after.memory.active_LE)
    assert bit_equal(logits(morning, masked), logits(after, after.memory)) == []


def test_a_life_goes_on_without_what_was_taken_out_one_night_after_the_other(
    ended, lived, born, model, quickly, capsys
):
    config = settings.load(read(lived / "config.json"))
    forgetting.forget(ended, [2])
    forgetting.forget(ended, [1])
    assert checkpoint.boundaries(ended)[-2:] == ["002-forget-2", "002-forget-1"]
    [summary] = life.run(config, str(ended))  # the same command on a finished life
    assert checkpoint.boundaries(ended)[-1] == "002-forget-1"
    assert [s["forgotten"] for s in read(ended / "slots.json")] == [True, True]
    assert summary.final_accuracy == read(ended / "summary.json")["final_accuracy"] is not None
    assert [n.outcome for n in summary.nights] == ["committed"] * 2 + ["forgotten"] * 2
    assert len((ended / "retention.csv").read_text().splitlines()) == 4
    # With all nights gone, birth and the days are answered as at birth.
    assert summary.birth_after == summary.birth_before

    (ended / "config.json").unlink()  # the same life, one day longer
    for boundary in (ended / "phases").glob("*/meta.json"):
        meta = read(boundary)
        meta["meta"]["state"]["retention"] = [[*row, None] for row in meta["meta"]["state"]["retention"]]
        boundary.write_text(json.dumps(meta))
    longer = lives.config(birth={"checkpoint": str(born)}, stream={"days": 3})
    [summary] = life.run(longer, str(ended))
    assert checkpoint.boundaries(ended)[-3:] == ["002-forget-1", "003-wake", "003-sleep"]
    after = at(model, ended)
    assert [(s.index, s.nights) for s in after.slots] == [(0, (3,))]
    assert [s.nights for s in after.forgotten] == [(2,), (1,)] and len(after.retention) == 4
    assert list(summary.experiences) == ["day 1", "day 2", "day 3"]
    assert "merged" not in capsys.readouterr().out


def test_a_night_can_go_while_the_next_day_is_being_lived(ended, lived, model, quickly):
    checkpoint._remove(ended / "phases" / "002-sleep")
    state = at(model, ended)
    checkpoint.save_rolling(ended, "002-sleep", 2, state.arrays(), {"metrics": 10**6})
    forgetting.forget(ended, [1])
    assert checkpoint.boundaries(ended)[-1] == "002-forget-1" and not list((ended / "ckpt").iterdir())
    after = at(model, ended)
    assert after.retention == state.retention and after.slots == []
    assert bit_equal(after.memory.fast, state.memory.fast) == []
    life.run(settings.load(read(lived / "config.json")), str(ended))
    assert [s.nights for s in at(model, ended).slots] == [(2,)]
    assert checkpoint.boundaries(ended)[-2:] == ["002-forget-1", "002-sleep"]


def rewritten(workdir, **state):
    """The last boundary with another record of what happened."""
    path = workdir / "phases" / checkpoint.boundaries(workdir)[-1] / "meta.json"
    meta = read(path)
    meta["meta"]["state"] |= state
    path.write_text(json.dumps(meta))


ROLLED_BACK = {"night": 3, "experience": "day 3", "outcome": "rolled back", "reason": "the past fell"}


def test_nights_in_one_slot_go_together_or_not_at_all(ended, model):
    merged = dataclasses.asdict(Slot(0, 1, (1, 2), ("day 1", "day 2"), 28, 9))
    rewritten(ended, slots=[merged])
    for night, other in ((1, 2), (2, 1)):
        match = f"night {night} is in one slot with {other}: they can only go together, --night=1,2"
        with pytest.raises(ValueError, match=match):
            forgetting.forget(ended, [night])
    assert "night 1, 2 (day 1, day 2) is out: slot 1" in forgetting.forget(ended, [2, 1, 2])
    assert checkpoint.boundaries(ended)[-1] == "002-forget-1-2"
    assert [n.night for n in at(model, ended).nights[-2:]] == [1, 2]


def test_what_a_night_dreamt_on_goes_with_it(ended, model):
    morning = at(model, ended)
    slots = [*map(dataclasses.asdict, morning.slots)]
    on = {"night": 2, "experience": "day 2", "outcome": "committed", "reason": "", "rem": True}
    nights = read(ended / "phases/002-sleep/meta.json")["meta"]["state"]["nights"]
    dreamt_on = dataclasses.asdict(Slot(0, 2, (2,), ("day 2: 1", "day 2: 2"), 2, 5, rem=True))
    rewritten(ended, slots=[*slots, dreamt_on], nights=[*nights, on | {"experience": "day 2: 2"}])
    said = forgetting.forget(ended, [2])
    after = at(model, ended)
    assert [(s.index, s.rem) for s in after.slots] == [(0, False)]
    assert [(s.index, s.rem) for s in after.forgotten] == [(1, False), (2, True)]
    assert [(n.experience, n.outcome) for n in after.nights[-1:]] == [("day 2", "forgotten")]
    assert "night 2 (day 2) is out: slot 1" in said and "night 2 (day 2: 1, day 2: 2) is out: slot 2" in said


def test_what_cannot_be_taken_out_is_refused_and_nothing_changes(ended):
    nights = read(ended / "phases/002-sleep/meta.json")["meta"]["state"]["nights"]
    in_backbone = {"night": 4, "experience": "day 4", "outcome": "committed", "reason": ""}
    rewritten(ended, nights=[*nights, ROLLED_BACK, in_backbone])
    before = sorted(ended.rglob("*"))
    for night, match in {
        3: r"night 3 was rolled back \(the past fell\): it wrote no slot",
        4: "night 4 wrote no slot: a method without expansion",
        7: "there is no night 7: the nights of this life so far are 1, 2, 3, 4",
    }.items():
        with pytest.raises(ValueError, match=match):
            forgetting.forget(ended, [1, night])
    assert sorted(ended.rglob("*")) == before
    forgetting.forget(ended, [1])
    with pytest.raises(ValueError, match="night 1 was taken out already"):
        forgetting.forget(ended, [1])


def test_a_directory_of_several_lives_names_them(ended, tmp_path):
    root = tmp_path / "several"
    for name in ("sleep", "opsd", "birth"):
        checkpoint.save_boundary(
            root / name, "000-birth", {"x": np.ones(1)}, {"state": {"nights": [], "slots": []}}
        )
    with pytest.raises(ValueError, match="holds several lives: name one of .*several/opsd, .*several/sleep$"):
        forgetting.forget(root, [1])
    with pytest.raises(ValueError, match="so far are none"):
        forgetting.forget(root / "opsd", [1])
    with pytest.raises(
        ValueError, match="holds no life: it must be a directory that launch.main has written"
    ):
        forgetting.forget(tmp_path / "nowhere", [1])


def test_the_command_says_what_it_did_and_what_it_cannot(ended):
    command = [sys.executable, "-m", "launch.forget", f"--workdir={ended}"]
    done = subprocess.run([*command, "--night=2"], capture_output=True, text=True)
    assert done.returncode == 0 and "night 2 (day 2) is out" in done.stdout, done.stderr
    (ended / "config.json").unlink()
    for night, said in {"1": "there is no config.json", "two": "--night=two must be numbers"}.items():
        failed = subprocess.run([*command, f"--night={night}"], capture_output=True, text=True)
        assert failed.returncode and said in failed.stderr + failed.stdout
        assert "Traceback" not in failed.stderr
