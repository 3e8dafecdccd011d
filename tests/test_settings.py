import dataclasses
import json
import re
import typing

import pytest

from sleep_jax import settings
from sleep_jax.optim import OptimConfig
from sleep_jax.settings import Config


def test_nothing_said_is_every_default():
    assert settings.load({}) == Config()
    assert settings.load({"birth": {}, "sleep": {"seed": {}}}) == Config()


def test_values_arrive_where_they_belong():
    config = settings.load(
        {
            "seed": 7,
            "method": "sleep,sequential",
            "memory": {"periods": [64, 128], "reading": "width"},
            "birth": {"optim": {"lr": 0.5}},
            "sleep": {"margin": 1, "day_at_hand": False, "optim": {"clip": 2}},
            "wake": {"lr": [0.25, 1]},
        }
    )
    assert (config.seed, config.method) == (7, "sleep,sequential")
    assert config.memory.periods == (64, 128) and isinstance(config.memory.periods, tuple)
    assert config.memory.reading == "width" and config.sleep.day_at_hand is False
    assert config.sleep.margin == 1.0 and isinstance(config.sleep.margin, float)
    # What a group leaves out keeps the default of that very group, which is not that of its class.
    assert config.birth.optim == dataclasses.replace(Config().birth.optim, lr=0.5) != OptimConfig(lr=0.5)
    assert config.sleep.optim == dataclasses.replace(Config().sleep.optim, clip=2.0) != OptimConfig(clip=2.0)
    assert config.wake.lr == (0.25, 1.0)
    touched = {"seed", "method", "memory", "birth", "sleep", "wake"}
    for field in dataclasses.fields(Config):
        if field.name not in touched:
            assert getattr(config, field.name) == getattr(Config(), field.name)
    hash(config)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"sed": 1}, r"unknown config key sed; did you mean seed\?"),
        ({"model": {"widht": 1}}, r"unknown config key model.widht; did you mean model.width\?"),
        ({"sleep": {"imitate": {"gama": 1}}}, r"key sleep.imitate.gama; did you mean sleep.imitate.gamma\?"),
        ({"wake": {"xyzzy": 1}}, r"unknown config key wake.xyzzy; known are passes, rule, lr"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_at_its_depth(values, said):
    with pytest.raises(ValueError, match=said):
        settings.load(values)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"seed": "seven"}, r"config key seed takes a value of type int, but is set to 'seven'"),
        ({"seed": 7.0}, r"config key seed takes a value of type int"),
        ({"seed": True}, r"config key seed takes a value of type int, but is set to True"),
        ({"model": {"tie_embeddings": 1}}, r"config key model.tie_embeddings takes a value of type bool"),
        (
            {"model": {"remat": "half"}},
            r"config key model.remat='half' is not one of \('none', 'dots', 'full'\)",
        ),
        ({"model": {"rope_theta": True}}, r"config key model.rope_theta takes a value of type float"),
        ({"birth": {"optim": {"lr": "fast"}}}, r"config key birth.optim.lr takes a value of type float"),
        ({"data_dir": None}, r"config key data_dir takes a value of type str, but is set to None"),
        (
            {"memory": {"periods": [64, "128"]}},
            r"config key memory.periods takes .* type int, but is set to '128'",
        ),
        ({"stream": {"tfds_splits": ("a", "b")}}, r"config key stream.tfds_splits takes 3 values"),
        ({"model": 3}, r"config key model holds further keys, but is set to 3"),
        (
            {"memory": {"reading": "dept"}},
            r"config key memory.reading='dept' is not one of .*; did you mean 'depth'\?",
        ),
        ({"wake": {"rule": "xyzzy"}}, r"config key wake.rule='xyzzy' is not one of \('sgd', 'adam'\)$"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(values, said):
    with pytest.raises(ValueError, match=said):
        settings.load(values)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"model": {"heads": 4, "kv_heads": 3}}, r"model.heads=4 .* model.kv_heads=3"),
        ({"birth": {"blanks": 1.0}}, r"^birth.blanks=1.0 is not in \[0, 1\)"),
        ({"sleep": {"blanks": -0.1}}, r"^sleep.blanks=-0.1 is not in \[0, 1\)"),
        ({"sleep": {"held_out": 0.9}}, r"^sleep.held_out=0.9 is not in \(0, 0.5\)"),
        ({"sleep": {"optim": {"lr": -1.0}}}, r"sleep.optim: lr=-1.0"),
        ({"row_length": 65, "memory": {"periods": (130,)}}, r"row_length=65 exceeds model.max_len=64"),
        ({"row_length": 48}, r"memory.periods\[0\]=512 is not a multiple of row_length=48"),
        (
            {"memory": {"periods": (64, 128)}, "wake": {"lr": 0.5}},
            r"wake.lr=\(0.5,\) has 1 entries for the 2 levels of memory.periods=\(64, 128\)",
        ),
        (
            {"memory": {"periods": (64, 128)}, "wake": {"lr": (1, 1)}, "model": {"layers": 1}},
            r"memory.periods=\(64, 128\) names 2 levels but only 1 of 1 layers are theirs \(model.layers",
        ),
        (
            {"sleep": {"day_in_context": 2}},
            r"sleep.day_in_context=2 .* row_length=64 fills model.max_len=64",
        ),
        *(
            (values | {"rem": {"max_new": 64}}, r"rem.max_new=64 tokens leave no room .* model.max_len=64")
            for values in ({"method": "sleep,sleep_rem"}, {"study": "few_shot"}, {"wake": {"notes": 1}})
        ),
        ({"checkpoint_every": 97}, r"checkpoint_every=97 is not a multiple of sleep.imitate.refresh=8"),
    ],
)
def test_settings_that_disagree_are_named_with_both_values(values, said):
    with pytest.raises(ValueError, match=said):
        settings.load(values)


@pytest.mark.parametrize(
    "rows, words, wanted", [(49_152, 49_157, 49_216), (49_152, 300, 49_152), (512, 516, 516)]
)
def test_a_large_vocabulary_grows_to_what_divides_over_a_mesh(rows, words, wanted):
    c = settings.load({"model": {"checkpoint": "x", "vocab_size": rows}})
    assert c.model.holding(words).vocab_size == wanted
    assert settings.load({"model": {"vocab_size": rows}}).model.holding(words).vocab_size == words


def nested(key, value):
    """The mapping in which one dotted key is set."""
    for group in reversed(key.split(".")):
        value = {group: value}
    return value


LEAST = {
    "": {"seed": 0, "seeds": 1, "vocab_size": 1, "row_length": 1, "answer_tokens": 1, "eval_batch": 4}
    | {"checkpoint_every": 1, "log_every": 1},
    "stream.": {"seed": 0, "days": 0, "people_at_birth": 1, "people_per_day": 1, "attributes": 1},
    "model.": {"vocab_size": 1, "width": 1, "layers": 1, "heads": 1, "kv_heads": 1, "ff": 1, "max_len": 1}
    | {"head_size": 2, "unroll": 1, "norm_eps": 0.0, "rope_local_theta": 0.0, "query_scalar": 0},
    "memory.": {"slow_levels": 1, "rank": 1},
    "birth.": {"epochs": 1, "batch_rows": 1},
    "wake.": {"passes": 1},
    "sleep.": {"steps": 1, "batch_rows": 1, "validate_every": 1, "patience": 1, "margin": 0.0}
    | {"day_in_context": 0, "old_dreams": 0, "new_dreams": 0},
    "sleep.seed.": {"kl_clip": 0.0, "prompt_weight": 0.0, "routing": 0.0},
    "sleep.recall.": {"max_new": 1, "rounds": 1, "surplus": 1.0, "batch_size": 1, "answer_max_new": 1},
    "sleep.imitate.": {"z0": 0, "max_new": 1, "refresh": 1},
    "baseline.": {"batch_rows": 1, "replay_buffer": 1, "ewc_examples": 1, "gradient_tokens": 0}
    | {"ewc_strength": 0.0},
}
BOUNDS = {group + key: least for group, keys in LEAST.items() for key, least in keys.items()}


@pytest.mark.parametrize(
    "key, value",
    [
        *((key, least - 1) for key, least in BOUNDS.items()),
        ("sleep.margin", float("nan")),
        ("model.head_size", 0),
        ("model.head_size", 7),
        ("model.rope_theta", 0.0),
        ("model.param_dtype", "flot32"),
        ("model.compute_dtype", "int32"),
        ("method", ""),
        ("method", " , "),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_its_key(key, value):
    with pytest.raises(ValueError, match=rf"(?<![\w.]){re.escape(f'{key}={value!r}')}"):
        settings.load(nested(key, value))


@pytest.mark.parametrize("key", [key for key, least in BOUNDS.items() if not least] + ["eval_batch"])
def test_the_least_value_is_accepted(key):
    settings.load(nested(key, BOUNDS[key]))


@pytest.mark.parametrize("key, value", [("weight_decay", -0.1), ("final", -0.1), ("b2", 1.0)])
def test_an_optimiser_is_named_by_its_group(key, value):
    for group in ("birth", "sleep", "baseline"):
        with pytest.raises(ValueError, match=rf"^{group}.optim: {key}={value} "):
            settings.load({group: {"optim": {key: value}}})


def leaves(cls, prefix=""):
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, prefix + name + ".")
        else:
            yield prefix + name


def test_the_json_holds_every_key_and_loads_to_the_same_configuration():
    config = settings.load({"seed": 3, "memory": {"periods": (128, 256)}, "wake": {"lr": (0.5, 1.0)}})
    values = json.loads(settings.as_json(config))
    assert settings.load(values) == config

    def keys(values, prefix=""):
        for key, value in values.items():
            yield from keys(value, prefix + key + ".") if isinstance(value, dict) else [prefix + key]

    assert sorted(keys(values)) == sorted(leaves(Config))
    assert settings.as_json(config) == settings.as_json(settings.load(values))


def test_the_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
