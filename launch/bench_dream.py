"""Trials of dreams: many at once, one after the other, and as PyTorch with PEFT has them.

python -m launch.bench --suite=dream [--config=configs/tiny.py] [--json=FILE] [--seconds=30]

A trial trains one adapter on one dream for `rem.trials.steps` steps; sizes are the configuration's, tokens
are random. All ways have the same backbone, rank, steps and rows. Trials at once are split over the devices
where their number allows it; a single one has the first device. PEFT comes with `pip install '.[bench]'`;
without it the other two are measured.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.box
import rich.table

from sleep_jax import metrics, partition, terminal, trees
from sleep_jax.figures import scaled
from sleep_jax.model import lora
from sleep_jax.model.build import build
from sleep_jax.partition import Partitioner
from sleep_jax.settings import Config
from sleep_jax.sleep import trials
from sleep_jax.sleep.trials import Lesson
from sleep_jax.types import Batch

COUNTS = (1, 4, 16, 64)
NO_PEFT = "not compared with PEFT, which is not there: pip install '.[bench]'"
GOALS = {"loop": 2.0, "peft": 3.0}  # times as many trials a second, at the best count


def measure(config: Config, *, seconds: float) -> dict[str, Any]:
    """Seconds per trial of every way, in turns, and the bytes that the compiled program takes.

    Args:
      seconds: to spend on measuring; every way has at least one turn.
    """
    shape = config.model.holding(config.vocab_size)
    model = build(shape, config.memory, eos=1)
    params = model.init(jax.random.key(0))
    everywhere = Partitioner(config.mesh).put(params)
    start = lora.init(shape, config.rem.trials.rank, jax.random.key(1))
    most, length = max(COUNTS), config.row_length
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (most, 1, length + 1)).astype(np.int32)
    ones = np.ones((most, 1, length), np.int32)
    where = np.broadcast_to(np.arange(length, dtype=np.int32), ones.shape)
    rows = Batch(tokens[..., :-1], tokens[..., 1:], ones.astype(np.float32), ones, where)
    alike = np.ones(most, np.float32)
    lesson = Lesson(rows, alike, alike)

    ways: dict[str, tuple[int, Callable[[], Any]]] = {}
    sizes = {}
    run = trials.compiled(model, config.rem.trials)
    for count in COUNTS:
        chosen = jax.tree.map(lambda x, count=count: x[:count], lesson)
        frozen = (params if count == 1 else everywhere), None
        chosen = partition.put_rows(chosen, frozen[0])
        compiled = run.trace(start, frozen, chosen).lower().compile()
        memory = compiled.memory_analysis()
        sizes[count] = {"argument": memory.argument_size_in_bytes, "output": memory.output_size_in_bytes,
                        "temp": memory.temp_size_in_bytes}  # fmt: skip
        ways[f"{count} at once"] = count, functools.partial(compiled, start, frozen, chosen)
        if count == 1:
            one = compiled

    single = [jax.tree.map(lambda x, i=i: x[i : i + 1], lesson) for i in range(LOOPED)]

    def looped():
        return [one(start, (params, None), own) for own in single][-1]

    ways["one after the other"] = LOOPED, looped
    if importlib.util.find_spec("peft") and importlib.util.find_spec("transformers"):
        ways["PyTorch with PEFT"] = LOOPED, _peft(config, rows)

    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _, way in ways.values():
        jax.block_until_ready(way())
    begun = time.perf_counter()
    while not spent["1 at once"] or time.perf_counter() - begun < seconds:
        for name, (count, way) in ways.items():
            before = time.perf_counter()
            jax.block_until_ready(way())
            spent[name].append((time.perf_counter() - before) / count)
    per_trial = {name: statistics.median(s) for name, s in spent.items()}
    best = min(per_trial[f"{count} at once"] for count in COUNTS)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "turns": len(spent["1 at once"]),
        "parameters": trees.size(params),
        "backbone_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
        "adapter_bytes": sum(x.nbytes for x in jax.tree.leaves(start)),
        "steps": config.rem.trials.steps,
        "rank": config.rem.trials.rank,
        "tokens": length,
        "seconds_per_trial": per_trial,
        "spread": {name: [min(s), max(s)] for name, s in spent.items()},
        "bytes": sizes,
        "times_loop": per_trial["one after the other"] / best,
        "times_peft": per_trial["PyTorch with PEFT"] / best if "PyTorch with PEFT" in per_trial else None,
        "peak_rss_bytes": metrics.peak_rss_bytes(),
    }


LOOPED = 4  # trials of a turn, where they come one after the other


def _peft(config: Config, rows: Batch) -> Callable[[], None]:
    """The same trials as a loop in PyTorch: a fresh adapter on a like backbone, AdamW, the same clipping."""
    import peft
    import torch
    import transformers

    m, t = config.model.holding(config.vocab_size), config.rem.trials
    torch.manual_seed(0)
    backbone = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=m.vocab_size, hidden_size=m.width, intermediate_size=m.ff, num_hidden_layers=m.layers,
            num_attention_heads=m.heads, num_key_value_heads=m.kv_heads, head_dim=m.head_size,
            max_position_embeddings=m.max_len, tie_word_embeddings=m.tie_embeddings,
        )
    )  # fmt: skip
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(r=t.rank, lora_alpha=t.alpha, target_modules=names, lora_dropout=0.0)
    tokens = torch.tensor(np.asarray(rows.tokens_BT), dtype=torch.long)

    def looped():
        for i in range(LOOPED):
            model = peft.get_peft_model(backbone, settings)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=t.optim.lr, betas=(0.9, t.optim.b2), weight_decay=0.0)
            for _ in range(t.steps):
                model(input_ids=tokens[i], labels=tokens[i]).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, t.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
            model.unload()

    return looped


def show(report: dict[str, Any]) -> None:
    """Prints the table, and what is wanted of it."""
    print(
        f"{report['devices']} x {report['device']}, {scaled(report['parameters'])} parameters, rank "
        f"{report['rank']}, {report['steps']} steps on {report['tokens']} tokens a trial, medians of "
        f"{report['turns']} turns"
    )
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(
        ("trials", "ms per trial (min to max)", "trials/s", "MB", "MB per trial more")
    ):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    total = {count: sum(size.values()) for count, size in report["bytes"].items()}
    for name, seconds in report["seconds_per_trial"].items():
        low, high = report["spread"][name]
        count = int(name.split()[0]) if name.endswith("at once") else None
        more = (total[count] - total[1]) / (count - 1) if count and count > 1 else None
        table.add_row(
            name,
            f"{1e3 * seconds:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})",
            f"{1 / seconds:.2f}",
            "–" if count is None else f"{total[count] / 1e6:.1f}",
            "–" if more is None else f"{more / 1e6:.2f}",
        )
    terminal.show([table])
    peft = report["times_peft"]
    print(
        f"at its best {report['times_loop']:.1f} times the trials of a loop (wanted: {GOALS['loop']:.0f}), "
        + (f"{peft:.1f} times those of PEFT (wanted: {GOALS['peft']:.0f})" if peft else NO_PEFT)
        + f"\nMB: arguments, results and temporary buffers of the compiled program; the backbone is "
        f"{report['backbone_bytes'] / 1e6:.1f} of them once, an adapter {report['adapter_bytes'] / 1e6:.2f}"
    )
