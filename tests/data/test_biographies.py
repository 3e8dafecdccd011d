import itertools
import re

import pytest

from sleep_jax.data import biographies, dreams, stream
from sleep_jax.data.biographies import ATTRIBUTES, FIRST_NAMES, LAST_NAMES
from sleep_jax.data.stream import StreamConfig


def facts(experience, split):
    """{(name, attribute): set of answers}, read back from the prompts by the phrasings themselves."""
    found = {}
    for ex in getattr(experience, split):
        if not ex.prompt:
            continue
        hits = []
        for attribute in ATTRIBUTES:
            for phrasing in getattr(attribute, split):
                before, after = (re.escape(part) for part in phrasing.split("{name}"))
                match = re.fullmatch(f"{before}([A-Z][a-z]+ [A-Z][a-z]+){after}", ex.prompt)
                hits += [(match.group(1), attribute.name)] if match else []
        assert len(hits) == 1, ex  # no prompt is said in two ways
        found.setdefault(hits[0], set()).add(ex.answer)
    return found


def life(**kwargs):
    return stream.load(StreamConfig(**kwargs))


def test_default_sizes():
    s = life()
    assert len(s.days) == 3
    for experience, people in [(s.birth, 24), *((day, 8) for day in s.days)]:
        assert len(experience.train) == people * (4 * 6 + 1)
        assert len(experience.valid) == len(experience.test) == people * 4 * 2


def test_probes_ask_what_was_trained():
    s = life(attributes=6, seed=3)
    for experience in (s.birth, *s.days):
        trained = facts(experience, "train")
        assert all(len(answers) == 1 for answers in trained.values())
        assert facts(experience, "valid") == trained
        assert facts(experience, "test") == trained


def test_biography_in_prose_tells_every_fact():
    birth = life(attributes=6).birth
    trained = facts(birth, "train")
    prose = [ex.answer for ex in birth.train if not ex.prompt]
    assert len(prose) == 24
    for (name, _), (answer,) in ((k, tuple(v)) for k, v in trained.items()):
        (text,) = [p for p in prose if p.startswith(name) or f" of {name} " in p]
        assert answer in text
    assert not any("{" in p for p in prose)


def test_names_are_unique_over_the_life():
    s = life(people_at_birth=500, people_per_day=500, days=7, attributes=1)
    names = [name for e in (s.birth, *s.days) for name, _ in facts(e, "train")]
    assert len(names) == len(set(names)) == 4000
    early = names[: min(len(FIRST_NAMES), len(LAST_NAMES))]
    assert len({n.split()[0] for n in early}) == len({n.split()[1] for n in early}) == len(early)


def test_same_seed_same_people_whatever_the_days():
    assert life(seed=5) == life(seed=5)
    assert life(seed=5, days=5).days[:3] == life(seed=5).days
    assert facts(life(seed=6).birth, "test") != facts(life(seed=5).birth, "test")


def words(phrasings):
    return {word for p in phrasings for word in re.findall(r"\w+", p.lower())}


def test_phrasings_are_disjoint():
    everything = [p for a in ATTRIBUTES for p in (*a.train, *a.valid, *a.test)]
    assert len(everything) == len(set(everything))
    assert all(p.count("{name}") == 1 for p in everything)
    for a in ATTRIBUTES:
        assert (len(a.train), len(a.valid), len(a.test)) == (6, 2, 2)
        assert len(set(a.values)) == len(a.values) >= 36


@pytest.mark.parametrize("attributes", [4, 6])
def test_held_out_phrasings_are_made_of_trained_words(attributes):
    chosen = ATTRIBUTES[:attributes]
    trained = words(p for a in chosen for p in a.train)
    assert words(p for a in chosen for p in (*a.valid, *a.test)) <= trained


def test_too_many_people_or_attributes():
    said = "stream.people_at_birth=24, .* stream.people_per_day=1000, .* make 5024, but there are 4096 names"
    with pytest.raises(ValueError, match=said):
        life(people_per_day=1000, days=5)
    with pytest.raises(ValueError, match=f"stream.attributes=7, but there are {len(biographies.ATTRIBUTES)}"):
        life(attributes=7)


def test_strangers_show_how_one_dreams_and_never_come_again():
    plain, s = life(attributes=3), life(attributes=3, strangers=200)
    assert s.birth == plain.birth and s.days == plain.days and plain.skills == () and len(s.skills) == 200
    met = {name for e in (s.birth, *s.days) for name, _ in facts(e, "test")}
    told = {p.title for p in biographies.passages(StreamConfig(attributes=3, strangers=200), 50)}
    openings = {p.split("{")[0] for role, p in dreams.PROMPTS.items() if role != "regimen"}  # of puzzles
    styles = set()
    for skill in s.skills:
        opening = max((o for o in openings if skill.prompt.startswith(o)), key=len)
        context = skill.prompt.removeprefix(opening)
        first, last = next(
            p for p in itertools.pairwise(context.split()) if p[0] in FIRST_NAMES and p[1] in LAST_NAMES
        )
        assert f"{first} {last}" not in met | told
        said = dreams.read(skill.answer)
        assert said and dreams.write(said) == skill.answer
        for value in (w for a in ATTRIBUTES[:3] for w in a.values if any(w == e.answer for e in said)):
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
