import json
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equality import bit_equal
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sleep_jax import checkpoint
from sleep_jax.checkpoint import CheckpointError
from sleep_jax.types import TrainState


def state(seed=0, width=3):
    a, b = jax.random.split(jax.random.key(seed))
    params = {"w_DF": jax.random.normal(a, (8, width)), "h": jax.random.normal(b, (5,), jnp.bfloat16)}
    params["odd"] = jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42])
    params["empty"] = jnp.zeros((0, 4), jnp.int8)
    params["active"] = jnp.array([[True, False]])
    return TrainState(jnp.int32(2**31 - 1), params, optax.adam(1e-3).init(params["w_DF"]))


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def kilobytes(n):
    noise = np.random.default_rng(0).integers(0, 2**31, (256 * n,), np.int32)  # does not compress
    return {"noise": jnp.asarray(noise)}


def test_boundary_comes_back_bit_for_bit(tmp_path):
    meta = {"iterator": {"row": 7, "seen": [1, 2.5, None, "ä"]}, "tokens": 2**60}
    saved = state()
    checkpoint.save_boundary(tmp_path, "000-birth", saved, meta)
    loaded, loaded_meta = checkpoint.load_boundary(tmp_path, "000-birth", abstract(saved))
    assert bit_equal(saved, loaded) == []
    assert jax.tree.structure(saved) == jax.tree.structure(loaded)
    assert loaded_meta == meta
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded))


def test_boundaries_are_listed_as_written_and_never_overwritten(tmp_path):
    assert checkpoint.boundaries(tmp_path) == []
    names = ["000-wake", "000-sleep", "001-wake"]
    for name in names:
        checkpoint.save_boundary(tmp_path, name, {"x": jnp.ones(1)}, {})
    (tmp_path / "phases" / "notes").mkdir()
    assert checkpoint.boundaries(tmp_path) == names
    with pytest.raises(CheckpointError, match="never overwritten"):
        checkpoint.save_boundary(tmp_path, "000-sleep", {"x": jnp.zeros(1)}, {})
    assert checkpoint.load_boundary(tmp_path, "000-sleep", {"x": jnp.zeros(1)})[0]["x"] == 1
    with pytest.raises(CheckpointError, match="there are: 000-wake, 000-sleep, 001-wake"):
        checkpoint.load_boundary(tmp_path, "002-wake", {"x": jnp.zeros(1)})


def test_rolling_keeps_the_latest_two_and_boundaries_stay(tmp_path):
    target = {"x": jnp.zeros(2)}
    assert checkpoint.load_rolling(tmp_path, "0-wake", target) is None
    checkpoint.save_boundary(tmp_path, "0-birth", target, {"from": "birth"})
    for step in (9, 10, 100, 100):
        checkpoint.save_rolling(tmp_path, "0-wake", step, {"x": jnp.full(2, step)}, {"at": step})
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["0-wake-000000010", "0-wake-000000100"]
    step, tree, meta = checkpoint.load_rolling(tmp_path, "0-wake", {"x": jnp.zeros(2, jnp.int32)})
    assert (step, tree["x"].tolist(), meta) == (100, [100, 100], {"at": 100})
    assert checkpoint.load_rolling(tmp_path, "0-sleep", target) is None
    assert checkpoint.metas(tmp_path) == [{"from": "birth"}, {"at": 10}, {"at": 100}]
    checkpoint.clear_rolling(tmp_path)
    assert list((tmp_path / "ckpt").iterdir()) == []
    assert checkpoint.boundaries(tmp_path) == ["0-birth"]


def test_half_a_deletion_never_looks_complete(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_rolling(tmp_path, "wake", step, {"x": jnp.full(1, step)}, {})

    def killed(path, **_):
        (path / "arrays/orbax.checkpoint").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoint.clear_rolling(tmp_path)
    assert checkpoint.load_rolling(tmp_path, "wake", {"x": jnp.zeros(1, jnp.int32)})[0] == 2
    checkpoint.sweep(tmp_path)
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["wake-000000002"]


def test_restores_into_the_shardings_of_the_target(tmp_path):
    def mesh(*shape):
        return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    saved = {"w": jnp.arange(64.0).reshape(8, 8), "step": jnp.int32(3), "none": jnp.zeros((0, 8))}
    placed = jax.device_put(saved, NamedSharding(mesh(8, 1), P()))
    placed["w"] = jax.device_put(saved["w"], NamedSharding(mesh(8, 1), P("data")))
    checkpoint.save_boundary(tmp_path, "a", placed, {})
    other = mesh(2, 4)
    specs = {"w": P("model", "data"), "step": P(), "none": P(None, "model")}
    target = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(other, specs[k]))
        for k, x in saved.items()
    }
    loaded, _ = checkpoint.load_boundary(tmp_path, "a", target)
    assert {k: x.sharding for k, x in loaded.items()} == {k: x.sharding for k, x in target.items()}
    assert len(loaded["w"].addressable_shards) == 8 and loaded["w"].addressable_shards[0].data.shape == (2, 4)
    assert bit_equal(loaded, saved) == []


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda p: {**p, "w_DF": jnp.zeros((8, 4))},
            ["params/w_DF: float32[8, 3]", "float32[8, 4] now"],
        ),
        (lambda p: {**p, "h": jnp.zeros(5)}, ["params/h: bfloat16[5]", "float32[5] now"]),
        (lambda p: {**p, "empty": jnp.zeros((0, 5), jnp.int8)}, ["params/empty: int8[0, 4]", "int8[0, 5]"]),
        (lambda p: {**p, "bias": jnp.zeros(2)}, ["params/bias: nothing in the checkpoint, float32[2]"]),
        (
            lambda p: {k: p[k] for k in p if k != "h"},
            ["params/h: bfloat16[5] in the checkpoint, nothing now"],
        ),
    ],
)
def test_another_architecture_is_named(tmp_path, change, said):
    saved = state()
    checkpoint.save_rolling(tmp_path, "wake", 1, saved, {})
    wanted = TrainState(saved.step, change(saved.params), saved.opt_state)
    with pytest.raises(CheckpointError, match="1 of .* arrays differ") as error:
        checkpoint.load_rolling(tmp_path, "wake", abstract(wanted))
    for text in said:
        assert text in str(error.value)


def test_many_differences_are_cut_short(tmp_path):
    checkpoint.save_boundary(tmp_path, "a", {str(i): jnp.zeros(1) for i in range(9)}, {})
    with pytest.raises(CheckpointError, match=r"and 4 more\nSet model and memory \(birth.optim, wake, "):
        checkpoint.load_boundary(tmp_path, "a", {str(i): jnp.zeros(2) for i in range(9)})


@pytest.mark.parametrize("meta", [{"iterator": b"state"}, {"count": np.int64(3)}, {(1, 2): "x"}])
def test_meta_that_is_not_json_is_refused(tmp_path, meta):
    with pytest.raises(CheckpointError, match="JSON"):
        checkpoint.save_boundary(tmp_path, "a", {"x": jnp.zeros(1)}, meta)
    assert checkpoint.boundaries(tmp_path) == []


def test_names_stay_inside_the_work_directory(tmp_path):
    for name in ("../a", ".a", "", "a/b"):
        with pytest.raises(CheckpointError, match="cannot name a checkpoint"):
            checkpoint.save_boundary(tmp_path, name, {"x": jnp.zeros(1)}, {})


def test_damage_is_named_and_not_guessed_around(tmp_path):
    target = kilobytes(4)
    checkpoint.save_boundary(tmp_path, "a", target, {})
    data = max((tmp_path / "phases/a/arrays").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*phases/a"):
        checkpoint.load_boundary(tmp_path, "a", target)
    (tmp_path / "phases/a/meta.json").write_text("{")
    with pytest.raises(CheckpointError, match="meta.json is damaged"):
        checkpoint.boundaries(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_costs_nothing_that_was_saved(small_disk):
    small, large = kilobytes(100), kilobytes(4096)
    checkpoint.save_boundary(small_disk, "0-birth", small, {"n": 1})
    checkpoint.save_rolling(small_disk, "1-wake", 5, small, {})
    for save in (
        lambda: checkpoint.save_boundary(small_disk, "1-wake", large, {}),
        lambda: checkpoint.save_rolling(small_disk, "1-wake", 6, large, {}),
    ):
        with pytest.raises(
            CheckpointError, match=r"No space left.* up to 4,194,304 bytes; [\d,]+ bytes are"
        ) as e:
            save()
        assert (
            500_000 < int(re.search(r"([\d,]+) bytes are free", str(e.value))[1].replace(",", "")) < 900_000
        )
    _earlier_are_intact(small_disk, small)


@pytest.mark.filterwarnings("ignore")
def test_a_refused_write_costs_nothing_that_was_saved(tmp_path):
    small, large = kilobytes(1), kilobytes(400)
    checkpoint.save_boundary(tmp_path, "0-birth", small, {"n": 1})
    checkpoint.save_rolling(tmp_path, "1-wake", 5, small, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for save in (checkpoint.save_boundary, lambda d, n, *a: checkpoint.save_rolling(d, n, 6, *a)):
            with pytest.raises(
                CheckpointError, match=r"could not write checkpoint .*1-wake.* up to 409,600 bytes"
            ):
                save(tmp_path, "1-wake", large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    _earlier_are_intact(tmp_path, small)


def _earlier_are_intact(workdir, small):
    tree, meta = checkpoint.load_boundary(workdir, "0-birth", small)
    assert bit_equal(tree, small) == [] and meta == {"n": 1}
    step, tree, _ = checkpoint.load_rolling(workdir, "1-wake", small)
    assert step == 5 and bit_equal(tree, small) == []
    assert sorted(p.name for p in (workdir / "phases").iterdir()) == ["0-birth"]
    checkpoint.save_boundary(workdir, "1-wake", small, {})
    assert checkpoint.boundaries(workdir) == ["0-birth", "1-wake"]


# Forks before jax has a backend, so that each of many short lives costs no import of jax.
LIVES = """
import os, random, signal, sys, time
import numpy as np
from sleep_jax import checkpoint

workdir, lives = sys.argv[1], int(sys.argv[2])

def tree(i):
    return {"a": np.full((300, 300), i, np.int32), "b": {"c": np.arange(50_000, dtype=np.float32) + i}}

def live(ready):
    checkpoint.work_dir_config(workdir, "{}")
    names = checkpoint.boundaries(workdir)
    assert names == [f"{i}-day" for i in range(len(names))], names
    for i, name in enumerate(names[-3:], max(0, len(names) - 3)):
        loaded, meta = checkpoint.load_boundary(workdir, name, tree(i))
        assert meta == {"i": i} and (loaded["a"] == i).all() and (loaded["b"]["c"] == tree(i)["b"]["c"]).all()
    last = checkpoint.load_rolling(workdir, "day", tree(0))
    if last is not None:
        step, loaded, meta = last
        assert step == meta["i"] and (loaded["a"] == step).all() and step >= len(names) - 1, (step, names)
    assert not [p for d in ("phases", "ckpt") for p in os.listdir(f"{workdir}/{d}") if p.startswith(".")]
    os.write(ready, b"x")
    i = len(names)
    while True:
        checkpoint.save_rolling(workdir, "day", i, tree(i), {"i": i})
        checkpoint.save_boundary(workdir, f"{i}-day", tree(i), {"i": i})
        i += 1

os.makedirs(f"{workdir}/phases"), os.makedirs(f"{workdir}/ckpt")
chance, halves = random.Random(0), 0
for _ in range(lives):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        live(into)
    os.close(into)
    assert os.read(out, 1) == b"x", "a life did not accept what the one before had left"
    time.sleep(chance.uniform(0.0, 0.12))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    halves += any(p.startswith(".") for d in ("phases", "ckpt") for p in os.listdir(f"{workdir}/{d}"))
print("killed inside a write:", halves)
"""


def test_killed_at_any_moment(tmp_path):
    root = pathlib.Path(__file__).parent.parent
    run = [sys.executable, "-W", "ignore", "-c", LIVES, str(tmp_path), "12"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 1, "none of them was killed inside a write"


def test_a_work_directory_belongs_to_one_configuration(tmp_path):
    config = {"seed": 0, "model": {"width": 64, "rope": {}}, "mesh": {"data": -1}, "nan": float("nan")}
    checkpoint.work_dir_config(tmp_path / "w", json.dumps(config))
    checkpoint.work_dir_config(tmp_path / "w", json.dumps(config, indent=2, sort_keys=True))
    other = {**config, "model": {"width": 128, "rope": {}}, "mesh": {"data": 2}, "new": "x"}
    (tmp_path / "w/seed1/birth").mkdir(parents=True)
    (tmp_path / "w/seed1/birth/tokenizer.json").touch()  # as soon as there is one, something has begun
    with pytest.raises(CheckpointError, match="Choose another --workdir") as error:
        checkpoint.work_dir_config(tmp_path / "w", json.dumps(other), ignore=("mesh", "mod"))
    text = str(error.value)
    assert (
        "model.width: 64 in" in text
        and ", 128 now" in text
        and "new: absent in" in text
        and '"x" now' in text
    )
    assert "mesh.data" not in text and "seed" not in text and "rope" not in text
    checkpoint.work_dir_config(tmp_path / "w", json.dumps(other), ignore=("mesh", "model.width", "new"))
    assert json.loads((tmp_path / "w/config.json").read_text())["model"]["width"] == 64


@pytest.mark.parametrize("begun", [None, "phases/000-birth", "sleep/ckpt/001-wake-000000002"])
def test_a_directory_in_which_nothing_was_lived_takes_another_configuration(tmp_path, begun):
    checkpoint.work_dir_config(tmp_path, '{"seed": 0}')
    if begun:
        (tmp_path / begun).mkdir(parents=True)
        (tmp_path / begun / "meta.json").touch()
        with pytest.raises(CheckpointError, match="seed: 0 in .*, 1 now"):
            checkpoint.work_dir_config(tmp_path, '{"seed": 1}')
    else:
        checkpoint.work_dir_config(tmp_path, '{"seed": 1}')
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == int(begun is None)


def test_opening_sweeps_leftovers_and_nothing_else(tmp_path):
    checkpoint.save_boundary(tmp_path, "a", {"x": jnp.zeros(1)}, {})
    for leftover in ("phases/.b.half", "ckpt/.c-000000001.gone"):
        (tmp_path / leftover / "arrays").mkdir(parents=True)
    (tmp_path / "phases/.gitkeep").touch()
    checkpoint.work_dir_config(tmp_path, "{}")
    assert sorted(p.name for p in (tmp_path / "phases").iterdir()) == [".gitkeep", "a"]
    assert list((tmp_path / "ckpt").iterdir()) == []
