"""Stage 2 of a night, or alone: rounds of learning to dream, and keeping what dreams have taught."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sleep_jax import evals, metrics, rng
from sleep_jax.data import dreams as text
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example, Experience
from sleep_jax.fit import World
from sleep_jax.model import lora
from sleep_jax.model import memory as memory_lib
from sleep_jax.sleep import dream, grounding, night, trials
from sleep_jax.sleep.dream import DreamConfig, Dreamt, Sleeper, Task
from sleep_jax.sleep.night import Outcome
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.seeding import Variant
from sleep_jax.sleep.selves import Self, Slot
from sleep_jax.types import Array, Memory, Tree


def sleeper(world: World, params: Tree, memory: Memory) -> Sleeper:
    """The resting self of a life, as the one who dreams."""
    resting = memory_lib.without_locked(memory_lib.rest(memory))
    c = world.config
    words = grounding.common(world.stream.skills, c.rem.common) if c.rem.common else frozenset()
    return Sleeper(world.model, world.tok, params, resting, c.row_length, c.answer_tokens, common=words)


@dataclasses.dataclass
class Round:
    """One round of ReST-EM.

    Attributes:
      dreams: all that were dreamt, tried or not.
      nll: of those that the dreamer learnt from, after it has, nats per token; NaN without any.
      note: what a person should know of it, '' mostly.
    """

    number: int
    dreams: list[Dreamt]
    nll: float
    note: str


def learn_to_dream(
    who: Sleeper,
    start: Tree,
    tasks: Sequence[Task],
    config: DreamConfig,
    key: Array,
    seed: int,
    ended: Callable[[Round], None],
) -> tuple[Tree | None, list[Round]]:
    """`config.rounds` rounds of ReST-EM: dream, select, try, and learn from what helped (`dream.examples`).

    Args:
      ended: told of every round as it ends, so that it is on record whatever comes after.

    Returns:
      The adapter that has learnt to dream, None where there never was one to learn from; and the rounds.

    Raises:
      ValueError: there is no task.
    """
    dreamer, rounds = None, []
    for number in range(1, config.rounds + 1):
        drawn, picked, begun = (rng.fold(rng.fold(key, number), i) for i in range(3))
        made = dream.imagine(who, dreamer, tasks, config, drawn)
        dream.select(who, start, made, config, picked)
        dream.attempt(who, start, made, config)
        good = dream.examples(made, config)
        note = _note(made, good)
        try:
            dreamer, nll = dream.learn(who, dreamer, good, config, begun, seed)
        except FloatingPointError as error:
            nll, note = math.nan, f"{error}: the dreamer stays as it is"
        rounds.append(Round(number, made, nll, note))
        ended(rounds[-1])
    return dreamer, rounds


def on_record(world: World, dreams: str, rounds: str, label: str) -> Callable[[Round], None]:
    """What writes a round down as it ends, for `learn_to_dream`.

    Args:
      dreams: its dreams go to dreams/<dreams>-<number>.jsonl.
      rounds: path below the work directory; all rounds so far go to <rounds>.json.
      label: stands before the round's number where it has a note, which is printed.
    """
    summaries: list[dict] = []

    def ended(one: Round) -> None:
        summaries.append(summary(one))
        metrics.write_dreams(world.workdir, f"{dreams}-{one.number}", map(told_of, one.dreams))
        metrics.write_json(world.workdir, f"{rounds}.json", summaries)
        if one.note:
            print(f"{label}, round {one.number}: {one.note}", flush=True)

    return ended


def told_of(dreamt: Dreamt) -> metrics.Trial:
    """A dream with all that happened to it, for dreams/; what was learnt from untried has no reward."""
    tried = not dreamt.reason and math.isfinite(dreamt.difference)
    return metrics.Trial(
        task=dreamt.task.name,
        role=dreamt.role,
        prompt=dreamt.prompt,
        text=dreamt.text,
        norm=dreamt.norm,
        align=dreamt.align,
        gain=dreamt.gain,
        before=dreamt.before,
        after=dreamt.after,
        difference=dreamt.difference,
        error=dreamt.error,
        reward=dreamt.reward if tried else None,
        struck=dreamt.struck,
        reason=dreamt.reason,
    )


def summary(one: Round) -> dict:
    """A round in numbers."""
    tried = [d for d in one.dreams if not d.reason]
    return {
        "round": one.number,
        "dreamt": len(one.dreams),
        "tried": len(tried),
        "rewarded": sum(d.reward for d in tried),
        "before": float(np.mean([d.before for d in tried])) if tried else None,
        "after": float(np.mean([d.after for d in tried])) if tried else None,
        "nll": one.nll,
        "note": one.note,
    }


def commonest(made: Sequence[Dreamt]) -> str:
    """What most of the dreams that were not tried came to nothing by."""
    (reason, count), *others = Counter(d.reason for d in made if d.reason).most_common()
    return f"{'all' if not others else count} of them: {reason}"


def _note(made: Sequence[Dreamt], good: Sequence[Dreamt]) -> str:
    tried = [d for d in made if not d.reason]
    if not tried:
        return f"none of {len(made)} dreams could be tried ({commonest(made)}): the dreamer stays as it is"
    if not any(d.reward for d in tried):
        then = "learns from the best of each context" if good else "stays as it is"
        return f"none of {len(tried)} trials was rewarded: the dreamer {then}"
    if len(good) == len(tried) and all(d.reward for d in tried):
        return f"all {len(tried)} trials were rewarded: they tell the dreamer nothing of what helps"
    return ""


def remember(
    world: World,
    name: str,
    cycle: int,
    experience: str,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    start: Tree,
    dreamer: Tree | None,
    learnt: Sequence[tuple[Task, Sequence[Dreamt]]],
    old: Sequence[tuple[Self, list[Dream]]],
    config: DreamConfig,
    key: Array,
) -> Outcome:
    """What was dreamt of some tasks, moved into a fresh slot by Knowledge Seeding.

    Each task has an awake instance, the model with an adapter trained on the context and its dreams. It
    supervises the context and the dreams, and answers the questions of `config.recount` more dreams, none of
    which it was trained on (they are in dreams/<name>-recount.jsonl): what an instance knows is more than the
    words that it learnt it by. What it answers without the context must be what was dreamt with the context
    at hand, or it is not kept. Earlier selves supervise `old`, their own dreams. The same transaction as in
    stage 1.
    """
    who = sleeper(world, params, memory)
    try:
        adapters = dream.instances(who, start, learnt, config)
    except FloatingPointError as error:
        ended = metrics.Night(cycle, experience, "rolled back", str(error), rem=True)
        return Outcome(params, memory, slots, ended)
    more = []
    if config.recount and any(ds for _, ds in learnt):
        recounted = dataclasses.replace(config, per_context=config.recount, top=config.recount, random=0)
        more = dream.imagine(who, dreamer, [t for t, _ in learnt], recounted, key)
        fates = (dataclasses.replace(d, reason=d.reason or "its questions are asked") for d in more)
        metrics.write_dreams(world.workdir, f"{name}-recount", map(told_of, fates))
    asked = []
    for task, dreams in learnt:
        asked.append(task.asked_again([*dreams, *(d for d in more if d.task is task and not d.reason)]))
    answers = trials.answers(
        who.model, who.tok, params, who.memory, adapters, asked, config.trials, max_new=who.answer_tokens
    )  # fmt: skip
    new = []
    for i, (task, dreams) in enumerate(learnt):
        adapter = lora.scaled({k: x[i] for k, x in adapters.items()}, config.trials.scale)
        awake = Self(f"awake: {task.name}", (task.name,), np.asarray(memory.active_LE), False, 1.0, adapter)
        texts = dict.fromkeys(
            e.answer for e in (*task.reading(), *(e for d in dreams for e in d.says)) if not e.prompt
        )
        told = [_dream(awake, task, Example("", text), world) for text in texts]
        for e, said in zip(asked[i], answers[i], strict=True):
            doubt = "inconsistent" if task.doubted(e, said) else ""
            told.append(_dream(awake, task, Example(e.prompt, said), world, doubt))
        new.append((awake, told))
    # What it holds counts as much as so many examples of a day: later nights dream of it in proportion.
    count = sum(d.kept for _, dreams in new for d in dreams)
    slot = Slot(0, 0, (cycle,), tuple(t.name for t, _ in learnt), count, 0, rem=True)
    return night.settle(world, name, cycle, experience, params, memory, slots, slot, old, new, Variant())


def _dream(awake: Self, task: Task, example: Example, world: World, doubt: str = "") -> Dream:
    readable = example.answer.strip() and "\ufffd" not in example.answer
    tokens = len(encoding.encode_answering(world.tok, example).tokens) if readable and example.prompt else 0
    reason = doubt if readable and tokens <= world.config.row_length else "malformed"
    return Dream(example, awake.name, task.name, "dreamt", reason)


def kept(
    world: World,
    name: str,
    cycle: int,
    experience: str,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    adapters: tuple[Tree, Tree | None],
    learnt: Sequence[tuple[Task, Sequence[Dreamt]]],
    config: DreamConfig,
    key: Array,
    rehearse: Callable[[Memory, list[Slot]], Sequence[tuple[Self, list[Dream]]]] | None = None,
    steps: int = 0,
) -> Outcome:
    """A night that keeps what was learnt of some tasks: room is made, the past dreamt, and all of it seeded.

    Args:
      name: "<cycle>-<what>", names the checkpoints; `experience` names the night.
      params, memory, slots: asleep.
      adapters: the one that every instance begins with, and the dreamer's.
      rehearse: dreams of earlier selves once there is room; None are `rehearsed` ones.
      steps: most of this night, not of one that makes room; 0 is `sleep.steps`.
    """
    memory, slots, reason = night.make_room(world, name, cycle, params, memory, slots, Variant())
    if reason:
        ended = metrics.Night(cycle, experience, "rolled back", reason, rem=True)
        return Outcome(params, memory, slots, ended)
    old = rehearse(memory, slots) if rehearse else rehearsed(world, params, memory, slots, cycle)
    asleep = world
    if steps:
        sleep = dataclasses.replace(world.config.sleep, steps=steps)
        asleep = dataclasses.replace(world, config=dataclasses.replace(world.config, sleep=sleep))
    evening = cycle, experience, params, memory, slots
    outcome = remember(asleep, name, *evening, *adapters, learnt, old, config, rng.fold(key, 2))
    world.account = asleep.account  # a night that was taken up again has read its own
    return outcome


def rehearsed(
    world: World, params: Tree, memory: Memory, slots: Sequence[Slot], cycle: int
) -> list[tuple[Self, list[Dream]]]:
    """What every earlier self dreams of itself, and nothing of any day."""
    past = night.earlier(world, slots, memory.active_LE.shape)
    nobody = dataclasses.replace(past[-1], weight=0)
    none, config = Experience("", (), (), ()), world.config.sleep.without_the_day()
    return night.dream(world, params, memory, past, nobody, none, cycle, config)[0]


def gathered(told: Sequence[Example], name: str, config: DreamConfig, seed: int) -> list[Task]:
    """Tasks out of what stage 1 dreamt of a day: each round one dream, drawn at random.

    The dreams that are likest it are the context with it, the next likest are the questions, and right is
    what the awake self has answered: at night no other measure is at hand. Likeness is the cosine of the
    words that two dreams hold, each weighing log(n / how many of n dreams hold it). All of this is our
    reading: the paper does not say what a night that takes no input dreams of.

    Returns:
      Up to `config.tasks` of them, none where there are too few dreams for a context and its questions.
    """
    told = told_apart(told)
    need = config.lines + config.questions
    if len(told) < need:
        return []
    words = [set(evals.normalise(f"{e.prompt} {e.answer}").split()) for e in told]
    every = {w: i for i, w in enumerate(sorted(set().union(*words)))}
    held = np.zeros((len(told), len(every)))
    for i, of in enumerate(words):
        held[i, [every[w] for w in of]] = 1
    weighed = held * np.log(len(told) / np.maximum(held.sum(0), 1))
    weighed /= np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-9)
    tasks = []
    for n, first in enumerate(np.random.default_rng(seed).permutation(len(told))[: config.tasks]):
        likeness = weighed @ weighed[first]
        likeness[first] = np.inf
        near = [told[i] for i in np.argsort(-likeness, kind="stable")[:need]]
        context = text.write(near[: config.lines])
        tasks.append(Task(f"{name}: {n + 1}", context, tuple(near[config.lines :])))
    return tasks


def told_apart(told: Sequence[Example]) -> list[Example]:
    """The questions among these, each once, that can be lines of a context and be read back."""

    def readable(example: Example) -> bool:
        try:
            text.write([example])
        except ValueError:
            return False
        return True

    return list(dict.fromkeys(e for e in told if e.prompt and readable(e)))


def run(
    world: World,
    name: str,
    cycle: int,
    params: Tree,
    memory: Memory,
    slots: list[Slot],
    experience: str,
    told: Sequence[Example],
) -> Outcome:
    """Stage 2 of a night: it dreams on from what stage 1 dreamt of the day, and keeps what helped.

    The same transaction as stage 1: whatever is amiss leaves the morning as stage 1 left it, and is recorded.

    Args:
      name: "<cycle>-rem", names the checkpoints.
      params, memory, slots: as stage 1 has left them.
      experience: the day's name.
      told: the dreams of the day that stage 1 kept.
    """
    config = world.config.rem
    key, seed = rng.fold(rng.stream(world.seed, "rem"), cycle), world.seed * 1000 + cycle

    def rolled_back(reason: str) -> Outcome:
        ended = metrics.Night(cycle, experience, "rolled back", reason, rem=True)
        return Outcome(params, memory, slots, ended)

    tasks = gathered(told, experience, config, seed)
    if not tasks:
        need = config.lines + config.questions
        left = len(told_apart(told))
        return rolled_back(f"the day left {left} dreams to gather, too few for a task of {need}")
    start = lora.init(world.model.config, config.trials.rank, rng.fold(key, 0))
    stem = f"rem-{cycle:02d}"
    record = on_record(world, f"{stem}-round", f"dreams/{stem}-rounds", f"{experience} · dreaming")

    def ended(one: Round) -> None:
        record(one)
        shown = {k: v for k, v in summary(one).items() if k not in ("round", "note") and v is not None}
        world.writer.write("rem", cycle, one.number, shown)

    who = sleeper(world, params, memory)
    dreamer, rounds = learn_to_dream(who, start, tasks, config, rng.fold(key, 1), seed, ended)
    # What the last round that had any rewards brought: a later one without is none the wiser.
    good = next((good for one in reversed(rounds) if (good := dream.rewarded(one.dreams))), [])
    learnt = [(t, mine) for t in tasks if (mine := [d for d in good if d.task is t])]
    if not learnt:
        return rolled_back(rounds[-1].note)
    return kept(world, name, cycle, experience, params, memory, slots, (start, dreamer), learnt, config, key)
