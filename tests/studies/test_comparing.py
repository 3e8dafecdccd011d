"""What an arm of a study leaves out of dreaming."""

import dataclasses

from sleep_jax.sleep.dream import DreamConfig
from sleep_jax.studies import comparing, few_shot, incorporation
from sleep_jax.studies.comparing import Arm

CONFIG = DreamConfig(per_context=9, top=4, random=2, common=0.1, random_expert=True)


def left_out(arm):
    """The settings of dreaming that an arm has otherwise than the study."""
    ours, theirs = dataclasses.asdict(comparing.dreaming(arm, CONFIG)), dataclasses.asdict(CONFIG)
    return {key: value for key, value in ours.items() if value != theirs[key]}


def test_an_arm_leaves_out_what_its_name_says_and_nothing_else():
    chance, bare = {"top": 0, "random": 6}, {"common": 0.0}
    assert left_out(Arm()) == {}
    for arms in (incorporation.ARMS, few_shot.ARMS):
        assert left_out(arms["sleep"]) == {}
        assert left_out(arms["sleep_no_selection"]) == chance, "as many are tried, but any of them"
        assert left_out(arms["sleep_no_random_expert"]) == {"random_expert": False}
    assert left_out(incorporation.ARMS["sleep_no_grounding"]) == bare
    assert left_out(incorporation.ARMS["seal"]) == chance | bare | {"random_expert": False}
    assert left_out(few_shot.ARMS["seal"]) == chance | {"random_expert": False}


def test_a_random_expert_can_be_put_back():
    without = dataclasses.replace(CONFIG, random_expert=False)
    put_back = comparing.dreaming(incorporation.ARMS["sleep_random_expert"], without)
    assert put_back == CONFIG
