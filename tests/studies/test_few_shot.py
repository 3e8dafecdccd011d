"""The study of puzzles from end to end, at the size of a test; what its tables say, test_tables tells."""

import json
import os
import pathlib
import shutil

import lives
import numpy as np
import pytest

from sleep_jax.data import puzzles
from sleep_jax.sleep import dream
from sleep_jax.studies import few_shot

DATA = pathlib.Path(os.environ.get("SLEEP_JAX_DATA", "../shared/data"))
SMALL = {
    "study": "few_shot",
    "method": "icl,ttt,seal,sleep",
    "vocab_size": 262,
    "row_length": 192,
    "answer_tokens": 16,
    "checkpoint_every": 1000,
    "stream": {"source": "puzzles", "puzzles": 8, "strangers": 4, "families": ["keep"], "sides": [3, 3]},
    "model": {"max_len": 208},
    "memory": {"periods": (192,), "slots": 3},
    "birth": {"epochs": 2, "batch_rows": 4, "prompt_weight": 0.5},
    "sleep": {
        "recall": {"max_new": 180, "answer_max_new": 16},
        "skill_share": 0.5,
        "steps": 4,
        "seed": {"alpha": 1.0, "on_policy": 0.0},
    },
    "puzzles": {
        "families": ["edge"],
        "steps": 1,
        "train": 2,
        "given": 2,
        "tries": 2,
        "copies": 2,
        "votes": 2,
    },
    "rem": {
        "roles": ["regimen"],
        "reread": False,
        "recount": 0,
        "rounds": 1,
        "per_context": 3,
        "max_new": 72,
        "trials": {"rank": 2, "steps": 2, "batch_rows": 1, "at_once": 4},
    },
}


@pytest.fixture
def solving(monkeypatch):
    """Trials that are all solved but the first of every puzzle, whatever the model says of grids."""
    given = dream.attempt

    def attempt(who, start, made, config):
        given(who, start, made, config)
        tried = [d for d in made if not d.reason]
        for d in tried:
            first = next(x for x in tried if x.task is d.task)
            d.before, d.after = 0.0, float(d is not first)
            d.difference = d.after

    monkeypatch.setattr(dream, "attempt", attempt)


def test_every_arm_takes_the_puzzles_it_has_never_seen(compiled, solving, tmp_path, capsys):
    config = lives.config(**SMALL)
    with lives.quick(compiled):
        results = few_shot.run(config, str(tmp_path))
    assert [r["arm"] for r in results] == ["icl", "ttt", "seal", "sleep"]
    found = {r["arm"]: r for r in results}
    assert found["icl"]["tasks"]["solved"] == [[hit] for hit in found["icl"]["tasks"]["in_context"]]
    for arm in ("ttt", "seal", "sleep"):
        assert found[arm]["tasks"]["solved"] == [[True, False]] * 2
        dreams = [json.loads(line) for line in (tmp_path / arm / "dreams" / "given.jsonl").open()]
        assert len([d for d in dreams if not d["reason"]]) == 4
    said = {d["text"] for d in map(json.loads, (tmp_path / "ttt" / "dreams" / "given.jsonl").open())}
    assert said == {config.puzzles.regimen}
    assert [one["rewarded"] for one in found["seal"]["rounds"]] == [2] and not found["ttt"]["rounds"]
    assert [one["dreamt"] for one in found["sleep"]["rounds"]] == [6]
    (night,) = found["sleep"]["tasks"]["nights"]
    assert night["outcome"] == "committed" and not found["seal"]["tasks"]["nights"]
    kept = [json.loads(line) for line in (tmp_path / "sleep" / "dreams" / "puzzles-01.jsonl").open()]
    awake = [d for d in kept if d["teacher"].startswith("awake")]
    assert {d["credited"] for d in awake} == {"edge 0", "edge 1"}
    assert all(0 <= share <= 1 for r in results for share in r["tasks"]["birth"])
    assert "Rewarded dreams" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Puzzles" in page and "What was tried" in page

    def written():
        return [p.read_text() for p in sorted((tmp_path / "sleep" / "dreams").iterdir())]

    before = written()
    for phase in ("001-dreamer", "002-given"):
        shutil.rmtree(tmp_path / "sleep" / "phases" / phase)
    (tmp_path / "sleep" / "tasks.json").unlink()
    with lives.quick(compiled):
        assert few_shot.run(config, str(tmp_path)) == results, "the same, for it was done or done again"
    assert written() == before


def test_puzzles_that_do_not_fit_and_trials_that_break_are_not_solved(
    compiled, tmp_path, monkeypatch, capsys
):
    """One held-out puzzle is too long, and every trial of the other breaks: the study ends as any other."""
    wide = puzzles.generated((5,), 1, ["edge"], sides=(6, 6))
    given = few_shot.puzzles_of(lives.config(**SMALL))
    monkeypatch.setattr(few_shot, "puzzles_of", lambda config: (given[0], (given[1][0], *wide)))
    broken = lives.changed(SMALL, method="icl,ttt", rem={"trials": {"optim": {"lr": 1e-45}}})
    with lives.quick(compiled):
        icl, ttt = few_shot.run(lives.config(**broken), str(tmp_path))
    assert icl["tasks"]["solved"] == [[False], [False]] and ttt["tasks"]["solved"] == [[False, False]] * 2
    said = capsys.readouterr().out
    assert f"puzzle {wide[0].name} is left out and counts as not solved: it takes" in said
    dreams = [json.loads(line) for line in (tmp_path / "ttt" / "dreams" / "given.jsonl").open()]
    assert {d["reason"].split(":")[0] for d in dreams} == {"its adapter did not move"}

    monkeypatch.setattr(few_shot, "puzzles_of", lambda config: (given[0], wide))
    none = lives.config(**lives.changed(broken, method="own"))
    with lives.quick(compiled), pytest.raises(ValueError, match="held out fits: raise row_length"):
        few_shot.run(none, str(tmp_path))


def test_an_arm_that_breaks_has_no_row_and_the_others_go_on(compiled, tmp_path, monkeypatch, capsys):
    whole = few_shot.dream.attempt

    def attempt(who, start, made, config):
        if made[0].text == lives.config(**SMALL).puzzles.regimen:
            raise FloatingPointError("it broke")
        whole(who, start, made, config)

    monkeypatch.setattr(dream, "attempt", attempt)
    config = lives.config(**lives.changed(SMALL, method="ttt,own"))
    with lives.quick(compiled):
        assert [r["arm"] for r in few_shot.run(config, str(tmp_path))] == ["own"]
    assert "ttt · seed 0 ends here, without a row in the tables: it broke" in capsys.readouterr().out


def test_without_a_reward_nothing_is_kept_and_the_study_goes_on(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(dream, "rewarded", lambda made: [])
    with lives.quick(compiled):
        (found,) = few_shot.run(lives.config(**(SMALL | {"method": "sleep"})), str(tmp_path))
    (night,) = found["tasks"]["nights"]
    assert night["outcome"] == "rolled back" and "nothing to keep" in night["reason"]
    assert np.shape(found["tasks"]["solved"]) == (2, 2)
    assert found["tasks"]["birth"][0] == found["tasks"]["birth"][1]


@pytest.mark.skipif(not (DATA / "arc_agi1").exists(), reason=f"no arc_agi1 in {DATA}")
def test_the_puzzles_of_arc_are_seals_and_settings_are_chosen_on_others():
    arc = lives.changed(SMALL, data_dir=str(DATA), puzzles={"source": "arc", "train": 11, "given": 8})
    train, given = few_shot.puzzles_of(lives.config(**arc))
    assert [t.name for t in train] == list(puzzles.SEAL["training"])
    assert [t.name for t in given] == list(puzzles.SEAL["evaluation"])
    _, chosen_on = few_shot.puzzles_of(lives.config(**lives.changed(arc, stream={"probes": "valid"})))
    names = {t.name for t in chosen_on}
    assert len(names) == 8 and not names & {*puzzles.SEAL["training"], *puzzles.SEAL["evaluation"]}


def test_generated_puzzles_of_one_part_are_not_those_of_another():
    _, test = few_shot.puzzles_of(lives.config(**SMALL))
    train, valid = few_shot.puzzles_of(lives.config(**lives.changed(SMALL, stream={"probes": "valid"})))
    told = [{p.asked for p in of} for of in (train, valid, test)]
    assert not told[0] & told[1] and not told[1] & told[2] and not told[0] & told[2]


def test_what_cannot_be_studied_is_refused_with_its_key(tmp_path):
    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            few_shot.run(lives.config(**lives.changed(SMALL, **changes)), str(tmp_path / "x"))

    refused(r"'slep'\] are not arms of icl, ttt", method="sleep,slep")
    refused("rem.reread=True", rem={"reread": True})
    refused("'spin'", puzzles={"families": ["spin"]})
    refused("no regimen, such as 'change by", puzzles={"regimen": "change by luck"})
    refused(r"sides=\(2, 3\)", stream={"sides": [2, 3]})
    refused("stream.puzzles=0", stream={"puzzles": 0})
