"""A checkpoint of real size through a short life: load, a waking chunk, a night of two steps, export.

TMPDIR=DIR python -m launch.bench --suite=real [--json=FILE] [--config.KEY=VALUE ...]

A random Qwen 3 of `SIZE` (0.6 billion parameters, bfloat16) with a tokenizer of nearly as many words is
written as transformers saves it, into a folder that is removed at the end and needs room for about 12 GB.
`life.run` then lives one day of it and `exporting.export` writes out what became of it, as `launch.main` and
`launch.export` do: the sizes of the life are `LIFE`, what else the configuration sets (mesh, compute_dtype)
is kept. That nothing is learnt is no matter: shown is that shapes and memory work, and what they take.

Measured on one of two busy cores (Linux, jax 0.10.2): 6 min, peak memory of the process 13.4 GB, 12.4 by the
end of the waking chunk.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from sleep_jax import exporting, life, metrics, settings, tensorfile, terminal, trees
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.figures import duration, scaled
from sleep_jax.model import convert, families
from sleep_jax.model.build import build
from sleep_jax.model.config import ModelConfig
from sleep_jax.settings import Config

SIZE = {"vocab_size": 151_936, "width": 1024, "layers": 28, "heads": 16, "kv_heads": 8, "head_size": 128,
        "ff": 3072, "max_len": 40_960, "rope_theta": 1e6, "norm_eps": 1e-6, "qk_norm": True,
        "tie_embeddings": True, "param_dtype": "bfloat16"}  # fmt: skip
WORDS = 151_669  # of the tokenizer; a checkpoint may have rows to spare
LIFE = {
    "study": "life", "method": "sleep", "seeds": 1, "row_length": 64, "answer_tokens": 4, "eval_batch": 4,
    "stream": {"source": "documents"},
    "model": {"max_len": 128, "remat": "full", "logit_chunk": 16},
    "memory": {"periods": (256,), "slots": 3},
    "birth": {"epochs": 0, "checkpoint": ""},
    "wake": {"passes": 1, "rule": "adam", "lr": (3e-3,)},
    "sleep": {
        "old_dreams": 4, "new_dreams": 2, "steps": 2, "batch_rows": 4, "validate_every": 2, "margin": 1.0,
        "seed": {"alpha": 1.0, "on_policy": 0.0},
        "recall": {"max_new": 6, "rounds": 1, "batch_size": 4, "answer_max_new": 4},
    },
}  # fmt: skip
PLACES = (
    "lighthouse",
    "harbour",
    "mill",
    "bakery",
    "bridge",
    "library",
    "ferry",
    "market",
    "school",
    "chapel",
)
NOTES = {"1-birth.md": "old", "2-today.md": "new"}  # a day of these fits into one chunk
GOAL = 24e9  # bytes, at most


def measure(config: Config, *, seconds: float) -> dict[str, Any]:
    """Lives it once; `seconds` are as many as that takes.

    Returns:
      What `--json` writes: `stages`, each with its name, its `seconds` and the `peak_rss_bytes` of this
      process by its end, and what the checkpoint and the compiled training steps are made of.

    Raises:
      ValueError: the life or a part of it does not fit into memory.
    """
    del seconds
    stages = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        began = time.perf_counter()
        size = _checkpoint(root / "checkpoint")
        _notes(root / "notes")
        stages.append(_stage("write a random checkpoint", time.perf_counter() - began))
        given = _changed(dataclasses.asdict(config), LIFE)
        given["model"]["checkpoint"], given["stream"]["path"] = str(root / "checkpoint"), str(root / "notes")
        (summary,) = life.run(settings.load(given), str(root / "life"))
        for workdir, first in ((root / "life" / "birth", "load"), (root / "life", "first answers")):
            for line in metrics.read_jsonl(workdir / "timings.jsonl")[0]:
                name = first if line["phase"] == "birth" else line["phase"]
                stages.append(_stage(name, line["seconds"], line["peak_rss_bytes"]))
        began = time.perf_counter()
        told = exporting.export(root / "life", root / "exported")
        stages.append(_stage("export", time.perf_counter() - began))
        written = sum(p.stat().st_size for p in (root / "exported").rglob("*.safetensors"))
        costs = json.loads((root / "life" / "memory.json").read_text())
    return {
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "parameters": size,
        "stages": stages,
        "steps": costs,
        "nights": [night.outcome for night in summary.nights],
        "exported": told,
        "exported_bytes": written,
        "peak_rss_bytes": metrics.peak_rss_bytes(),
    }


def _stage(name: str, seconds: float, peak: int | None = None) -> dict[str, Any]:
    return {"name": name, "seconds": seconds, "peak_rss_bytes": peak or metrics.peak_rss_bytes()}


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings with some keys set otherwise."""
    return values | {k: _changed(values[k], v) if isinstance(v, dict) else v for k, v in changes.items()}


def _checkpoint(path: pathlib.Path) -> int:
    """Writes a random model tensor by tensor, and a tokenizer most of whose words no text spells.

    Returns:
      Number of parameters.
    """
    path.mkdir()
    c = ModelConfig(**SIZE)
    like = jax.eval_shape(build(c, settings.Config().memory, eos=0).init, jax.random.key(0))
    about, _ = convert.tensors_of(like)
    draw = np.random.default_rng(0)

    def tensor(name: str) -> np.ndarray:
        shape, _ = about[name]
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        return 0.02 * draw.standard_normal(shape, np.float32)

    tensorfile.write(path / tensorfile.ONE, about, tensor)
    (path / "config.json").write_text(json.dumps(families.write_config(c)))
    file = path / "tokenizer.json"
    Tokenizer.train(map(_text, NOTES.values()), 500).save(file)
    fields = json.loads(file.read_text())
    known = fields["model"]["vocab"]
    known |= {f"word{n}": n for n in range(max(known.values()) + 1, WORDS)}
    file.write_text(json.dumps(fields))
    return trees.size(like)


def _notes(path: pathlib.Path) -> None:
    path.mkdir()
    for name, kind in NOTES.items():
        (path / name).write_text(_text(kind))


def _text(kind: str) -> str:
    about = "Behind the {} {} there is a small garden, and in it stands a bench of dark wood."
    return "\n\n".join(about.format(kind, place) for place in PLACES)


def show(report: dict[str, Any]) -> None:
    """Prints what every stage took, and what is wanted."""
    rows = [
        [stage["name"], "", duration(stage["seconds"]), scaled(stage["peak_rss_bytes"], "B")]
        for stage in report["stages"]
    ]
    title = f"{report['devices']}, {scaled(report['parameters'])} parameters, a life of one day"
    terminal.show([terminal.table(title, ["", "", "took", "peak so far"], rows)])
    print(
        f"{report['exported']}\n{scaled(report['exported_bytes'], 'B')} exported; the night was "
        f"{' and '.join(report['nights'])}\npeak memory of this process "
        f"{scaled(report['peak_rss_bytes'], 'B')}, wanted: at most {scaled(GOAL, 'B')}"
    )
