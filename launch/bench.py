"""What the steps of a life cost on this machine: time, FLOPs, share of the matmul rate, memory.

python -m launch.bench [--config=configs/clinc150.py] [--json=FILE] [--seconds=30] [--config.KEY=VALUE ...]
python -m launch.bench --suite=dream ...     trials of dreams instead: launch/bench_dream.py
python -m launch.bench --suite=peers ...     the same model here and in PyTorch: launch/bench_peers.py
python -m launch.bench --suite=real ...      a checkpoint of 0.6 B parameters lives: launch/bench_real.py

Sizes are the configuration's, tokens are random: no data, no tokenizer, nothing is written but FILE. All is
compiled as in a life and timed in turns, so that another job on the machine slows all of it alike.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table

from sleep_jax import cost, losses, metrics, optim, partition, rng, rollout, steps, terminal, trees, wake
from sleep_jax.figures import scaled
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.build import build
from sleep_jax.partition import Partitioner
from sleep_jax.settings import Config
from sleep_jax.sleep import consolidate, imitate
from sleep_jax.steps import Step
from sleep_jax.types import Batch, Rollout, Sampling, Tree

DOCUMENT = 20  # tokens per document in a packed row, about what an utterance with its intent takes
MATMUL_S = 0.4  # seconds of matrix products per turn, as a step takes: short bursts escape the other jobs
SQUARE = 2048  # rows and columns of the large matrix product
WAVES = 2  # rows of a queue per seat, so that a piece stays short
GOALS = {"training": 0.5, "seeding": 3.0}  # least share of the matmul rate; most SFT steps per seeding step


@dataclasses.dataclass
class Piece:
    """Something that is timed.

    Attributes:
      shape: what one call works on, for the reader.
      tokens: per call; positions of rows, or new tokens where sampling. 0 where tokens make no sense.
      cost: per call, as `cost.compiled` tells it; None where it was not compiled as one program.
      run: one call; gives what to wait for.
    """

    name: str
    shape: str
    tokens: int
    cost: dict[str, Any] | None
    run: Callable[[], Any]


class Workbench:
    """Builds the pieces: the model of a configuration, a memory half full, and random tokens.

    Attributes:
      config: whose sizes are taken.
      partitioner: over all devices.
      slot: the one that is seeded; those before it are open.
      memory, resting, student: awake, asleep, and what the slot joins, each without slots that a life would
        not compute.
    """

    def __init__(self, config: Config):
        self.config = config
        self.partitioner = Partitioner(config.mesh)
        model_config = dataclasses.replace(config.model, vocab_size=config.vocab_size)
        # No token ends a text, so that sampling always takes its full length.
        self.model = build(model_config, config.memory, eos=config.vocab_size)
        self.draw = np.random.default_rng(config.seed)
        self.key = rng.stream(config.seed, "bench")
        self.params = self.partitioner.put(jax.jit(self.model.init)(self.key))
        memory = jax.jit(self.model.init_memory)(self.key)
        self.slot = config.memory.slots // 2 | 1  # odd: computed in pairs, it costs nothing once it is open
        memory = memory_lib.with_active(memory, memory.active_LE.at[0, : self.slot].set(True))
        self.memory = self.partitioner.put(memory_lib.without_locked(memory))
        self.resting = memory_lib.rest(self.memory)
        self.student = self.partitioner.put(
            memory_lib.only_slots(memory_lib.rest(memory), np.arange(self.slot + 1))
        )

    @property
    def practised(self) -> bool:
        """Whether a night trains on the student's own samples."""
        seed = self.config.sleep.seed
        return seed.alpha < 1 or seed.on_policy > 0

    @property
    def practice_shape(self) -> tuple[int, int]:
        """Rows of practice of one step, and their tokens."""
        c = self.config.sleep.imitate
        return c.prompts * c.samples, min(c.width, self.config.model.max_len)

    def tokens(self, rows: int, length: int) -> np.ndarray:
        return self.draw.integers(0, self.config.vocab_size, (rows, length)).astype(np.int32)

    def rows(self, count: int) -> Batch:
        """Packed rows of random documents, every token of them counted."""
        shape = count, self.config.row_length
        at_T = np.arange(shape[1], dtype=np.int32)
        return Batch(
            tokens_BT=self.tokens(*shape),
            targets_BT=self.tokens(*shape),
            weights_BT=np.ones(shape, np.float32),
            segments_BT=np.broadcast_to(1 + at_T // DOCUMENT, shape).copy(),
            positions_BT=np.broadcast_to(at_T % DOCUMENT, shape).copy(),
        )

    def hidden(self, rows: int, length: int) -> np.ndarray:
        """As a teacher hands them out, in the compute dtype."""
        shape = rows, length, self.config.model.width
        return self.draw.normal(size=shape).astype(self.config.model.compute_dtype)

    def matmul(self, m: int, k: int, n: int) -> Piece:
        """A product of the compute dtype, repeated to fill `MATMUL_S`; what machines are measured by."""
        dtype = self.config.model.compute_dtype
        a, b = (jnp.asarray(self.draw.normal(size=shape), dtype) for shape in ((m, k), (k, n)))
        compiled, costs = cost.compiled(jax.jit(jnp.matmul), a, b)
        once = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(compiled(a, b))
            once.append(time.perf_counter() - began)
        repeats = max(round(MATMUL_S / min(once)), 1)

        def run():
            for _ in range(repeats):
                out = compiled(a, b)
            return out

        costs |= {k: repeats * costs[k] for k in ("flops", "xla_flops")}
        return Piece("matmul", f"{repeats} x {dtype} [{m}, {k}] [{k}, {n}]", 0, costs, run)

    def training(self, name: str, step: Step, state: Tree, frozen: Tree, batch: Tree) -> Piece:
        """A training step, compiled for the mesh."""
        sizes = [x.shape for path, x in trees.named(batch).items() if path.endswith("tokens_BT")]
        put = self.partitioner.put
        now, frozen, batch = [put(state)], put(frozen), self.partitioner.put_batch(batch)
        compiled, costs = cost.compiled(self.partitioner.compile(step), now[0], frozen, batch, self.key)

        def run():
            now[0], values = compiled(now[0], frozen, batch, self.key)
            return now[0], values

        shape = " + ".join(f"{rows} x {length}" for rows, length in sizes)
        return Piece(name, shape, sum(map(math.prod, sizes)), costs, run)

    def wake_step(self) -> Piece:
        c = self.config
        morning = wake.init(c.wake, self.memory.fast, len(c.memory.periods))
        batch = self.rows(wake.rows_per_chunk(self.model, c.row_length))
        step, frozen = wake.make(self.model, c.wake, 1), (self.params, self.resting)
        return self.training("wake step", step, morning, frozen, batch)

    def sft_step(self) -> Piece:
        """Supervised fine-tuning of all weights of the plain decoder."""
        c = self.config.sleep
        optimizer = optim.make(self.config.baseline.optim, c.steps)
        step = steps.make(losses.supervised(self.model), optimizer, self.config.micro_batches)
        state = steps.init(optimizer, self.params)
        return self.training("SFT step", step, state, None, self.rows(c.batch_rows))

    def seeding_step(self) -> Piece:
        """Knowledge Seeding of one slot with the teachers' hidden states at hand."""
        c = self.config.sleep
        optimizer = optim.make(c.optim, c.steps)
        objective = consolidate.objective(
            self.model, c.seed, consolidate.into_slot(0, self.slot), (0, self.slot)
        )
        slot = memory_lib.fresh_slot(self.model.config, self.model.memory_config, self.key)
        rows = self.rows(c.batch_rows)
        batch = {
            "lesson": consolidate.Lesson(
                rows, self.hidden(*rows.tokens_BT.shape), np.ones(len(rows.tokens_BT), np.float32)
            )
        }
        if self.practised:
            own, width = self.practice_shape
            sampled = np.broadcast_to(np.arange(width) >= width - c.imitate.max_new, (own, width))
            batch["practice"] = consolidate.Practice(
                tokens_BT=self.tokens(own, width),
                sampled_BT=sampled.astype(np.float32),
                hidden_BTD=self.hidden(own, width),
                advantage_B=self.draw.normal(size=own).astype(np.float32),
            )
        step = steps.make(objective, optimizer, self.config.micro_batches)
        state = steps.init(optimizer, slot)
        return self.training("seeding step", step, state, (self.params, self.student), batch)

    def scoring(self) -> Piece:
        """What the awake teacher says of packed rows."""
        batch = self.rows(self.config.eval_batch // 4)
        args = self.params, self.memory, None, batch.tokens_BT, batch.segments_BT, batch.positions_BT
        compiled, costs = cost.compiled(consolidate.scorer(self.model), *args)
        rows, length = batch.tokens_BT.shape
        run, shape = functools.partial(compiled, *args), f"{rows} x {length}"
        return Piece("teacher scoring", shape, rows * length, costs, run)

    def sampled(self, name: str, queued: bool, rows: int, width: int, new: int, temperature: float) -> Piece:
        """Sampling of `new` tokens behind prompts of `width`, as one batch, or as a queue for as many seats.

        A seat sees `WAVES` rows, and takes a step for every token of a prompt too.
        """
        model, seats = self.model, rows
        rows *= WAVES if queued else 1
        run = rollout.compiled(model.drain if queued else model.decode, Sampling(new, temperature))
        told, keys = (self.tokens(rows, width), np.full(rows, width, np.int32)), rng.per_row(self.key, rows)
        args = self.params, self.resting, None, None
        if queued:
            args += *told, keys, rows, partition.put_rows(np.arange(seats, dtype=np.int32), self.params)
        else:
            args += *partition.put_rows(told, self.params), keys
        trips = WAVES * (width + new - 1) if queued else new - 1
        compiled, costs = cost.compiled(run, *args, trips=trips)
        run, shape = functools.partial(compiled, *args), f"{rows} x ({width} + {new})"
        return Piece(name, shape, rows * new, costs, run)

    def rollouts(self) -> list[Callable[[], Piece]]:
        """Practice of `refresh` steps, dreams, and greedy answers, which trials of dreams ask for as well."""
        c = self.config
        practice, dreams = c.sleep.imitate, c.sleep.recall
        asked = min(rollout.WIDTH, c.model.max_len - c.answer_tokens)
        own, width = self.practice_shape
        practised = practice.refresh * own, width - practice.max_new, practice.max_new
        recalled = dreams.batch_size, 1, dreams.max_new, dreams.temperature
        answers = c.eval_batch, asked, c.answer_tokens, 0.0
        return [
            functools.partial(self.sampled, "student rollout", False, *practised, 1.0),
            functools.partial(self.sampled, "queue: dreams", True, *recalled),
            functools.partial(self.sampled, "queue: answers", True, *answers),
        ]

    def rewards(self) -> Piece:
        """Edit distances of one round of practice; the semantic reward reads text and is not timed."""
        c = self.config.sleep.imitate
        own, width = self.practice_shape
        rows = c.refresh * own
        ones, full = np.ones((rows, width), np.float32), np.full(rows, width, np.int32)
        finished = Rollout(self.tokens(rows, width), 0 * ones, ones, full, ended_B=full > 0)
        dreams = self.tokens(rows, width), full
        run = functools.partial(imitate.rewards, finished, dreams, None, c)
        return Piece("rewards", f"{rows} x {width}", rows * width, None, run)

    def pieces(self) -> list[Callable[[], Piece]]:
        """What makes each piece, in the order of the table."""
        c = self.config
        tokens = c.sleep.batch_rows * c.row_length
        return [
            functools.partial(self.matmul, tokens, c.model.width, c.model.ff),
            functools.partial(self.matmul, SQUARE, SQUARE, SQUARE),
            self.wake_step,
            self.scoring,
            *self.rollouts(),
            self.rewards,
            self.seeding_step,
            self.sft_step,
        ]


def measure(config: Config, *, seconds: float) -> dict[str, Any]:
    """Times every piece in turns until `seconds` are spent, three turns at least.

    Returns:
      What `--json` writes. `matmul` and `steps` list the pieces with `seconds` and `cpu_seconds` per call
      (median, min, max), `tokens_per_s`, `flops`, `flops_per_s` and `bytes`, and the steps' share of the
      better of the two matmul rates: by wall time (`of_matmul`), and by CPU time of this process
      (`of_matmul_cpu`), which other jobs disturb less and which does not see cores that idle. `reference` is
      the shape of that matmul, `training` the SFT step's shares, `seeding` what `compare` gives.
    """
    bench = Workbench(config)
    pieces = [make() for make in terminal.progress(bench.pieces(), "bench · compile")]
    for piece in pieces:
        jax.block_until_ready(piece.run())
    wall, cpu = [[] for _ in pieces], [[] for _ in pieces]
    began = time.perf_counter()
    while len(wall[0]) < 3 or time.perf_counter() - began < seconds:
        for piece, walls, cpus in zip(pieces, wall, cpu, strict=True):
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(piece.run())
            walls.append(time.perf_counter() - start)
            cpus.append(time.process_time() - start_cpu)
    mesh = bench.partitioner.mesh
    on_cpu = mesh.devices.item(0).platform == "cpu"
    found = [_found(p, w, c if on_cpu else None) for p, w, c in zip(pieces, wall, cpu, strict=True)]
    matmuls, timed = found[:2], found[2:]
    best = max(matmuls, key=lambda f: f["flops_per_s"])
    # Devices that the CPU only pretends to have share its cores.
    rate = best["flops_per_s"] * (1 if on_cpu else mesh.size)
    for f in timed:
        f["of_matmul"] = f["flops_per_s"] and f["flops_per_s"] / rate
        f["of_matmul_cpu"] = None
        if on_cpu and f["flops"]:
            per_cpu_second = best["flops"] / best["cpu_seconds"]["median"]
            f["of_matmul_cpu"] = f["flops"] / f["cpu_seconds"]["median"] / per_cpu_second
    by_name = {f["name"]: f for f in timed}
    return {
        "machine": {
            "devices": f"{mesh.size} {mesh.devices.item(0).device_kind}",
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "jax": jax.__version__,
            "parameters": trees.size(bench.params),
        },
        "turns": len(wall[0]),
        "matmul": matmuls,
        "reference": best["shape"],
        "steps": timed,
        "training": {k: by_name["SFT step"][k] for k in ("of_matmul", "of_matmul_cpu")},
        "seeding": compare(by_name, config, practised=bench.practised),
        "peak_rss_bytes": metrics.peak_rss_bytes(),
    }


def compare(found: dict[str, dict], config: Config, *, practised: bool) -> dict[str, float]:
    """What seeding costs per token, in SFT steps of as many tokens.

    Tokens are positions of rows that a gradient is taken on, of lessons and of practice. `update` is the
    seeding step alone, its teachers' hidden states at hand. `sampling` is the student's rollout and its
    rewards, shared by `sleep.imitate.refresh` steps. `scoring` is a teacher's forward pass over all these
    tokens: an upper bound, as a night scores a lesson's rows once and takes them several times. `total` is
    the sum.

    Args:
      found: what was measured, by name.
      practised: whether the step trains on the student's samples.
    """

    def seconds(name: str) -> float:
        return found[name]["seconds"]["median"]

    tokens = found["seeding step"]["tokens"]
    sft = seconds("SFT step") / found["SFT step"]["tokens"] * tokens
    sampling = (seconds("student rollout") + seconds("rewards")) / config.sleep.imitate.refresh
    parts = {
        "update": seconds("seeding step") / sft,
        "sampling": sampling / sft if practised else 0.0,
        "scoring": seconds("teacher scoring") / found["teacher scoring"]["tokens"] * tokens / sft,
    }
    return parts | {"total": sum(parts.values())}


def _found(piece: Piece, wall: Sequence[float], cpu: Sequence[float] | None) -> dict[str, Any]:
    def spread(xs: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(xs), "min": min(xs), "max": max(xs)}

    seconds = spread(wall)
    return {
        "name": piece.name,
        "shape": piece.shape,
        "tokens": piece.tokens,
        "seconds": seconds,
        "cpu_seconds": spread(cpu) if cpu else None,
        "tokens_per_s": piece.tokens / seconds["median"] if piece.tokens else None,
        "flops": piece.cost and piece.cost["flops"],
        "xla_flops": piece.cost and piece.cost["xla_flops"],
        "flops_per_s": piece.cost and piece.cost["flops"] / seconds["median"],
        "bytes": piece.cost and piece.cost["bytes"],
    }


def show(report: dict[str, Any]) -> None:
    """Prints the table, and what is wanted of it."""
    machine, training, seeding = report["machine"], report["training"], report["seeding"]
    print(
        f"{machine['devices']}, {machine['cores']} cores, load average {machine['load']}, "
        f"jax {machine['jax']}, {scaled(machine['parameters'])} parameters, "
        f"medians of {report['turns']} turns"
    )

    def share(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.0f} %"

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    headings = (
        "step", "works on", "ms (min to max)", "tokens/s", "GFLOP", "XLA's", "GFLOP/s", "of matmul", "by CPU",
        "MB",
    )  # fmt: skip
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i > 1 else "left", no_wrap=True)
    for f in [*report["matmul"], *report["steps"]]:
        median, least, most = (1e3 * f["seconds"][k] for k in ("median", "min", "max"))
        table.add_row(
            f["name"],
            f["shape"],
            f"{median:.1f} ({least:.1f} to {most:.1f})",
            scaled(f["tokens_per_s"]),
            "–" if f["flops"] is None else f"{f['flops'] / 1e9:.2f}",
            "–" if f["flops"] is None else f"{f['xla_flops'] / 1e9:.2f}",
            "–" if f["flops"] is None else f"{f['flops_per_s'] / 1e9:.1f}",
            share(f.get("of_matmul")),
            share(f.get("of_matmul_cpu")),
            "–" if f["bytes"] is None else f"{(f['bytes']['argument'] + f['bytes']['temp']) / 1e6:.1f}",
        )
    console = rich.console.Console()
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
    print(
        f"of matmul: of the rate of {report['reference']}, by wall time, and by CPU time of this process\n"
        "GFLOP: of the matrix products, loops as often as they run; XLA's: by its cost analysis of one "
        "device, loops once\nMB: arguments and temporary buffers of the compiled program\n"
        f"training (SFT step): {share(training['of_matmul'])} of the matmul rate, "
        f"{share(training['of_matmul_cpu'])} by CPU time; wanted: at least {share(GOALS['training'])}\n"
        f"a seeding step costs {seeding['total']:.2f} SFT steps of as many tokens (update "
        f"{seeding['update']:.2f}, sampling {seeding['sampling']:.2f}, scoring at most "
        f"{seeding['scoring']:.2f}); wanted: at most {GOALS['seeding']:.0f}\n"
        f"peak memory of this process: {scaled(report['peak_rss_bytes'], 'B')}"
    )


if __name__ == "__main__":  # The flags need ml_collections, `measure` does not.
    from absl import app, flags, logging

    from launch import bench_dream, bench_peers, bench_real, heap, options
    from sleep_jax import settings
    from sleep_jax.checkpoint import CheckpointError

    SUITES = {  # each with the configuration that it takes if none is given
        "life": (measure, show, "configs/clinc150.py"),
        "dream": (bench_dream.measure, bench_dream.show, "configs/tiny.py"),
        "peers": (bench_peers.measure, bench_peers.show, "configs/tiny.py"),
        "real": (bench_real.measure, bench_real.show, "configs/base.py"),
    }
    SUITE = flags.DEFINE_enum("suite", "life", list(SUITES), "what is measured, see above")
    words = [arg.removeprefix("--suite=") for arg in sys.argv]  # flags are parsed when all are defined
    asked = next((word for word in words if word in SUITES), "life")
    CONFIG = options.config(SUITES[asked][2], "whose sizes")
    SECONDS = flags.DEFINE_float("seconds", 30.0, "time spent on measuring, at least three turns")
    JSON = flags.DEFINE_string("json", "", "file to write the numbers to")

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"what is {argv[1]!r}? Keys are set as --config.KEY=VALUE")
        heap.keep()
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
        run, tell, _ = SUITES[SUITE.value]
        with options.in_one_line(ValueError, OSError, CheckpointError):
            report = run(settings.load(CONFIG.value.to_dict()), seconds=SECONDS.value)
        tell(report)
        if JSON.value:
            pathlib.Path(JSON.value).write_text(json.dumps(report, indent=2) + "\n")

    app.run(main, flags_parser=options.parse)
