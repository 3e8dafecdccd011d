import json
import pathlib

import pytest

from sleep_jax import evals
from sleep_jax.data import documents, stream
from sleep_jax.data.stream import Example, StreamConfig


def paragraph(i, words=12):
    return " ".join(f"w{i}x{k}" for k in range(words))


def write(path, count, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(paragraph(first + i) for i in range(count)) + "\n")


def load(folder, **kwargs):
    return stream.load(StreamConfig(source="documents", path=str(folder), **kwargs))


def read(experience):
    assert all(e.prompt == "" for e in experience.train)
    return [e.answer for e in experience.train]


def test_sub_folders_are_experiences(tmp_path, caplog):
    for k, name in enumerate(["a", "b", "c"]):
        write(tmp_path / name / "deep" / "one.md", 30, first=100 * k)
    write(tmp_path / "beside.txt", 5)
    (tmp_path / "empty").mkdir()
    s = load(tmp_path, birth_fraction=0.34)
    assert "beside.txt" in caplog.text
    assert [d.name for d in s.days] == ["b", "c"]
    assert read(s.days[1]) == [paragraph(200 + i) for i in range(27)]
    # 10 % of 30 held out: 27, 28, 29, of which the even ones (in order) are for valid.
    words = paragraph(227).split()
    assert s.days[1].valid[0].prompt == " ".join(words[:6])
    assert s.days[1].valid[0].answer == " ".join(words[6:10])
    assert [e.prompt.split()[0] for e in s.days[1].valid] == ["w227x0", "w229x0"]
    assert [e.prompt.split()[0] for e in s.days[1].test] == ["w228x0"]


def test_files_are_split_evenly(tmp_path):
    for k in range(7):
        write(tmp_path / f"{k}.txt", 4, first=10 * k)
    s = load(tmp_path, days=2)
    assert [d.name for d in s.days] == ["3.txt to 4.txt", "5.txt to 6.txt"]
    assert (len(s.birth.train), len(s.days[0].train)) == (12 - 2, 8 - 2)
    assert [d.name for d in load(tmp_path).days] == [f"{k}.txt" for k in range(1, 7)]
    with pytest.raises(ValueError, match=r"stream.path=.* holds 7 file\(s\).*stream.days=7 need at least 8"):
        load(tmp_path, days=7)


def test_what_is_probed_is_not_read(tmp_path):
    write(tmp_path / "a.txt", 50)
    write(tmp_path / "b.txt", 3, first=90)
    s = load(tmp_path)
    for e in (s.birth, *s.days):
        texts = "\n".join(read(e))
        assert e.valid and e.test
        assert not any(p.prompt in texts for p in (*e.valid, *e.test))


def test_long_paragraph_has_a_short_probe_and_spelling_is_kept(tmp_path):
    odd = "one  two\nthree four five\tsix seven, eight"
    (tmp_path / "a.txt").write_text("\n\n".join([paragraph(0), paragraph(1), paragraph(2, 400), odd]))
    write(tmp_path / "b.txt", 3)
    birth = load(tmp_path).birth
    assert birth.valid[0].prompt == " ".join(paragraph(2, 400).split()[176:200])
    assert (birth.test[0].prompt, birth.test[0].answer) == ("one  two\nthree four", "five\tsix seven, eight")


def test_short_paragraphs_are_read_not_probed(tmp_path):
    (tmp_path / "a.md").write_text("\n\n".join([paragraph(i) for i in range(5)] + ["# The end"]))
    write(tmp_path / "b.md", 3)
    birth = load(tmp_path).birth
    assert read(birth)[-1] == "# The end"
    assert len(birth.train) == 4


def test_line_endings_and_byte_order_mark(tmp_path):
    paragraphs = [paragraph(i).encode() for i in range(4)]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(paragraphs))
    (tmp_path / "b.txt").write_bytes(b"\r \r".join(paragraphs))
    s = load(tmp_path)
    assert read(s.birth) == read(s.days[0]) == [paragraph(0), paragraph(1)]


def test_empty_document_is_skipped_aloud(tmp_path, caplog):
    for name in "abc":
        write(tmp_path / name / "1.txt", 5)
    (tmp_path / "b" / "0.txt").write_text(" \n\n ")
    assert load(tmp_path) and "0.txt: skipped, because it is empty" in caplog.text


def test_bad_files(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.txt", 5)
    (tmp_path / "b.txt").write_bytes(b"good \xc3\xa9 then \xff")
    with pytest.raises(ValueError, match=r"b.txt: not UTF-8 at byte offset 13 \(byte 0xff\)"):
        load(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"PK\x03\x00")
    with pytest.raises(ValueError, match=r"b.txt: not a text: it holds a zero byte at offset 3"):
        load(tmp_path)
    (tmp_path / "b.txt").write_text("too short\n\n" + paragraph(0))
    with pytest.raises(ValueError, match=r"b.txt .*: 1 paragraph\(s\) of at least 8 words"):
        load(tmp_path)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"1 file\(s\), but birth and stream.days=0 need at least 2"):
        load(tmp_path)


def test_no_folder_and_nothing_in_it(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x00")
    (tmp_path / ".hidden.txt").write_text(paragraph(0))
    with pytest.raises(ValueError, match=r"stream.path=.* holds no .txt or .md file"):
        load(tmp_path)
    for path in (str(tmp_path / "nowhere"), ""):
        with pytest.raises(FileNotFoundError, match="stream.path=.* set it to a folder"):
            load(path)


def ask(path, *lines):
    path.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines))


def test_questions_are_asked_of_the_experience_of_their_document_and_nothing_is_held_out(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / name / "deep" / "one.md", 5)
    ask(tmp_path / "b" / "questions.jsonl", {"question": " What? ", "answer": "w0"})
    ask(
        tmp_path / "questions.jsonl",
        {"question": "Who?", "answer": "w1", "document": "c/deep/one.md"},
        "",
        {"question": "Which?", "answer": "w2", "document": "b/deep/one.md"},
    )
    s = load(tmp_path, birth_fraction=0.3)
    assert s.days[0].test == (Example("What?", "w0"), Example("Which?", "w2"))
    assert s.days[1].test == (Example("Who?", "w1"),)
    assert [len(read(e)) for e in (s.birth, *s.days)] == [3, 5, 5], "only of birth paragraphs are held out"
    with pytest.raises(ValueError, match="no probes"):
        evals.answers(lambda asked: [], [e.test for e in load(tmp_path, probes="valid").days])


def test_questions_of_files_side_by_side_name_their_document(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.md", 5)
    ask(tmp_path / "questions.jsonl", {"question": "Who?", "answer": "w", "document": "b.md"})
    assert load(tmp_path).days[0].test == (Example("Who?", "w"),)
    for line, wanted in (
        (
            {"question": "Who?", "answer": "w"},
            r"names no document, .* are 2 experiences \(a.md, b.md\)",
        ),
        ({"question": "Who?", "answer": "w", "document": "c.md"}, "line 1: document 'c.md' is none that is"),
        ({"question": "Who?", "answer": " "}, 'line 1 must hold a "question" and an "answer", not blank'),
        ({"question": "Who?", "answer": "w", "document": 3}, "line 1 must hold"),
        ("[1]", "line 1 must hold"),
        ("{", "line 1: malformed JSON"),
    ):
        ask(tmp_path / "questions.jsonl", line)
        with pytest.raises(ValueError, match=wanted):
            load(tmp_path)


def test_with_the_birth_of_another_source_every_document_is_a_day(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.txt", 2)
    s = load(tmp_path, birth="biographies", people_at_birth=3, strangers=2)
    people = stream.load(StreamConfig(source="biographies", people_at_birth=3, strangers=2, days=1))
    assert (s.birth, s.skills) == (people.birth, people.skills)
    assert [(d.name, len(read(d)), d.test) for d in s.days] == [("a.txt", 2, ()), ("b.txt", 2, ())]
    assert [d.name for d in load(tmp_path, birth="biographies", days=1).days] == ["a.txt to b.txt"]
    write(tmp_path / "x" / "c.txt", 2)
    assert [d.name for d in load(tmp_path, birth="biographies").days] == ["x"]
    with pytest.raises(ValueError, match="stream.days=2, but .* has 1 sub-folders"):
        load(tmp_path, birth="biographies", days=2)
    for source, birth in (("documents", "people"), ("biographies", "stories"), ("documents", "documents")):
        with pytest.raises(ValueError, match=f"stream.birth='{birth}' with stream.source='{source}'"):
            stream.load(StreamConfig(source=source, path=str(tmp_path), birth=birth))


def test_numbers_in_names_count_as_numbers_and_what_is_hidden_is_left_alone(tmp_path, caplog):
    for name in ("2026-10-01", "2026-9-30", "2026-9-4"):
        write(tmp_path / name / "a.md", 2)
        write(tmp_path / name / ".trash" / "b.md", 9)
        (tmp_path / name / ".trash" / "questions.jsonl").write_text("?")
    names = [
        "2026.11.9",
        "2026.11.10",
        "a/x.md",
        "a1/x.md",
        "a2/x.md",
        "notes.md",
        "notes2.md",
        "notes2.txt",
        "notes10.md",
    ]
    assert [str(p) for p in sorted(map(pathlib.Path, reversed(names)), key=documents._order)] == names
    write(tmp_path / ".git" / "c.md", 9)
    (tmp_path / ".git" / "index.bin").write_bytes(b"\0")
    s = load(tmp_path, birth="biographies", people_at_birth=3, strangers=2)
    assert [(d.name, len(read(d))) for d in s.days] == [("2026-9-4", 2), ("2026-9-30", 2), ("2026-10-01", 2)]
    assert "index.bin" not in caplog.text
    assert "2026-9-30/a.md: read once more, it is the same text as" in caplog.text


def test_what_is_not_read_is_told(tmp_path, caplog):
    write(tmp_path / "a.txt", 5)
    (tmp_path / "again.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    write(tmp_path / "z.txt", 5, first=50)
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"\x00")
    s = load(tmp_path, days=1)
    assert "again.txt: not read again, it is the same text as" in caplog.text
    assert "neither .txt nor .md: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more" in caplog.text
    assert len(read(s.birth)) == 3, "once, without the two that are probed"
    assert "jsonl" not in caplog.text and "links" not in caplog.text
    for name in ("a.txt", "again.txt"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(ValueError, match="a.txt to again.txt in .*: there is nothing to read"):
        load(tmp_path, days=1)


def test_a_link_is_followed_as_a_sub_folder_and_what_asks_or_leads_nothing_is_told(tmp_path, caplog):
    root = tmp_path / "root"
    for place in (root / "a", tmp_path / "elsewhere"):
        write(place / "one.md", 5)
        ask(place / "questions.jsonl", {"question": "Who?", "answer": place.name})
    ask(root / "a" / "Questions.jsonl", {"question": "Why?", "answer": "so"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "deep").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "lost.md").symlink_to(tmp_path / "nowhere.md")
    days = load(root, birth="biographies", people_at_birth=3, strangers=2).days
    asked = [(d.name, len(read(d)), d.test) for d in days]
    assert asked == [("a", 5, (Example("Who?", "a"),)), ("b", 5, (Example("Who?", "elsewhere"),))]
    assert "only a file that is called questions.jsonl asks: a/Questions.jsonl" in caplog.text
    assert "links that lead nowhere: a/lost.md" in caplog.text
    assert "only sub-folders of the first level may be: a/deep" in caplog.text


def test_two_answers_to_the_same_question_of_a_day_are_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "one.md", 5)
    lines = [{"question": "Who?", "answer": "w", "document": f"{name}/one.md"} for name in "abb"]
    ask(tmp_path / "questions.jsonl", *lines[:2], lines[2] | {"answer": "W"})
    assert [e.answer for e in load(tmp_path).days[0].test] == ["w", "W"]
    ask(tmp_path / "questions.jsonl", *lines[:2])
    ask(tmp_path / "b" / "questions.jsonl", {"question": "Who? ", "answer": "x"})
    with pytest.raises(ValueError, match=r"'Who\?' of b with the answer '.', but .*, line [12] with '.'"):
        load(tmp_path)
