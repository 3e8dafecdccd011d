"""The configurations that people start from, against the dataclasses that the program reads."""

import ast
import dataclasses
import importlib
import pathlib

import pytest

from sleep_jax import settings

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
# Set from the top-level data_dir, so that a person names the folder once.
DERIVED = {"stream.data_dir"}


@pytest.fixture
def study(monkeypatch):
    """`study(name)`: the module of a configuration."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"configs.{name}")


def flat(values, prefix=""):
    table = {}
    for key, value in values.items():
        table |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return table


def test_the_studies_that_must_exist_do():
    assert {"base", "tiny", "clinc150"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_study_loads(study, name):
    config = settings.load(study(name).get_config().to_dict())
    assert isinstance(config, settings.Config)
    if name != "base":
        assert config != settings.Config(), "a study that changes nothing"


@pytest.mark.parametrize(
    "name, variant",
    [("learn_docs", "checkpoint"), ("knowledge_incorporation", "squad"), ("few_shot_arc", "arc")],
)
def test_variants_load_and_others_are_refused(study, name, variant):
    get_config = study(name).get_config
    values = get_config(variant).to_dict()
    values["model"]["checkpoint"] = "owner/model"
    config = settings.load(values)
    assert config != settings.load(get_config().to_dict()) and config.model.compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match=f"{name}.py:tiny is neither :.* nor :{variant}"):
        get_config("tiny")


@pytest.mark.parametrize("name", NAMES)
def test_every_study_opens_with_claim_cost_command_and_number(study, name):
    text = study(name).__doc__ or ""
    for word in ("Claim:", "Cost:", "Command:", "Number:"):
        assert word in text, f"configs/{name}.py does not say its {word}"


def test_base_names_every_key_with_the_default_of_the_dataclass(study):
    base = flat(study("base").get_config().to_dict())
    known = flat(dataclasses.asdict(settings.Config()))
    assert base.keys() == known.keys() - DERIVED
    assert known.keys() >= DERIVED
    assert {k: v for k, v in base.items() if v != known[k]} == {}
    assert {k: type(v) for k, v in base.items()} == {k: type(known[k]) for k in base}
    assert settings.load(study("base").get_config().to_dict()) == settings.Config()


def test_every_key_of_base_carries_a_comment():
    source = (ROOT / "configs" / "base.py").read_text()
    lines = source.splitlines()
    bare, keys = [], 0
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or isinstance(node.value, ast.Call):
            continue  # a call makes a group of keys
        keys += 1
        if "#" not in lines[node.end_lineno - 1][node.end_col_offset :]:
            bare.append(lines[node.lineno - 1].strip())
    assert not bare and keys > 80


@pytest.mark.parametrize("key, near", [("sleep.sede", "seed"), ("baseline.replay_bufer", "replay_buffer")])
def test_a_misspelt_key_of_a_study_is_told_the_nearest(study, key, near):
    values = study("tiny").get_config().to_dict()
    group, word = key.split(".")
    values[group][word] = 1
    with pytest.raises(ValueError, match=rf"unknown config key {key}; did you mean {group}.{near}\?"):
        settings.load(values)


def test_practice_that_is_off_need_not_divide_into_micro_batches():
    off = {"seed": {"alpha": 1.0, "on_policy": 0.0}, "imitate": {"prompts": 2, "samples": 3}}
    assert settings.load({"micro_batches": 4, "sleep": off}).micro_batches == 4


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({"answer_tokens": 64}, "answer_tokens=64 .*model.max_len=64"),
        ({"sleep": {"recall": {"max_new": 70}}}, "sleep.recall.max_new=70 .*model.max_len=64"),
        ({"sleep": {"recall": {"answer_max_new": 64}}}, "sleep.recall.answer_max_new=64 .*model.max_len=64"),
        ({"answer_tokens": 0}, "answer_tokens=0 must be at least 1"),
        ({"micro_batches": 0}, "micro_batches=0 must be at least 1"),
        ({"micro_batches": 3}, "birth.batch_rows=16 rows do not divide into micro_batches=3 parts"),
        ({"micro_batches": 4, "sleep": {"batch_rows": 18}}, "sleep.batch_rows=18 rows .*micro_batches=4"),
        ({"micro_batches": 4, "baseline": {"batch_rows": 2}}, "baseline.batch_rows=2 rows .*micro_batches=4"),
        (
            {"micro_batches": 4, "sleep": {"imitate": {"prompts": 2, "samples": 3}}},
            r"sleep.imitate.prompts \* sleep.imitate.samples=6 rows do not divide into micro_batches=4",
        ),
        ({"sleep": {"recall": {"temperature": 0.0}}}, "sleep.recall.temperature=0.0 must be above 0"),
        ({"sleep": {"recall": {"batch_size": 0}}}, "sleep.recall.batch_size=0 must be at least 1"),
        ({"baseline": {"replay_share": 1.0}}, "baseline.replay_share=1.0"),
        ({"baseline": {"replay_buffer": 0}}, "baseline.replay_buffer=0"),
        ({"sleep": {"day_at_hand": False, "day_in_context": 2}}, "day_in_context=2 .*day_at_hand=False"),
    ],
)
def test_what_would_fail_at_night_is_said_before_birth(values, wanted):
    with pytest.raises(ValueError, match=wanted):
        settings.load(values)
