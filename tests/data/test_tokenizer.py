import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from sleep_jax.data.tokenizer import SPECIALS, Tokenizer

TEXTS = [" Where was Anna Kowal born?", " Bristol", " <ans> <ans> <ans> <pad><pad>", " naïve café 北京"] * 5
TOK = Tokenizer.train(TEXTS, 320)
FORGERIES = st.sampled_from([*SPECIALS, " ", "a", "<", "Ġ", "\n", "\0"])


def ids_of_specials(tok):
    return [tok.pad, tok.bos, tok.eos, tok.ans, tok.recall, tok.say]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(FORGERIES).map("".join)))
def test_round_trip_and_no_forged_specials(text):
    ids = TOK.encode(text)
    assert TOK.decode(ids) == text
    assert not set(ids) & set(ids_of_specials(TOK))
    assert all(0 <= i < TOK.vocab_size for i in ids)


def test_specials_are_the_first_six():
    assert ids_of_specials(TOK) == [0, 1, 2, 3, 4, 5]
    assert 262 < TOK.vocab_size <= 320


def test_merges_shorten_what_was_trained():
    assert len(TOK.encode(" Bristol")) == 1 < len(TOK.encode(" lotsirB"))


def test_decode_drops_specials_and_goes_on_after_them():
    ids = [TOK.bos, *TOK.encode("ab"), TOK.eos, *TOK.encode("cd"), TOK.pad]
    assert TOK.decode(ids) == "abcd"
    assert TOK.decode([]) == ""


def test_save_and_load(tmp_path):
    TOK.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.vocab_size, ids_of_specials(again)) == (TOK.vocab_size, ids_of_specials(TOK))
    for text in [*TEXTS, "<pad>", " <say>x"]:
        assert again.encode(text) == TOK.encode(text)


def test_training_is_deterministic_over_processes(tmp_path):
    TOK.save(tmp_path / "here.json")
    program = (
        "from sleep_jax.data.tokenizer import Tokenizer\n"
        f"Tokenizer.train({TEXTS!r}, 320).save({str(tmp_path / 'there.json')!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_a_given_file_gets_our_specials_after_its_own(tmp_path):
    words = models.WordLevel({"a": 0, "b": 1, "<eos>": 2, "[UNK]": 3}, unk_token="[UNK]")
    given_one = tokenizers.Tokenizer(words)
    given_one.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given_one.enable_truncation(2)
    given_one.enable_padding(length=9)
    given_one.save(str(tmp_path / "given.json"))
    tok = Tokenizer.load(tmp_path / "given.json")
    assert tok.eos == 2
    assert sorted(ids_of_specials(tok)) == [2, 4, 5, 6, 7, 8]
    assert tok.vocab_size == 9
    assert tok.encode("a b a b") == [0, 1, 0, 1]
    assert tok.encode("<bos>") == [3]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="vocab_size=261 cannot hold 256 bytes and 6 specials"):
        Tokenizer.train(TEXTS, 261)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        Tokenizer.load(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad.json' is not a tokenizer.json"):
        Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="UTF-8"):
        TOK.encode("\ud800")
