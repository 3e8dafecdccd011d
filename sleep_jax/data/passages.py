"""Passages to learn from, with questions that are asked without them."""

import dataclasses
import json
import os
import pathlib
import random

from sleep_jax.data.stream import Example


@dataclasses.dataclass(frozen=True)
class Passage:
    """One text and what is asked of it: `valid` while it is learnt, `test` for reports."""

    title: str
    text: str
    valid: tuple[Example, ...]
    test: tuple[Example, ...]


def squad(data_dir: str | os.PathLike, split: str) -> tuple[Passage, ...]:
    """SEAL's passages of SQuAD (2506.10943; 1606.05250), in SEAL's order.

    Args:
      data_dir: its file `seal_squad/squad_val.json` or `seal_squad/squad_train_subset.json` is read, an array
        of {"title", "context", "questions": [{"question", "answer"}, ...]}.
      split: "test" for the validation passages in SEAL's shuffled order, whose first 200 (974 questions) are
        what the paper evaluates; "train" for what its dreams learn on.

    Returns:
      Passages; the same questions serve as `valid` and `test`, as in the paper.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: malformed JSON or an entry of another shape.
    """
    names = {"test": "squad_val.json", "train": "squad_train_subset.json"}
    if split not in names:
        raise ValueError(f"split={split!r} is neither 'train' nor 'test'")
    path = pathlib.Path(data_dir) / "seal_squad" / names[split]
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: set data_dir to the folder that holds seal_squad/")
    try:
        entries = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: malformed JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected an array at the top, found {type(entries).__name__}")
    passages = [_passage(entry, f"{path}[{i}]") for i, entry in enumerate(entries)]
    if split == "test":
        random.Random(42).shuffle(passages)
    return tuple(passages)


def _passage(entry: object, place: str) -> Passage:
    match entry:
        case {"title": str(title), "context": str(text), "questions": [_, *_] as questions} if text.strip():
            asked = tuple(_question(q, f"{place}, question {i}") for i, q in enumerate(questions))
            return Passage(title, text.strip(), asked, asked)
    raise ValueError(
        f"{place} must hold a title, a context and questions, none of them empty; found {entry!r:.80}"
    )


def _question(entry: object, place: str) -> Example:
    match entry:
        case {"question": str(question), "answer": str(answer)} if question.strip() and answer.strip():
            return Example(question.strip(), answer.strip())
    raise ValueError(f"{place} must hold a question and an answer, not blank; found {entry!r:.80}")
