import dataclasses

import pytest

from sleep_jax.data import stream
from sleep_jax.data.stream import Example, Experience, StreamConfig


def group(name):
    return Experience(name, *((Example(f"{name} {split}?", name),) for split in ("train", "valid", "test")))


@pytest.mark.parametrize(
    ("total", "fraction", "born"),
    [(10, 0.5, 5), (10, 0.0, 1), (10, 1.0, 9), (3, 0.5, 2), (2, 0.5, 1), (10, 0.74, 7), (5, 0.5, 2)],
)
def test_size_at_birth(total, fraction, born):
    assert stream.size_at_birth(total, fraction, "groups") == born


def test_divide_keeps_order_and_loses_nothing():
    groups = [group(name) for name in "abcdefg"]
    life = stream.divide(groups, 0.4, 0, "groups")
    assert [e.answer for e in life.birth.test] == ["a", "b", "c"]
    assert life.days == tuple(groups[3:])
    assert stream.divide(groups, 0.4, 2, "groups").days == tuple(groups[3:5])


def test_divide_names_the_numbers_that_disagree():
    with pytest.raises(
        ValueError, match=r"stream.days=3, but groups leave 2 .*\(2 of 4 .*stream.birth_fraction=0.5"
    ):
        stream.divide([group(name) for name in "abcd"], 0.5, 3, "groups")
    with pytest.raises(ValueError, match="groups: found 1"):
        stream.divide([group("a")], 0.5, 0, "groups")


def test_what_is_told_of_a_stream_changes_with_every_word_of_it():
    first = stream.divide([group(name) for name in "ab"], 0.5, 0, "groups")
    day = first.days[0]
    other = dataclasses.replace(day, test=(Example(day.test[0].prompt, "x"), *day.test[1:]))
    told = stream.told(first)
    assert [t.split(" (")[0] for t in told] == [
        f"birth of {len(first.birth.train)}",
        f"b of {len(day.train)}",
    ]
    changed = stream.told(stream.Stream(first.birth, (other,)))
    assert changed[0] == told[0] and changed[1] != told[1] and told == stream.told(first)


@pytest.mark.parametrize(("wrong", "right"), [("biografies", "biographies"), ("clinc", "clinc150")])
def test_unknown_source_suggests_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"stream.source='{wrong}'.*did you mean '{right}'"):
        stream.load(StreamConfig(source=wrong))


def test_unknown_source_far_from_all_lists_them():
    with pytest.raises(ValueError, match="not a source of data; there are biographies, stories, puzzles"):
        stream.load(StreamConfig(source="qqq"))


@pytest.mark.parametrize(
    "bad",
    [
        {"days": -1},
        {"seed": -1},
        {"people_per_day": 0},
        {"people_at_birth": 0},
        {"attributes": 0},
        {"birth_fraction": 1.5},
        {"probes": "train"},
        {"tfds_splits": ("train",)},
    ],
)
def test_config_names_the_key(bad):
    with pytest.raises(ValueError, match=f"stream.{next(iter(bad))}="):
        StreamConfig(**bad)


def test_containers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("a", "b").answer = "c"
