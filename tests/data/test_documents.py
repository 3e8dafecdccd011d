import pytest

from sleep_jax.data import stream
from sleep_jax.data.stream import StreamConfig


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
