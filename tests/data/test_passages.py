import json
import pathlib

import pytest

from sleep_jax.data import biographies, passages, stream
from sleep_jax.data.stream import Example, StreamConfig

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data"


def entry(i, questions=1):
    asked = [{"question": f"what {i} {q}?", "answer": f"it {q}"} for q in range(questions)]
    return {"title": f"t{i}", "context": f" text {i} ", "questions": asked}


def write(folder, content, name="squad_train_subset"):
    (folder / "seal_squad").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "seal_squad" / f"{name}.json").write_text(text)


def test_passages_of_the_training_file_keep_its_order(tmp_path):
    write(tmp_path, [entry(0, 2), entry(1)])
    one, two = passages.squad(tmp_path, "train")
    assert (one.title, one.text, two.text) == ("t0", "text 0", "text 1")
    assert one.test == one.valid == (Example("what 0 0?", "it 0"), Example("what 0 1?", "it 1"))


def test_the_evaluated_passages_come_in_seals_order(tmp_path):
    write(tmp_path, [entry(i) for i in range(6)], "squad_val")
    titles = [p.title for p in passages.squad(tmp_path, "test")]
    assert titles == ["t3", "t1", "t2", "t4", "t0", "t5"]  # random.seed(42); random.shuffle of six


@pytest.mark.skipif(not (REAL / "seal_squad").is_dir(), reason="no seal_squad beside the checkout")
def test_the_first_200_are_the_papers():
    found = passages.squad(REAL, "test")
    assert len(found) == 2067 and sum(len(p.test) for p in found[:200]) == 974
    theirs = json.loads((REAL / "seal_squad" / "base_val.json").read_text())
    assert [p.text for p in found[:200]] == [x["context"].strip() for x in theirs]
    assert len(passages.squad(REAL, "train")) == 199


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "malformed JSON"),
        ({"data": []}, "expected an array at the top, found dict"),
        ([entry(0), {"title": "x", "context": " ", "questions": []}], r"\[1\] must hold a title, a context"),
        ([{**entry(0), "questions": []}], r"\[0\] must hold a title, a context and questions, none of them"),
        ([{**entry(0), "questions": [{"question": "what?", "answer": ""}]}], r"\[0\], question 0 must hold"),
        ([{**entry(0), "questions": [{"question": "what?"}]}], r"\[0\], question 0 must hold"),
    ],
)
def test_malformed_files_are_named_with_the_place(tmp_path, content, said):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=said):
        passages.squad(tmp_path, "train")


def test_a_missing_file_names_the_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"squad_val.json.*set data_dir"):
        passages.squad(tmp_path, "test")
    with pytest.raises(ValueError, match="'val' is neither"):
        passages.squad(tmp_path, "val")


def test_biographies_of_strangers():
    config = StreamConfig(seed=3, attributes=3)
    found = biographies.CAST.passages(config, 5)
    life = stream.load(config)
    met = {e.prompt for x in (life.birth, *life.days) for e in (*x.train, *x.valid, *x.test)}
    for passage in found:
        assert len(passage.valid) == len(passage.test) == 3 * 2
        assert not {e.prompt for e in passage.valid + passage.test} & met
        assert all(passage.title in e.prompt and e.answer in passage.text for e in passage.test)
        assert {e.answer for e in passage.valid} == {e.answer for e in passage.test}
    assert len({p.title for p in found}) == 5
    assert biographies.CAST.passages(config, 2) == found[:2]
    with pytest.raises(ValueError, match="make 5174, but there are 4096 names"):
        biographies.CAST.passages(config, 5126)
