"""Facts about invented people: what is read of them, what is asked, and how one dreams of them.

A source is a `Cast`: kinds of facts with their phrasings, and names. Each fact (person, attribute) is trained
in its `train` phrasings, questions and statements to complete, and once in prose. The probes ask for the same
facts in phrasings that occur nowhere in training: some for decisions, others for reports.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from sleep_jax.data import dreams
from sleep_jax.data.passages import Passage
from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A kind of fact: what can be the case, and how it is said.

    Attributes:
      name: keyword of the attribute.
      values: the possible answers.
      train, valid, test: disjoint phrasings with {name}; the answer follows. Trained are three questions and
        three statements to complete, in this order.
      prose: sentences of a text with {who} and {value}.
    """

    name: str
    values: tuple[str, ...]
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    prose: tuple[str, ...]

    def fold(self, number: int) -> "Attribute":
        """The `number`-th trained question and statement (1 to 3) and the valid ones have changed places.

        What is asked then may hold a word that nothing trained does, unlike what valid and test ask.
        """
        asked = self.train[number - 1], self.train[number + 2]
        left = [phrasing for phrasing in self.train if phrasing not in asked]
        first, second = self.valid
        return dataclasses.replace(self, train=(*left[:2], first, *left[2:], second), valid=asked)


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


@dataclasses.dataclass(frozen=True)
class Cast:
    """A source of people.

    Attributes:
      attributes: kinds of facts; a life takes the first `stream.attributes` of them.
      names: all there are, in the order that a generator draws them in.
      called: what a text calls someone after the first sentence.
      days: the source has no end of its own; what `stream.days = 0` means.
    """

    attributes: tuple[Attribute, ...]
    names: Callable[[np.random.Generator], list[str]]
    called: Callable[[str], str]
    days: int

    def load(self, config: StreamConfig) -> Stream:
        """Birth with `people_at_birth` people, then days with `people_per_day` new ones.

        Args:
          config: `seed`, `days`, `people_at_birth`, `people_per_day`, `attributes`, `strangers` and
            `probes`, for its fold, are read.

        Returns:
          Of each experience every fact in every phrasing, and one text a person. The same seed gives the
          same people, whatever the number of days. As skills, for each stranger a text with a dream of it.

        Raises:
          ValueError: more people or attributes are asked for than there are.
        """
        if config.fold:
            return self._folded(config.fold).load(dataclasses.replace(config, probes="valid"))
        rng = np.random.default_rng(config.seed)
        names = self.names(rng)  # facts are drawn behind them
        self._check(config, len(names))
        sizes = [config.people_at_birth] + [config.people_per_day] * self._days(config)
        titles = ["birth"] + [f"day {d}" for d in range(1, len(sizes))]
        ends = np.cumsum(sizes)
        life = [
            self._experience(rng, title, names[end - size : end], config.attributes)
            for title, size, end in zip(titles, sizes, ends, strict=True)
        ]
        skills = (
            self._demonstration(np.random.default_rng([config.seed, i]), names[-1 - i], config.attributes)
            for i in range(config.strangers)
        )
        return Stream(life[0], tuple(life[1:]), tuple(skills))

    def passages(self, config: StreamConfig, count: int) -> tuple[Passage, ...]:
        """Texts of `count` people whom no life of this configuration meets, one passage each.

        Args:
          config: `seed`, `days`, `people_at_birth`, `people_per_day`, `attributes` and, for its fold,
            `probes` are read.
          count: of passages; passage i is the same whatever it is.

        Returns:
          Passages whose questions are the probes of the person.

        Raises:
          ValueError: as `load` does.
        """
        if config.fold:
            return self._folded(config.fold).passages(dataclasses.replace(config, probes="valid"), count)
        names, taken = self.names(np.random.default_rng(config.seed)), self._met(config)
        self._check(config, len(names), count)
        told = []
        for i in range(count):
            draw = np.random.default_rng([config.seed, 1, i])
            person = self._person(draw, names[taken + i], config.attributes)
            told.append(Passage(person.name, person.text, person.said("valid"), person.said("test")))
        return tuple(told)

    def _folded(self, number: int) -> "Cast":
        return dataclasses.replace(self, attributes=tuple(a.fold(number) for a in self.attributes))

    def _days(self, config: StreamConfig) -> int:
        return config.days or self.days

    def _met(self, config: StreamConfig) -> int:
        return config.people_at_birth + config.people_per_day * self._days(config)

    def _check(self, config: StreamConfig, names: int, passages: int = 0) -> None:
        """Raises where attributes or names do not suffice."""
        have = len(self.attributes)
        if config.attributes > have:
            raise ValueError(f"stream.attributes={config.attributes}, but there are {have}: lower it")
        people = self._met(config) + config.strangers + passages
        if people > names:
            days = self._days(config)
            raise ValueError(
                f"stream.people_at_birth={config.people_at_birth}, {days} days (stream.days) with "
                f"stream.people_per_day={config.people_per_day}, stream.strangers={config.strangers} and "
                f"{passages} passages make {people}, but there are {names} names: lower one of them"
            )

    def _person(self, rng: np.random.Generator, name: str, attributes: int) -> "Person":
        facts = tuple((a, str(rng.choice(a.values))) for a in self.attributes[:attributes])
        return Person(name, facts, self._text(rng, name, facts))

    def _experience(
        self, rng: np.random.Generator, title: str, names: list[str], attributes: int
    ) -> Experience:
        people = [self._person(rng, name, attributes) for name in names]
        train = (e for p in people for e in (*p.said("train"), Example("", p.text)))
        probes = {split: tuple(e for p in people for e in p.said(split)) for split in ("valid", "test")}
        return Experience(title, tuple(train), **probes)

    def _text(self, rng: np.random.Generator, name: str, facts: tuple[tuple[Attribute, str], ...]) -> str:
        return " ".join(
            str(rng.choice(attribute.prose)).format(who=name if i == 0 else self.called(name), value=value)
            for i, (attribute, value) in enumerate(facts)
        )

    def _demonstration(self, rng: np.random.Generator, name: str, attributes: int) -> Example:
        """How one dreams: a text, and what some of it comes to in one of the ways of `dreams.PROMPTS`.

        Half of them are shown without being asked for one way, so that "free" draws all of them.
        """
        person = self._person(rng, name, attributes)
        role = str(rng.choice(["implications", "rewrite", "questions", "completions"]))
        if role == "rewrite":
            said = [Example("", self._text(rng, name, person.facts))]
        else:
            count = int(rng.integers(1, len(person.facts) + 1))
            facts = [person.facts[i] for i in rng.permutation(len(person.facts))[:count]]
            told = [
                (str(rng.choice([t for t in a.train if t.endswith("?") == (role == "questions")])), value)
                for a, value in facts
            ]
            pairs = [(phrasing.format(name=name), value) for phrasing, value in told]
            said = [Example("", " ".join(p) + ".") if role == "implications" else Example(*p) for p in pairs]
        shown = role if rng.random() < 0.5 else "free"
        return Example(dreams.prompt(shown, person.text), dreams.write(said))


@dataclasses.dataclass(frozen=True)
class Person:
    """Who is invented: the facts, and a text that tells each once."""

    name: str
    facts: tuple[tuple[Attribute, str], ...]
    text: str

    def said(self, split: str) -> tuple[Example, ...]:
        """Every fact in every phrasing of a split."""
        return tuple(
            Example(phrasing.format(name=self.name), value)
            for attribute, value in self.facts
            for phrasing in getattr(attribute, split)
        )
