"""`python -m launch.bench` as a person runs it, at a tiny size; no times are asserted."""

import json
import pathlib
import re
import subprocess
import sys

import lives
import numpy as np
import pytest

from launch import bench_dream, bench_peers, bench_real
from sleep_jax import settings

ROOT = pathlib.Path(__file__).parents[1]
SIZES = {
    "vocab_size": 64,
    "row_length": 16,
    "eval_batch": 32,
    "answer_tokens": 4,
    "model.width": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.head_size": 8,
    "model.ff": 24,
    "model.max_len": 32,
    "memory.periods": "(128,)",
    "memory.slots": 3,
    "memory.rank": 4,
    "sleep.batch_rows": 8,
    "sleep.seed.alpha": 0.9,
    "sleep.seed.on_policy": 0.25,
    "sleep.recall.batch_size": 8,
    "sleep.recall.max_new": 12,
    "sleep.recall.answer_max_new": 4,
    "sleep.imitate.width": 16,
    "sleep.imitate.prompts": 4,
    "sleep.imitate.samples": 2,
    "sleep.imitate.max_new": 8,
}
LAYERS, SLOTS = 2, 2  # slots: of the three one is open, and computed with a second
HEAD = 2 * 64 * 16  # FLOPs per token


def layer(seen, qkvo=1, attention=1, mlp=1, slots=1, pooled=1):
    """FLOPs per token that sees so many; how often each kind of product is taken, backward included."""
    return 2 * (
        qkvo * 4 * 16 * 16
        + attention * 2 * 16 * seen  # scores and values
        + mlp * 3 * 16 * 24
        + slots * SLOTS * (2 * 16 * 4 + 2 * 16)  # experts, and what routers score
        + pooled * SLOTS * seen  # the routers' mean over what is seen
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The JSON and what was printed."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    keys = [f"--config.{key}={value}" for key, value in SIZES.items()]
    command = [sys.executable, "-m", "launch.bench", "--seconds=0", f"--json={file}", *keys]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(file.read_text()), ran.stdout


def test_every_step_is_timed_and_counted(bench):
    report, _ = bench
    assert [f["name"] for f in report["steps"]] == [
        "wake step", "teacher scoring", "student rollout", "queue: dreams", "queue: answers", "rewards",
        "seeding step", "SFT step",
    ]  # fmt: skip
    assert report["turns"] >= 3 and report["peak_rss_bytes"] > 1e8
    for f in [*report["matmul"], *report["steps"]]:
        assert 0 < f["seconds"]["min"] <= f["seconds"]["median"] <= f["seconds"]["max"]
        if f["name"] != "rewards":
            assert f["flops_per_s"] == pytest.approx(f["flops"] / f["seconds"]["median"])
            assert f["bytes"]["argument"] > 0 and f["bytes"]["temp"] >= 0
    for f in report["steps"]:
        assert f["tokens_per_s"] == pytest.approx(f["tokens"] / f["seconds"]["median"])


def test_shares_are_of_the_better_matmul(bench):
    report, _ = bench
    best = max(report["matmul"], key=lambda f: f["flops_per_s"])
    assert report["reference"] == best["shape"]
    for f in report["steps"]:
        if f["flops"]:
            assert f["of_matmul"] == pytest.approx(f["flops_per_s"] / best["flops_per_s"])


def test_flops_are_those_of_the_products(bench):
    steps = {f["name"]: f for f in bench[0]["steps"]}
    # A product costs one more for each of its factors that a gradient is taken of: both of attention's.
    per_token = {
        "SFT step": LAYERS * layer(16, 3, 3, 3, 0, 0) + 3 * HEAD,
        "wake step": LAYERS * layer(16, 2, 3, 3, 2, 2) + 2 * HEAD,
        "seeding step": LAYERS * layer(16, 2, 3, 2, 3, 2) + 3 * HEAD,  # the teachers' head among them
        "teacher scoring": LAYERS * layer(16),
    }
    for name, flops in per_token.items():
        assert steps[name]["flops"] == flops * steps[name]["tokens"], name
    for name in ("student rollout", "queue: dreams", "queue: answers"):
        rows, prompt, new = map(int, re.findall(r"\d+", steps[name]["shape"]))
        assert steps[name]["tokens"] == rows * new
        if name == "student rollout":  # prompts in one go, then against all of the cache
            flops = LAYERS * (prompt * layer(prompt) + (new - 1) * layer(prompt + new)) + new * HEAD
        else:
            flops = (prompt + new - 1) * (LAYERS * layer(prompt + new - 1) + HEAD)
        assert steps[name]["flops"] == rows * flops, name


def test_the_seeding_ratio_is_per_token_and_shares_a_round_of_practice(bench):
    report, printed = bench
    steps = {f["name"]: f for f in report["steps"]}
    median = {name: f["seconds"]["median"] for name, f in steps.items()}
    assert steps["seeding step"]["tokens"] == 8 * 16 + 8 * 16 and steps["SFT step"]["tokens"] == 8 * 16
    sft = 2 * median["SFT step"]
    wanted = {
        "update": median["seeding step"] / sft,
        "sampling": (median["student rollout"] + median["rewards"]) / 8 / sft,
        "scoring": median["teacher scoring"] * (256 / steps["teacher scoring"]["tokens"]) / sft,
    }
    wanted["total"] = sum(wanted.values())
    assert report["seeding"] == pytest.approx(wanted)
    assert f"a seeding step costs {wanted['total']:.2f} SFT steps" in printed
    assert all(f["name"] in printed for f in report["steps"])


def test_trials_at_once_have_one_backbone_between_them(monkeypatch):
    monkeypatch.setattr(bench_dream, "COUNTS", (1, 4))
    monkeypatch.setattr(bench_dream.importlib.util, "find_spec", lambda name: None)
    config = settings.load({
        "vocab_size": 64, "row_length": 2,
        "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 8, "ff": 16384},
        "memory": {"periods": (64,)}, "rem": {"trials": {"rank": 1, "steps": 2}},
    })  # fmt: skip
    found = bench_dream.measure(config, seconds=0)
    total = {count: sum(size.values()) for count, size in found["bytes"].items()}
    assert total[1] > found["backbone_bytes"] > 10 * found["adapter_bytes"]
    # Each trial more has its adapter, gradient and moments, and activations of 2 tokens.
    assert (total[4] - total[1]) / 3 < found["backbone_bytes"]
    assert set(found["seconds_per_trial"]) == {*(f"{n} at once" for n in (1, 4)), "one after the other"}
    assert found["times_peft"] is None and found["times_loop"] > 0


SMALL = {"vocab_size": 320, "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 8, "ff": 24,
         "max_len": 32, "tie_embeddings": True}  # fmt: skip


def test_peers_decode_the_same_text_of_the_same_checkpoint(monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setattr(bench_peers, "SIZE", SMALL)
    monkeypatch.setattr(bench_peers, "DECODED", {"rows": 2, "prompt": 4, "new": 8})
    config = settings.Config()
    bench_peers._checkpoint(config, tmp_path)
    prompts = np.random.default_rng(0).integers(8, 300, (2, 4)).astype(np.int32)
    ours = bench_peers._Ours(config, tmp_path)
    here, there = (side.decoder(prompts)() for side in (ours, bench_peers._Theirs(config, tmp_path)))
    assert here.shape == (2, 12) and (here == there).all()
    rows = np.random.default_rng(1).integers(8, 300, (8, 16)).astype(np.int32)  # one for each device
    for reading in (True, False):
        assert len(ours.distiller(rows, reading)()) == bench_peers.STEPS
    assert ours.trained == 2 * (2 * 16 * 128 + 16 + 16 + 1), "A, B, two router columns and a bias a layer"


def test_peers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(bench_peers.importlib.util, "find_spec", lambda name: None if name == "trl" else 1)
    with pytest.raises(ValueError, match="trl not installed: pip install"):
        bench_peers.measure(settings.Config(), seconds=0)


def test_a_checkpoint_lives_a_day_and_is_exported_stage_by_stage(monkeypatch, compiled, capsys):
    small = {"vocab_size": 512, "width": 16, "layers": 1, "heads": 4, "kv_heads": 2, "head_size": 4, "ff": 24}
    monkeypatch.setattr(bench_real, "SIZE", bench_real.SIZE | small)
    monkeypatch.setattr(bench_real, "WORDS", 500)
    with lives.quick(compiled):
        report = bench_real.measure(settings.Config(), seconds=0)
    assert [stage["name"] for stage in report["stages"]] == [
        "write a random checkpoint", "load", "first answers", "wake/fit", "wake", "sleep/dream", "sleep/fit",
        "sleep/judge", "sleep", "export",
    ]  # fmt: skip
    peaks = [stage["peak_rss_bytes"] for stage in report["stages"]]
    assert peaks[0] > 1e8 and peaks == sorted(peaks) and peaks[-1] <= report["peak_rss_bytes"]
    assert report["steps"].keys() == {"wake", "sleep"} and report["nights"] == ["committed"]
    attention, mlp, norms = 2 * 16 * 16 + 2 * 16 * 8, 3 * 16 * 24, 3 * 16 + 2 * 4
    assert report["parameters"] == 512 * 16 + attention + mlp + norms
    expert = 2 * 16 * 64 + 2 * 16 + 1
    assert report["exported_bytes"] == pytest.approx(2 * report["parameters"] + 4 * expert, abs=4000)
    capsys.readouterr()
    bench_real.show(report)
    printed = capsys.readouterr().out
    assert all(stage["name"] in printed for stage in report["stages"]) and "1 experts are in" in printed
