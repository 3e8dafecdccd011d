"""Notes: what a model writes of texts while it has them before it, for its fast memory to learn by day.

The fastest memory is the context (Sleep, 2606.03979, section 2: its frequency is infinite and it is erased at
the end). What is understood in it reaches the next one, fast memory, as questions with answers that the model
writes of the text, of which most are read beside it and a few are kept back: they measure what has stayed, in
a day that nobody else asks about. [reading: the paper leaves open how context and level 1 are joined]
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from sleep_jax import evals, metrics, rng
from sleep_jax.data import dreams
from sleep_jax.data.stream import Example, Experience, Stream, digest
from sleep_jax.settings import Config
from sleep_jax.sleep import dream, grounding
from sleep_jax.sleep.dream import Sleeper, Task
from sleep_jax.types import Array

HELD_BACK = 8  # one in so many pairs of a text, and at least one where there are two
HEADING = 8  # words; a shorter text is a heading, which says nothing without what it heads
LETTERS = 12  # of a word at most, where words are not told apart by spaces
CUTS = (re.compile(r"(?<=[.!?])\s+|\n|[。！？]"), re.compile(r"\s+"))


def reader(model, tok, params, skills: Sequence[Example], config: Config) -> Sleeper:
    """The newborn, who takes the notes of all days: whatever a method makes of them, it is given the same."""
    words = grounding.common(tuple(skills), config.rem.common) if config.rem.common else frozenset()
    return Sleeper(model, tok, params, None, config.row_length, config.answer_tokens, common=words)


def taken(
    who: Sleeper, folder: pathlib.Path, stream: Stream, config: Config, seed: int
) -> tuple[Stream, list[str]]:
    """A stream whose days of free texts alone have notes beside them, and what is to be said of each.

    A day that no file asks about may be too short for a note to be kept back: it is lived unasked.

    Written to, and where they are there already read from, <folder>/<digest of the day>.json, so that they
    stay what they are when the life is taken up again or days are added. Fields are read as in `of_day`.

    Raises:
      ValueError: there are days, and nothing is asked of any: no file asks, and no note could be kept back.
    """
    days, said = [], []
    why = f"no file asks and no note could be kept back (wake.notes={config.wake.notes})"
    for number, day in enumerate(stream.days, 1):
        name = f"{digest([day.name, [e.answer for e in day.train]])}.json"
        if config.wake.notes and not any(e.prompt for e in day.train):
            if not (folder / name).exists():
                key = rng.fold(rng.stream(seed, "notes"), number)
                pairs, kept_back, note = of_day(who, day, config, key)
                found = {
                    "day": day.name, "said": note,
                    "read": [dataclasses.astuple(e) for e in pairs],
                    "kept back": [dataclasses.astuple(e) for e in kept_back],
                }  # fmt: skip
                metrics.write_json(folder, name, found)
                said.append(note)
            found = json.loads((folder / name).read_text())
            day = _beside(day, *([Example(*e) for e in found[k]] for k in ("read", "kept back")), config)
        if not day.test:
            said.append(f"{day.name}: lived without being asked, for {why}; a questions.jsonl would ask")
        days.append(day)
    if days and not any(day.test for day in days):
        raise ValueError(
            f"nothing is asked of any day, for {why}; what became of notes is in {folder}. Write a "
            "questions.jsonl beside the documents, and live in another --workdir from this birth, "
            f"--config.birth.checkpoint={folder.parent / 'birth'}"
        )
    return dataclasses.replace(stream, days=tuple(days)), said


def _beside(day: Experience, pairs: list[Example], kept_back: list[Example], config: Config) -> Experience:
    """A day with its notes: `test` is what a file asks, or half of what is kept back; `valid` the rest.

    What is asked is barred from the notes and from dreams; the half that a file's questions stand in for is
    read like any other note.
    """
    own = {evals.normalise(e.prompt) for e in (*day.test, *day.valid)}
    noted = frozenset(evals.normalise(e.prompt) for e in (*pairs, *kept_back)) - own
    test, valid = tuple(kept_back[0::2]), tuple(kept_back[1::2])
    if config.stream.asked == "valid":
        test = valid
    elif day.test:
        pairs, kept_back, test = [*pairs, *test], [*valid], day.test
    return dataclasses.replace(
        day,
        train=(*day.train, *(e for e in pairs if evals.normalise(e.prompt) not in own)),
        valid=valid,
        test=test,
        barred=tuple(sorted({evals.normalise(e.prompt) for e in (*kept_back, *test)})),
        noted=noted,
    )


def of_day(
    who: Sleeper, day: Experience, config: Config, key: Array
) -> tuple[list[Example], list[Example], str]:
    """Notes of a day's texts.

    `wake.notes` dreams of each text, in shares of `rem.roles`, sampled and cleaned as `rem` says
    (`dream.imagine`). A question has the answer that was written most often.

    Returns:
      Pairs to be read beside the texts, pairs that are kept back, and a sentence about it.
    """
    texts = contexts(who, [e.answer for e in day.train], config)
    tasks = [Task(f"{day.name}, text {i + 1}", text, ()) for i, text in enumerate(texts)]
    asking = dataclasses.replace(config.rem, per_context=config.wake.notes, top=1, random=0)
    made = dream.imagine(who, None, tasks, asking, key)
    pairs, kept_back, bare = [], [], 0
    draw = np.random.default_rng([len(texts), len(day.train)])
    for task in tasks:
        notes = task.asked_again([d for d in made if d.task is task and not d.reason])
        count = max(len(notes) // HELD_BACK, int(len(notes) > 1))
        back = set(draw.permutation(len(notes))[:count].tolist())
        kept_back += [e for i, e in enumerate(notes) if i in back]
        pairs += [e for i, e in enumerate(notes) if i not in back]
        bare += not notes
    lost = f"; of {bare} of them nothing could be noted" if bare else ""
    back = {evals.normalise(e.prompt) for e in kept_back}  # of one text, it may be a note of another
    pairs = [e for e in pairs if evals.normalise(e.prompt) not in back]
    struck = sum(d.struck for d in made)
    said = (
        f"{day.name}: {len(pairs) + len(kept_back)} notes of {len(texts)} texts, {len(kept_back)} of them "
        f"kept back to be asked{lost}; {struck} lines were not grounded, "
        f"{sum(bool(d.reason) for d in made)} of {len(made)} attempts came to nothing"
    )
    return pairs, kept_back, said


def contexts(who: Sleeper, texts: Sequence[str], config: Config) -> list[str]:
    """Texts as they are put before the model: headings with what they head, and none longer than fits.

    A longer text is cut where a sentence ends, a longer sentence between words, and a longer word (or a text
    of a language that writes without spaces) between letters; nothing is lost.
    """
    tok, room = who.tok, who.model.config.max_len - config.rem.max_new

    def fits(text: str) -> bool:
        asked = (dreams.prompt(role, text) for role in config.rem.roles)
        return all(len(tok.encode(" " + prompt)) + 2 <= room for prompt in asked)

    whole, heading = [], ""
    for text in texts:
        if len(text.split()) < HEADING and len(text) < HEADING * LETTERS:
            heading = f"{heading} {text}".strip()
        else:
            whole.append(f"{heading} {text}".strip())
            heading = ""
    whole += [heading] if heading else []
    return [part.strip() for text in whole for part in _cut(text, fits, CUTS) if part.strip()]


def _cut(text: str, fits: Callable[[str], bool], where: Sequence[re.Pattern]) -> list[str]:
    """The text in the longest parts that fit, cut behind the first of these places as far as that suffices,
    and into halves where none does.
    """
    if fits(text) or len(text) < 2:
        return [text]
    if not where:
        middle = len(text) // 2
        return _cut(text[:middle], fits, ()) + _cut(text[middle:], fits, ())
    ends = [m.end() for m in where[0].finditer(text)]
    parts = [""]
    for first, last in zip([0, *ends], [*ends, len(text)], strict=True):
        piece = text[first:last]
        if fits(parts[-1] + piece):
            parts[-1] += piece
        else:
            parts += _cut(piece, fits, where[1:])
    return parts
