"""Puzzles as tasks of stage 2: a dream says how to study one, and tau is whether it is then solved.

SEAL's study of ARC (2506.10943, section 3.2): the dream is a choice of augmentations and training settings,
the trial learns from the demonstrations so changed, and the answer is the one that most augmentations of the
question agree on (self-consistency as in test-time training, 2411.07279).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sleep_jax.data import grammar, grids, regimens
from sleep_jax.data.grids import Augmentation, Puzzle
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.sleep import graders
from sleep_jax.sleep.dream import Dreamt, Task
from sleep_jax.sleep.trials import How
from sleep_jax.types import Array


@dataclasses.dataclass(frozen=True)
class PuzzleTask(Task):
    """A puzzle: its demonstrations are the context, its questions stand under several augmentations each.

    Attributes:
      puzzle: what it is of.
      votes: the augmentations that every question is asked under.
      copies: of the demonstrations, that a trial learns from.
      seed: of votes and copies; the dreams of a round draw their own copies each.
    """

    puzzle: Puzzle
    votes: tuple[Augmentation, ...]
    copies: int
    seed: tuple[int, ...]
    repeats = True

    @classmethod
    def of(cls, puzzle: Puzzle, votes: int, copies: int, seed: tuple[int, ...]) -> "PuzzleTask":
        """The task of a puzzle; everything drawn is drawn from the seed."""
        changes = regimens.votes(votes, np.random.default_rng([*seed, 0]))
        asked = (
            question
            for pair in puzzle.asked
            for change in changes
            for question in grids.questions(change.puzzle(dataclasses.replace(puzzle, asked=(pair,))))
        )
        return cls(puzzle.name, grids.told(puzzle), tuple(asked), puzzle, changes, copies, seed)

    def read(self, said: str, number: int) -> tuple[tuple[Example, ...], How]:
        regimen = regimens.read(said)
        if regimen is None:
            return (), How()
        made = regimens.copies(
            self.puzzle, regimen, self.copies, np.random.default_rng([*self.seed, 1, number])
        )
        return tuple(made), How(regimen.rate, regimen.share, float(regimen.learn == "all"))

    def reading(self) -> tuple[Example, ...]:
        """Every demonstration, asked for by the others under the changes that the question is asked under."""
        left_out = grids.left_out(self.puzzle)
        return tuple(q for v in self.votes for left in left_out for q in grids.questions(v.puzzle(left)))

    def asked_again(self, dreams: Sequence[Dreamt]) -> list[Example]:
        """What it has learnt from, and its questions; whether the answers are right is not looked at."""
        return [*super().asked_again(dreams), *self.questions]

    def doubted(self, asked: Example, said: str) -> bool:
        """Never: of what the puzzle asks the right answers are not to be known."""
        return False

    def graded(self, answers: Sequence[str], grade: graders.Grader) -> np.ndarray:
        """The grade of every question after the vote of its augmentations."""
        count = len(self.votes)
        found = []
        for i, pair in enumerate(self.puzzle.asked):
            said = [grids.read(answer) for answer in answers[i * count : (i + 1) * count]]
            undone = [x if x is None else v.undo(x) for v, x in zip(self.votes, said, strict=True)]
            agreed = grids.vote(undone)
            found.append(grade([grids.write(agreed) if agreed else ""], [grids.write(pair.wanted)])[0])
        return np.array(found, float)


def grammar_of(tok: Tokenizer, vocab_size: int) -> Array:
    """The grammar of the texts that a dream of a puzzle may be."""
    return grammar.table(([*tok.encode(" " + t), tok.eos] for t in regimens.TEXTS), vocab_size)
