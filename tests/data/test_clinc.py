import json
import pathlib

import pytest

from sleep_jax.data import stream
from sleep_jax.data.stream import Example, StreamConfig

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data"
DOMAINS = {
    "bank": ["pay_bill", "pin"],
    "home": ["play_music"],
    "odd": ["say_no", "b", "c"],
    "trip": ["book_a_flight"],
}


def tiny():
    """Uneven on purpose: one to three intents per domain, one to three examples per intent."""
    intents = [i for domain in DOMAINS.values() for i in domain]
    return {
        split: [[f"{split} {n} {i}", i] for k, i in enumerate(intents) for n in range(1 + k % most)]
        for split, most in (("train", 3), ("val", 1), ("test", 2))
    } | {"oos_train": [["what", "oos"]]}


def write(folder, data=None, domains=None):
    (folder / "clinc150").mkdir()
    for name, content in (("data_full", tiny() if data is None else data), ("domains", domains or DOMAINS)):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "clinc150" / f"{name}.json").write_text(text)


def load(folder, **kwargs):
    return stream.load(StreamConfig(source="clinc150", data_dir=str(folder), **kwargs))


def test_domains_become_birth_and_days(tmp_path):
    write(tmp_path)
    s = load(tmp_path)
    assert [d.name for d in s.days] == ["odd", "trip"]
    assert {e.answer for e in s.birth.test} == {"pay bill", "pin", "play music"}
    assert s.days[1].train == (Example("train 0 book_a_flight", "book a flight"),)
    data = tiny()
    for split, ours in (("train", "train"), ("val", "valid"), ("test", "test")):
        got = [e for x in (s.birth, *s.days) for e in getattr(x, ours)]
        assert sorted((e.prompt, e.answer) for e in got) == sorted(
            (u, i.replace("_", " ")) for u, i in data[split]
        )


def test_fraction_and_days(tmp_path):
    write(tmp_path)
    s = load(tmp_path, birth_fraction=0.0, days=2)
    assert {e.answer for e in s.birth.train} == {"pay bill", "pin"}
    assert [d.name for d in s.days] == ["home", "odd"]


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_full.json.*data_dir"):
        load(tmp_path)
    write(tmp_path)
    (tmp_path / "clinc150" / "domains.json").unlink()
    with pytest.raises(FileNotFoundError, match="domains.json"):
        load(tmp_path)


def edited(edit):
    data = tiny()
    edit(data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"train": [["a", "b"],\n ["c" "d"]]}', r"data_full.json: malformed JSON at line 2, column 7"),
        ("[1]", "expected an object at the top, found list"),
        (edited(lambda d: d.pop("val")), "no key 'val'"),
        (edited(lambda d: d.update(test=[])), "split 'test' is empty"),
        (edited(lambda d: d.update(test={})), "'test' must be an array, found dict"),
        (edited(lambda d: d["train"].insert(3, ["only one"])), r"train\[3\] must be \[utterance, intent\]"),
        (edited(lambda d: d["train"].insert(0, ["", "pin"])), r"train\[0\] must be .* not blank"),
        (edited(lambda d: d["val"].insert(1, ["x", 5])), r"val\[1\] must be"),
        (
            edited(lambda d: d["train"].insert(2, ["so \ud83d", "pin"])),
            r"data_full.json: train\[2\] holds the lone surrogate '\\ud83d' at 3 of 'so",
        ),
        (edited(lambda d: d["test"].insert(1, ["x", "\udc00"])), r"test\[1\] holds the lone surrogate"),
        (edited(lambda d: d["val"].append(["x", "pin_"])), "'pin_', which no domain .* did you mean 'pin'"),
        (
            edited(lambda d: d.update(train=[e for e in d["train"] if e[1] != "say_no"])),
            "'odd' lists the intent 'say_no', which has no example",
        ),
        (
            edited(lambda d: d.update(val=[e for e in d["val"] if e[1] != "play_music"])),
            "split 'val' has no example of the domain 'home'",
        ),
    ],
)
def test_malformed_data(tmp_path, data, message):
    write(tmp_path, data=data)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (DOMAINS | {"\ud800": ["pin"]}, r"domains.json: the name of a domain holds the lone surrogate"),
        (DOMAINS | {"trip": "book_a_flight"}, "'trip' must hold a non-empty array"),
        (DOMAINS | {"trip": []}, "'trip' must hold a non-empty array"),
        (DOMAINS | {"trip": ["book_a_flight", "pin"]}, "'pin' stands in 'bank' and in 'trip'"),
        ({"all": [i for d in DOMAINS.values() for i in d]}, "found 1, but birth and one day need at least 2"),
    ],
)
def test_malformed_domains(tmp_path, domains, message):
    write(tmp_path, domains=domains)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_not_utf8(tmp_path):
    write(tmp_path)
    (tmp_path / "clinc150" / "data_full.json").write_bytes(b'{"train": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8 at byte 11"):
        load(tmp_path)


def test_a_whole_character_of_two_surrogates_is_read(tmp_path):
    write(tmp_path, data=edited(lambda d: d["train"].insert(0, ["smile \U0001f600", "pin"])))
    assert "\\ud83d\\ude00" in (tmp_path / "clinc150" / "data_full.json").read_text()
    assert load(tmp_path).birth.train[0] == Example("smile \U0001f600", "pin")


@pytest.mark.skipif(not (REAL / "clinc150").is_dir(), reason=f"no CLINC150 in {REAL}")
def test_the_published_files():
    s = load(REAL)
    assert [d.name for d in s.days] == ["travel", "utility", "work", "small_talk", "meta"]
    assert len({e.answer for e in s.birth.train}) == 75
    for day in s.days:
        assert (len(day.train), len(day.valid), len(day.test)) == (1500, 300, 450)
        assert len({e.answer for e in day.train}) == 15
