"""Whole lives, as small as they get: killed and resumed, side by side, with every method, and refused."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import lives
import numpy as np
import pytest
from equality import bit_equal

from configs import clinc150
from sleep_jax import checkpoint, fit, life, methods, metrics, partition, phases, settings, steps, trees
from sleep_jax.data import stream
from sleep_jax.data.stream import Example, Experience
from sleep_jax.types import Mean, TrainState

KILLS = [
    ["line", "wake", 1, 3],
    ["boundary", "001-wake"],
    ["line", "sleep", 1, 3],
    ["write", "001-sleep-000000004"],
]
RECORDS = "metrics.jsonl", "retention.csv", "links.jsonl", "slots.json", "dreams/night-01.jsonl"


@pytest.fixture(autouse=True)
def quickly(compiled):
    with lives.quick(compiled):
        yield


REM_KILLS = [["line", "rem", 1, 3], ["write", "001-rem-000000004"]]


def killed(kills, workdir, born, compiled, method):
    """A life that dies at each of these moments in turn and is begun again."""
    driver = pathlib.Path(lives.__file__)
    command = [sys.executable, str(driver), *map(str, (workdir, born, compiled)), json.dumps(kills), method]
    environment = {**os.environ, "PYTHONPATH": str(driver.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def first_day(workdir):
    return [line for line in metrics.read_jsonl(workdir / "timings.jsonl")[0] if line["cycle"] == 1]


def test_a_life_that_is_killed_again_and_again_is_bit_for_bit_one_that_never_was(
    lived, born, compiled, tmp_path
):
    workdir = tmp_path / "life"
    killed(KILLS, workdir, born, compiled, "sleep")
    assert checkpoint.boundaries(workdir) == checkpoint.boundaries(lived)
    for record in RECORDS:
        assert (workdir / record).read_text() == (lived / record).read_text(), record
    ends = [json.loads((path / "summary.json").read_text()) for path in (workdir, lived)]
    assert ends[0]["tokens"] == ends[1]["tokens"] and ends[0]["flops"] == ends[1]["flops"]
    # It went on in the middle: from step 2, both of the day and of the night.
    once, again = ({t["phase"]: t.get("steps") for t in first_day(path)} for path in (lived, workdir))
    assert [once[k] - again[k] for k in ("wake/fit", "sleep/fit")] == [2, 2]
    last = checkpoint.boundaries(lived)[-1]
    assert bit_equal(lives.arrays(workdir, last), lives.arrays(lived, last)) == []


def test_a_night_that_dreams_on_is_as_whole_and_resumes_as_well(born, compiled, tmp_path, capsys):
    once, again = tmp_path / "once", tmp_path / "again"
    with lives.rewarding():
        life.run(lives.dreaming(str(born)), str(once))
    killed(REM_KILLS, again, born, compiled, "sleep_rem")
    nights = json.loads((once / "summary.json").read_text())["nights"]
    assert [(n["outcome"], n["rem"]) for n in nights] == [("committed", False), ("committed", True)]
    assert "all 4 trials were rewarded: they tell the dreamer nothing" in capsys.readouterr().out
    records = "metrics.jsonl", "slots.json", "dreams/rem-01-round-1.jsonl", "dreams/001-rem-recount.jsonl"
    for record in (*records, "dreams/rem-01.jsonl", "dreams/rem-01-rounds.json"):
        assert (again / record).read_text() == (once / record).read_text(), record
    evening, morning = (lives.arrays(once, f"001-{stage}") for stage in ("sleep", "rem"))
    for path in evening:
        changed = np.asarray(evening[path]) != np.asarray(morning[path])
        slots = path.startswith("memory/bank/") or path == "memory/active_LE"
        if slots:
            assert set(np.nonzero(changed)[path.rpartition("_")[2].index("E")]) == {1}, path
        else:
            assert not changed.any(), path
    assert bit_equal(lives.arrays(again, "001-rem"), morning) == []


def test_a_night_moves_its_own_slot_and_nothing_else(lived):
    for night in (1, 2):
        evening, morning = lives.arrays(lived, f"00{night}-wake"), lives.arrays(lived, f"00{night}-sleep")
        assert (
            bit_equal(
                {k: v for k, v in evening.items() if k.startswith("params/")},
                {k: v for k, v in morning.items() if k.startswith("params/")},
            )
            == []
        )
        for path in (k for k in evening if k.startswith("memory/bank/")):
            changed = np.asarray(evening[path]) != np.asarray(morning[path])
            axis = path.rpartition("_")[2].index("E")
            assert set(np.nonzero(changed)[axis]) == {night - 1}, path
        assert np.asarray(morning["memory/active_LE"]).tolist() == [[True, night == 2, False]]
        assert not any(np.asarray(v).any() for k, v in morning.items() if k.startswith("memory/fast/"))


def test_every_slot_tells_its_share_of_the_answers(lived):
    slots = json.loads((lived / "slots.json").read_text())
    shares = [slot["share_of_answers"] for slot in slots]
    assert [s["night"] for s in slots] == [1, 2] and 0 < sum(shares) <= 1
    assert all(0 <= share <= 1 for share in shares)


class Toy:
    """x follows its gradient to 0; the held-out loss is what the test says."""

    def step(self, state, frozen, batch, key, *, reduce):
        x = state.params["x_L"] * 0.5
        return TrainState(state.step + 1, {"x_L": x}, ()), {"loss": Mean(x.sum(), jnp.float32(1))}


def world(path):
    account = fit.Account()
    part = partition.Partitioner(partition.MeshConfig(), jax.devices()[:1])
    writer = metrics.MetricsWriter(path, life.phases.position(path))
    return fit.World(lives.config(), 0, path, None, None, None, part, writer, account, {})


def toy(path, losses, count=8, phase="001-toy", x=1.0):
    """Runs a fit from x whose held-out losses are given; returns what it says and the lines that it wrote."""
    from sleep_jax.data import pipeline

    given = iter(losses)
    state = TrainState(jnp.int32(0), {"x_L": jnp.full(1, x)}, ())
    batches = pipeline.batches(np.arange(8), 2, 0, epochs=None)
    early = fit.Early(lambda params: next(given), every=2, patience=1)
    here = world(path)
    trained, report = fit.fit(here, phase, 1, Toy().step, state, None, batches, count, early=early)
    return float(trained.params["x_L"][0]), report, (path / "metrics.jsonl").read_text()


def test_a_fit_that_had_stopped_before_the_kill_does_not_go_on(tmp_path):
    first = toy(tmp_path, [1.0, 2.0])
    # The checkpoint of step 4, at which it stopped, is the latest: the phase was killed before its end.
    assert checkpoint.load_rolling(tmp_path, "001-toy", jax.eval_shape(lambda: TOY))[0] == 4
    assert toy(tmp_path, [0.1, 0.1]) == first
    assert first[:2] == (0.25, {"steps": 4, "held_out_kl": 1.0})


TOY = {
    "state": TrainState(jnp.int32(0), {"x_L": jnp.ones(1)}, ()),
    "best": {"x_L": jnp.ones(1)},
}


@pytest.mark.parametrize(
    "phase, rate",
    [
        ("000-birth", "birth.optim.lr"),
        ("001-wake", "wake.lr"),
        ("001-sleep", "sleep.optim.lr"),
        ("012-sleep-merge0", "sleep.optim.lr"),
        ("001-train", "baseline.optim.lr"),
    ],
)
def test_what_is_not_finite_is_told_with_the_rate_to_lower(tmp_path, phase, rate):
    with pytest.raises(FloatingPointError, match=f"^{phase} step 4: the held-out loss is nan: lower {rate}$"):
        toy(tmp_path / "look", [1.0, float("nan")], phase=phase)
    said = rf"^{phase} step 1: not finite: {{'loss': nan}}: lower {rate}$"
    with pytest.raises(FloatingPointError, match=said):
        toy(tmp_path / "loss", [1.0], phase=phase, x=float("nan"))


def test_what_a_resumed_process_repeats_is_not_written_twice(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.write("merge", 1, step, {"x": step})
    with metrics.MetricsWriter(tmp_path, 4) as writer:
        writer.seek(1)
        for step in range(1, 5):
            writer.write("merge", 1, step, {"x": step})
        with pytest.raises(ValueError, match="holds 5 lines, fewer than 6"):
            writer.seek(6)
    assert [line["step"] for line in metrics.read_jsonl(tmp_path / "metrics.jsonl")[0]] == [0, 1, 2, 3, 4]


def test_every_method_lives_a_day_and_tells_what_it_spent(born, tmp_path):
    others = [name for name in methods.METHODS if name != "sleep"]  # which the other tests live
    config = lives.config(
        birth={"checkpoint": str(born)},
        method=",".join(others),
        stream={"days": 1},
        wake={"passes": 1},
        sleep={"steps": 2},
    )
    spent = {s.method: s.tokens for s in life.run(config, str(tmp_path))}
    assert list(spent) == others
    assert len({tokens["source"] for tokens in spent.values()}) == 1
    for name, tokens in spent.items():
        dreams = name.startswith("sleep") or name in ("opsd", "generative_replay")
        assert (tokens["gradient"] > 0, tokens["dreamt"] > 0) == (name != "in_context", dreams), name


def test_a_life_whose_batches_are_split_takes_the_same_steps(born, tmp_path, monkeypatch):
    make, parts, lines = steps.make, [], []

    def spied(objective, optimizer, micro_batches=1):
        parts.append(micro_batches)
        return make(objective, optimizer, micro_batches)

    monkeypatch.setattr(steps, "make", spied)
    for split in (1, 2):
        config = lives.config(
            birth={"checkpoint": str(born)},
            method="sleep,sequential",
            stream={"days": 1},
            sleep={"steps": 3},
            micro_batches=split,
        )
        life.run(config, str(tmp_path / str(split)))
        files = [tmp_path / str(split) / name / "metrics.jsonl" for name in ("sleep", "sequential")]
        lines.append([line for file in files for line in metrics.read_jsonl(file)[0]])
    life.birth(
        lives.config(birth={"epochs": 1}, micro_batches=2), 0, tmp_path / "birth", stream.load(config.stream)
    )
    assert parts == [1, 1, 2, 2, 2], "a night, a day of fine-tuning; a birth"
    phases = [[line.pop("phase") for line in ours] for ours in lines]
    assert phases[0] == phases[1] and {"sleep", "train"} < set(phases[0])
    for whole, split in zip(*lines, strict=True):
        assert split == pytest.approx(whole, rel=1e-3, abs=1e-5)


INTENTS = {
    "kitchen": ["boil_egg", "fry_rice"],
    "garden": ["cut_grass"],
    "harbour": ["moor_boat", "paint_hull", "coil_rope"],
}


@pytest.fixture
def intents(tmp_path):
    """A data set in CLINC150's format: other intents, domains of uneven sizes; the first is birth."""
    folder = tmp_path / "data" / "clinc150"
    folder.mkdir(parents=True)
    (folder / "domains.json").write_text(json.dumps(INTENTS))

    def split(ways):
        return [
            [way.format(*intent.split("_")), intent]
            for domain in INTENTS.values()
            for intent in domain
            for way in ways
        ]

    ways = "please {} the {}", "can you {} my {}", "{} a {}", "i want to {} the {} now"
    content = {"train": split(ways), "val": split(["do {} the {}"]), "test": split(["{} my {} please"])}
    (folder / "data_full.json").write_text(json.dumps(content))
    return folder.parent


def test_another_data_set_runs_with_the_clinc150_config_and_each_method_reports(intents, tmp_path):
    small = {k: v for k, v in lives.SMALL.items() if k != "stream"}
    values = lives.changed(clinc150.get_config().to_dict(), **small)
    values = lives.changed(values, data_dir=str(intents), method="sleep,sequential", checkpoint_every=100)
    values = lives.changed(values, stream={"birth_fraction": 0.3}, birth={"epochs": 10})
    root = tmp_path / "life"
    life.run(settings.load(values), str(root))
    for method in ("sleep", "sequential"):
        summary = json.loads((root / method / "summary.json").read_text())
        assert summary.keys() == {f.name for f in dataclasses.fields(metrics.Summary)}
        assert summary["method"] == method and summary["seed"] == 0
        assert list(summary["experiences"]) == ["garden", "harbour"]
        assert summary["questions"] == {"birth": 2, "garden": 1, "harbour": 3}
        assert set(summary["tokens"]) == {"source", "dreamt", "gradient"}
        assert summary["wall_s"].keys() == {"birth", *(p for p, _ in methods.METHODS[method].phases)}
        for key in ("final_accuracy", "birth_before", "birth_after", "learning_accuracy"):
            assert 0 <= summary[key] <= 1
        assert (root / method / "retention.csv").read_text().splitlines()[0] == "after,birth,garden,harbour"
    assert (root / "report.html").exists() and not (root / "summary.json").exists()


def refused(config, workdir, error, match):
    with pytest.raises(error, match=match):
        life.run(config, str(workdir))


def test_a_method_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    refused(lives.config(method="sleep,sequental"), tmp_path / "x", ValueError, "did you mean 'sequential'")
    assert not (tmp_path / "x").exists()


def test_a_directory_of_another_life_is_not_touched(lived, born):
    other = lives.config(birth={"checkpoint": str(born)}, sleep={"steps": 7})
    before = sorted(lived.rglob("*"))
    refused(other, lived, checkpoint.CheckpointError, "sleep.steps: 6 in .*, 7 now")
    assert sorted(lived.rglob("*")) == before


def test_the_life_of_one_method_is_not_passed_off_as_that_of_another(lived, born):
    other = lives.config(birth={"checkpoint": str(born)}, method="sleep_no_semantic")
    before = {p: p.stat().st_mtime_ns for p in sorted(lived.rglob("*"))}
    refused(other, lived, checkpoint.CheckpointError, "method: sleep there, sleep_no_semantic now")
    assert {p: p.stat().st_mtime_ns for p in sorted(lived.rglob("*"))} == before


def test_a_life_does_not_go_on_with_other_data(intents, tmp_path, monkeypatch):
    class Lived(Exception):
        pass

    def no_time(*_):
        raise Lived

    small = {k: v for k, v in lives.SMALL.items() if k != "stream"}
    values = lives.changed(small, stream={"source": "clinc150"}, birth={"epochs": 1}, data_dir=str(intents))
    config, root = settings.load(values), tmp_path / "life"
    monkeypatch.setitem(methods.METHODS, "sleep", methods.base.Method((("wake", no_time),)))
    with pytest.raises(Lived):
        life.run(config, str(root))
    file = intents / "clinc150" / "data_full.json"
    file.write_text(file.read_text().replace("do boil the egg", "will you boil the egg"))
    refused(config, root, checkpoint.CheckpointError, r"data: birth of 12 \(.* there, birth of 12 \(.* now")
    file.write_text(file.read_text().replace("will you boil the egg", "do boil the egg"))
    with pytest.raises(Lived):
        life.run(config, str(root))


def test_days_that_are_added_are_lived_behind_the_others_whatever_their_names(tmp_path):
    birth, a, m, n = (Experience(name, (Example("", name),), (), ()) for name in ("birth", "a", "m", "n"))
    for method, days in (("birth", (n,)), ("sleep", (m, n)), ("sequential", (m,))):
        there = {"data": stream.told(stream.Stream(birth, days))}
        checkpoint.save_boundary(tmp_path / method, "000-birth", {"x": np.zeros(1)}, {"of": there})
    more = phases.in_order_lived(tmp_path, stream.Stream(birth, (a, m, n)))
    assert [day.name for day in more.days] == ["m", "n", "a"]
    phases.claim(tmp_path / "sleep", {"data": stream.told(more)})
    mended = dataclasses.replace(m, train=(Example("", "other words"),))
    other = phases.in_order_lived(tmp_path, stream.Stream(birth, (mended, n)))
    with pytest.raises(checkpoint.CheckpointError, match="as further days, but not be read otherwise"):
        phases.claim(tmp_path / "sleep", {"data": stream.told(other)})


def test_a_birth_of_another_architecture_is_refused_with_the_arrays(born, tmp_path):
    other = lives.config(birth={"checkpoint": str(born)}, model={"ff": 48})
    refused(other, tmp_path, checkpoint.CheckpointError, r"gate_NDF: float32\[1, 32, 64\]")


def test_a_birth_serves_lives_with_any_memory(born, tmp_path):
    config = lives.config(birth={"checkpoint": str(born)}, memory={"rank": 2, "slots": 5})
    newborn = life.birth(config, 0, tmp_path / "birth", stream.load(config.stream))
    saved = lives.arrays(born, "000-birth")
    assert bit_equal(trees.named({"params": newborn.params}), saved) == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_birth_reads_as_many_blanks_as_it_is_told(tmp_path, monkeypatch, share):
    class Read(Exception):
        pass

    def read(world, phase, cycle, step, state, frozen, batches, count):
        rows = [next(batches) for _ in range(8)]
        tokens_BT, reads_BT = (
            np.concatenate([getattr(r, k) for r in rows]) for k in ("tokens_BT", "segments_BT")
        )
        assert (tokens_BT[reads_BT > 0] == world.tok.pad).any() == (share > 0)
        raise Read

    monkeypatch.setattr(life, "fit", read)
    config = lives.config(birth={"blanks": share})
    with pytest.raises(Read):
        life.birth(config, 0, tmp_path / "birth", stream.load(config.stream))


def test_a_folder_that_is_no_birth_is_refused(born, tmp_path):
    (tmp_path / "empty").mkdir()
    other = lives.config(birth={"checkpoint": str(tmp_path / "empty")})
    refused(
        other,
        tmp_path / "x",
        FileNotFoundError,
        "no tokenizer.json with phases/000-birth: name the folder birth/",
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"row_length": 8}, r"tokens does not fit into 8 \(row_length\)"),
        ({"answer_tokens": 26}, r"tokens does not fit into 6 \(model.max_len - answer_tokens\)"),
        (
            {"sleep": {"recall": {"answer_max_new": 24}}},
            r"tokens does not fit into 8 \(model.max_len - sleep.recall.answer_max_new\)",
        ),
        ({"stream": {"source": "documents", "path": "nowhere"}}, "nowhere"),
        ({"sleep": {"imitate": {"semantic": "judge"}}, "vocab_size": 300}, "begin with the same token"),
    ],
)
def test_what_cannot_be_lived_is_found_before_birth_and_the_directory_takes_what_is_put_right(
    changes, said, tmp_path, monkeypatch
):
    class Born(Exception):
        pass

    def no_time(*_):
        raise Born

    monkeypatch.setattr(life, "fit", no_time)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        life.run(lives.config(**changes), str(tmp_path))
    with pytest.raises(Born):
        life.run(lives.config(), str(tmp_path))


def test_answers_that_do_not_fit_are_told_of(born, tmp_path, capsys):
    for room, said in ((2, "day 1: 2 of 4 answers do not fit into answer_tokens=2 tokens"), (10, None)):
        config = lives.config(birth={"checkpoint": str(born)}, answer_tokens=room)
        life.birth(config, 0, tmp_path, stream.load(config.stream))
        told = capsys.readouterr().out
        assert said in told if said else "answer_tokens" not in told
