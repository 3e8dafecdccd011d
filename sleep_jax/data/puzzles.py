"""Puzzles to learn from few demonstrations: ARC as published, and small ones that need no download."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sleep_jax.data import dreams, grids, regimens
from sleep_jax.data.grids import COLOURS, Grid, Pair, Puzzle, grid
from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig

# The puzzles of SEAL's few-shot study (2506.10943, section 4.2) that its results are of.
SEAL = {
    "training": (
        "44f52bb0", "4be741c5", "5582e5ca", "5614dbcf", "5bd6f4ac", "6150a2bd", "67e8384a", "6d0aefbc",
        "6e02f1e3", "8be77c9e", "8d5021e8",
    ),
    "evaluation": (
        "59341089", "66e6c45b", "68b67ca3", "903d1b4a", "b1fc8b8e", "bc4146bd", "c7d4e6ad", "ce8d95cc",
    ),
}  # fmt: skip


def arc(data_dir: str | os.PathLike, split: str, names: Sequence[str] | None = None) -> tuple[Puzzle, ...]:
    """ARC-AGI-1 (1911.01547), in the order of `names`, or of the names where there are none.

    Args:
      data_dir: `arc_agi1/<split>.json` of it is read, an object of {name: puzzle}, or else every
        `arc_agi1/<split>/<name>.json`, as published; a puzzle is {"train": [{"input", "output"}, ...],
        "test": [...]}.
      split: "training" or "evaluation".
      names: which of them; `SEAL[split]` are those of SEAL's study.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: malformed JSON, an entry of another shape, or a name that is not there.
    """
    if split not in SEAL:
        raise ValueError(f"split={split!r} is neither 'training' nor 'evaluation'")
    folder = pathlib.Path(data_dir) / "arc_agi1" / split
    joined = folder.with_suffix(".json")
    if joined.is_file():
        entries = _json(joined)
        if not isinstance(entries, dict):
            raise ValueError(f"{joined}: expected an object at the top, found {type(entries).__name__}")
    elif folder.is_dir():
        entries = {path.stem: _json(path) for path in sorted(folder.glob("*.json"))}
    else:
        raise FileNotFoundError(
            f"neither {str(joined)!r} nor the folder {str(folder)!r} is there: set data_dir to the folder "
            "that holds arc_agi1/"
        )
    if missing := sorted(set(names or ()) - set(entries)):
        raise ValueError(f"{folder}: there is no puzzle {', '.join(missing)}")
    return tuple(_puzzle(name, entries[name], str(folder)) for name in names or sorted(entries))


def _json(path: pathlib.Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: malformed JSON: {error}") from error


def _puzzle(name: str, entry: object, place: str) -> Puzzle:
    match entry:
        case {"train": [_, *_] as shown, "test": [_, *_] as asked}:
            return Puzzle(name, *(tuple(_pair(p, f"{place}, {name}") for p in x) for x in (shown, asked)))
    raise ValueError(f"{place}: {name} must hold train and test, not empty; found {entry!r:.80}")


def _pair(entry: object, place: str) -> Pair:
    match entry:
        case {"input": [*given], "output": [*wanted]} if all(isinstance(r, list) for r in (*given, *wanted)):
            try:
                return Pair(grid(given), grid(wanted))
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
    raise ValueError(f"{place}: a pair must hold input and output grids; found {entry!r:.80}")


# A family draws a rule; the rule is a function from grid to grid. Grids are int arrays [height, width].
Rule = Callable[[np.ndarray], np.ndarray]
Family = Callable[[np.random.Generator], Rule]


def _colour(draw: np.random.Generator) -> int:
    return int(draw.integers(1, COLOURS))


def _turn(draw: np.random.Generator) -> Rule:
    turns, transpose = int(draw.integers(4)), bool(draw.integers(2))
    if not turns and not transpose:
        turns = 2
    return lambda x: np.rot90(x, turns).T if transpose else np.rot90(x, turns)


def _recolour(draw: np.random.Generator) -> Rule:
    a, b = (int(c) for c in draw.permutation(np.arange(1, COLOURS))[:2])
    return lambda x: np.where(x == a, b, np.where(x == b, a, x))


def _fall(draw: np.random.Generator) -> Rule:
    turns = int(draw.integers(4))

    def fall(x):
        x = np.rot90(x, turns)
        x = np.take_along_axis(x, np.argsort(x > 0, axis=0, kind="stable"), axis=0)
        return np.rot90(x, -turns)

    return fall


def _frame(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)
    return lambda x: np.pad(x[1:-1, 1:-1], 1, constant_values=colour)


def _mirror(draw: np.random.Generator) -> Rule:
    turns = int(draw.integers(4))

    def mirror(x):
        x = np.rot90(x, turns).copy()
        half = x.shape[1] // 2
        x[:, x.shape[1] - half :] = x[:, :half][:, ::-1]
        return np.rot90(x, -turns)

    return mirror


def _keep(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)
    return lambda x: np.where(x > 0, colour, 0)


def _shift(draw: np.random.Generator) -> Rule:
    axis, by = int(draw.integers(2)), int(draw.choice([-1, 1]))
    return lambda x: np.roll(x, by, axis)


def _edge(draw: np.random.Generator) -> Rule:
    turns, colour = int(draw.integers(4)), _colour(draw)

    def edge(x):
        x = np.rot90(x, turns).copy()
        x[0] = colour
        return np.rot90(x, -turns)

    return edge


def _inside(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)

    def inside(x):
        x = x.copy()
        x[1:-1, 1:-1] = colour
        return x

    return inside


def _corners(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)

    def corners(x):
        x = x.copy()
        x[np.ix_([0, -1], [0, -1])] = colour
        return x

    return corners


def _count_on(draw: np.random.Generator) -> Rule:
    by = int(draw.integers(1, COLOURS - 1))
    return lambda x: np.where(x > 0, (x - 1 + by) % (COLOURS - 1) + 1, 0)


def _negative(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)
    return lambda x: np.where(x > 0, 0, colour)


def _fill(draw: np.random.Generator) -> Rule:
    colour = _colour(draw)
    return lambda x: np.where(x > 0, x, colour)


FAMILIES: Mapping[str, Family] = {
    "turn": _turn,  # a symmetry of the square
    "recolour": _recolour,  # two colours change places
    "fall": _fall,  # cells fall to one side
    "frame": _frame,  # the outermost cells take one colour
    "mirror": _mirror,  # one half is the mirror image of the other
    "keep": _keep,  # all cells take one colour
    "shift": _shift,  # everything moves by one, round the edge
    "edge": _edge,  # the cells of one side take one colour
    "inside": _inside,  # all but the outermost cells take one colour
    "corners": _corners,  # the four corners take one colour
    "count": _count_on,  # colours become those some places on
    "fill": _fill,  # what is empty takes one colour
    "negative": _negative,  # what is empty takes one colour, all else becomes empty
}


# What is generated for what: no two parts share a puzzle but by chance.
BIRTH, PROBES, TRAIN, VALID, TEST = range(5)
PROBED = 64  # puzzles that what was known at birth is measured by
READ = 32  # puzzles whose demonstrations are read as text, without a question


def load(config: StreamConfig) -> Stream:
    """A birth on puzzles, and no days: what comes after it are tasks of a study.

    Args:
      config: `seed`, `puzzles`, `families`, `sides` and `strangers` are read.

    Returns:
      As skills, `puzzles` puzzles of one rule with their answers, and `strangers` others with a regimen drawn
      at random, to show what a dream of a puzzle is. As the birth itself demonstrations that are read, and as
      probes puzzles that were not shown.

    Raises:
      ValueError: as `generated` does, or there is no puzzle to be born with.
    """
    if config.puzzles < 1:
        raise ValueError(f"stream.puzzles={config.puzzles}: a birth on puzzles must be shown some")
    shape = {"families": config.families, "sides": config.sides}
    shown = generated((config.seed, BIRTH), config.puzzles + config.strangers + READ, **shape)
    solved, studied = shown[: config.puzzles], shown[config.puzzles : -READ]
    draw = np.random.default_rng([config.seed, len(shown)])
    skills = [q for p in solved for q in grids.questions(p)]
    for p in studied:
        regimen = regimens.EVERY[draw.integers(len(regimens.EVERY))]
        skills.append(Example(dreams.prompt("regimen", grids.told(p)), regimens.write(regimen)))
    probes, valid = (
        tuple(q for p in generated((config.seed, part), PROBED, **shape) for q in grids.questions(p))
        for part in (PROBES, VALID)
    )
    read = tuple(Example("", grids.told(p)) for p in shown[-READ:])
    return Stream(Experience("birth", read, valid, probes), (), tuple(skills))


def generated(
    seed: Sequence[int],
    count: int,
    families: Sequence[str],
    *,
    steps: int = 1,
    demonstrations: int = 3,
    sides: tuple[int, int] = (3, 6),
) -> tuple[Puzzle, ...]:
    """Puzzles whose rule is `steps` rules of the families, one after the other.

    All pairs of a puzzle have grids of one size. No asked grid stands among the demonstrations, and every
    demonstration changes something.

    Args:
      seed, count: puzzle i is the same whatever `count` is; the seed is any few numbers.
      families: of `FAMILIES`.
      steps: how hard they are.
      demonstrations: of each.
      sides: least and most rows, and columns, of a grid.

    Raises:
      ValueError: there is no such family, or sides that no grid of a rule can have.
    """
    unknown = [f for f in families if f not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"families={list(families)} must be some of {', '.join(FAMILIES)}")
    least, most = sides
    if not 3 <= least <= most:
        raise ValueError(f"sides={sides} must be at least 3, the least first")

    def puzzle(number: int) -> Puzzle:
        draw = np.random.default_rng([*seed, number])
        while True:  # two steps may undo each other: then others are drawn
            chosen = [families[int(draw.integers(len(families)))] for _ in range(steps)]
            rules = [FAMILIES[name](draw) for name in chosen]
            shape = tuple(int(n) for n in draw.integers(least, most + 1, 2))
            pairs: dict[Grid, Grid] = {}
            for _ in range(20 * (demonstrations + 1)):
                x = y = np.where(draw.random(shape) < 0.5, draw.integers(1, COLOURS, shape), 0)
                for rule in rules:
                    y = rule(y)
                if (shape != y.shape or (x != y).any()) and x.any():
                    pairs[grid(x.tolist())] = grid(y.tolist())
                if len(pairs) > demonstrations:
                    made = [Pair(*item) for item in pairs.items()]
                    name = f"{'+'.join(chosen)} {number}"
                    return Puzzle(name, tuple(made[:-1]), (made[-1],), width=most * (most + 1) - 1)

    return tuple(map(puzzle, range(count)))
