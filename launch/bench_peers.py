"""The same model here and in PyTorch: greedy decoding, and a step of distillation.

python -m launch.bench --suite=peers [--json=FILE] [--seconds=30]

A random Llama of `SIZE` is written as transformers saves it and loaded by both. Decoding is that of
transformers' `generate`. A step of distillation is that of TRL's GKD trainer, off-policy and with forward KL,
into adapters of PEFT on the MLP layers with about as many parameters as the expert slot that is seeded here.
There the teacher reads the rows anew in every step. Here a night has it read them once and takes them many
times: a step is measured both ways. The rows of a step are split over all devices, texts are decoded on the
first one. Transformers, PEFT and TRL come with `pip install '.[bench]'`.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sleep_jax import metrics, optim, partition, pretrained, rng, rollout, steps, tensorfile, terminal, trees
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.figures import scaled
from sleep_jax.model import convert, families
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.build import build
from sleep_jax.settings import Config
from sleep_jax.sleep import consolidate
from sleep_jax.types import Batch, Sampling

SIZE = {"vocab_size": 8192, "width": 512, "layers": 8, "heads": 8, "kv_heads": 4, "head_size": 64, "ff": 1408,
        "max_len": 256, "tie_embeddings": True}  # fmt: skip
DECODED = {"rows": 8, "prompt": 16, "new": 128}
# 2 N D R parameters of a slot, 3 N r (D + F) of adapters on the MLP.
DISTILLED = {"rows": 8, "length": 128, "rank": 128, "peft_rank": 23}
STEPS = 4  # of the trainer in a turn
GOALS = {"decode": 2.0, "alone": 2.0, "reading": None, "night": 1.5}  # times the speed of the other
TASKS = {
    "decode": f"greedy decoding, {DECODED['rows']} x ({DECODED['prompt']} + {DECODED['new']})",
    "alone": "the same of one row, as launch.ask asks",
    "reading": f"distillation, {DISTILLED['rows']} x {DISTILLED['length']}, the teacher reading every step",
    "night": "the same, the teacher's states at hand as in a night",
}
NEEDED = ("torch", "transformers", "peft", "trl", "datasets")


def measure(config: Config, *, seconds: float) -> dict[str, Any]:
    """Tokens per second of both, in turns until `seconds` are spent, three turns at least.

    Args:
      config: its `sleep.optim` is taken; sizes are `SIZE`.

    Raises:
      ValueError: a library to compare with is not installed.
    """
    if lacking := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        raise ValueError(f"{', '.join(lacking)} not installed: pip install '.[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        _checkpoint(config, path)
        ours, theirs = _Ours(config, path), _Theirs(config, path)
        tokens = np.random.default_rng(0).integers(8, SIZE["vocab_size"], (8, SIZE["max_len"]))
        prompts = tokens[: DECODED["rows"], : DECODED["prompt"]].astype(np.int32)
        rows = tokens[: DISTILLED["rows"], : DISTILLED["length"]].astype(np.int32)
        sides = {"here": ours, "PyTorch": theirs}
        asked = {"decode": prompts, "alone": prompts[:1]}
        decoders = {
            (task, name): side.decoder(x) for task, x in asked.items() for name, side in sides.items()
        }
        same = (decoders["decode", "here"]() == decoders["decode", "PyTorch"]()).mean()
        ways = {way: functools.partial(_timed, decode) for way, decode in decoders.items()}
        ways |= {("reading", "here"): ours.distiller(rows, reading=True)}
        ways |= {("night", "here"): ours.distiller(rows, reading=False)}
        ways |= {("reading", "PyTorch"): theirs.distiller(rows)}
        spent: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        for run in ways.values():
            run()  # warm
        began = time.perf_counter()
        while len(spent["decode", "here"]) < 3 or time.perf_counter() - began < seconds:
            for way, run in ways.items():
                spent[way] += run()
    spent["night", "PyTorch"] = spent["reading", "PyTorch"]  # which has no such way
    tokens = dict.fromkeys(TASKS, DISTILLED["rows"] * DISTILLED["length"])
    tokens |= {task: len(x) * DECODED["new"] for task, x in asked.items()}
    rates = {
        task: {name: tokens[task] / statistics.median(spent[task, name]) for name in sides} for task in TASKS
    }
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "parameters": ours.size,
        "trained": {"here": ours.trained, "PyTorch": theirs.trained},
        "turns": len(spent["decode", "here"]),
        "same_tokens": float(same),
        "tokens_per_s": rates,
        "seconds": {task: {name: spent[task, name] for name in sides} for task in TASKS},
        "times": {task: by["here"] / by["PyTorch"] for task, by in rates.items()},
        "peak_rss_bytes": metrics.peak_rss_bytes(),
    }


def _timed(run: Callable[[], Any]) -> list[float]:
    before = time.perf_counter()
    run()
    return [time.perf_counter() - before]


def _checkpoint(config: Config, path: pathlib.Path) -> None:
    """A random model, and a tokenizer that nothing is read with."""
    c = dataclasses.replace(config.model, **SIZE)
    params = build(c, config.memory, eos=2).init(jax.random.key(0))
    tensorfile.write(path / tensorfile.ONE, *convert.tensors_of(params))
    tok = Tokenizer.train(["a story of a story"], 300)
    tok.save(path / "tokenizer.json")
    fields = families.write_config(c) | {
        "bos_token_id": tok.bos,
        "eos_token_id": None,
        "pad_token_id": tok.pad,
    }
    (path / "config.json").write_text(json.dumps(fields))


class _Ours:
    """The steps of a life."""

    def __init__(self, config: Config, path: pathlib.Path):
        own = dataclasses.replace(config.model, **SIZE, checkpoint=str(path))
        self.config = dataclasses.replace(pretrained.shape(own), unroll=SIZE["layers"])
        self.memory_config = dataclasses.replace(config.memory, slots=3, rank=DISTILLED["rank"])
        # No token ends a text: both sides sample the full length.
        self.model = build(self.config, self.memory_config, eos=self.config.vocab_size)
        like = jax.eval_shape(self.model.init, jax.random.key(0))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        self.params = pretrained.params(str(path), like)
        self.optimizer = optim.make(config.sleep.optim, 1000)
        self.partitioner = partition.Partitioner(config.mesh)
        self.seed = dataclasses.replace(config.sleep.seed, alpha=1.0, on_policy=0.0, beta=0.0, routing=0.0)
        self.size = trees.size(self.params)
        slot = memory_lib.fresh_slot(self.config, self.memory_config, jax.random.key(1))
        self.slot, self.trained = slot, trees.size(slot)

    def decoder(self, prompts: np.ndarray) -> Callable[[], np.ndarray]:
        run = rollout.compiled(self.model.decode, Sampling(DECODED["new"], 0.0))
        run = functools.partial(run, rollout.ANSWERS, self.params, None, None, None)
        lengths = np.full(len(prompts), prompts.shape[1], np.int32)
        keys = rng.per_row(jax.random.key(0), len(prompts))

        def decode() -> np.ndarray:
            return partition.fetch(run(prompts, lengths, keys)).tokens_BT

        return decode

    def distiller(self, rows: np.ndarray, reading: bool) -> Callable[[], list[float]]:
        """Some steps, each timed; `reading` has the teacher read the rows in every one."""
        ones = np.ones(rows.shape, np.int32)
        at = np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape)
        batch = Batch(rows, np.roll(rows, -1, 1), ones.astype(np.float32), ones, at)
        batch, own = self.partitioner.put_batch((batch, np.ones(len(rows), np.float32)))
        memory = memory_lib.rest(self.model.init_memory(jax.random.key(2)))
        memory = memory_lib.only_slots(memory, np.arange(1))  # that which is seeded, as in a night
        frozen = self.partitioner.put((self.params, memory))
        objective = consolidate.objective(self.model, self.seed, consolidate.into_slot(0, 0))
        step = self.partitioner.compile(steps.make(objective, self.optimizer))
        state = [self.partitioner.put(steps.init(self.optimizer, self.slot))]
        score = functools.partial(consolidate.scorer(self.model), consolidate.SCORING)
        read = frozen[0], None, None, batch.tokens_BT, batch.segments_BT, batch.positions_BT
        at_hand = score(*read)

        def once() -> None:
            hidden_BTD = score(*read) if reading else at_hand
            lesson = {"lesson": consolidate.Lesson(batch, hidden_BTD, own)}
            state[0], values = step(state[0], frozen, lesson, jax.random.key(0))
            jax.block_until_ready((state[0], values))

        return lambda: [seconds for _ in range(STEPS) for seconds in _timed(once)]


class _Theirs:
    """The same in PyTorch."""

    def __init__(self, config: Config, path: pathlib.Path):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.torch, self.optim = torch, config.sleep.optim
        load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, path, dtype=torch.float32)
        self.model, self.student = load().eval(), load()
        self.tok = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(path / "tokenizer.json"), pad_token="<pad>"
        )
        self.folder, self.trained = path / "trainer", 0

    def decoder(self, prompts: np.ndarray) -> Callable[[], np.ndarray]:
        ids = self.torch.tensor(prompts, dtype=self.torch.long)
        generate = functools.partial(
            self.model.generate, ids, attention_mask=self.torch.ones_like(ids), do_sample=False,
            max_new_tokens=DECODED["new"], min_new_tokens=DECODED["new"], pad_token_id=0,
        )  # fmt: skip

        def decode() -> np.ndarray:
            with self.torch.no_grad():
                return generate().numpy()

        return decode

    def distiller(self, rows: np.ndarray) -> Callable[[], list[float]]:
        import datasets
        import peft
        import transformers
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        torch, spent = self.torch, []
        datasets.disable_progress_bars()

        class Watch(transformers.TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                self.began = time.perf_counter()

            def on_step_end(self, *args, **kwargs):
                spent.append(time.perf_counter() - self.began)

        def collate(examples: list[dict]) -> dict:
            ids = torch.tensor([e["input_ids"] for e in examples])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

        settings = peft.LoraConfig(
            r=DISTILLED["peft_rank"], lora_alpha=2 * DISTILLED["peft_rank"], lora_dropout=0.0,
            target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM",
        )  # fmt: skip
        trainer = GKDTrainer(
            model=peft.get_peft_model(self.student, settings),
            teacher_model=self.model,
            args=GKDConfig(
                output_dir=str(self.folder), lmbda=0.0, beta=0.0, temperature=1.0, max_steps=STEPS,
                per_device_train_batch_size=len(rows), learning_rate=self.optim.lr, report_to=[],
                use_cpu=jax.default_backend() == "cpu", bf16=False, gradient_checkpointing=False,
                save_strategy="no", logging_strategy="no", disable_tqdm=True,
                max_grad_norm=self.optim.clip, max_length=rows.shape[1],
            ),
            data_collator=collate,
            train_dataset=datasets.Dataset.from_dict({"input_ids": rows.tolist() * STEPS}),
            processing_class=self.tok,
            callbacks=[Watch()],
        )  # fmt: skip
        self.trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)

        def distil() -> list[float]:
            spent.clear()
            trainer.train()
            return list(spent)

        return distil


def show(report: dict[str, Any]) -> None:
    """Prints the table, and what is wanted of it."""
    rows = [
        [TASKS[task], "", f"{by['here']:.0f}", f"{by['PyTorch']:.0f}", f"{report['times'][task]:.2f}",
         f"{GOALS[task] or '–'}"]
        for task, by in report["tokens_per_s"].items()
    ]  # fmt: skip
    trained = {k: scaled(count) for k, count in report["trained"].items()}
    title = (
        f"{report['devices']} x {report['device']}, {scaled(report['parameters'])} parameters, "
        f"{trained['here']} of them trained here, {trained['PyTorch']} there; tokens per second, "
        f"medians of {report['turns']} turns"
    )
    terminal.show([terminal.table(title, ["", "", "here", "PyTorch", "times", "wanted"], rows)])
    print(
        f"{100 * report['same_tokens']:.1f} % of the decoded tokens are the same; peak memory "
        f"{scaled(report['peak_rss_bytes'], 'B')}"
    )
