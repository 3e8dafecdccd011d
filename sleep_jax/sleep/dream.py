"""Stage 2, dreaming: the model writes what it would learn from, tries it, and learns to write what helped.

Sleep (2606.03979) section 3.4, after SEAL (2506.10943). Of a task, a context C and a measure tau:

    dreams y ~ model(. | C)          each router with one random expert more
    theta' = SFT(theta, y)           an adapter of its own per dream
    r = 1 if tau(theta') > tau(theta) else 0                                                    (Eq. 5)
    the dreamer learns from the dreams with r = 1, and so on in rounds (ReST-EM, 2312.06585)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from sleep_jax import evals, rng, rollout
from sleep_jax.data import dreams as text
from sleep_jax.data import encoding
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import lora
from sleep_jax.ops import selection
from sleep_jax.sleep import trials
from sleep_jax.sleep.importance import importance
from sleep_jax.sleep.trials import TrialConfig
from sleep_jax.types import Array, Memory, Model, Sampling, Tree

Grader = Callable[[Sequence[str], Sequence[str]], np.ndarray]

GRADERS: Mapping[str, Grader] = {
    "exact": evals.matches,
    "f1": evals.token_f1,
    "contains": evals.contains,
}


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """One round of dreaming.

    Raises:
      ValueError: a value outside its range.
    """

    roles: tuple[str, ...] = ("questions",)  # what is asked for, of `data.dreams.PROMPTS`, in equal shares
    per_context: int = 5  # m, dreams of a context
    temperature: float = 1.0
    max_new: int = 96  # tokens of a dream
    random_expert: bool = True  # each router opens one random active expert more
    batch_size: int = 64  # dreams sampled at once
    score: Literal["norm", "greedy"] = "norm"  # how dreams rank; "greedy" needs what they should help with
    top: int = 4  # k, dreams of a context that are tried for their rank
    random: int = 1  # b, others that are tried for diversity
    reread: bool = True  # a trial learns the context itself beside the dream
    grader: str = "exact"  # of GRADERS
    answer_tokens: int = 16  # tokens of an answer
    trials: TrialConfig = TrialConfig()
    learn: TrialConfig = TrialConfig(steps=30)  # how the dreamer learns from what was rewarded

    def __post_init__(self):
        for role in self.roles:
            text.prompt(role, "")
        if not self.roles or self.per_context < 1:
            raise ValueError(
                f"rem.roles={self.roles} and rem.per_context={self.per_context}: nothing is dreamt"
            )
        if self.top < 0 or self.random < 0 or not 1 <= self.top + self.random <= self.per_context:
            raise ValueError(
                f"rem.top={self.top} and rem.random={self.random} must together be at least 1 and at most "
                f"rem.per_context={self.per_context}"
            )
        if self.grader not in GRADERS:
            raise ValueError(f"rem.grader={self.grader!r} is none of {', '.join(GRADERS)}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A context to learn from, and the questions that measure what was learnt."""

    name: str
    context: str
    questions: tuple[Example, ...]


@dataclasses.dataclass
class Dreamt:
    """One dream and all that happened to it.

    Attributes:
      prompt, text: what was asked for, and what was said.
      says: its lines as examples.
      reason: why it was not tried, '' when it was.
      norm, align, gain: importance; NaN where it was not measured.
      before, after: tau without and with the dream.
      difference, error: mean of the paired differences over the questions, and its standard error.
    """

    task: Task
    role: str
    prompt: str
    text: str
    says: tuple[Example, ...]
    reason: str = ""
    norm: float = math.nan
    align: float = math.nan
    gain: float = math.nan
    before: float = math.nan
    after: float = math.nan
    difference: float = math.nan
    error: float = math.nan

    @property
    def reward(self) -> int:
        """1 where the measure rose (Eq. 5)."""
        return int(self.after > self.before)


@dataclasses.dataclass(frozen=True)
class Sleeper:
    """Who dreams: the model with its memory, which nothing here moves."""

    model: Model
    tok: Tokenizer
    params: Tree
    memory: Memory | None
    row_length: int


def imagine(
    who: Sleeper, dreamer: Tree | None, tasks: Sequence[Task], config: DreamConfig, key: Array
) -> list[Dreamt]:
    """`per_context` dreams of every context, in one go.

    Args:
      dreamer: adapter that has learnt to dream, as `lora.init` makes it; None is the model as it is.

    Returns:
      Dreams in the order of the tasks. Those that cannot be tried have a reason: the context leaves no room,
      the dream did not end, says nothing, or says it again.

    Raises:
      ValueError: there is no task.
    """
    if not tasks:
        raise ValueError("there is no task to dream of")
    c, tok = config, who.tok
    room = who.model.config.max_len - c.max_new
    made, asked = [], []
    for task in tasks:
        for n in range(c.per_context):
            role = c.roles[n % len(c.roles)]
            prompt = text.prompt(role, task.context)
            ids = [tok.bos, *tok.encode(" " + prompt), tok.ans]
            dream = Dreamt(task, role, prompt, "", ())
            if len(ids) > room:
                dream.reason = (
                    f"the context takes {len(ids)} tokens, but rem.max_new={c.max_new} leaves {room} of "
                    f"model.max_len={who.model.config.max_len}"
                )
            else:
                asked.append((len(made), ids))
            made.append(dream)
    if not asked:
        return made
    prompts = rollout.padded([ids for _, ids in asked])
    out = rollout.generate(
        who.model,
        who.params,
        who.memory,
        prompts,
        key,
        Sampling(c.max_new, c.temperature, random_expert=c.random_expert),
        batch_size=c.batch_size,
        adapter=None if dreamer is None else lora.scaled(dreamer, c.learn.scale),
    )
    seen = set()
    for (i, _), ids, ended in zip(asked, rollout.completions(out, prompts[1]), out.ended_B, strict=True):
        dream = made[i]
        dream.text = tok.decode(ids).strip()
        dream.says = tuple(text.read(dream.text))
        if not ended:
            dream.reason = "it did not end"
        elif not dream.says or "\ufffd" in dream.text:
            dream.reason = "it says nothing"
        elif (dream.task.name, dream.text) in seen:
            dream.reason = "duplicate"
        elif any(len(e.tokens) > who.row_length for e in _lines(who, dream)):
            dream.reason = f"a line is longer than row_length={who.row_length}"
        seen.add((dream.task.name, dream.text))
    return made


def _lines(who: Sleeper, dream: Dreamt) -> list[Encoded]:
    encoded = []
    for e in dream.says:
        if e.prompt:
            encoded.append(encoding.encode_answering(who.tok, e))
        else:
            encoded += encoding.encode_text(who.tok, e.answer, who.row_length)
    return encoded


def lesson(who: Sleeper, dream: Dreamt, reread: bool) -> list[Encoded]:
    """What a trial of this dream learns from: its lines and, on demand, the context."""
    context = encoding.encode_text(who.tok, dream.task.context, who.row_length) if reread else []
    return [*context, *_lines(who, dream)]


def select(
    who: Sleeper,
    start: Tree,
    made: Sequence[Dreamt],
    config: DreamConfig,
    key: Array,
    helpful: Sequence[Encoded] = (),
) -> None:
    """Ranks the dreams of each context by their gradients and gives a reason to those that are not tried.

    Args:
      helpful: sequences whose loss should fall, for `score="greedy"` and for `align`.

    Raises:
      ValueError: `score="greedy"` without them.
    """
    c = config
    if c.score == "greedy" and not helpful:
        raise ValueError('rem.score="greedy" ranks dreams by what they help with, and there is nothing of it')
    able = [d for d in made if not d.reason]
    if not able:
        return
    rows = trials.lessons([_lines(who, d) for d in able], who.row_length)
    validation = trials.lessons([helpful], who.row_length) if helpful else None
    found = importance(who.model, c.trials, who.params, who.memory, start, rows, validation)
    for i, dream in enumerate(able):
        dream.norm = float(found.norm_I[i])
        if found.align_I is not None:
            dream.align = float(found.align_I[i])
    names = np.array([d.task.name for d in able])
    for n, name in enumerate(dict.fromkeys(names)):
        mine = np.flatnonzero(names == name)
        score = found.norm_I[mine]
        if c.score == "greedy":
            picked, gain = selection.greedy(
                found.gram_II[np.ix_(mine, mine)], found.align_I[mine], c.trials.optim.lr, len(mine)
            )
            score = np.empty(len(mine))
            score[np.asarray(picked)] = -np.arange(len(mine))
            for i, g in zip(np.asarray(picked), np.asarray(gain), strict=True):
                able[mine[i]].gain = float(g)
        top = min(c.top, len(mine))
        keep = selection.top_and_random(score, top, min(c.random, len(mine) - top), rng.fold(key, n))
        for i, kept in zip(mine, np.asarray(keep), strict=True):
            if not kept:
                able[i].reason = "not selected"


def attempt(who: Sleeper, start: Tree, made: Sequence[Dreamt], config: DreamConfig) -> Tree | None:
    """Tries the dreams that have no reason against it and writes down what came of each (Eq. 5).

    Both arms answer the same questions greedily, so that the differences are paired.

    Args:
      start: the adapter that every trial begins with.

    Returns:
      The adapters of the trials [I, ...], None where there was nothing to try.
    """
    c = config
    able = [d for d in made if not d.reason]
    if not able:
        return None
    rows = trials.lessons([lesson(who, d, c.reread) for d in able], who.row_length)
    adapters, _ = trials.train(who.model, c.trials, who.params, who.memory, start, rows)
    tasks = list({d.task.name: d.task for d in able}.values())
    base = dict(zip((t.name for t in tasks), _tau(who, None, tasks, c), strict=True))
    after = _tau(who, adapters, [d.task for d in able], c)
    for dream, hits in zip(able, after, strict=True):
        paired = hits - base[dream.task.name]
        dream.before, dream.after = float(base[dream.task.name].mean()), float(hits.mean())
        dream.difference = float(paired.mean())
        dream.error = float(paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else math.nan
        if not math.isfinite(dream.after) or not math.isfinite(dream.before):
            dream.reason = "tau is not a number"
    return adapters


def _tau(who: Sleeper, adapters: Tree | None, tasks: Sequence[Task], config: DreamConfig) -> list[np.ndarray]:
    """The grade of every question of every task, each task asked of its own adapter."""
    questions = [t.questions for t in tasks]
    answers = trials.answers(
        who.model, who.tok, who.params, who.memory, adapters, questions, config.trials,
        max_new=config.answer_tokens,
    )  # fmt: skip
    grade = GRADERS[config.grader]
    return [
        np.asarray(grade(said, [q.answer for q in asked]), float)
        for said, asked in zip(answers, questions, strict=True)
    ]


def learn(
    who: Sleeper, dreamer: Tree | None, made: Sequence[Dreamt], config: DreamConfig, key: Array
) -> tuple[Tree | None, float]:
    """The dreamer after supervised steps on the dreams that were rewarded (the M-step of ReST-EM).

    Returns:
      The adapter and its last loss in nats per token; what came in, and NaN, where nothing was rewarded.
    """
    good = [d for d in made if not d.reason and d.reward]
    if not good:
        return dreamer, math.nan
    start = dreamer if dreamer is not None else lora.init(who.model.config, config.learn.rank, key)
    said = [
        encoding.encode_answering(who.tok, Example(d.prompt, d.text), who.model.config.max_len) for d in good
    ]
    rows = trials.lessons([said], who.model.config.max_len, weight_prompt=0.0)
    adapters, nll_IS = trials.train(who.model, config.learn, who.params, who.memory, start, rows)
    return jax.tree.map(lambda x: x[0], adapters), float(nll_IS[0, -1])
