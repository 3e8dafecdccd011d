"""The stream of experiences that a life is lived on, and the sources by name.

Every source ends in the same three containers: an `Example` is one thing to read, or to be asked; an
`Experience` is what one day brings, with the probes that later ask what has stayed of it; a `Stream` is
birth and the days after it.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence

from sleep_jax.bounds import at_least


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt with its answer; with the prompt '' it is free text that is only read."""

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Experience:
    """What one day brings (`train`) and the probes of it (`valid` for decisions, `test` for reports).

    `barred` are prompts that no dream may have, because the learner made these probes itself (`notes`);
    `noted` those of all pairs here that it wrote itself, be they read or asked.
    """

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    barred: tuple[str, ...] = ()
    noted: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Stream:
    """A life's material: what is known at birth, then one experience per day.

    `skills` are shown at birth and never asked of: how something is done, not what is the case.
    """

    birth: Experience
    days: tuple[Experience, ...]
    skills: tuple[Example, ...] = ()


FOLDS = ("fold1", "fold2", "fold3")


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Which source, and how it is cut into birth and days.

    Raises:
      ValueError: when a number is outside its range; the message names the key.
    """

    source: str = "biographies"  # biographies, stories, puzzles, clinc150, documents or tfds
    data_dir: str = ""  # folder of data sets; clinc150 reads {data_dir}/clinc150/, tfds its prepared data
    path: str = ""  # documents: the folder of .txt and .md files
    birth: str = (
        ""  # documents: source whose birth is this life's, so that all documents are days; '' is none
    )
    seed: int = 0  # biographies, stories: who lives where; puzzles: which; other sources are as their files
    birth_fraction: float = 0.5  # share of domains, folders or classes known at birth (invented: unused)
    days: int = 0  # number of days; 0 = all that there are (biographies have no end: 3, stories: 5)
    # split that a life is measured on; "valid" while settings are chosen, of biographies "fold1" to "fold3"
    # too: see facts.Attribute.fold
    probes: str = "test"
    people_at_birth: int = 24  # biographies, stories: people known at birth
    people_per_day: int = 8  # biographies, stories: new people per day
    attributes: int = 4  # biographies, stories: facts per person, the first so many of the source
    strangers: int = 0  # biographies, stories, puzzles: how many more at birth in whom dreaming is shown
    puzzles: int = 0  # puzzles: solved at birth
    # puzzles: families of rules known at birth, see data/puzzles.py, and least and most rows of a grid
    families: tuple[str, ...] = ("recolour", "keep", "frame", "shift")
    sides: tuple[int, int] = (3, 6)
    tfds_name: str = ""  # tfds: name of the data set, as in 'ag_news_subset' or 'name/config:1.0.0'
    tfds_text: str = "text"  # tfds: feature that is read
    tfds_label: str = "label"  # tfds: feature of type ClassLabel whose names are the answers
    # tfds: train, valid and test in TFDS's split notation
    tfds_splits: tuple[str, str, str] = ("train[:90%]", "train[90%:]", "test")

    def __post_init__(self):
        at_least(
            self, "stream.", seed=0, days=0, people_at_birth=1, people_per_day=1, attributes=1, strangers=0,
            puzzles=0,
        )  # fmt: skip
        if not 0 <= self.birth_fraction <= 1:
            raise ValueError(f"stream.birth_fraction={self.birth_fraction} must lie between 0 and 1")
        if self.probes not in ("test", "valid", *FOLDS):
            raise ValueError(
                f"stream.probes={self.probes!r} is neither 'test' nor 'valid' nor one of {FOLDS}"
            )
        if self.fold and "biographies" not in (self.source, self.birth):
            raise ValueError(
                f"stream.probes={self.probes!r} asks in phrasings of biographies, but stream.source="
                f"{self.source!r}: take 'valid'"
            )
        if len(self.tfds_splits) != 3:
            raise ValueError(
                f"stream.tfds_splits={self.tfds_splits!r} must name three splits: train, valid, test"
            )

    @property
    def fold(self) -> int:
        """Number of the fold that `probes` names; 0 is none."""
        return 1 + FOLDS.index(self.probes) if self.probes in FOLDS else 0

    @property
    def asked(self) -> str:
        """Which probes of an experience stand for `probes`: "test", or "valid"."""
        return "test" if self.probes == "test" else "valid"


def load(config: StreamConfig) -> Stream:
    """The stream of the source that `config.source` names.

    Args:
      config: source and its settings.

    Returns:
      Birth and, but for puzzles, at least one day, each with train, valid and test examples; with `probes`
      "valid" or a fold the validation examples stand in the place of the test examples, which are left out.

    Raises:
      ValueError: on an unknown source (naming the nearest), and whatever the source raises about its data.
    """
    # The sources import the containers above, so they can only be imported once this module exists.
    from sleep_jax.data import biographies, clinc, documents, puzzles, stories, tfds

    sources = {
        "biographies": biographies.CAST.load,
        "stories": stories.CAST.load,
        "puzzles": puzzles.load,
        "clinc150": clinc.load,
        "documents": documents.load,
        "tfds": tfds.load,
    }
    if config.source not in sources:
        raise ValueError(
            f"stream.source={config.source!r} is not a source of data{did_you_mean(config.source, sources)}; "
            f"there are {', '.join(sources)}"
        )
    stream = sources[config.source](config)
    if config.birth:
        others = [name for name in sources if name != "documents"]
        if config.source != "documents" or config.birth not in others:
            raise ValueError(
                f"stream.birth={config.birth!r} with stream.source={config.source!r}: only documents take "
                f"another source's birth, which can be {', '.join(others)}; set it to '' otherwise"
            )
        born = sources[config.birth](dataclasses.replace(config, source=config.birth, days=1))
        stream = dataclasses.replace(stream, birth=born.birth, skills=born.skills)
    if config.asked == "test":
        return stream
    birth, *days = (dataclasses.replace(e, test=e.valid) for e in (stream.birth, *stream.days))
    return dataclasses.replace(stream, birth=birth, days=tuple(days))


def told(stream: Stream) -> list[str]:
    """Name, size and a digest of each experience, skills with birth's: another text in it gives another."""

    def told_of(experience: Experience, skills: tuple[Example, ...] = ()) -> str:
        # Without what is barred and noted, which follow from the pairs.
        words = dataclasses.astuple(experience)[:4], [dataclasses.astuple(e) for e in skills]
        return f"{experience.name} of {len(experience.train)} ({digest(words)})"

    return [told_of(stream.birth, stream.skills), *map(told_of, stream.days)]


def name_of(told: str) -> str:
    """The name of the experience that `told` says this of."""
    return told.rpartition(" of ")[0]


def digest(value: object) -> str:
    """Twelve hex digits that tell one JSON value from another."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """', did you mean ...?' with the nearest known word, and nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def size_at_birth(total: int, birth_fraction: float, what: str) -> int:
    """round(birth_fraction * total), at least 1 and at most all but one.

    Args:
      total: number of groups (domains, folders, classes).
      birth_fraction: share of them that is known at birth.
      what: what the groups are, for the message, with where they were found.

    Raises:
      ValueError: when there are fewer than two groups, because a life needs a birth and a day.
    """
    if total < 2:
        raise ValueError(f"{what}: found {total}, but birth and one day need at least 2")
    return min(max(round(birth_fraction * total), 1), total - 1)


def divide(groups: Sequence[Experience], birth_fraction: float, days: int, what: str) -> Stream:
    """Birth from the first groups together, then one group per day, in the given order.

    Args:
      groups: one experience per domain or folder.
      birth_fraction: see `size_at_birth`.
      days: how many days to live; 0 = all groups after birth.
      what: what the groups are, for messages.

    Raises:
      ValueError: when `days` exceeds the groups that are left after birth.
    """
    born = size_at_birth(len(groups), birth_fraction, what)
    left = len(groups) - born
    if days > left:
        raise ValueError(
            f"stream.days={days}, but {what} leave {left} after birth ({born} of {len(groups)} are known at "
            f"birth, stream.birth_fraction={birth_fraction}); lower one of the two"
        )
    return Stream(merge("birth", groups[:born]), tuple(groups[born : born + (days or left)]))


def merge(name: str, groups: Sequence[Experience]) -> Experience:
    """One experience from several, in their order."""
    joined = {
        split: tuple(example for group in groups for example in getattr(group, split))
        for split in ("train", "valid", "test")
    }
    return Experience(name, **joined)
