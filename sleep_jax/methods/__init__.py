"""Every way of living a day that can be compared; `config.method` names one."""

import difflib

from sleep_jax.methods import ewc, finetune, generative, icl, sleep
from sleep_jax.methods.base import Method
from sleep_jax.sleep.seeding import Variant

METHODS: dict[str, Method] = {
    "sleep": sleep.method(Variant()),
    "sleep_rem": Method((*sleep.method(Variant()).phases, ("rem", sleep.dreams_on))),
    "sleep_no_imitation": sleep.method(Variant(imitate=False)),
    "sleep_no_semantic": sleep.method(Variant(semantic=False)),
    "sleep_no_expansion": sleep.method(Variant(expand=False)),
    "sleep_fast_in_student": sleep.method(Variant(mask_fast_before_seed=False)),
    "opsd": sleep.method(Variant(expand=False, imitate=False, rehearse=False, on_policy_only=True)),
    "sequential": Method((("train", finetune.sequential),)),
    "joint": Method((("train", finetune.joint),)),
    "replay": Method((("train", finetune.replay),)),
    "ewc": Method((("train", ewc.train),), extra=ewc.extra, extra_like=ewc.extra_like),
    "generative_replay": Method((("wake", generative.wake), ("train", generative.train))),
    "in_context": Method((("read", icl.read),), answerer=icl.answerer),
}


def get(name: str) -> Method:
    """The method of this name.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"config.method={name!r} is not a method{hint} There are {', '.join(METHODS)}")
    return METHODS[name]
