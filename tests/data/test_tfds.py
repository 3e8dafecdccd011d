import sys
import types

import pytest

from sleep_jax.data import stream
from sleep_jax.data.stream import Example, StreamConfig

NAMES = ["cat_food", "dog", "cow", "hen", "pig"]


class Source(list):
    """What tfds.data_source gives: a sequence of records that knows its data set."""

    def __init__(self, records, names=NAMES):
        super().__init__(records)
        label = types.SimpleNamespace(names=names) if names else object()
        self.dataset_info = types.SimpleNamespace(features={"text": object(), "label": label})


def records(split, count=10):
    return [{"text": f"{split} é {i}".encode(), "label": i % len(NAMES)} for i in range(count)]


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("tensorflow_datasets")
    module.calls = []
    module.change = lambda split, source: source

    def data_source(name, *, split, data_dir, builder_kwargs):
        assert builder_kwargs == {"file_format": "array_record"}  # what can be read without TensorFlow
        module.calls.append((name, split, data_dir))
        return [module.change(s, Source(records(s))) for s in split]

    module.data_source = data_source
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def load(**kwargs):
    return stream.load(StreamConfig(**({"source": "tfds", "tfds_name": "toy"} | kwargs)))


def test_classes_become_birth_and_days(fake):
    s = load(data_dir="/somewhere")
    assert fake.calls == [("toy", ["train[:90%]", "train[90%:]", "test"], "/somewhere")]
    assert [d.name for d in s.days] == ["cow", "hen", "pig"]
    assert {e.answer for e in s.birth.train} == {"cat food", "dog"}
    assert s.days[0].test == (Example("test é 2", "cow"), Example("test é 7", "cow"))
    assert s.days[0].valid[0].prompt == "train[90%:] é 2"


def test_days_share_the_classes_evenly(fake):
    s = load(days=2)
    assert [d.name for d in s.days] == ["cow, hen", "pig"]
    assert len(s.birth.train) + sum(len(d.train) for d in s.days) == 10
    with pytest.raises(ValueError, match="stream.days=4, but 3 of the 5 classes"):
        load(days=4)


def test_bad_settings(fake):
    with pytest.raises(
        ValueError, match="stream.tfds_text='txt' is not a feature of 'toy', did you mean 'text'"
    ):
        load(tfds_text="txt")
    with pytest.raises(ValueError, match="stream.tfds_label='text' .* is no ClassLabel"):
        load(tfds_label="text")
    with pytest.raises(ValueError, match="stream.source='tfds' .* stream.tfds_name="):
        load(tfds_name="")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": b"a\xff", "label": 0}, "split 'test', example 10: not UTF-8 at byte offset 1"),
        ({"text": b" ", "label": 0}, "example 10: stream.tfds_text='text' must be a text that is not blank"),
        ({"text": 5, "label": 0}, "must be a text that is not blank, found 5"),
        ({"text": b"a", "label": -1}, "label -1, but there are 5 label names"),
    ],
)
def test_bad_records(fake, record, message):
    fake.change = lambda split, source: Source([*source, record]) if split == "test" else source
    with pytest.raises(ValueError, match=message):
        load()


def test_class_without_examples(fake):
    fake.change = lambda split, source: Source(source[:4]) if split == "test" else source
    with pytest.raises(
        ValueError, match=r"split 'test' \(test\) has no example of 'pig'; .*stream.tfds_splits.*stream.days"
    ):
        load()


def test_a_class_may_lack_probes_when_its_day_has_some(fake):
    fake.change = lambda split, source: Source(source[:4]) if split == "test" else source
    assert {e.answer for e in load(days=1).days[0].test} == {"cow", "hen"}


def test_missing_module_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"stream.source=.*sleep_jax\[tfds\]"):
        load()
