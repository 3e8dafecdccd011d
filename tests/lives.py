"""A life that is small enough for a test, and a process that lives it while it kills itself again and again.

python tests/lives.py WORKDIR BIRTH CACHE KILLS METHOD, with KILLS a JSON list of [place, ...]:

    ["line", phase, cycle, step]   as soon as this line of metrics.jsonl is written
    ["boundary", name]             between a boundary and what follows it
    ["write", name]                the arrays of this checkpoint written, and nothing else of it

After each kill the same life is started again, at last without one.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys
import traceback
from unittest import mock

import jax
from jax.experimental.compilation_cache import compilation_cache

from sleep_jax import checkpoint, life, metrics, partition, phases, settings
from sleep_jax.data import dreams as text
from sleep_jax.data.stream import Example
from sleep_jax.sleep import dream
from sleep_jax.sleep.dream import Dreamt

SMALL = {
    "vocab_size": 600,
    "row_length": 32,
    "answer_tokens": 8,
    "eval_batch": 16,
    "checkpoint_every": 2,
    "log_every": 1,
    "stream": {"people_at_birth": 4, "people_per_day": 2, "attributes": 1, "days": 2},
    "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 16, "ff": 64, "max_len": 32},
    "memory": {"periods": (96,), "slots": 3, "rank": 4},
    "birth": {"epochs": 60, "batch_rows": 4, "optim": {"lr": 5e-3}},
    "wake": {"rule": "adam", "lr": (3e-3,), "passes": 2},
    "sleep": {
        "old_dreams": 8,
        "new_dreams": 4,
        "steps": 6,
        "batch_rows": 4,
        "held_out": 0.25,
        "validate_every": 3,
        "margin": 1.0,
        "recall": {"max_new": 31, "rounds": 1, "batch_size": 16, "answer_max_new": 8},
        "imitate": {"prompts": 2, "samples": 2, "max_new": 8, "width": 24, "refresh": 2},
        "optim": {"lr": 2e-2, "weight_decay": 0.1},
    },
    "rem": {
        "tasks": 2,
        "lines": 1,
        "questions": 2,
        "rounds": 1,
        "per_context": 2,
        "top": 1,
        "random": 1,
        "max_new": 8,
        "recount": 2,
        "batch_size": 4,
        "trials": {"rank": 2, "steps": 2, "at_once": 2},
        "learn": {"rank": 2, "epochs": 1, "batch_rows": 2},
    },
    "baseline": {"gradient_tokens": 400, "batch_rows": 4, "replay_buffer": 8, "ewc_examples": 8},
}


def changed(values: dict, **changes) -> dict:
    """Nested mappings with some keys set otherwise."""
    merged = dict(values)
    for key, value in changes.items():
        merged[key] = changed(merged.get(key, {}), **value) if isinstance(value, dict) else value
    return merged


def config(**changes) -> settings.Config:
    return settings.load(changed(SMALL, **changes))


@contextlib.contextmanager
def quick(cache: str | os.PathLike):
    """One device, whatever there are; programs are compiled once for all processes."""
    keys = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {key: jax.config.values[key] for key in keys}
    alone = lambda mesh: partition.Partitioner(mesh, jax.devices()[:1])  # noqa: E731
    try:
        for key, value in keys.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()
        with mock.patch.object(life, "Partitioner", alone):
            yield
    finally:
        for key, value in before.items():
            jax.config.update(key, value)
        compilation_cache.reset_cache()


def copy(source: pathlib.Path, workdir: pathlib.Path, *boundaries: str) -> pathlib.Path:
    """A work directory with the first boundaries of another life and the metrics that led there."""
    for name in boundaries:
        shutil.copytree(source / "phases" / name, workdir / "phases" / name)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[: phases.position(workdir)]))
    return workdir


def arrays(workdir, name):
    """Every array of a boundary by its path."""
    meta = json.loads((workdir / "phases" / name / "meta.json").read_text())
    shapes = {path: text.removesuffix("]").split("[") for path, text in meta["leaves"].items()}
    like = {
        path: jax.ShapeDtypeStruct([int(n) for n in shape.split(",") if n], dtype)
        for path, (dtype, shape) in shapes.items()
    }
    return checkpoint.load_boundary(workdir, name, like)[0]


def doomed(module, name: str, when) -> mock._patch:
    """A patch by which the process dies as soon as `module.name` has returned from a call like `when`."""
    original = getattr(module, name)

    def call(*args, **kwargs):
        result = original(*args, **kwargs)
        if when(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return mock.patch.object(module, name, call)


def end(place: str, *what) -> mock._patch:
    if place == "line":
        return doomed(metrics.MetricsWriter, "write", lambda self, *args: list(args[:3]) == list(what))
    if place == "boundary":
        return doomed(checkpoint, "save_boundary", lambda workdir, name, *args: name == what[0])
    return doomed(checkpoint.ocp, "save", lambda path, *args: path.parent.name == f".{what[0]}.half")


@contextlib.contextmanager
def rewarding():
    """Dreams that say what they will be asked, and are all rewarded: a model of this size dreams nothing."""

    def imagine(who, dreamer, tasks, config, key):
        made = []
        for task in tasks:
            for n in range(config.per_context):
                said = text.write([*task.questions, Example("", f"{n} times")])
                made.append(Dreamt(task, "free", task.context, said, tuple(text.read(said))))
        return made

    def attempt(who, start, made, config):
        for d in (d for d in made if not d.reason):
            d.before, d.after, d.difference = 0.0, 1.0, 1.0

    with mock.patch.object(dream, "imagine", imagine), mock.patch.object(dream, "attempt", attempt):
        yield


def dreaming(birth: str) -> settings.Config:
    """One day and both stages of its night."""
    more = {"stream": {"days": 1}, "memory": {"slots": 4}, "model": {"max_len": 96}}
    return config(method="sleep_rem", birth={"checkpoint": birth}, **more)


def main(workdir: str, birth: str, cache: str, kills: str, method: str) -> None:
    lived = dreaming(birth) if method == "sleep_rem" else config(birth={"checkpoint": birth})
    for kill in [*json.loads(kills), None]:
        sys.stdout.flush()
        child = os.fork()  # jax is imported but not started: each child starts its own
        if not child:
            code = 1
            try:
                with quick(cache), rewarding(), end(*kill) if kill else contextlib.nullcontext():
                    life.run(lived, workdir)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        wanted = -signal.SIGKILL if kill else 0
        if code != wanted:
            sys.exit(f"{kill}: the process ended with {code} instead of {wanted}")


if __name__ == "__main__":
    main(*sys.argv[1:])
