"""In-context learning: nothing is trained, the documents stand before the question as far as they fit."""

from collections.abc import Sequence

import jax
import numpy as np

from sleep_jax import evals, rollout
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example, Experience
from sleep_jax.fit import World
from sleep_jax.methods import finetune
from sleep_jax.phases import State
from sleep_jax.types import Sampling


def read(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """The day is remembered as it is."""
    del name, cycle
    finetune.read(world, experience)
    return state


def answerer(world: World, state: State, lived: Sequence[Experience]) -> evals.Answerer:
    """Each question behind random examples of the days so far, as many as the context window holds."""
    c, tok = world.config, world.tok
    known = [
        encoding.encode_answering(tok, e, c.row_length).tokens for x in lived for e in x.train if e.prompt
    ]
    draw = np.random.default_rng([world.seed, len(lived)])
    room = c.model.max_len - c.answer_tokens

    def prompt(question: Example) -> list[int]:
        tokens = [tok.bos, *tok.encode(" " + question.prompt), tok.ans]
        for i in draw.integers(len(known), size=room) if known else ():
            if len(tokens) + len(known[i]) > room:
                break
            tokens = [*known[i], *tokens]
        return tokens

    def answer(probes: Sequence[Example]) -> list[str]:
        prompts = rollout.padded([prompt(p) for p in probes])
        out = rollout.generate(
            world.model,
            state.params,
            state.memory,
            prompts,
            jax.random.key(0),
            Sampling(c.answer_tokens, temperature=0.0),
            batch_size=c.eval_batch,
        )
        return [tok.decode(ids).strip() for ids in rollout.completions(out, prompts[1])]

    return answer
