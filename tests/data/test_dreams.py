import pytest

from sleep_jax.data import dreams
from sleep_jax.data.stream import Example

SAID = (Example("Where was Ada born?", "Bristol"), Example("", "Ada keeps a cat."), Example("a", "b -> c"))


def test_what_is_written_is_read():
    text = dreams.write(SAID)
    assert text == "Where was Ada born? -> Bristol\nAda keeps a cat.\na -> b -> c"
    assert dreams.read(text) == list(SAID)
    assert dreams.write(()) == "" and dreams.read("") == []


@pytest.mark.parametrize("line", ["", "  ", "->", "Where? ->", "-> Bristol", " -> "])
def test_half_a_line_says_nothing(line):
    assert dreams.read(f"one\n{line}\ntwo") == [Example("", "one"), Example("", "two")]


def test_spaces_around_do_not_count():
    assert dreams.read("  Where?->Bristol \n\n  text ") == [Example("Where?", "Bristol"), Example("", "text")]


@pytest.mark.parametrize(
    "bad",
    [
        Example("", "two\nlines"),
        Example("a -> b", "c"),
        Example("", "a -> b"),
        Example("x", " "),
        Example("", " x"),
    ],
)
def test_what_would_not_come_back_is_an_error(bad):
    with pytest.raises(ValueError, match="do not come back"):
        dreams.write([bad])


def test_every_role_holds_the_context_and_others_are_named():
    for role in dreams.PROMPTS:
        assert "Ada keeps {a} cat." in dreams.prompt(role, "Ada keeps {a} cat.")
    assert len({dreams.prompt(r, "x") for r in dreams.PROMPTS}) == len(dreams.PROMPTS)
    with pytest.raises(ValueError, match="'nightmare' is not a role of dreams; there are implications"):
        dreams.prompt("nightmare", "x")
