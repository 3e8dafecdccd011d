"""Few-shot puzzles: learn from a puzzle's demonstrations how to study it, then solve what is asked.

SEAL (2506.10943) section 4.2 and Sleep (2606.03979) Table 4, on ARC. A dream is a regimen (`data.regimens`):
which augmentations of the demonstrations to train on, and how. Arms differ in who chooses it: nobody (in
context), a fixed one (test-time training), a dreamer that has learnt by ReST-EM (SEAL), and one whose dreams
are selected and whose rewarded instances were consolidated into a fresh slot before (Sleep).
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sleep_jax import metrics, phases, rng, terminal
from sleep_jax.data import dreams as text
from sleep_jax.data import encoding, puzzles
from sleep_jax.data.grids import Puzzle
from sleep_jax.fit import World
from sleep_jax.model import lora
from sleep_jax.phases import State
from sleep_jax.settings import Config
from sleep_jax.sleep import dream, night, rem
from sleep_jax.sleep.dream import DreamConfig, Dreamt, Sleeper
from sleep_jax.sleep.puzzling import PuzzleTask, grammar_of
from sleep_jax.studies import comparing, tables
from sleep_jax.studies.comparing import Arm
from sleep_jax.types import Array, Tree

ARMS = {
    "icl": Arm(read=False, dream=False, learn=False, keep=False),
    "ttt": Arm(dream=False, learn=False, keep=False),
    "own": Arm(learn=False, select=False, random_expert=False, keep=False),
    "seal": Arm(select=False, random_expert=False, keep=False),
    "sleep": Arm(),
    "sleep_no_selection": Arm(select=False),
    "sleep_no_random_expert": Arm(random_expert=False),
    "sleep_no_consolidation": Arm(keep=False),
}
PARTS = ("tasks",)


def run(config: Config, workdir: str) -> list[dict]:
    """Every (seed, arm) that the configuration names, see `comparing.compare`.

    An arm's rounds.json (rewards while dreaming was learnt) and tasks.json (held-out puzzles, and what was
    known at birth before and after) hold what the tables are made of.

    Raises:
      ValueError: an unknown arm, or whatever the data or the directory make impossible.
    """
    if config.rem.reread or config.rem.recount or config.rem.roles != ("regimen",):
        raise ValueError(
            f"rem.reread={config.rem.reread}, rem.recount={config.rem.recount} and rem.roles="
            f"{config.rem.roles}: puzzles are studied by regimens alone: set False, 0 and ('regimen',)"
        )
    train, given = puzzles_of(config)

    def lived(world: World, arm: Arm, grown: State) -> None:
        live(world, arm, grown, train, given)

    return comparing.compare(config, workdir, ARMS, PARTS, lived, show)


def puzzles_of(config: Config) -> tuple[tuple[Puzzle, ...], tuple[Puzzle, ...]]:
    """The puzzles that dreaming is learnt on, and those that are taken afterwards."""
    c, asked = config.puzzles, config.stream.asked
    if c.source == "arc":
        train = puzzles.arc(config.data_dir, "training", puzzles.SEAL["training"])
        if asked == "test":
            given = puzzles.arc(config.data_dir, "evaluation", puzzles.SEAL["evaluation"])
        else:  # settings are chosen on puzzles that neither learning nor reporting sees
            others = puzzles.arc(config.data_dir, "training")
            given = tuple(p for p in others if p.name not in puzzles.SEAL["training"] and len(p.shown) > 1)
    else:
        shape = {"steps": c.steps, "sides": config.stream.sides}
        part = {"test": puzzles.TEST, "valid": puzzles.VALID}[asked]
        train = puzzles.generated((config.stream.seed, puzzles.TRAIN), c.train, c.families, **shape)
        given = puzzles.generated((config.stream.seed, part), c.given, c.families, **shape)
    for key, have, want in (("train", train, c.train), ("given", given, c.given)):
        if len(have) < want:
            raise ValueError(f"puzzles.{key} asks for {want} puzzles, but there are {len(have)}: lower it")
    return train[: c.train], given[: c.given]


def tasks_of(world: World, of: Sequence[Puzzle], part: int) -> list[PuzzleTask]:
    """Those of some puzzles that fit into the model, as tasks; the others are told of."""
    c = world.config
    room = min(c.row_length, c.model.max_len - c.answer_tokens)
    tasks = []
    for i, puzzle in enumerate(of):
        task = PuzzleTask.of(puzzle, c.puzzles.votes, c.puzzles.copies, (world.seed, part, i))
        asked = [*task.questions, *task.reading()]
        longest = max(len(encoding.encode_answering(world.tok, q).tokens) for q in asked)
        answer = max(encoding.answer_lengths(world.tok, asked))
        reason = "" if task.reading() else "it has one demonstration, and none is left when that is asked for"
        if longest > room or answer > c.answer_tokens:
            reason = (
                f"it takes {longest} tokens and its answers {answer}, but row_length and model.max_len - "
                f"answer_tokens leave {room}, and answer_tokens={c.answer_tokens}"
            )
        if reason:
            print(f"puzzle {puzzle.name} is left out and counts as not solved: {reason}")
        else:
            tasks.append(task)
    return tasks


def live(world: World, arm: Arm, grown: State, train: Sequence[Puzzle], given: Sequence[Puzzle]) -> None:
    """All parts of one arm: learning to dream, keeping what was learnt, and the puzzles that are held out.

    Raises:
      ValueError: none of the puzzles fits into the model.
    """
    config, key = comparing.dreaming(arm, world.config.rem), rng.stream(world.seed, "few_shot")
    start = lora.init(world.model.config, config.trials.rank, rng.fold(key, 0))
    dreamer = lora.init(world.model.config, config.learn.rank, rng.fold(key, 1))  # the learner as it is
    learning, held_out = tasks_of(world, train, 0), tasks_of(world, given, 1)
    if not learning or not held_out:
        which = "that dreaming is learnt on" if not learning else "that are held out"
        raise ValueError(
            f"none of the puzzles {which} fits: raise row_length, model.max_len and answer_tokens as said"
        )

    def learnt(state: State) -> State:
        who = _sleeper(world, state)
        taught, rounds = comparing.taught(world, who, start, learning, config, rng.fold(key, 2))
        state = dataclasses.replace(state, extra={"dreamer": dreamer if taught is None else taught})
        return _kept(world, state, start, rounds, config, rng.fold(key, 3)) if arm.keep else state

    def taken(state: State) -> State:
        before = _known(world, grown)
        after = _known(world, state) if arm.keep else before
        who = _sleeper(world, state)
        solved = [bool(hits.mean() == 1) for hits, _ in dream.grades(who, None, held_out, config)]
        in_context = dict(zip((t.name for t in held_out), solved, strict=True))
        made: list[Dreamt] = []
        if arm.read:
            drawn = rng.fold(key, 4)
            made = _regimens(who, arm, state.extra["dreamer"], held_out, world, start, config, drawn)
            dream.attempt(who, start, made, config)
            metrics.write_dreams(world.workdir, "given", map(rem.told_of, made))
        # A trial that broke, or that could not be made, has not solved its puzzle.
        hits = Counter(d.task.name for d in made if d.after == 1 and not d.reason)
        found = {
            "birth": [before, after],
            "nights": [dataclasses.asdict(n) for n in state.nights],
            "in_context": [in_context.get(p.name, False) for p in given],
        }
        tried = [[n < hits[p.name] for n in range(world.config.puzzles.tries)] for p in given]
        found["solved"] = tried if arm.read else [[hit] for hit in found["in_context"]]
        metrics.write_json(world.workdir, "tasks.json", found)
        return state

    state = dataclasses.replace(grown, extra={"dreamer": dreamer}, nights=[])
    if arm.learn:
        state = phases.phase(world, "001-dreamer", state, learnt)
    phases.phase(world, "002-given", state, taken)


def _sleeper(world: World, state: State) -> Sleeper:
    who = rem.sleeper(world, state.params, state.memory)
    return dataclasses.replace(who, grammar_ZV=grammar_of(world.tok, who.model.config.vocab_size))


def _known(world: World, state: State) -> float:
    """Share of the birth's own probes that are answered in context."""
    asked = world.stream.birth.test
    answers = night.ask(world, state.params, state.memory)(asked)
    return float(np.mean([a == q.answer for a, q in zip(answers, asked, strict=True)]))


def _regimens(
    who: Sleeper,
    arm: Arm,
    dreamer: Tree,
    given: Sequence[PuzzleTask],
    world: World,
    start: Tree,
    config: DreamConfig,
    key: Array,
) -> list[Dreamt]:
    """What is tried on held-out puzzles: `puzzles.tries` regimens of each, dreamt or the fixed one."""
    c = world.config.puzzles
    if arm.dream:
        tops = round(c.tries * config.top / (config.top + config.random))
        config = dataclasses.replace(
            config, per_context=max(config.per_context, c.tries), top=tops, random=c.tries - tops
        )
        made = dream.imagine(who, dreamer, given, config, rng.fold(key, 0))
        dream.select(who, start, made, config, rng.fold(key, 1))
        return made
    made = []
    for task in given:
        for n in range(c.tries):
            says, how = task.read(c.regimen, n)
            prompt = text.prompt(config.roles[0], task.context)
            reason = dream.too_long(who, says)
            made.append(Dreamt(task, config.roles[0], prompt, c.regimen, says, how, reason))
    return made


def _kept(
    world: World,
    state: State,
    start: Tree,
    rounds: Sequence[rem.Round],
    config: DreamConfig,
    key: Array,
) -> State:
    """The learner after a night that keeps an instance of every puzzle that had a rewarded regimen."""
    cycle = len(world.stream.days) + 1
    best = dream.best(dream.rewarded([d for one in rounds for d in one.dreams]))
    if not best:  # no room is made, and nothing merged, for nothing
        reason = "no regimen was rewarded: there is nothing to keep"
        return dataclasses.replace(
            state, nights=[metrics.Night(cycle, "puzzles", "rolled back", reason, rem=True)]
        )
    learnt = [(d.task, (d,)) for d in best]
    outcome = rem.kept(
        world, f"{cycle:03d}-puzzles", cycle, "puzzles", state.params, state.memory, state.slots,
        (start, None), learnt, config, key,
    )  # fmt: skip
    return dataclasses.replace(state, memory=outcome.memory, slots=outcome.slots, nights=[outcome.night])


def show(root: Path, collected: Sequence[Mapping]) -> None:
    """Writes <root>/few_shot.json of all that is done so far, and prints the tables."""
    found = tables.few_shot(collected)
    metrics.write_json(root, "few_shot.json", found)
    arms = [
        [
            row["arm"], str(row["seeds"]), f"{row['solved']} of {row['tried']}",
            f"{100 * row['share']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
            *(row[k].percent() if k in row else "–" for k in tables.FEW_SHOT),
        ]
        for row in found["arms"]
    ]  # fmt: skip
    heads = ["arm", "seeds", "solved", "% (95 % interval)", *tables.FEW_SHOT.values()]
    shown = [terminal.table("Held-out puzzles, % of trials", heads, arms)]
    terminal.show([*shown, *tables.rounds(found["rounds"])])
