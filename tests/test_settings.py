import dataclasses
import json
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
            "wake": {"lr": 0.25},
        }
    )
    assert (config.seed, config.method) == (7, "sleep,sequential")
    assert config.memory.periods == (64, 128) and isinstance(config.memory.periods, tuple)
    assert config.memory.reading == "width" and config.sleep.day_at_hand is False
    assert config.sleep.margin == 1.0 and isinstance(config.sleep.margin, float)
    # What a group leaves out keeps the default of that very group, which is not that of its class.
    assert config.birth.optim == dataclasses.replace(Config().birth.optim, lr=0.5) != OptimConfig(lr=0.5)
    assert config.sleep.optim == dataclasses.replace(Config().sleep.optim, clip=2.0) != OptimConfig(clip=2.0)
    assert config.wake.lr == (0.25,)
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
        ({"model": {"remat": 1}}, r"config key model.remat takes a value of type bool"),
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
        ({"model": {"heads": 4, "kv_heads": 3}}, r"config.model: model.heads=4 .* model.kv_heads=3"),
        ({"birth": {"blanks": 1.0}}, r"config.birth: birth.blanks=1.0 is not in \[0, 1\)"),
        ({"sleep": {"blanks": -0.1}}, r"config.sleep: sleep.blanks=-0.1 is not in \[0, 1\)"),
        ({"sleep": {"held_out": 0.9}}, r"config.sleep: sleep.held_out=0.9 is not in \(0, 0.5\)"),
        ({"sleep": {"optim": {"lr": -1.0}}}, r"config.sleep.optim: lr=-1.0"),
        ({"row_length": 65, "memory": {"periods": (130,)}}, r"row_length=65 exceeds model.max_len=64"),
        ({"row_length": 48}, r"memory.periods\[0\]=512 is not a multiple of row_length=48"),
        ({"checkpoint_every": 97}, r"checkpoint_every=97 is not a multiple of sleep.imitate.refresh=8"),
    ],
)
def test_settings_that_disagree_are_named_with_both_values(values, said):
    with pytest.raises(ValueError, match=said):
        settings.load(values)


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
