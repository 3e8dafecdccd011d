"""Invented people, of every source of them."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from sleep_jax.data import biographies, dreams, stories, stream
from sleep_jax.data.stream import StreamConfig

SOURCES = {"biographies": biographies, "stories": stories}
both = pytest.mark.parametrize("source", SOURCES)


def facts(experience, split, source="biographies"):
    """{(name, attribute): set of answers}, read back from the prompts by the phrasings themselves."""
    found = {}
    for ex in getattr(experience, split):
        if not ex.prompt:
            continue
        hits = []
        for attribute in SOURCES[source].ATTRIBUTES:
            for phrasing in getattr(attribute, split):
                before, after = (re.escape(part) for part in phrasing.split("{name}"))
                match = re.fullmatch(f"{before}([A-Z][a-z]+ [A-Z][a-z]+){after}", ex.prompt)
                hits += [(match.group(1), attribute.name)] if match else []
        assert len(hits) == 1, ex  # no prompt is said in two ways
        found.setdefault(hits[0], set()).add(ex.answer)
    return found


def life(**kwargs):
    return stream.load(StreamConfig(**kwargs))


@both
def test_default_sizes(source):
    s = life(source=source)
    assert len(s.days) == {"biographies": 3, "stories": 5}[source]
    for experience, people in [(s.birth, 24), *((day, 8) for day in s.days)]:
        assert len(experience.train) == people * (4 * 6 + 1)
        assert len(experience.valid) == len(experience.test) == people * 4 * 2


@pytest.mark.parametrize("source, attributes", [("biographies", 6), ("stories", 4)])
def test_probes_ask_what_was_trained(source, attributes):
    s = life(source=source, attributes=attributes, seed=3)
    for experience in (s.birth, *s.days):
        trained = facts(experience, "train", source)
        assert all(len(answers) == 1 for answers in trained.values())
        assert facts(experience, "valid", source) == trained
        assert facts(experience, "test", source) == trained


@pytest.mark.parametrize("source, attributes", [("biographies", 6), ("stories", 4)])
def test_prose_tells_every_fact(source, attributes):
    birth = life(source=source, attributes=attributes).birth
    prose = [ex.answer for ex in birth.train if not ex.prompt]
    assert len(prose) == 24 and not any("{" in p for p in prose)
    for (name, _), (answer,) in ((k, tuple(v)) for k, v in facts(birth, "train", source).items()):
        (text,) = [p for p in prose if name in p]
        assert answer in text


@pytest.mark.parametrize("source, days", [("biographies", 7), ("stories", 0)])
def test_names_are_unique_over_the_life(source, days):
    per_day = 500 if days else 120
    s = life(source=source, people_at_birth=40, people_per_day=per_day, days=days, attributes=1)
    names = [name for e in (s.birth, *s.days) for name, _ in facts(e, "train", source)]
    assert len(names) == len(set(names)) == 40 + per_day * (days or 5)
    early = names[: len(SOURCES[source].LAST_NAMES) if source == "stories" else 64]
    assert len({n.split()[0] for n in early}) == len({n.split()[1] for n in early}) == len(early)


def test_same_seed_same_people_whatever_the_days():
    assert life(seed=5) == life(seed=5)
    assert life(seed=5, days=5).days[:3] == life(seed=5).days
    assert facts(life(seed=6).birth, "test") != facts(life(seed=5).birth, "test")


def words(phrasings):
    return {word for p in phrasings for word in re.findall(r"\w+", p.lower())}


@both
def test_phrasings_are_disjoint(source):
    attributes = SOURCES[source].ATTRIBUTES
    everything = [p for a in attributes for p in (*a.train, *a.valid, *a.test)]
    assert len(everything) == len(set(everything))
    assert all(p.count("{name}") == 1 for p in everything)
    for a in attributes:
        assert (len(a.train), len(a.valid), len(a.test)) == (6, 2, 2)
        assert len(set(a.values)) == len(a.values) >= {"biographies": 36, "stories": 13}[source]


@pytest.mark.parametrize("source, attributes", [("biographies", 4), ("biographies", 6), ("stories", 4)])
def test_held_out_phrasings_are_made_of_trained_words(source, attributes):
    chosen = SOURCES[source].ATTRIBUTES[:attributes]
    trained = words(p for a in chosen for p in (*a.train, *(a.prose if source == "stories" else ())))
    assert words(p for a in chosen for p in (*a.valid, *a.test)) <= trained


def test_a_fold_asks_what_is_else_trained_and_trains_what_is_else_asked():
    cast, config = biographies.CAST, StreamConfig(strangers=60)
    plain, told = cast.load(config), cast.passages(config, 2)
    asked = []
    for fold in ("fold1", "fold2", "fold3"):
        folded = dataclasses.replace(config, probes=fold)
        life, texts = cast.load(folded), cast.passages(folded, 2)
        assert stream.load(folded).birth == dataclasses.replace(life.birth, test=life.birth.valid)
        assert [e.test for e in (life.birth, *life.days)] == [e.test for e in (plain.birth, *plain.days)]
        for there, here in zip((plain.birth, *plain.days), (life.birth, *life.days), strict=True):
            assert set(there.train) | set(there.valid) == set(here.train) | set(here.valid)
            assert set(there.valid) < set(here.train) and set(here.valid) < set(there.train)
            assert len(here.train) == len(there.train) and len(here.valid) == len(there.valid)
        shown = "\n".join(e.answer for e in life.skills)
        kinds = [a.fold(int(fold[-1])) for a in cast.attributes[: config.attributes]]
        anyone = r"[A-Z][a-z]+ [A-Z][a-z]+"
        phrasings = [p for a in kinds for p in (*a.train, *a.valid)]
        said = [anyone.join(map(re.escape, p.split("{name}"))) + " -> " for p in phrasings]
        held = [i % 8 > 5 for i in range(len(said))]
        found = [bool(re.search(p, shown)) for p in said]
        assert sum(found) > 12 and not any(f and h for f, h in zip(found, held, strict=True))
        for there, here in zip(told, texts, strict=True):
            assert (here.text, here.test) == (there.text, there.test)
            assert not {q.prompt for q in here.valid} & {q.prompt for q in there.valid}
            assert [q.prompt.endswith("?") for q in here.valid] == [True, False] * config.attributes
        asked += [q.prompt for q in texts[0].valid]
    assert len(set(asked)) == len(asked) == 6 * config.attributes, "each is asked in one fold"


def test_folds_are_three_and_of_biographies():
    with pytest.raises(ValueError, match="stream.probes='fold4' is neither 'test' nor 'valid' nor one of"):
        StreamConfig(probes="fold4")
    with pytest.raises(
        ValueError, match="'fold1' asks in phrasings of biographies, but stream.source='stories'"
    ):
        StreamConfig(source="stories", probes="fold1")
    StreamConfig(source="documents", birth="biographies", probes="fold1")


def test_too_many_people_or_attributes():
    said = "stream.people_at_birth=24, .* stream.people_per_day=1000, .* make 5024, but there are 4096 names"
    with pytest.raises(ValueError, match=said):
        life(people_per_day=1000, days=5)
    with pytest.raises(ValueError, match=f"stream.attributes=7, but there are {len(biographies.ATTRIBUTES)}"):
        life(attributes=7)


@both
def test_strangers_show_how_one_dreams_and_never_come_again(source):
    cast, names = SOURCES[source].CAST, set(SOURCES[source].CAST.names(np.random.default_rng(0)))
    plain, s = life(source=source, attributes=3), life(source=source, attributes=3, strangers=200)
    assert s.birth == plain.birth and s.days == plain.days and plain.skills == () and len(s.skills) == 200
    met = {name for e in (s.birth, *s.days) for name, _ in facts(e, "test", source)}
    told = {p.title for p in cast.passages(StreamConfig(attributes=3, strangers=200), 50)}
    openings = {p.split("{")[0] for role, p in dreams.PROMPTS.items() if role != "regimen"}  # of puzzles
    styles = set()
    for skill in s.skills:
        opening = max((o for o in openings if skill.prompt.startswith(o)), key=len)
        context = skill.prompt.removeprefix(opening)
        pairs = (" ".join(p).strip(".,") for p in itertools.pairwise(context.split()))
        assert next(p for p in pairs if p in names) not in met | told
        said = dreams.read(skill.answer)
        assert said and dreams.write(said) == skill.answer
        for value in (w for a in cast.attributes[:3] for w in a.values if any(w == e.answer for e in said)):
            assert value in skill.prompt  # dreams of demonstrations are true to their context
        styles |= {(opening, e.prompt[-1:].replace("?", "asked") or "read") for e in said}
    assert {o for o, _ in styles} == openings
    of = {role: {how for o, how in styles if o == p.split("{")[0]} for role, p in dreams.PROMPTS.items()}
    assert of["questions"] == {"asked"} and of["implications"] == of["rewrite"] == {"read"}
    assert "read" not in of["completions"] and "asked" not in of["completions"]
    assert {"asked", "read"} < of["free"]


def test_too_many_strangers():
    said = "stream.strangers=4060 and 0 passages make 4108, but there are 4096 names"
    with pytest.raises(ValueError, match=said):
        life(strangers=4060)
