"""Stage 2, dreaming: the model writes what it would learn from, tries it, and learns to write what helped.

Sleep (2606.03979) section 3.4, after SEAL (2506.10943). Of a task, a context C and a measure tau:

    dreams y ~ model(. | C)          each router with one random expert more
    theta' = SFT(theta, y)           an adapter of its own per dream
    r = 1 if tau(theta') > tau(theta) else 0                                                    (Eq. 5)
    the dreamer learns from the dreams with r = 1, and so on in rounds (ReST-EM, 2312.06585)
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from sleep_jax import cost, evals, rng, rollout
from sleep_jax.bounds import at_least
from sleep_jax.data import dreams as text
from sleep_jax.data import encoding, packing
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import lora
from sleep_jax.ops import selection
from sleep_jax.sleep import graders, trials
from sleep_jax.sleep.grounding import grounded
from sleep_jax.sleep.importance import importance
from sleep_jax.sleep.trials import FitConfig, How, TrialConfig
from sleep_jax.types import Array, Memory, Model, Sampling, Tree

DREAMS = cost.Kind("dreaming of a context", "lower rem.batch_size, rem.max_new or model.max_len")


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """Dreaming, trials and rewards.

    Raises:
      ValueError: a value outside its range.
    """

    tasks: int = 8  # of a night that dreams, see `rem.gathered`
    lines: int = 4  # dreams of stage 1 that are the context of such a task
    questions: int = 8  # others, which measure what was learnt of it
    rounds: int = 2  # of ReST-EM
    roles: tuple[str, ...] = ("free",)  # what is asked for, of `data.dreams.PROMPTS`, in equal shares
    per_context: int = 5  # m, dreams of a context
    temperature: float = 1.0
    top_p: float = 1.0  # of the probability, the likeliest tokens that are drawn from
    max_new: int = 96  # tokens of a dream
    random_expert: bool = True  # each router opens one random active expert more
    common: float = 0.0  # a line may use words of its context and of this share of the dreams shown at birth
    batch_size: int = 64  # dreams sampled at once
    score: Literal["norm", "cosine", "greedy"] = "norm"  # how dreams rank by their gradients, see `select`
    top: int = 4  # k, dreams of a context that are tried for their rank
    random: int = 1  # b, others that are tried for diversity
    recount: int = 20  # dreams of a context whose questions the awake instance answers, for the night to keep
    reread: bool = True  # a trial learns the context itself beside its dreams
    grader: str = "exact"  # of graders.NAMES
    best_of_n: bool = False  # the dreamer learns from the best dream of every context, rewarded or not
    trials: TrialConfig = TrialConfig()
    learn: FitConfig = FitConfig()  # how the dreamer learns from what was rewarded

    def __post_init__(self):
        at_least(self, "rem.", tasks=1, lines=1, questions=1, rounds=1, recount=0, max_new=1, batch_size=1)
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
        if not self.temperature > 0:
            raise ValueError(f"rem.temperature={self.temperature} must be above 0: at 0 all dreams are one")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rem.top_p={self.top_p} is not in (0, 1]")
        if not 0 <= self.common <= 1:
            raise ValueError(f"rem.common={self.common} is not in [0, 1]; 0 asks of no word where it is from")
        if self.grader not in graders.NAMES:
            raise ValueError(f"rem.grader={self.grader!r} is none of {', '.join(graders.NAMES)}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A context to learn from, and the questions that measure what was learnt.

    A dream of this kind of task is a text of lines to learn from (`data.dreams`); other kinds read it anew.

    Attributes:
      repeats: whether a dream that says the same again is a trial of its own.
    """

    name: str
    context: str
    questions: tuple[Example, ...]
    repeats: ClassVar[bool] = False

    def read(self, said: str, number: int) -> tuple[tuple[Example, ...], How]:
        """What a dream gives to learn, and how; `number` is that of the dream among those of this task."""
        del number
        return tuple(text.read(said)), How()

    def reading(self) -> tuple[Example, ...]:
        """What the context itself gives to learn, without a question that measures it."""
        return (Example("", self.context),)

    def asked_again(self, dreams: "Sequence[Dreamt]") -> list[Example]:
        """What an awake instance is asked so that a night can keep it: the questions of these dreams, each
        with the answer that was dreamt most often.
        """
        dreamt: dict[str, Counter] = {}
        for e in (e for d in dreams for e in d.says if e.prompt):
            dreamt.setdefault(e.prompt, Counter())[e.answer] += 1
        return [Example(prompt, answers.most_common(1)[0][0]) for prompt, answers in dreamt.items()]

    def doubted(self, asked: Example, said: str) -> bool:
        """Whether an answer of an awake instance, given without the context, is not what was dreamt of it."""
        return not evals.matches([said], [asked.answer])[0]

    def graded(self, answers: Sequence[str], grade: graders.Grader) -> np.ndarray:
        """The grade of every question."""
        return np.asarray(grade(answers, [q.answer for q in self.questions]), float)


@dataclasses.dataclass
class Dreamt:
    """One dream and all that happened to it.

    Attributes:
      prompt, text: what was asked for, and what was said.
      says, how: what it gives to learn, and how that is studied.
      struck: lines that are left out of `says`, for they are not grounded in the context.
      reason: why it was not tried, '' when it was.
      norm, align, gain: of its gradient g: |g|, <g, g_val>, and what it adds to the dreams picked before it
        (`ops.selection.greedy`); NaN where it was not measured.
      before, after: tau without and with the dream.
      difference, error: mean of the paired differences over the questions, and its standard error.
    """

    task: Task
    role: str
    prompt: str
    text: str
    says: tuple[Example, ...]
    how: How = How()
    struck: int = 0
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
    """Who dreams: the model with its memory, which nothing here moves.

    Attributes:
      grammar_ZV: of `data.grammar`, the texts that it may dream; None for any.
      common: words that dreams use whatever they are of, see `grounding`.
    """

    model: Model
    tok: Tokenizer
    params: Tree
    memory: Memory | None
    row_length: int
    answer_tokens: int
    grammar_ZV: np.ndarray | None = None
    common: frozenset[str] = frozenset()


def imagine(
    who: Sleeper, dreamer: Tree | None, tasks: Sequence[Task], config: DreamConfig, key: Array
) -> list[Dreamt]:
    """`per_context` dreams of every context, in one go.

    Args:
      dreamer: adapter that has learnt to dream, as `learn` returns it; None is the model as it is.

    Returns:
      Dreams in the order of the tasks, without lines that are not grounded where `config.common` asks for it.
      Those that cannot be tried have a reason: the context leaves no room, the dream did not end, says
      nothing, or says it again.

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
        Sampling(
            c.max_new, c.temperature, top_p=c.top_p, random_expert=c.random_expert and who.memory is not None
        ),
        batch_size=c.batch_size,
        adapter=None if dreamer is None else lora.scaled(dreamer, c.learn.scale),
        grammar_ZV=who.grammar_ZV,
        kind=DREAMS,
    )
    seen = set()
    for (i, _), ids, ended in zip(asked, rollout.completions(out, prompts[1]), out.ended_B, strict=True):
        dream = made[i]
        dream.text = tok.decode(ids).strip()
        lines, dream.how = dream.task.read(dream.text, i % c.per_context)
        dream.says = grounded(lines, dream.task.context, who.common) if c.common else lines
        dream.struck = len(lines) - len(dream.says)
        if not ended:
            dream.reason = "it did not end"
        elif dream.struck and not dream.says:
            dream.reason = "nothing of it is grounded"
        elif not dream.says or "\ufffd" in dream.text:
            dream.reason = "it says nothing"
        elif (dream.task.name, dream.text) in seen and not dream.task.repeats:
            dream.reason = "duplicate"
        else:
            dream.reason = too_long(who, dream.says)
        seen.add((dream.task.name, dream.text))
    return made


def too_long(who: Sleeper, said: Sequence[Example]) -> str:
    """Why this cannot be learnt and asked again, '' where it can."""
    longest = min(who.row_length, who.model.config.max_len - who.answer_tokens)
    if all(len(e.tokens) <= longest for e in _encoded(who, said)):
        return ""
    key = "row_length" if longest == who.row_length else "model.max_len - answer_tokens"
    return f"a line is longer than {key}={longest}"


def _encoded(who: Sleeper, said: Sequence[Example]) -> list[Encoded]:
    encoded = []
    for e in said:
        if e.prompt:
            encoded.append(encoding.encode_answering(who.tok, e))
        else:
            encoded += encoding.encode_text(who.tok, e.answer, who.row_length)
    return encoded


def lesson(who: Sleeper, task: Task, dreams: Sequence[Dreamt], reread: bool) -> list[Encoded]:
    """What is learnt from dreams of a task: what they say and, on demand, the context."""
    context = _encoded(who, task.reading()) if reread else []
    return context + [line for dream in dreams for line in _encoded(who, dream.says)]


def select(who: Sleeper, start: Tree, made: Sequence[Dreamt], config: DreamConfig, key: Array) -> None:
    """Ranks the dreams of each context by their gradients and gives a reason to those that are not tried.

    By |g|, by <g, g_val> / (|g| |g_val|), or by what each adds to those picked before it. How fast and how
    long a dream is studied is not in it.
    The validation gradient of a dream is that of reading its context, which is at hand and asks no question,
    and of its answers alone where it asks one itself, as tau looks at answers: our reading, the paper says
    "size/alignment" and not with what. A dream whose gradient, or whose context's, is not finite has that for
    its reason.
    """
    c = config
    able = [d for d in made if not d.reason]
    if not able:
        return
    tasks = {d.task.name: d.task for d in able}
    rows = trials.lessons([_encoded(who, d.says) for d in able], who.row_length, [d.how for d in able]).rows
    read, weighed = [_encoded(who, t.reading()) for t in tasks.values()], How(prompt_weight=0.0)
    contexts = trials.lessons(read, who.row_length, [weighed] * len(tasks)).rows
    number = {name: n for n, name in enumerate(tasks)}
    of_I = np.array([number[d.task.name] for d in able])
    found = importance(who.model, c.trials, who.params, who.memory, start, rows, contexts, of_I)
    for n, (norm, align, gram) in enumerate(found):
        mine = np.flatnonzero(of_I == n)
        whole = np.isfinite(norm) & np.isfinite(align)
        for i in mine[~whole]:
            able[i].reason = "its gradient, or that of its context, is not finite"
        if not whole.any():
            continue
        mine, norm, align, gram = mine[whole], norm[whole], align[whole], gram[np.ix_(whole, whole)]
        picked, gain = selection.greedy(gram, align, c.trials.optim.lr, len(mine))
        rank = np.empty(len(mine))
        rank[picked] = -np.arange(len(mine))
        top = min(c.top, len(mine))
        lucky = min(c.random, len(mine) - top)
        score = {"norm": norm, "cosine": align / norm, "greedy": rank}[c.score]
        keep = np.asarray(selection.top_and_random(score, top, lucky, rng.fold(key, n)))
        for i, k, g, kept in zip(mine[picked], picked, gain, keep[picked], strict=True):
            dream = able[i]
            dream.norm, dream.align, dream.gain = float(norm[k]), float(align[k]), float(g)
            if not kept:
                dream.reason = "not selected"


def instances(
    who: Sleeper, start: Tree, learnt: Sequence[tuple[Task, Sequence[Dreamt]]], config: DreamConfig
) -> Tree:
    """One awake instance for each task with what was dreamt of it: adapters, arrays [I, ...].

    Several dreams of a task are studied as the first of them says.

    Raises:
      FloatingPointError: as `trials.check` does.
    """
    adapters = _tried(who, start, learnt, config)
    trials.check(adapters, start, [f"the adapter of {task.name!r}" for task, _ in learnt])
    return adapters


def _tried(
    who: Sleeper, start: Tree, learnt: Sequence[tuple[Task, Sequence[Dreamt]]], config: DreamConfig
) -> Tree:
    told = [lesson(who, t, dreams, config.reread) for t, dreams in learnt]
    how = [dreams[0].how if dreams else How() for _, dreams in learnt]
    lessons = trials.lessons(told, who.row_length, how)
    return trials.train(who.model, config.trials, who.params, who.memory, start, lessons)[0]


def attempt(who: Sleeper, start: Tree, made: Sequence[Dreamt], config: DreamConfig) -> None:
    """Tries the dreams that have no reason against it and writes down what came of each (Eq. 5).

    The model "without the dream" is the one that a trial differs from by the dream alone: where trials read
    the context again, it has read the context too. (Our reading. Against the untouched model every dream
    that names its subject would be rewarded.) Both arms answer the same questions greedily, so that the
    differences are paired. A trial whose adapter broke, or never moved, gives its dream a reason, and so does
    a context that broke who read it.

    Args:
      start: the adapter that every trial begins with.
    """
    c = config
    able = [d for d in made if not d.reason]
    if not able:
        return
    tasks = list({d.task.name: d.task for d in able}.values())
    without = _tried(who, start, [(t, ()) for t in tasks], c) if c.reread else None
    readers = [""] * len(tasks) if without is None else trials.faults(without, start)
    readers = dict(zip((t.name for t in tasks), readers, strict=True))
    base = dict(zip((t.name for t in tasks), grades(who, without, tasks, c), strict=True))
    adapters = _tried(who, start, [(d.task, (d,)) for d in able], c)
    faults = trials.faults(adapters, start)
    found = grades(who, adapters, [d.task for d in able], c)
    for dream, (hits, why), fault in zip(able, found, faults, strict=True):
        without_it, why_not = base[dream.task.name]
        if fault:
            dream.reason = f"its adapter {fault}"
        elif broken := readers[dream.task.name]:
            dream.reason = f"the adapter that read its context alone {broken}"
        else:
            dream.reason = why or why_not
        if dream.reason:
            continue
        paired = hits - without_it
        dream.before, dream.after = float(without_it.mean()), float(hits.mean())
        dream.difference = float(paired.mean())
        dream.error = float(paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else math.nan
        if not math.isfinite(dream.difference):
            dream.reason = "tau is not a number"


def grades(
    who: Sleeper, adapters: Tree | None, tasks: Sequence[Task], config: DreamConfig
) -> list[tuple[np.ndarray, str]]:
    """Of every task the grade of each question, asked of its own adapter; see `graded`."""
    questions = [t.questions for t in tasks]
    answers = trials.answers(
        who.model, who.tok, who.params, who.memory, adapters, questions, config.trials,
        max_new=who.answer_tokens,
    )  # fmt: skip
    return graded(answers, tasks, graders.make(config.grader, who.model, who.params, who.memory, who.tok))


def graded(
    answers: Sequence[Sequence[str]], tasks: Sequence[Task], grade: graders.Grader
) -> list[tuple[np.ndarray, str]]:
    """Of every task the grade of each answer, and '': or NaN, and why there is none.

    Whatever a grader fails of, it is one task that loses its grade, and it is said.
    """
    found = []
    for said, task in zip(answers, tasks, strict=True):
        try:
            found.append((task.graded(said, grade), ""))
        except Exception as error:
            why = f"the grader failed: {error}"
            print(f"{task.name}: {why} (on {said!r:.120})", flush=True)
            found.append((np.full(len(task.questions), math.nan), why))
    return found


def rewarded(made: Sequence[Dreamt]) -> list[Dreamt]:
    """The dreams with reward 1."""
    return [d for d in made if not d.reason and d.reward]


def best(tried: Sequence[Dreamt]) -> list[Dreamt]:
    """Of each context the dream with the highest measure, the first of equals."""
    found: dict[str, Dreamt] = {}
    for d in tried:
        if d.task.name not in found or d.after > found[d.task.name].after:
            found[d.task.name] = d
    return list(found.values())


def examples(made: Sequence[Dreamt], config: DreamConfig) -> list[Dreamt]:
    """What the dreamer learns from: dreams with reward 1, or the best of each context (`config.best_of_n`).

    The best may have raised nothing: SEAL trains on one dream of every passage (what it published has 50 of
    50), whatever that one came to.
    """
    return best([d for d in made if not d.reason]) if config.best_of_n else rewarded(made)


def learn(
    who: Sleeper, dreamer: Tree | None, good: Sequence[Dreamt], config: DreamConfig, key: Array, seed: int
) -> tuple[Tree | None, float]:
    """The dreamer after supervised steps on `examples`, as they were said (the M-step of ReST-EM).

    Lines that were struck are learnt as well: what is rewarded is what the dreamer said, and what is left of
    that afterwards is not its doing (our reading). It begins anew from the model in every round, as ReST-EM
    does: what a round adds is better dreams.

    Returns:
      The adapter and its last loss in nats per token; what came in, and NaN, where there is no dream.
    """
    if not good:
        return dreamer, math.nan
    longest = who.model.config.max_len
    said = [encoding.encode_answering(who.tok, Example(d.prompt, d.text), longest) for d in good]
    rows, _ = packing.pack(said, longest, weight_prompt=0.0)
    start = lora.init(who.model.config, config.learn.rank, key)
    return trials.fit(who.model, config.learn, who.params, who.memory, start, rows, seed)
