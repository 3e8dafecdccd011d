"""How to study a puzzle: augmentations and training settings, as short texts of a finite grammar.

A dream of a puzzle is such a text, as SEAL's self-edits of ARC are (2506.10943, section 3.2): which changed
copies of the demonstrations are learnt from, how fast, how long, and whether their prompts are learnt too.
The values are ours, since rates are factors on `rem.trials.optim.lr` and steps shares of `rem.trials.steps`.
"""

import dataclasses
import itertools

import numpy as np

from sleep_jax.data import grids
from sleep_jax.data.grids import Augmentation, Puzzle
from sleep_jax.data.stream import Example

AUGMENTS = ("none", "symmetries", "colours", "both")
LEFT_OUT = (1, 2)
RATES = (0.1, 0.3, 1.0)
SHARES = (0.25, 0.5, 1.0)
LEARNT = ("answers", "all")


@dataclasses.dataclass(frozen=True)
class Regimen:
    """One way to study.

    Attributes:
      augment: which changes the copies of the puzzle undergo, of `AUGMENTS`.
      left_out: demonstrations that a copy lacks, the first of which it asks for.
      rate: factor on the learning rate.
      share: of the steps.
      learn: whether the answers alone are learnt, or the whole text.
    """

    augment: str = "both"
    left_out: int = 1
    rate: float = 0.3
    share: float = 0.5
    learn: str = "all"


EVERY = tuple(Regimen(*each) for each in itertools.product(AUGMENTS, LEFT_OUT, RATES, SHARES, LEARNT))


def write(regimen: Regimen) -> str:
    """The text of a regimen, such as "change by both, leave out 1, rate 0.3, steps 0.5, learn all"."""
    return (
        f"change by {regimen.augment}, leave out {regimen.left_out}, rate {regimen.rate:g}, steps "
        f"{regimen.share:g}, learn {regimen.learn}"
    )


TEXTS = {write(regimen): regimen for regimen in EVERY}


def read(text: str) -> Regimen | None:
    """The regimen that a text says; None where it says none."""
    return TEXTS.get(text.strip())


def augmentation(augment: str, draw: np.random.Generator) -> Augmentation:
    """One change of a kind of `AUGMENTS`, drawn evenly; of "symmetries" all eight, the identity included."""
    change = Augmentation()
    if augment in ("symmetries", "both"):
        change = grids.SYMMETRIES[draw.integers(len(grids.SYMMETRIES))]
    if augment in ("colours", "both"):
        change = dataclasses.replace(change, colours=grids.recoloured(draw))
    return change


def copies(puzzle: Puzzle, regimen: Regimen, count: int, draw: np.random.Generator) -> list[Example]:
    """`count` changed copies of the puzzle's demonstrations, each a question with its answer.

    Every demonstration is asked as often as any other, give or take one. What the puzzle itself asks for is
    in none of them. Where there are too few demonstrations to leave out as many as the regimen says, one is
    left out.

    Raises:
      ValueError: the puzzle has one demonstration: nothing is left to show when it is asked for.
    """
    left = grids.left_out(puzzle, regimen.left_out) or grids.left_out(puzzle)
    if not left:
        raise ValueError(f"puzzle {puzzle.name!r} has one demonstration: none is left when it is asked for")
    made: list[Example] = []
    while len(made) < count:
        for i in draw.permutation(len(left)):
            shown = tuple(left[i].shown[j] for j in draw.permutation(len(left[i].shown)))
            changed = augmentation(regimen.augment, draw).puzzle(dataclasses.replace(left[i], shown=shown))
            made += grids.questions(changed)
    return made[:count]


def votes(count: int, draw: np.random.Generator) -> tuple[Augmentation, ...]:
    """`count` changes under which a puzzle is asked: the identity first, then drawn ones."""
    return Augmentation(), *(augmentation("both", draw) for _ in range(count - 1))
