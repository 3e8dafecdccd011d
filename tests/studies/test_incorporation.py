"""The study of passages from end to end, at the size of a test; what its tables say, test_tables tells."""

import json
import shutil

import lives
import numpy as np
import pytest

from sleep_jax.data import dreams as text
from sleep_jax.data.stream import Example
from sleep_jax.sleep import dream
from sleep_jax.sleep.dream import Dreamt
from sleep_jax.studies import incorporation

SMALL = {
    "study": "incorporation",
    "method": "base,own,sleep",
    "stream": {"days": 1},
    "model": {"max_len": 96},
    "memory": {"slots": 4},
    "passages": {
        "train": 1,
        "single": 1,
        "continued": 2,
        "edits": 2,
        "steps_for_one": 6,
        "steps_for_many": 4,
    },
    "rem": {"trials": {"rank": 4, "steps": 80, "at_once": 4}, "recount": 2},
}


@pytest.fixture
def dreaming(monkeypatch):
    """A dreamer who says of every passage what it will be asked, each time in other words before it."""

    def imagine(who, dreamer, tasks, config, key):
        made = []
        for task in tasks:
            for n in range(config.per_context):
                says = tuple(Example(q.prompt, q.answer) for q in task.questions)
                said = text.write([*says, Example("", f"{n} times")])
                made.append(Dreamt(task, "free", task.context, said, tuple(text.read(said))))
        return made

    monkeypatch.setattr(dream, "imagine", imagine)


def parts(root, arm):
    names = ("rounds", *incorporation.PARTS)
    return {
        n: json.loads((root / arm / f"{n}.json").read_text())
        for n in names
        if n != "rounds" or arm == "sleep"
    }


def test_every_arm_takes_in_passages_and_is_asked_without_them(born, compiled, dreaming, tmp_path, capsys):
    config = lives.config(birth={"checkpoint": str(born)}, **SMALL)
    with lives.quick(compiled):
        results = incorporation.run(config, str(tmp_path))
    assert [(r["arm"], r["seed"]) for r in results] == [
        (arm, tmp_path.name) for arm in ("base", "own", "sleep")
    ]
    ended = [n["outcome"] for part in incorporation.PARTS for n in results[-1][part]["nights"]]
    assert ended == ["committed"] * 4
    share = {r["arm"]: np.mean(r["single"]["hits"]) for r in results}
    assert share["base"] < share["own"] == 1, "an instance answers what its dream has told it"
    for r in results:
        read = r["arm"] != "base"
        assert [len(r[p]["hits"]) for p in ("single", "continued", "edits")] == [1, 2, 1 + 2 * read]
        assert len(r["continued"]["elsewhere"]) == 2 and len(r["edits"]["elsewhere"]) == 1 + 2 * read
        assert r["edits"]["hits"][0] == results[0]["continued"]["hits"], "before any edit all are as base"
    rounds = results[-1]["rounds"]
    assert [one["rewarded"] for one in rounds] == [2] and not results[1]["rounds"], "sleep learns to dream"
    nights = [p.name for p in (tmp_path / "sleep" / "dreams").iterdir()]
    told = "round-1", "single-dreams", "single-02", "continued-02", "edits-2-dreams", "edits-03"
    assert {f"{name}.jsonl" for name in told} <= set(nights)
    assert "Rewarded dreams" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Passages" in page and "What was tried" in page

    lived = map(json.loads, (tmp_path / "sleep" / "metrics.jsonl").read_text().splitlines())
    taken = [(line["phase"], line["step"]) for line in lived]
    assert max(n for phase, n in taken if phase == "single") == 6, "steps_for_one"
    assert max(n for phase, n in taken if phase == "continued") == 4, "steps_for_many"

    before = {arm: parts(tmp_path, arm) for arm in share}
    lines = (tmp_path / "sleep" / "metrics.jsonl").read_text()
    for left in ("continued.json", "edits.json", "phases/002-continued", "phases/003-edits"):
        path = tmp_path / "sleep" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with lives.quick(compiled):
        assert incorporation.run(config, str(tmp_path)) == results, "the same, for it was done or done again"
    assert {arm: parts(tmp_path, arm) for arm in share} == before
    assert (tmp_path / "sleep" / "metrics.jsonl").read_text() == lines


def test_what_cannot_be_studied_is_refused_with_its_key(born, tmp_path):
    def refused(match, **changes):
        config = lives.config(**lives.changed(SMALL, birth={"checkpoint": str(born)}, **changes))
        with pytest.raises(ValueError, match=match):
            incorporation.run(config, str(tmp_path / "x"))

    refused(r"'slep'\] are not arms of base, passage", method="sleep,slep")
    refused("10001 passages make .* lower one of them", passages={"single": 10_000})
