"""Notes of what is read: what a day gets beside its texts, and what of it is kept back."""

import dataclasses
import json
from math import isfinite

import lives
import pytest

from sleep_jax import evals, life, metrics, notes
from sleep_jax.data.stream import Example, Experience, Stream
from sleep_jax.sleep import dream
from sleep_jax.sleep.dream import Dreamt, Sleeper

CONFIG = lives.config(wake={"notes": 6}, rem={"max_new": 8})
TEXTS = ("Ada was born in Oslo and she works there.", "Bo was born in Bath and he works there.")


@pytest.fixture(scope="module")
def who(tiny, grown):
    from sleep_jax.data.tokenizer import Tokenizer

    tok = Tokenizer.train(TEXTS, 300)
    model = tiny(vocab_size=tok.vocab_size)
    return Sleeper(model, tok, grown(model)[0], None, 32, 8)


@pytest.fixture
def written(monkeypatch):
    """`imagine` writes of "<name> was born in <place> ..." six lines, one of them wrong and one unusable."""
    calls = []

    def imagine(who, dreamer, tasks, config, key):
        calls.append(tasks)
        made = []
        for task in (t for t in tasks if "born" in t.context):
            name, place = task.context.split()[0], task.context.split()[4]
            lines = [("Where was {}?", place), ("Where was {}?", "Rome"), ("Where was {}?", place)]
            lines += [("{} is from", place), (f"Who is from {place}?", name), ("Who?", name)]
            for i, (prompt, answer) in enumerate(lines):
                says = (Example(prompt.format(name), answer),)
                made.append(Dreamt(task, "questions", "", "", says, reason="it did not end" * (i == 5)))
        return made

    monkeypatch.setattr(dream, "imagine", imagine)
    return calls


def day(*asked):
    return Experience("today", tuple(Example("", text) for text in TEXTS), (), asked)


def test_a_note_has_the_answer_that_was_written_most_often_and_one_of_a_text_is_kept_back(who, written):
    pairs, back, said = notes.of_day(who, day(), CONFIG, None)
    assert len(pairs) == 4 and len(back) == 2 and not set(pairs) & set(back)
    assert {(e.prompt, e.answer) for e in (*pairs, *back)} == {
        ("Where was Ada?", "Oslo"), ("Ada is from", "Oslo"), ("Who is from Oslo?", "Ada"),
        ("Where was Bo?", "Bath"), ("Bo is from", "Bath"), ("Who is from Bath?", "Bo"),
    }  # fmt: skip
    assert any("Ada" in (e.prompt, e.answer) or "Ada" in e.prompt for e in back), "of each text one"
    assert "6 notes of 2 texts, 2 of them kept back" in said and "2 of 12 attempts came to nothing" in said


def test_notes_are_read_beside_the_texts_and_what_is_kept_back_is_barred(who, written, tmp_path):
    stream = Stream(day(), (day(), dataclasses.replace(day(), name="tomorrow")))
    noted, said = notes.taken(who, tmp_path, stream, CONFIG, 0)
    assert len(said) == 2 and noted.birth == stream.birth
    for before, after in zip(stream.days, noted.days, strict=True):
        assert after.train[: len(before.train)] == before.train and len(after.train) == 6
        assert (len(after.valid), len(after.test)) == (1, 1)
        kept_back = (*after.valid, *after.test)
        assert set(after.barred) == {evals.normalise(e.prompt) for e in kept_back}
        assert not set(after.barred) & {evals.normalise(e.prompt) for e in after.train}
    again, said = notes.taken(who, tmp_path, stream, CONFIG, 0)
    assert again == noted and not said and len(written) == 2, "they are taken once"
    later = dataclasses.replace(stream, days=(*stream.days, Experience("more", day().train[:1], (), ())))
    more, said = notes.taken(who, tmp_path, later, CONFIG, 0)
    assert more.days[:2] == noted.days and len(said) == 1, "days may be added"


def test_what_a_file_asks_is_asked_and_neither_noted_nor_dreamt(who, written, tmp_path):
    asked = Example("where was ADA", "Oslo")
    stream = Stream(day(), (day(asked),))
    ((today,), _) = (notes.taken(who, tmp_path, stream, CONFIG, 0)[0].days, None)
    assert today.test == (asked,) and len(today.valid) == 1
    assert not any(evals.normalise(e.prompt) == "where was ada" for e in today.train)
    assert set(today.barred) == {"where was ada", evals.normalise(today.valid[0].prompt)}
    read = {evals.normalise(e.prompt) for e in today.train if e.prompt}
    assert len(read) == 6 - 1 - 1, "all notes, but the one that is asked already and the one of valid"
    assert today.noted == read | {evals.normalise(today.valid[0].prompt)}, "the file's question is no note"
    valid = dataclasses.replace(CONFIG, stream=dataclasses.replace(CONFIG.stream, probes="valid"))
    (today,) = notes.taken(who, tmp_path, Stream(day(), (day(),)), valid, 0)[0].days
    assert today.test == today.valid


def test_a_day_may_be_too_short_to_be_asked_but_not_all_of_them(who, written, tmp_path):
    short = Experience("short", (Example("", "So it goes."),), (), ())
    noted, said = notes.taken(who, tmp_path / "a", Stream(day(), (day(), short)), CONFIG, 0)
    assert noted.days[0].test and noted.days[1] == short
    assert "short: lived without being asked" in said[-1] and "questions.jsonl" in said[-1]
    assert notes.taken(who, tmp_path / "a", Stream(day(), ()), CONFIG, 0)[0].days == ()
    silent = dataclasses.replace(CONFIG, wake=dataclasses.replace(CONFIG.wake, notes=0))
    with pytest.raises(ValueError, match=r"nothing is asked of any day, .*wake.notes=0.*questions.jsonl"):
        notes.taken(who, tmp_path, Stream(day(), (day(),)), silent, 0)
    written.clear()
    pairs = Experience("pairs", (Example("who?", "Ada"),), (), (Example("where?", "Oslo"),))
    assert notes.taken(who, tmp_path, Stream(pairs, (pairs,)), CONFIG, 0) == (Stream(pairs, (pairs,)), [])
    assert not written, "what has answers needs no notes"


def test_contexts_fit_and_nothing_is_lost(who):
    tok, room = who.tok, who.model.config.max_len - CONFIG.rem.max_new
    long = "Ada was born in Oslo. " + " ".join(f"Bo was {i}" for i in range(9)) + ". Ada works."
    texts = ["The heading", *TEXTS, long, "The end"]
    found = notes.contexts(who, texts, CONFIG)
    assert " ".join(found).split() == " ".join(texts).split()
    assert all(len(tok.encode(" " + text)) + 2 <= room for text in found)
    assert found[0].startswith("The heading Ada was born"), "a heading goes with what it heads"
    assert any(text.endswith(".") for text in found) and found[-1].endswith("The end")


@pytest.mark.parametrize("text", ["他在奥斯陆出生。" * 40, "a1b2" * 150, "x" * 700 + " y"])
def test_texts_without_spaces_are_cut_as_well(who, text):
    tok, room = who.tok, who.model.config.max_len - CONFIG.rem.max_new
    found = notes.contexts(who, ["Title", text], CONFIG)
    assert len(found) > 2 and all(len(tok.encode(" " + part)) + 2 <= room for part in found)
    assert "".join(found).replace(" ", "") == f"Title{text}".replace(" ", "")


def test_a_life_among_documents_takes_notes_and_the_later_day_is_right(born, compiled, tmp_path, written):
    """The day between the two is too short to be asked anything."""
    folder = tmp_path / "notes"
    (folder / "2026-11-01a").mkdir(parents=True)
    (folder / "2026-11-01a" / "a.md").write_text("So it goes.\n")
    for name, place in (("2026-11-01", "Oslo"), ("2026-11-02", "Bath")):
        (folder / name).mkdir()
        (folder / name / "a.md").write_text(f"Ada was born in {place}.\n")
        question = {"question": "Which city is it?", "answer": place}
        (folder / name / "questions.jsonl").write_text(json.dumps(question))
    stream = {"source": "documents", "path": str(folder), "birth": "biographies", "days": 0}
    config = lives.config(stream=stream, birth={"checkpoint": str(born)}, wake={"notes": 6}, method="sleep")
    with lives.quick(compiled):
        life.run(config, str(tmp_path / "life"))
        (ended,) = life.run(config, str(tmp_path / "life"))
    assert len(list((tmp_path / "life" / "notes").glob("*.json"))) == 3 and len(written) == 3
    assert ended.experiences["2026-11-01a"] is None and ended.questions["2026-11-01a"] == 0
    assert all(isfinite(v) for v in (ended.final_accuracy, ended.learning_accuracy, ended.backward_transfer))
    links = metrics.read_jsonl(tmp_path / "life" / "links.jsonl")[0]
    keys = "awake", "recalled", "student", "after"
    assert [links[1][k] for k in keys] == [None] * 4
    assert None not in (links[1]["old_before"], links[2]["old_before"], links[2]["after"])
    lines = (tmp_path / "life" / "answers" / "003.jsonl").read_text().splitlines()
    asked = {(a["experience"], a["expected"]) for a in map(json.loads, lines) if a["experience"] != "birth"}
    assert asked == {("2026-11-01", "Bath"), ("2026-11-02", "Bath")}
    before = (tmp_path / "life" / "answers" / "002.jsonl").read_text()
    assert '"expected": "Oslo"' in before and '"experience": "2026-11-02"' in before

    (folder / "2025").mkdir()
    (folder / "2025" / "a.md").write_text("Bea was born in Cork.\n")
    with lives.quick(compiled):
        (later,) = life.run(config, str(tmp_path / "life"))
    assert list(later.experiences) == ["2026-11-01", "2026-11-01a", "2026-11-02", "2025"], "it came last"
    assert len(written) == 4 and len(later.nights) == 4
