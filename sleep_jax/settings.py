"""The whole configuration as frozen dataclasses that validate themselves; no ConfigDict comes past here."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

from sleep_jax.anchor import AnchorConfig
from sleep_jax.bounds import above_zero, at_least
from sleep_jax.data import regimens
from sleep_jax.data.stream import StreamConfig
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.optim import OptimConfig
from sleep_jax.partition import MeshConfig
from sleep_jax.sleep.consolidate import SeedConfig
from sleep_jax.sleep.dream import DreamConfig
from sleep_jax.sleep.imitate import ImitateConfig
from sleep_jax.sleep.recall import RecallConfig
from sleep_jax.wake import WakeConfig


@dataclasses.dataclass(frozen=True)
class BirthConfig:
    """Training before the first day, from scratch or from `model.checkpoint`."""

    checkpoint: str = ""  # a birth to start from instead: a folder written by `launch.main`
    epochs: int = 10  # passes over the birth documents, each in both directions; 0 learns nothing
    batch_rows: int = 16  # rows per step
    blanks: float = 0.0  # share of the prompts' tokens that are blanked, others in every epoch
    prompt_weight: float = 1.0  # weight of predicting a prompt's tokens
    optim: OptimConfig = OptimConfig(lr=2e-3, weight_decay=0.1)

    def __post_init__(self):
        at_least(self, "birth.", epochs=0, batch_rows=1, prompt_weight=0)
        if not 0 <= self.blanks < 1:
            raise ValueError(f"birth.blanks={self.blanks} is not in [0, 1)")


@dataclasses.dataclass(frozen=True)
class SleepConfig:
    """One night of consolidation."""

    day_at_hand: bool = True  # the day's inputs are prompts until the night commits; False: dreams only
    day_in_context: int = 0  # a third teacher with so many of the day's documents in its context; 0 is none
    old_dreams: int = 4000  # dreams of birth and of earlier nights, in proportion to what each learnt
    night_weight: float = 1.0  # of what an earlier night learnt against what birth did, example for example
    skill_share: float = 0.0  # share of old dreams that may be of what birth was shown how to do
    new_dreams: int = 1500  # dreams of the awake self, beside the day's inputs where they are at hand
    new_share: float = 0.5  # share of the day's rows in a batch
    recall_share: float = 0.2  # share of those that go from answer to prompt, to be dreamt of later
    blanks: float = 0.0  # share of the dreamt prompts' tokens that the student, not its teacher, sees blanked
    steps: int = 400  # most optimiser steps
    batch_rows: int = 16  # rows of dreams per step
    held_out: float = 0.08  # share of the dreams kept for stopping early and for judging the night
    validate_every: int = 50  # steps between looks at the held-out dreams
    patience: int = 4  # looks without improvement before the night stops
    margin: float = 0.2  # loss of agreement on held-out dreams of the past that rolls the night back
    seed: SeedConfig = SeedConfig()
    recall: RecallConfig = RecallConfig()
    imitate: ImitateConfig = ImitateConfig()
    optim: OptimConfig = OptimConfig(lr=5e-3)

    def __post_init__(self):
        at_least(self, "sleep.", steps=1, batch_rows=1, validate_every=1, patience=1)
        at_least(self, "sleep.", day_in_context=0, old_dreams=0, new_dreams=0, margin=0)
        if self.day_in_context and not self.day_at_hand:
            raise ValueError(
                f"sleep.day_in_context={self.day_in_context} puts the day's text before the teacher, but "
                "sleep.day_at_hand=False says that it is gone at night: set one of them otherwise"
            )
        for key in ("new_share", "recall_share"):
            if not 0 < getattr(self, key) < 1:
                raise ValueError(f"sleep.{key}={getattr(self, key)} is not in (0, 1)")
        if not 0 <= self.skill_share < 1:
            raise ValueError(f"sleep.skill_share={self.skill_share} is not in [0, 1)")
        if not 0 <= self.blanks < 1:
            raise ValueError(f"sleep.blanks={self.blanks} is not in [0, 1)")
        above_zero(self, "sleep.", "night_weight")
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"sleep.held_out={self.held_out} is not in (0, 0.5)")

    def without_the_day(self) -> "SleepConfig":
        """For dreams of the past alone."""
        return dataclasses.replace(self, day_at_hand=False, day_in_context=0, new_dreams=0)


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """The methods that Sleep is compared with; every cycle spends `gradient_tokens`."""

    gradient_tokens: int = 0  # per cycle; 0 is what a cycle of Sleep may spend
    batch_rows: int = 16
    blanks: float = 0.0  # share of the prompts' tokens that are blanked, as at birth
    replay_buffer: int = 200  # experience replay: real examples kept over the whole life
    replay_share: float = 0.5  # experience replay: share of old rows in a batch
    ewc_strength: float = 300.0  # lambda of EWC
    ewc_examples: int = 400  # examples per experience for the Fisher diagonal
    optim: OptimConfig = OptimConfig(lr=1e-3)

    def __post_init__(self):
        at_least(self, "baseline.", batch_rows=1, replay_buffer=1, ewc_examples=1)
        at_least(self, "baseline.", gradient_tokens=0, ewc_strength=0)
        if not 0 <= self.blanks < 1:
            raise ValueError(f"baseline.blanks={self.blanks} is not in [0, 1)")
        if not 0 < self.replay_share < 1:
            raise ValueError(f"baseline.replay_share={self.replay_share} is not in (0, 1)")


@dataclasses.dataclass(frozen=True)
class PassagesConfig:
    """The study of knowledge incorporation: what is read once and asked without it.

    Raises:
      ValueError: a value outside its range.
    """

    source: Literal["biographies", "squad"] = "biographies"  # "squad" reads {data_dir}/seal_squad/
    train: int = 32  # passages that dreaming is learnt on
    single: int = 24  # passages that are incorporated one by one, each on its own (n = 1)
    continued: int = 50  # passages that are incorporated together (n = 50)
    edits: int = 8  # passages that are incorporated one after the other
    steps_for_one: int = 400  # most optimiser steps of a night that keeps one passage
    steps_for_many: int = 400  # of a night that keeps several

    def __post_init__(self):
        at_least(self, "passages.", train=1, single=1, continued=1, edits=1)
        at_least(self, "passages.", steps_for_one=1, steps_for_many=1)


@dataclasses.dataclass(frozen=True)
class PuzzlesConfig:
    """The study of few-shot puzzles: a puzzle's demonstrations are studied, then its question is asked.

    Raises:
      ValueError: a value outside its range, or a regimen that is none.
    """

    source: Literal["generated", "arc"] = "generated"  # "arc" reads {data_dir}/arc_agi1/
    families: tuple[str, ...] = ("count", "fill", "negative", "inside")  # generated: of the rules of a puzzle
    steps: int = 1  # generated: rules of a puzzle, one after the other
    train: int = 11  # puzzles that dreaming is learnt on
    given: int = 8  # held-out puzzles
    tries: int = 5  # regimens that are tried on each of these
    copies: int = 32  # changed copies of its demonstrations that a trial learns from
    votes: int = 4  # augmentations of a question whose answers are voted on
    regimen: str = regimens.write(regimens.Regimen())  # that every trial of the arm "ttt" follows

    def __post_init__(self):
        at_least(self, "puzzles.", steps=1, train=1, given=1, tries=1, copies=1, votes=1)
        if regimens.read(self.regimen) is None:
            near = difflib.get_close_matches(self.regimen, regimens.TEXTS, n=1, cutoff=0)
            raise ValueError(f"puzzles.regimen={self.regimen!r} is no regimen, such as {near[0]!r}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that one command needs.

    Raises:
      ValueError: a value outside its range, or two settings that disagree.
    """

    study: Literal["life", "incorporation", "few_shot"] = "life"  # what is done with the configuration
    method: str = "sleep"  # one method, or several separated by commas; the first is the main one
    seed: int = 0
    seeds: int = 1  # lives with seeds seed, seed + 1, ...
    data_dir: str = ""  # folder of data sets
    tokenizer: str = ""  # a tokenizer.json; empty trains one at birth, or is that of model.checkpoint
    vocab_size: int = 1024  # of the tokenizer trained at birth, an upper bound
    row_length: int = 64  # tokens per packed row
    answer_tokens: int = 16  # most tokens of an answer
    eval_batch: int = 256  # questions answered at once; a quarter as many rows are scored at once
    micro_batches: int = 1  # parts that training batches are split in, one after another: memory for time
    checkpoint_every: int = 96  # steps between rolling checkpoints
    log_every: int = 10  # steps between lines of metrics
    stream: StreamConfig = StreamConfig()
    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    mesh: MeshConfig = MeshConfig()
    birth: BirthConfig = BirthConfig()
    anchor: AnchorConfig = AnchorConfig()
    wake: WakeConfig = WakeConfig()
    sleep: SleepConfig = SleepConfig()
    baseline: BaselineConfig = BaselineConfig()
    rem: DreamConfig = DreamConfig()
    passages: PassagesConfig = PassagesConfig()
    puzzles: PuzzlesConfig = PuzzlesConfig()

    def __post_init__(self):
        if not self.method.strip(", "):
            raise ValueError(f"method={self.method!r} names no method: name one, or several with commas")
        at_least(self, "", seed=0, seeds=1, vocab_size=1, row_length=1, answer_tokens=1)
        at_least(self, "", eval_batch=4, checkpoint_every=1, log_every=1, micro_batches=1)
        if not (self.birth.epochs or self.birth.checkpoint or self.model.checkpoint):
            raise ValueError(
                "birth.epochs=0 with neither birth.checkpoint nor model.checkpoint is a birth that learns "
                "nothing: set one of them, or birth.epochs to at least 1"
            )
        if self.anchor.rehearsed and not (self.model.checkpoint and self.birth.epochs):
            raise ValueError(
                f"anchor.rehearsed={self.anchor.rehearsed} texts of the untouched model.checkpoint are "
                "read at birth: name one and set birth.epochs to at least 1, or set it to 0"
            )
        if self.rem.common and not self.stream.strangers:
            raise ValueError(
                f"rem.common={self.rem.common} takes the words that dreams shown at birth use, but "
                "stream.strangers=0 shows none: set the one to 0 or raise the other"
            )
        if self.checkpoint_every % self.sleep.imitate.refresh:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} is not a multiple of sleep.imitate.refresh="
                f"{self.sleep.imitate.refresh}: a checkpoint must fall between two rounds of sampling"
            )
        for key, count in self.rows().items():
            if count % self.micro_batches:
                raise ValueError(
                    f"{key}={count} rows do not divide into micro_batches={self.micro_batches} parts"
                )
        if self.row_length > self.model.max_len:
            raise ValueError(f"row_length={self.row_length} exceeds model.max_len={self.model.max_len}")
        longest = {
            "answer_tokens": self.answer_tokens,
            "sleep.recall.max_new": self.sleep.recall.max_new,
            "sleep.recall.answer_max_new": self.sleep.recall.answer_max_new,
            "sleep.imitate.max_new": self.sleep.imitate.max_new,
        }
        if self.dreams_on or self.wake.notes:
            longest["rem.max_new"] = self.rem.max_new
        for key, new in longest.items():
            if new >= self.model.max_len:
                raise ValueError(
                    f"{key}={new} tokens leave no room for a prompt in model.max_len={self.model.max_len}"
                )
        if self.memory.periods[0] % self.row_length:
            raise ValueError(
                f"memory.periods[0]={self.memory.periods[0]} is not a multiple of row_length="
                f"{self.row_length}: a waking chunk is whole rows"
            )
        if len(self.wake.lr) != len(self.memory.periods):
            raise ValueError(
                f"wake.lr={self.wake.lr} has {len(self.wake.lr)} entries for the {len(self.memory.periods)} "
                f"levels of memory.periods={self.memory.periods}"
            )
        memory_lib.levels(self.model, self.memory)  # raises where a level would own nothing
        if self.sleep.day_in_context and self.row_length >= self.model.max_len:
            raise ValueError(
                f"sleep.day_in_context={self.sleep.day_in_context} puts documents before a row, but "
                f"row_length={self.row_length} fills model.max_len={self.model.max_len}: lower the one or "
                "raise the other"
            )

    def rows(self) -> dict[str, int]:
        """Rows of every batch that an optimiser step takes, by the keys that say so."""
        rows = {f"{k}.batch_rows": getattr(self, k).batch_rows for k in ("birth", "sleep", "baseline")}
        if self.sleep.seed.alpha < 1 or self.sleep.seed.on_policy > 0:
            practice = self.sleep.imitate
            rows["sleep.imitate.prompts * sleep.imitate.samples"] = practice.prompts * practice.samples
        return rows

    @property
    def dreams_on(self) -> bool:
        """Whether stage 2 is any part of it."""
        return self.study != "life" or "sleep_rem" in self.method


def load(values: Mapping[str, Any]) -> Config:
    """A Config from nested mappings, such as `ConfigDict.to_dict()`; what they leave out keeps its default.

    Raises:
      ValueError: an unknown key (naming the nearest known one), a value of another type, or one out of range.
    """
    return _build(Config(), values, "")


def as_json(config: Config) -> str:
    """The configuration as JSON, every key."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def _build(default: Any, values: Mapping[str, Any], prefix: str):
    """`default` with other values; a group that is set in part keeps the rest of its own default."""
    hints = typing.get_type_hints(type(default))
    fields = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(hints)}"
            raise ValueError(f"unknown config key {prefix}{key}{hint}")
        fields[key] = _value(hints[key], getattr(default, key), value, prefix + key)
    try:
        return dataclasses.replace(default, **fields)
    except ValueError as error:
        if not prefix or prefix in str(error):  # it names its keys in full
            raise
        raise ValueError(f"{prefix.rstrip('.')}: {error}") from error


def _value(hint: Any, default: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"config key {key} holds further keys, but is set to {value!r}")
        return _build(default, value, key + ".")
    origin = typing.get_origin(hint)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else (value,)
        inner = typing.get_args(hint)
        inner = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
        if len(inner) != len(items):
            raise ValueError(f"config key {key} takes {len(inner)} values, but is set to {value!r}")
        return tuple(_value(h, None, v, key) for h, v in zip(inner, items, strict=True))
    if origin is Literal:
        if value not in typing.get_args(hint):
            near = difflib.get_close_matches(str(value), typing.get_args(hint), n=1)
            hint_ = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config key {key}={value!r} is not one of {typing.get_args(hint)}{hint_}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"config key {key} takes a value of type {hint.__name__}, but is set to {value!r}")
    return value
