"""Synthetic biographies: invented people whose facts are told in many phrasings and asked in others.

Nothing needs to be downloaded, and nothing can have been known before. Each fact (person, attribute) is
trained in six phrasings, questions and statements to complete, and once in a biography in plain prose. The
probes ask for the same facts in phrasings that occur nowhere in training: two for decisions, two others for
reports. They are put together from words that the trained phrasings use, so that they can be answered by
whoever knows the fact, and not by whoever memorised the sentence. Measured once with a plain decoder of 0.7 M
parameters, trained on birth in both directions for 240 batches of 16 rows of 64 tokens (a minute on two
cores): 100 % of the trained phrasings, 100 % of valid, 99 % of test.
"""

import dataclasses

import numpy as np

from sleep_jax.data import dreams
from sleep_jax.data.passages import Passage
from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig

DAYS = 3  # the generator has no end of its own: what `days = 0` means here


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A kind of fact: what can be the case, and how it is said.

    Attributes:
      name: keyword of the attribute.
      values: the possible answers.
      train, valid, test: disjoint phrasings with {name}; the answer follows.
      prose: sentences of a biography with {who} and {value}.
    """

    name: str
    values: tuple[str, ...]
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    prose: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


# Professions and pets begin with a consonant, because the phrasings say "a".
ATTRIBUTES = (
    Attribute(
        "birthplace",
        _words(
            "Aarhus, Bergen, Bristol, Cork, Dresden, Florence, Gdansk, Ghent, Granada, Graz, Haifa, Izmir, "
            "Jaipur, Kyoto, Leipzig, Lima, Lucerne, Lyon, Malmo, Montreal, Nairobi, Odessa, Oslo, Palermo, "
            "Porto, Prague, Quito, Riga, Seville, Sofia, Split, Tallinn, Toledo, Tromso, Turin, Utrecht, "
            "Vilnius, Winnipeg, York, Zagreb"
        ),
        train=(
            "Where was {name} born?",
            "In which city was {name} born?",
            "What is the birthplace of {name}?",
            "{name} was born in the city of",
            "The birthplace of {name} is",
            "The city where {name} was born is",
        ),
        valid=("What is the city where {name} was born?", "The birthplace of {name} is the city of"),
        test=("Which city is the birthplace of {name}?", "The city in which {name} was born is"),
        prose=("{who} was born in the city of {value}.", "The birthplace of {who} is {value}."),
    ),
    Attribute(
        "birth year",
        tuple(str(year) for year in range(1931, 2003, 2)),
        train=(
            "When was {name} born?",
            "In which year was {name} born?",
            "What is the birth year of {name}?",
            "{name} was born in the year",
            "The birth year of {name} is",
            "The year when {name} was born is",
        ),
        valid=("What is the year when {name} was born?", "The birth year of {name} is the year"),
        test=("Which year is the birth year of {name}?", "The year in which {name} was born is"),
        prose=("{who} was born in the year {value}.", "The birth year of {who} is {value}."),
    ),
    Attribute(
        "profession",
        _words(
            "baker, barber, beekeeper, botanist, bricklayer, carpenter, chemist, cook, dancer, dentist, "
            "diver, farmer, florist, gardener, geologist, glazier, goldsmith, hatter, jeweller, judge, "
            "lawyer, librarian, locksmith, mason, midwife, miner, nurse, painter, pharmacist, pilot, "
            "plumber, potter, printer, sailor, sculptor, shoemaker, surgeon, tailor, teacher, welder"
        ),
        train=(
            "What is the profession of {name}?",
            "Which profession does {name} have?",
            "What does {name} do by profession?",
            "By profession {name} is a",
            "The profession of {name} is that of a",
            "The profession in which {name} works is",
        ),
        valid=("What is the profession in which {name} works?", "{name} is by profession a"),
        test=("In which profession does {name} work?", "The profession {name} works in is"),
        prose=("{who} is a {value} by profession.", "The profession of {who} is that of a {value}."),
    ),
    Attribute(
        "employer",
        _words(
            "Alder Mill, Amber Dairy, Beacon Press, Birch Clinic, Cedar Yard, Cobalt Works, Copper Kettle, "
            "Crown Ferry, Delta Foundry, Eagle Lane, Elm Hospital, Falcon Freight, Garnet Guild, Granite "
            "House, Harbour Bank, Hazel College, Heron Books, Iron Bridge, Ivory Tower, Juniper Farm, "
            "Kestrel Air, Lantern Studio, Lilac Theatre, Maple School, Marble Arcade, Meadow Market, Neptune "
            "Docks, Oak Laboratory, Orchid Hotel, Pearl Museum, Quartz Mining, Raven Post, Ruby Garage, "
            "Saffron Kitchen, Silver Thimble, Swan Brewery, Tulip Nursery, Union Station, Velvet Works, "
            "Willow Library"
        ),
        train=(
            "Who is the employer of {name}?",
            "For which employer does {name} work?",
            "Who does {name} work for?",
            "{name} works for",
            "The employer of {name} is",
            "The employer for whom {name} works is",
        ),
        valid=("Who is the employer for whom {name} works?", "{name} works for the employer"),
        test=("Which employer does {name} work for?", "The employer {name} works for is"),
        prose=("{who} works for {value}.", "The employer of {who} is {value}."),
    ),
    Attribute(
        "hobby",
        _words(
            "archery, astronomy, badminton, birdwatching, calligraphy, canoeing, chess, climbing, cycling, "
            "drawing, embroidery, fencing, fishing, gardening, gliding, gymnastics, hiking, judo, juggling, "
            "karaoke, knitting, magic, origami, photography, poetry, puzzles, riding, rowing, running, "
            "sailing, singing, skating, skiing, snooker, surfing, swimming, tennis, weaving, wrestling, yoga"
        ),
        train=(
            "What is the hobby of {name}?",
            "Which hobby does {name} have?",
            "What does {name} do as a hobby?",
            "The hobby of {name} is",
            "As a hobby {name} enjoys",
            "The hobby that {name} enjoys is",
        ),
        valid=("What is the hobby that {name} enjoys?", "{name} enjoys the hobby of"),
        test=("What does {name} have as a hobby?", "The hobby which {name} enjoys is"),
        prose=("{who} enjoys {value} as a hobby.", "The hobby of {who} is {value}."),
    ),
    Attribute(
        "pet",
        _words(
            "beagle, bulldog, camel, canary, cat, chameleon, chinchilla, cockatoo, dachshund, donkey, duck, "
            "ferret, finch, gecko, goat, goldfish, goose, greyhound, hamster, hedgehog, hen, horse, lizard, "
            "llama, magpie, mouse, parrot, pigeon, pony, poodle, python, rabbit, sheep, snail, spaniel, "
            "squirrel, tarantula, terrier, toad, turtle"
        ),
        train=(
            "What is the pet of {name}?",
            "Which pet does {name} have?",
            "What does {name} keep as a pet?",
            "The pet of {name} is a",
            "As a pet {name} keeps a",
            "The pet that {name} keeps is a",
        ),
        valid=("What is the pet that {name} keeps?", "{name} keeps as a pet a"),
        test=("Which pet does {name} keep?", "The pet which {name} keeps is a"),
        prose=("{who} keeps a {value} as a pet.", "The pet of {who} is a {value}."),
    ),
)

FIRST_NAMES = _words(
    "Ada, Alma, Amir, Anna, Ben, Bruno, Carla, Cesar, Clara, Cyril, Dana, David, Diego, Edith, Elena, Emil, "
    "Erik, Esther, Fatima, Felix, Flora, Frida, Gita, Greta, Hana, Hugo, Ida, Igor, Ines, Ivan, Jana, Jonas, "
    "Julia, Karim, Kira, Laura, Leon, Lydia, Magnus, Maria, Milan, Mona, Nadia, Nils, Nora, Olga, Oscar, "
    "Otto, Paula, Pedro, Petra, Ravi, Rosa, Ruth, Sara, Simon, Sven, Tamar, Theo, Tilda, Ulla, Victor, "
    "Wanda, Yusuf"
)
LAST_NAMES = _words(
    "Abbott, Alvarez, Bauer, Becker, Bianchi, Brandt, Castro, Chen, Conti, Dahl, Dubois, Duarte, Eriksen, "
    "Fischer, Fontana, Fraser, Garcia, Gruber, Haddad, Hansen, Horvat, Ito, Ivanov, Jensen, Jovic, Kaplan, "
    "Keller, Kim, Kovacs, Kowal, Lang, Larsen, Lopez, Marek, Martin, Meyer, Mori, Moreau, Nagy, Nielsen, "
    "Novak, Okafor, Olsen, Ortega, Patel, Peters, Petrov, Popescu, Quinn, Rahman, Ricci, Rossi, Sato, "
    "Schmidt, Silva, Singh, Tanaka, Torres, Vargas, Vogel, Weber, Wolf, Yilmaz, Zeman"
)


def load(config: StreamConfig) -> Stream:
    """Birth with `people_at_birth` people, then days with `people_per_day` new ones.

    Args:
      config: `seed`, `days` (0 = 3), `people_at_birth`, `people_per_day`, `attributes` and `strangers` are
        read.

    Returns:
      For each experience of p people and a attributes: 6 p a + p training examples (the p are free text), 2
        p a valid
      and 2 p a test probes. The same seed gives the same people, whatever the number of days. As skills, for
      each stranger a biography with a dream of it.

    Raises:
      ValueError: when more people or attributes are asked for than there are.
    """
    days = config.days or DAYS
    sizes = [config.people_at_birth] + [config.people_per_day] * days
    _check(config)
    rng = np.random.default_rng(config.seed)
    names = _names(rng, len(FIRST_NAMES) * len(LAST_NAMES))
    titles = ["birth"] + [f"day {d}" for d in range(1, days + 1)]
    ends = np.cumsum(sizes)
    life = [
        _experience(rng, title, names[end - size : end], config.attributes)
        for title, size, end in zip(titles, sizes, ends, strict=True)
    ]
    skills = (
        _demonstration(np.random.default_rng([config.seed, i]), names[-1 - i], config.attributes)
        for i in range(config.strangers)
    )
    return Stream(life[0], tuple(life[1:]), tuple(skills))


def _demonstration(rng: np.random.Generator, name: str, attributes: int) -> Example:
    """How one dreams: a biography, and what some of it comes to in one of the ways of `dreams.PROMPTS`.

    Half of them are shown without being asked for one way, so that "free" draws all of them.
    """
    person = _person(rng, name, attributes)
    role = str(rng.choice(["implications", "rewrite", "questions", "completions"]))
    if role == "rewrite":
        said = [Example("", _biography(rng, name, person.facts))]
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
    return Example(dreams.prompt(shown, person.biography), dreams.write(said))


def _check(config: StreamConfig, passages: int = 0) -> None:
    if config.attributes > len(ATTRIBUTES):
        raise ValueError(f"stream.attributes={config.attributes}, but there are {len(ATTRIBUTES)}: lower it")
    capacity = len(FIRST_NAMES) * len(LAST_NAMES)
    people = _met(config) + config.strangers + passages
    if people > capacity:
        raise ValueError(
            f"stream.people_at_birth={config.people_at_birth}, {config.days or DAYS} days (stream.days) with "
            f"stream.people_per_day={config.people_per_day}, stream.strangers={config.strangers} and "
            f"{passages} passages make {people}, but there are {capacity} names: lower one of them"
        )


def _met(config: StreamConfig) -> int:
    return config.people_at_birth + config.people_per_day * (config.days or DAYS)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct names. As long as the lists last, no two people share a first or a last name."""
    first = rng.permutation(FIRST_NAMES)
    last = rng.permutation(LAST_NAMES)
    # The shift by whole rounds makes every pair occur once before any comes again.
    return [f"{first[i % len(first)]} {last[(i + i // len(last)) % len(last)]}" for i in range(count)]


def passages(config: StreamConfig, count: int) -> tuple[Passage, ...]:
    """Biographies of `count` people whom no life of this configuration meets, one passage each.

    Args:
      config: `seed`, `days`, `people_at_birth`, `people_per_day` and `attributes` are read.
      count: of passages; passage i is the same whatever it is.

    Returns:
      Passages whose questions are the probes of the person.

    Raises:
      ValueError: as `load` does.
    """
    taken = _met(config)
    _check(config, count)
    names = _names(np.random.default_rng(config.seed), len(FIRST_NAMES) * len(LAST_NAMES))
    told = []
    for i in range(count):
        person = _person(np.random.default_rng([config.seed, 1, i]), names[taken + i], config.attributes)
        told.append(Passage(person.name, person.biography, person.said("valid"), person.said("test")))
    return tuple(told)


@dataclasses.dataclass(frozen=True)
class Person:
    """Who is invented: the facts, and a biography that tells each once."""

    name: str
    facts: tuple[tuple[Attribute, str], ...]
    biography: str

    def said(self, split: str) -> tuple[Example, ...]:
        """Every fact in every phrasing of a split."""
        return tuple(
            Example(phrasing.format(name=self.name), value)
            for attribute, value in self.facts
            for phrasing in getattr(attribute, split)
        )


def _person(rng: np.random.Generator, name: str, attributes: int) -> Person:
    facts = tuple((a, str(rng.choice(a.values))) for a in ATTRIBUTES[:attributes])
    return Person(name, facts, _biography(rng, name, facts))


def _experience(rng: np.random.Generator, title: str, names: list[str], attributes: int) -> Experience:
    people = [_person(rng, name, attributes) for name in names]
    train = (e for p in people for e in (*p.said("train"), Example("", p.biography)))
    probes = {split: tuple(e for p in people for e in p.said(split)) for split in ("valid", "test")}
    return Experience(title, tuple(train), **probes)


def _biography(rng: np.random.Generator, name: str, facts: tuple[tuple[Attribute, str], ...]) -> str:
    surname = name.split()[-1]
    return " ".join(
        str(rng.choice(attribute.prose)).format(who=name if i == 0 else surname, value=value)
        for i, (attribute, value) in enumerate(facts)
    )
