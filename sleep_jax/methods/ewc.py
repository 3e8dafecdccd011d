"""Elastic weight consolidation (Kirkpatrick et al. 2017, 1612.00796), with the Fisher of single examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import cost, losses
from sleep_jax.data import packing
from sleep_jax.data.stream import Experience
from sleep_jax.fit import World
from sleep_jax.methods import finetune
from sleep_jax.phases import State
from sleep_jax.types import Mean, Objective, Tree

FISHER = cost.Kind(
    "the Fisher of EWC, 16 gradients at once,",
    "set model.remat=full and model.logit_chunk=64, or lower row_length",
)


def extra(world: World, params: Tree) -> Tree:
    """The Fisher diagonal of birth and the parameters it was taken at."""
    return {"fisher": fisher(world, params, world.stream.birth), "anchor": params}


def extra_like(params: Tree) -> Tree:
    """Arrays of the shapes of `extra`."""
    return {"fisher": params, "anchor": params}


def train(world: World, name: str, state: State, cycle: int, experience: Experience) -> State:
    """The day under the penalty; then its own Fisher is added and the anchor moves (online EWC)."""
    finetune.read(world, experience)
    rows = finetune.pack(world, experience.train)
    objective = penalised(world, world.config.baseline.ewc_strength)
    state = finetune.fit_backbone(world, name, state, cycle, rows, objective, state.extra)
    total = jax.tree.map(jnp.add, state.extra["fisher"], fisher(world, state.params, experience))
    return dataclasses.replace(state, extra={"fisher": total, "anchor": state.params})


def penalised(world: World, strength: float) -> Objective:
    """nll + strength / 2 * sum_i F_i (theta_i - anchor_i)^2 (Eq. 3); one anchor for all that is earlier."""
    plain = losses.supervised(world.model)

    def totals(params, frozen, batch, key):
        terms, metrics = plain.totals(params, None, batch, key)
        squares = jax.tree.map(
            lambda f, p, a: jnp.sum(f * jnp.square(p - a)), frozen["fisher"], params, frozen["anchor"]
        )
        # Weighted by the tokens of the part, so that micro-batches and devices add up to one penalty.
        tokens = terms["nll"].count
        return {**terms, "penalty": Mean(0.5 * sum(jax.tree.leaves(squares)) * tokens, tokens)}, metrics

    def counts(batch):
        return {"nll": batch.weights_BT.sum(), "penalty": batch.weights_BT.sum()}

    return Objective({"nll": 1.0, "penalty": strength}, counts, totals)


def fisher(world: World, params: Tree, experience: Experience) -> Tree:
    """Diagonal of the empirical Fisher: mean over examples of the squared gradient of the log-likelihood.

    One gradient per example (`vmap`): squaring the gradient of a batch would be something else.
    """
    draw = np.random.default_rng(world.seed)
    documents = finetune.documents(world, experience.train)
    count = min(world.config.baseline.ewc_examples, len(documents))
    chosen = [documents[i] for i in draw.permutation(len(documents))[:count]]
    rows = [packing.pack([e], world.config.row_length)[0] for e in chosen]
    model = world.model

    @cost.Program
    def squares(total, params, batch):
        def one(row):
            row = jax.tree.map(lambda x: x[None], row)
            return jax.grad(lambda p: losses.next_token(model, p, None, row).total)(params)

        grads = jax.vmap(one)(batch)
        return jax.tree.map(lambda t, g: t + jnp.sum(jnp.square(g), axis=0), total, grads)

    total = jax.tree.map(jnp.zeros_like, params)
    size = 16
    for start in range(0, count, size):
        part = rows[start : start + size]
        if len(part) < size:  # rows of zeros have no weight and no gradient
            part += [jax.tree.map(np.zeros_like, rows[0])] * (size - len(part))
        batch = jax.tree.map(lambda *xs: np.concatenate(xs), *part)
        total = squares(FISHER, total, params, batch)
    return jax.tree.map(lambda t: t / count, total)
