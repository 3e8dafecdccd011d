"""Grids of ARC (Chollet 2019, 1911.01547): tasks, their augmentations with inverses, and votes over them.

The augmentations are those of test-time training on ARC (Akyurek et al. 2024, 2411.07279): the symmetries of
the square, permutations of the colours, and tasks of a task that leave examples out.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sleep_jax.data.stream import Example

Grid = tuple[tuple[int, ...], ...]  # rows of colours
COLOURS = 10


def grid(rows: Iterable[Iterable[int]]) -> Grid:
    """Rows as a grid.

    Raises:
      ValueError: there is no cell, rows differ in length, or a colour is none of 0 to 9.
    """
    rows = tuple(tuple(row) for row in rows)
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(f"a grid needs rows of one length, at least one cell: {rows!r:.80}")
    if not all(type(c) is int and 0 <= c < COLOURS for row in rows for c in row):
        raise ValueError(f"colours are whole numbers from 0 to {COLOURS - 1}: {rows!r:.80}")
    return rows


@dataclasses.dataclass(frozen=True)
class Pair:
    """One demonstration."""

    given: Grid
    wanted: Grid


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """Demonstrations of a rule, and pairs that ask for it.

    Attributes:
      width: characters that every grid takes in a question. Where all grids take as many, a cell stands as
        far from its counterpart in every puzzle, which small models learn many times faster.
    """

    name: str
    shown: tuple[Pair, ...]
    asked: tuple[Pair, ...]
    width: int = 0


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An invertible change of every grid of a puzzle: first turned, then transposed, then coloured anew.

    Attributes:
      turns: quarter turns to the left.
      transpose: whether rows become columns afterwards; with `turns` these are the 8 symmetries of a square.
      colours: the new colour of each; a permutation of 0 to 9.
    """

    turns: int = 0
    transpose: bool = False
    colours: tuple[int, ...] = tuple(range(COLOURS))

    def __post_init__(self):
        if sorted(self.colours) != list(range(COLOURS)):
            raise ValueError(f"colours={self.colours} is not a permutation of 0 to {COLOURS - 1}")

    def __call__(self, x: Grid) -> Grid:
        turned = np.rot90(np.array(x), self.turns)
        return _grid(np.array(self.colours)[turned.T if self.transpose else turned])

    def undo(self, x: Grid) -> Grid:
        """`undo(self(x)) == x`."""
        coloured = np.argsort(self.colours)[np.array(x)]
        return _grid(np.rot90(coloured.T if self.transpose else coloured, -self.turns))

    def puzzle(self, puzzle: Puzzle) -> Puzzle:
        """The same puzzle with every grid changed."""
        shown, asked = (
            tuple(Pair(self(p.given), self(p.wanted)) for p in pairs)
            for pairs in (puzzle.shown, puzzle.asked)
        )
        return dataclasses.replace(puzzle, shown=shown, asked=asked)


def _grid(x: np.ndarray) -> Grid:
    return tuple(tuple(int(c) for c in row) for row in x)


# The identity, three turns, two flips (turned once or thrice and transposed), two transpositions.
SYMMETRIES = tuple(Augmentation(n, transpose) for transpose in (False, True) for n in range(4))


def recoloured(draw: np.random.Generator) -> tuple[int, ...]:
    """A random permutation of the colours, for `Augmentation`; 0, most puzzles' background, stays 0."""
    return 0, *(1 + int(c) for c in draw.permutation(COLOURS - 1))


def left_out(puzzle: Puzzle, count: int = 1) -> list[Puzzle]:
    """Puzzles of the demonstrations alone: `count` of them are left out, and the first of these is asked.

    With one left out every demonstration is asked once; with two every ordered pair of them is left out once,
    so that the model also learns from fewer.
    """
    made = []
    for gone in itertools.permutations(range(len(puzzle.shown)), count):
        shown = tuple(p for i, p in enumerate(puzzle.shown) if i not in gone)
        if shown:
            made.append(dataclasses.replace(puzzle, shown=shown, asked=(puzzle.shown[gone[0]],)))
    return made


def write(x: Grid, width: int = 0) -> str:
    """A grid as text: colours as digits, a space between rows, spaces behind it up to a width."""
    return " ".join("".join(map(str, row)) for row in x).ljust(width)


def read(text: str) -> Grid | None:
    """The grid that a text says, None where it says none."""
    rows = text.split()
    if not rows or len(set(map(len, rows))) > 1 or not all(row.isascii() and row.isdigit() for row in rows):
        return None
    return tuple(tuple(map(int, row)) for row in rows)


def told(puzzle: Puzzle) -> str:
    """The demonstrations as `given > wanted`, with bars between them."""
    width = puzzle.width
    return " | ".join(f"{write(p.given, width)} > {write(p.wanted, width)}" for p in puzzle.shown)


def questions(puzzle: Puzzle) -> list[Example]:
    """What is asked: the demonstrations, then a grid whose counterpart is the answer."""
    shown = told(puzzle)
    return [Example(f"{shown} | {write(p.given, puzzle.width)} >", write(p.wanted)) for p in puzzle.asked]


def vote(grids: Sequence[Grid | None]) -> Grid | None:
    """Self-consistency: the grid said most often, the earliest of those that tie; None where none is."""
    said = Counter(g for g in grids if g is not None)
    return max(said, key=lambda g: said[g]) if said else None
