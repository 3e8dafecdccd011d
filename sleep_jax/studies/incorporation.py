"""Knowledge incorporation: a passage is studied once, its questions are asked without it.

SEAL (2506.10943) section 4.1 and Sleep (2606.03979) Table 3: one passage (n = 1), many at once, and, what
neither paper's table has, passages one after the other. Every way starts from the same learner, which was
born and has lived some days with Sleep.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sleep_jax import metrics, phases, rng, rollout, terminal
from sleep_jax.data import biographies, packing, passages
from sleep_jax.data.encoding import Encoded
from sleep_jax.fit import World
from sleep_jax.model import lora
from sleep_jax.phases import State
from sleep_jax.settings import Config
from sleep_jax.sleep import dream, graders, rem, trials
from sleep_jax.sleep.dream import DreamConfig, Dreamt, Task
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.selves import Self, Slot
from sleep_jax.sleep.trials import FitConfig
from sleep_jax.studies import comparing, tables
from sleep_jax.studies.comparing import Arm
from sleep_jax.types import Array, Memory, Tree

Learnt = tuple[Task, Sequence[Dreamt]]


ARMS = {
    "base": Arm(read=False, dream=False, keep=False),
    "passage": Arm(dream=False, keep=False),
    "own": Arm(learn=False, select=False, ground=False, random_expert=False, keep=False),
    "seal": Arm(select=False, ground=False, random_expert=False, keep=False),
    "sleep": Arm(),
    "sleep_no_selection": Arm(select=False),
    "sleep_no_grounding": Arm(ground=False),
    "sleep_no_random_expert": Arm(random_expert=False),
    "sleep_random_expert": Arm(random_expert=True),
    "sleep_no_dreaming": Arm(dream=False),
}


@dataclasses.dataclass
class Bench:
    """What every part of the study needs of one arm.

    Attributes:
      config: of dreaming, as the arm has it.
      grown: the learner before any passage, the same for every arm.
      old: dreams of its earlier selves, which a night of this arm rehearses; with later slots there are more.
      grade: how answers are graded; a judge is the learner before any passage, whatever it has become.
      start: the adapter that every trial begins with.
      dreamer: adapter that has learnt to dream; None is the learner as it is.
      nights: how those of the part ended.
    """

    world: World
    arm: Arm
    config: DreamConfig
    grown: State
    old: Sequence[tuple[Self, list[Dream]]]
    grade: graders.Grader
    start: Tree
    dreamer: Tree | None
    nights: list[metrics.Night] = dataclasses.field(default_factory=list)

    def dreamt(
        self, part: str, params: Tree, memory: Memory, tasks: Sequence[Task], key: Array
    ) -> list[Learnt]:
        """Each task with the dreams that are learnt from; all of them go into dreams/<part>-dreams.jsonl."""
        if not self.arm.dream:
            return [(t, []) for t in tasks]
        who = rem.sleeper(self.world, params, memory)
        made = dream.imagine(who, self.dreamer, tasks, self.config, rng.fold(key, 0))
        dream.select(who, self.start, made, self.config, rng.fold(key, 1))
        metrics.write_dreams(self.world.workdir, f"{part}-dreams", map(rem.told_of, made))
        learnt = [(t, [d for d in made if d.task is t and not d.reason]) for t in tasks]
        if bare := [t for t, dreams in learnt if not dreams]:
            why = rem.commonest([d for d in made if d.task in bare])
            print(
                f"{part}: of {len(bare)} of {len(tasks)} passages no dream could be learnt ({why})",
                flush=True,
            )
        return learnt

    def remembered(self, part: str, number: int, state: State, learnt: Sequence[Learnt], key: Array) -> State:
        """The learner after the `number`-th night that keeps what was learnt, committed or rolled back."""
        cycle = len(self.world.stream.days) + number  # behind the nights that it has lived
        asleep = state.params, state.memory, state.slots

        def rehearse(memory: Memory, slots: list[Slot]) -> Sequence[tuple[Self, list[Dream]]]:
            known = slots == self.grown.slots
            return self.old if known else rem.rehearsed(self.world, state.params, memory, slots, cycle)

        outcome = rem.kept(
            self.world, f"{cycle:03d}-{part}", cycle, part, *asleep, (self.start, self.dreamer), learnt,
            self.config, key, rehearse, self.steps(len(learnt)),
        )  # fmt: skip
        self.nights.append(outcome.night)
        return dataclasses.replace(state, memory=outcome.memory, slots=outcome.slots)

    def steps(self, count: int) -> int:
        """Most steps of a night that keeps so many passages."""
        c = self.world.config.passages
        return c.steps_for_one if count == 1 else c.steps_for_many

    def fitted(self, params: Tree, memory: Memory, learnt: Sequence[Learnt], seed: int) -> Tree:
        """One scaled adapter for all that was learnt, in the gradient tokens of instances and a night."""
        c, who = self.world.config, rem.sleeper(self.world, params, memory)
        lessons = [dream.lesson(who, t, ds, self.config.reread) for t, ds in learnt]
        encoded, trial = [e for lesson in lessons for e in lesson], self.config.trials
        rows, _ = packing.pack(encoded, c.row_length)

        def instance(lesson: Sequence[Encoded]) -> float:
            """Gradient tokens of the trial that learns this alone."""
            own = len(packing.pack(lesson, c.row_length)[0].tokens_BT)
            at_a_time = min(trial.batch_rows or own, own) / own
            return trial.steps * at_a_time * sum(len(e.tokens) for e in lesson)

        night = self.steps(len(learnt)) * c.sleep.batch_rows * c.row_length
        epochs = max(round((sum(map(instance, lessons)) + night) / sum(len(e.tokens) for e in encoded)), 1)
        fit = FitConfig(trial.rank, trial.alpha, epochs, self.config.learn.batch_rows, trial.optim)
        adapter, _ = trials.fit(who.model, fit, params, who.memory, self.start, rows, seed)
        return lora.scaled(adapter, trial.scale)

    def knows(self, state: State, tasks: Sequence[Task], adapter: Tree | None = None) -> list[list[float]]:
        """The grade of every question of every task; raises as `_measured`."""
        questions = [q for t in tasks for q in t.questions]
        who = rem.sleeper(self.world, state.params, state.memory)
        answers = rollout.answer(
            who.model, who.tok, who.params, who.memory, questions,
            max_new=who.answer_tokens, batch_size=self.world.config.eval_batch, adapter=adapter,
        )  # fmt: skip
        ends = np.cumsum([len(t.questions) for t in tasks])
        said = [answers[end - len(t.questions) : end] for t, end in zip(tasks, ends, strict=True)]
        return _measured(tasks, dream.graded(said, tasks, self.grade))

    def elsewhere(self, state: State, adapter: Tree | None = None) -> list[float]:
        """Accuracy on what was known before any passage: birth, and each day lived."""
        lived = (self.world.stream.birth, *self.world.stream.days)
        asked = [Task(e.name, "", e.test) for e in lived]
        return [float(np.mean(hits)) for hits in self.knows(state, asked, adapter)]


def _measured(tasks: Sequence[Task], found: Sequence[tuple[np.ndarray, str]]) -> list[list[float]]:
    """Grades that a table can be made of.

    Raises:
      FloatingPointError: those of a task are missing; its arm ends here, and the others go on.
    """
    for task, (_, why) in zip(tasks, found, strict=True):
        if why:
            raise FloatingPointError(f"{task.name}: {why}")
    return [hits.tolist() for hits, _ in found]


def single(bench: Bench, tasks: Sequence[Task], key: Array) -> dict:
    """n = 1: each passage is incorporated by a learner that knows none of the others."""
    state, arm = bench.grown, bench.arm
    if not arm.read:
        return {"hits": bench.knows(state, tasks)}
    learnt = bench.dreamt("single", state.params, state.memory, tasks, key)
    if not arm.keep:
        who = rem.sleeper(bench.world, state.params, state.memory)
        adapters = dream.instances(who, bench.start, learnt, bench.config)
        return {"hits": _measured(tasks, dream.grades(who, adapters, tasks, bench.config))}
    hits = []
    for i, one in enumerate(learnt):
        after = bench.remembered("single", 1 + i, state, [one], rng.fold(key, 3 + i))
        hits += bench.knows(after, [one[0]])
    return {"hits": hits}


def continued(bench: Bench, tasks: Sequence[Task], key: Array) -> dict:
    """All passages are incorporated in one go, and asked at the end."""
    state, arm, adapter = bench.grown, bench.arm, None
    if arm.read:
        learnt = bench.dreamt("continued", state.params, state.memory, tasks, key)
        if arm.keep:
            state = bench.remembered("continued", 1, state, learnt, key)
        else:
            adapter = bench.fitted(state.params, state.memory, learnt, bench.world.seed)
    return {"hits": bench.knows(state, tasks, adapter), "elsewhere": bench.elsewhere(state, adapter)}


def edits(bench: Bench, tasks: Sequence[Task], key: Array) -> dict:
    """One passage after the other; after each, all of them are asked, and what was known before them."""
    state, arm = bench.grown, bench.arm
    hits, elsewhere = [bench.knows(state, tasks)], [bench.elsewhere(state)]
    for i, task in enumerate(tasks):
        if not arm.read:
            break
        drawn = rng.fold(key, i)
        learnt = bench.dreamt(f"edits-{1 + i}", state.params, state.memory, [task], drawn)
        if arm.keep:
            state = bench.remembered("edits", 1 + i, state, learnt, drawn)
        else:
            who = rem.sleeper(bench.world, state.params, state.memory)
            adapters = dream.instances(who, bench.start, learnt, bench.config)
            adapter = {k: x[0] for k, x in adapters.items()}
            merged = lora.merged(state.params, lora.scaled(adapter, bench.config.trials.scale))
            state = dataclasses.replace(state, params=merged)
        hits.append(bench.knows(state, tasks))
        elsewhere.append(bench.elsewhere(state))
    return {"hits": hits, "elsewhere": elsewhere}


Part = Callable[[Bench, Sequence[Task], Array], dict]
PARTS: dict[str, Part] = {"single": single, "continued": continued, "edits": edits}


def run(config: Config, workdir: str) -> list[dict]:
    """Every (seed, arm) that the configuration names, see `comparing.compare`.

    An arm's rounds.json, single.json, continued.json and edits.json hold what the tables are made of.

    Raises:
      ValueError: an unknown arm, or whatever the data or the directory make impossible.
    """
    if not config.rem.reread:
        raise ValueError(
            "rem.reread=False: an arm that dreams nothing of a passage would learn nothing of it"
        )
    train, given = passages_of(config)

    def lived(world: World, arm: Arm, grown: State) -> None:
        live(world, arm, grown, train, given)

    return comparing.compare(config, workdir, ARMS, tuple(PARTS), lived, show)


def show(root: pathlib.Path, collected: Sequence[Mapping]) -> None:
    """Writes <root>/incorporation.json of all that is done so far, and prints the tables."""
    found = tables.incorporation(collected)
    metrics.write_json(root, "incorporation.json", found)
    arms = [
        [
            row["arm"], str(row["seeds"]),
            *(row[k].percent() if k in row else "–" for k in tables.COLUMNS),
            "–" if row["rolled_back"] is None else str(row["rolled_back"]),
        ]
        for row in found["arms"]
    ]  # fmt: skip
    heads = ["arm", "seeds", *tables.COLUMNS.values(), "nights\nrolled back"]
    terminal.show([terminal.table("Passages, accuracy in %", heads, arms), *tables.rounds(found["rounds"])])


def passages_of(config: Config) -> tuple[list[Task], list[Task]]:
    """The passages that dreaming is learnt on, with valid questions, and those that are incorporated."""
    c = config.passages
    wanted = max(c.single, c.continued, c.edits)
    if c.source == "squad":
        train, given = (passages.squad(config.data_dir, split) for split in ("train", "test"))
    else:
        told = biographies.CAST.passages(config.stream, c.train + wanted)
        train, given = told[: c.train], told[c.train :]
    for key, have, want in (("train", train, c.train), ("single, continued or edits", given, wanted)):
        if len(have) < want:
            raise ValueError(f"passages.{key} asks for {want} passages, but there are {len(have)}: lower it")
    asked = config.stream.asked
    return (
        _named([Task(p.title, p.text, p.valid) for p in train[: c.train]]),
        _named([Task(p.title, p.text, getattr(p, asked)) for p in given[:wanted]]),
    )


def _named(tasks: Sequence[Task]) -> list[Task]:
    """Tasks by names of their own: passages of one article share its title."""
    shared = Counter(t.name for t in tasks)
    return [
        dataclasses.replace(t, name=f"{t.name} · {i + 1}") if shared[t.name] > 1 else t
        for i, t in enumerate(tasks)
    ]


def live(world: World, arm: Arm, grown: State, train: Sequence[Task], given: Sequence[Task]) -> None:
    """All parts of one arm."""
    c, config = world.config.passages, comparing.dreaming(arm, world.config.rem)
    key = rng.stream(world.seed, "incorporation")
    start = lora.init(world.model.config, config.trials.rank, rng.fold(key, 0))
    dreamer = lora.init(world.model.config, config.learn.rank, rng.fold(key, 1))  # the learner as it is

    def taught(state: State) -> State:
        who = rem.sleeper(world, state.params, state.memory)
        learnt, _ = comparing.taught(world, who, start, train, config, rng.fold(key, 2))
        return dataclasses.replace(state, extra={"dreamer": dreamer if learnt is None else learnt})

    state = dataclasses.replace(grown, extra={"dreamer": dreamer})
    if arm.dream and arm.learn:
        state = phases.phase(world, "000-dreamer", state, taught)
    old = rem.rehearsed(world, grown.params, grown.memory, grown.slots, 0) if arm.keep else []
    who = rem.sleeper(world, grown.params, grown.memory)
    grade = graders.make(config.grader, who.model, who.params, who.memory, who.tok)
    bench = Bench(world, arm, config, grown, old, grade, start, state.extra["dreamer"])
    for i, (name, part) in enumerate(PARTS.items()):

        def done(state: State, i: int = i, name: str = name, part: Part = part) -> State:
            bench.nights.clear()
            found = part(bench, given[: getattr(c, name)], rng.fold(key, 3 + i))
            nights = [dataclasses.asdict(n) for n in bench.nights]
            metrics.write_json(world.workdir, f"{name}.json", found | {"nights": nights})
            return state  # nothing goes on from a part: the next begins with the same learner

        phases.phase(world, f"{1 + i:03d}-{name}", state, done)
