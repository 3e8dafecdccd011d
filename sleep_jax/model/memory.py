"""Continuum memory: which MLP weights learn awake at which period, and the banks of low-rank experts.

Sources: Sleep (2606.03979) section 2.2, Eq. 1-2 and appendix B; Nested Learning (2512.24695) section 7.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.model.layers import Turned, project
from sleep_jax.ops.masked import MASKED
from sleep_jax.types import Array, Memory, Tree


def levels(model: ModelConfig, memory: MemoryConfig) -> np.ndarray:
    """The fast level that owns each hidden unit of each MLP, as level_NF int32; -1 is the static backbone.

    Depth-wise, layers are split into equal groups, earlier layers faster; width-sliced, the hidden units of
    every layer are. The last `static_share` of layers or units belongs to no level. Both are readings: the
    papers say "placing the MLP blocks in different levels" (Nested Learning, 9.1) and no more.

    Raises:
      ValueError: there are more levels than layers (or hidden units) to own.
    """
    count = len(memory.periods)
    size = model.layers if memory.reading == "depth" else model.ff
    owned = max(round(size * (1 - memory.static_share)), 1)
    if owned < count:
        raise ValueError(
            f"memory.periods={memory.periods} names {count} levels but only {owned} of {size} "
            f"{'layers' if memory.reading == 'depth' else 'hidden units'} are theirs (model."
            f"{'layers' if memory.reading == 'depth' else 'ff'}, memory.static_share={memory.static_share})"
        )
    level = np.full(size, -1, np.int32)
    level[:owned] = np.arange(owned) * count // owned
    if memory.reading == "depth":
        return np.broadcast_to(level[:, None], (model.layers, model.ff)).copy()
    return np.broadcast_to(level, (model.layers, model.ff)).copy()


def init(model: ModelConfig, memory: MemoryConfig, key: Array) -> Memory:
    """Empty memory: zero deltas, every slot locked, A ~ N(0, 1/D) and the rest of each slot 0."""
    N, D, F = model.layers, model.width, model.ff
    L, E, R = memory.slow_levels, memory.slots, memory.rank
    shapes = {"gate_NDF": (N, D, F), "up_NDF": (N, D, F), "down_NFD": (N, F, D)}
    fast = {k: jnp.zeros(shape, jnp.float32) for k, shape in shapes.items()}
    bank = {
        "a_NLEDR": jax.random.normal(key, (N, L, E, D, R), jnp.float32) * D**-0.5,
        "b_NLERD": jnp.zeros((N, L, E, R, D), jnp.float32),
        "w_NLDE": jnp.zeros((N, L, D, E), jnp.float32),
        "pool_NLDE": jnp.zeros((N, L, D, E), jnp.float32),
        "bias_NLE": jnp.zeros((N, L, E), jnp.float32),
    }
    return Memory(fast=fast, bank=bank, active_LE=jnp.zeros((L, E), bool))


def rest(memory: Memory) -> Memory:
    """The resting self: the same memory with the fast level masked."""
    return dataclasses.replace(memory, fast=None)


def merged(params: Tree, fast: Tree) -> Tree:
    """The backbone with fast memory added to its MLP weights: the same function, but for their rounding."""
    mlp = params["blocks"]["mlp"]
    mlp = {k: (w.astype(jnp.float32) + fast[k]).astype(w.dtype) for k, w in mlp.items()}
    return {**params, "blocks": {**params["blocks"], "mlp": mlp}}


def forget_day(memory: Memory) -> Memory:
    """The same memory with empty fast levels."""
    return dataclasses.replace(memory, fast=jax.tree.map(jnp.zeros_like, memory.fast))


def clear_slots(memory: Memory, mask: np.ndarray) -> Memory:
    """The same memory with the slots of `mask` [L, E] locked and set to zero."""
    keep = ~jnp.asarray(mask)
    bank = {
        "a_NLEDR": jnp.where(keep[None, :, :, None, None], memory.bank["a_NLEDR"], 0),
        "b_NLERD": jnp.where(keep[None, :, :, None, None], memory.bank["b_NLERD"], 0),
        "w_NLDE": jnp.where(keep[None, :, None], memory.bank["w_NLDE"], 0),
        "pool_NLDE": jnp.where(keep[None, :, None], memory.bank["pool_NLDE"], 0),
        "bias_NLE": jnp.where(keep[None], memory.bank["bias_NLE"], 0),
    }
    return dataclasses.replace(memory, bank=bank, active_LE=memory.active_LE & keep)


def force_slot(memory: Memory, level: int, index: int) -> Memory:
    """The same memory, with the routers of one slot always opening it if it is unlocked.

    Tells what a slot knows apart from whether the router asks it.
    """
    return lift_slot(memory, level, index, -MASKED)


def lift_slot(memory: Memory, level: int, index: int, by: float | Array) -> Memory:
    """The same memory, with a number added to all router scores of one slot."""
    bias = memory.bank["bias_NLE"].at[:, level, index].add(by)
    return dataclasses.replace(memory, bank={**memory.bank, "bias_NLE": bias})


def with_active(memory: Memory, active: Array | np.ndarray) -> Memory:
    """The same memory with other slots unlocked: [L, E] for all, or [B, L, E] for each row of a batch."""
    return dataclasses.replace(memory, active_LE=jnp.asarray(active))


def only_slots(memory: Memory, index: np.ndarray) -> Memory:
    """The same memory with these slots of every level alone.

    The same function where all others are locked, at the cost of those that are left: a locked slot is
    computed and multiplied by 0.
    """
    if len(index) == memory.active_LE.shape[-1]:
        return memory
    axes = {k: k.rpartition("_")[2].index("E") for k in memory.bank}
    bank = {k: jnp.take(x, index, axis=axes[k]) for k, x in memory.bank.items()}
    return dataclasses.replace(memory, bank=bank, active_LE=memory.active_LE[..., index])


def without_locked(memory: Memory) -> Memory:
    """The same function at the cost of the slots that are in use.

    In pairs, at least one, so that not every night has programs of its own to compile: a locked slot may
    stay. Where masks differ by row (`active_LE` of axes [B, L, E]) a slot is in use if it is open for any.
    (Which extra expert `random_expert` draws depends on how many slots there are.)
    """
    active_LE = np.asarray(memory.active_LE)
    used_E = active_LE.any(tuple(range(active_LE.ndim - 1)))
    count = min(max(2 * -(-used_E.sum() // 2), 2), len(used_E))
    return only_slots(memory, np.sort(np.argsort(~used_E, kind="stable")[:count]))


def fresh_slot(model: ModelConfig, memory: MemoryConfig, key: Array) -> Tree:
    """The parameters of one slot at unlock: A ~ N(0, 1/D), B = 0, router column and bias 0.

    With router logit 0 it is open and, B being 0, says nothing: expansion changes no output, and yet the new
    slot is on the path of the gradient.

    Returns:
      {a_NDR, b_NRD, w_ND, pool_ND, bias_N} float32, the form that `write_slot` takes.
    """
    N, D, R = model.layers, model.width, memory.rank
    return {
        "a_NDR": jax.random.normal(key, (N, D, R), jnp.float32) * D**-0.5,
        "b_NRD": jnp.zeros((N, R, D), jnp.float32),
        "w_ND": jnp.zeros((N, D), jnp.float32),
        "pool_ND": jnp.zeros((N, D), jnp.float32),
        "bias_N": jnp.zeros((N,), jnp.float32),
    }


def write_slot(memory: Memory, slot: Tree, level: int | Array, index: int | Array) -> Memory:
    """Memory with the parameters of one slot replaced (the form of `fresh_slot`), and unlocked."""
    bank = memory.bank
    bank = {
        "a_NLEDR": bank["a_NLEDR"].at[:, level, index].set(slot["a_NDR"]),
        "b_NLERD": bank["b_NLERD"].at[:, level, index].set(slot["b_NRD"]),
        "w_NLDE": bank["w_NLDE"].at[:, level, :, index].set(slot["w_ND"]),
        "pool_NLDE": bank["pool_NLDE"].at[:, level, :, index].set(slot["pool_ND"]),
        "bias_NLE": bank["bias_NLE"].at[:, level, index].set(slot["bias_N"]),
    }
    return dataclasses.replace(memory, bank=bank, active_LE=memory.active_LE.at[..., level, index].set(True))


def router_scores(h_BTD: Array, bank: Tree) -> tuple[Array, Array]:
    """What a token says of every slot for itself, h_t w + bias, and to all that see it, h_t p.

    Returns:
      own_BTLE and seen_BTM float32, M = L E: the latter in the layout that is cached.
    """
    L, E = bank["bias_NLE"].shape
    w_DLE, p_DLE = (bank[k].transpose(1, 0, 2) for k in ("w_NLDE", "pool_NLDE"))
    scores_BTLE = project(h_BTD.astype(jnp.float32), jnp.concatenate([w_DLE, p_DLE], axis=1))
    own_BTLE, seen_BTLE = jnp.split(scores_BTLE, 2, axis=2)
    return own_BTLE + bank["bias_NLE"], seen_BTLE.reshape(*h_BTD.shape[:2], L * E)


def router_logits(own_BTLE: Array, seen_BSM: Array, mask_BTS: Array) -> Array:
    """Float32 score of every slot: h_t w + bias + mean of h_s p over all s that the token attends to.

    The mean is our reading; the paper gives each level a router and no formula for it. One token rarely tells
    which day a text belongs to, all words so far mostly do: without it a new expert takes over tokens of old
    texts. Taken of the scores h_s p: L E numbers per token are averaged and cached where h_s would be D.
    """
    share_BTS = mask_BTS / jnp.maximum(mask_BTS.sum(-1, keepdims=True), 1)
    return own_BTLE + jnp.einsum("bts,bsm->btm", share_BTS, seen_BSM).reshape(own_BTLE.shape)


def route(logits_BTLE: Array, active: Array, random_keys_B: Array | None = None) -> Array:
    """Hard gates [logit >= 0] of the active experts, with straight-through gradient of the sigmoid.

    Every slot decides for itself. This departs from the paper, which writes of a sparse mixture of experts
    and, in its appendix B, of an active parameter count that stays as it is: top-1 among the slots. A fresh
    slot that opens on an older slot's texts would then not only add to what that one says, it would take its
    place; the price is compute that grows with the slots in use. The straight-through gradient is our
    reading: the paper trains the router with the slot and does not say how.

    Args:
      logits_BTLE: router scores.
      active: bool [L, E], or [B, L, E] for a mask per sequence.
      random_keys_B: with keys each router also opens one random active expert, the same for all tokens of a
        row (Sleep's dreaming: unrelated knowledge leaks in). It may be one that is open anyway.

    Returns:
      gates_BTLE float32, each 0 or 1.
    """
    if active.ndim == 2:
        active = active[None]
    soft = jax.nn.sigmoid(logits_BTLE.astype(jnp.float32))
    hard = (logits_BTLE >= 0).astype(jnp.float32)
    gates = hard + (soft - jax.lax.stop_gradient(soft))
    if random_keys_B is not None:
        uniform = jnp.where(active, 0.0, MASKED) + jnp.zeros((len(logits_BTLE), *active.shape[1:]))
        pick = jax.vmap(lambda key, u: jax.random.categorical(key, u))(random_keys_B, uniform)
        extra = jax.nn.one_hot(pick, active.shape[-1], dtype=jnp.float32) * active
        gates = jnp.maximum(gates, extra[:, None])
    return jnp.where(active[:, None], gates, 0.0)


def joined(bank: Tree, scale: float, dtype: str) -> tuple[Array, Array]:
    """All slots of one layer as one pair of matrices, a_DS and b_SD times the scale, S = L E R."""
    L, E, D, R = bank["a_NLEDR"].shape
    a_DS = bank["a_NLEDR"].transpose(2, 0, 1, 3).reshape(D, L * E * R).astype(dtype)
    return a_DS, (scale * bank["b_NLERD"]).reshape(L * E * R, D).astype(dtype)


def experts(x_BTD: Array, a_DS: Array | Turned, b_SD: Array | Turned, gates_BTLE: Array) -> Array:
    """sum over slots of gate * scale * B silu(A x), all slots as one matrix product of width L*E*R.

    A dense product costs less than a dispatch at these widths, and a closed gate contributes exactly 0. The
    form of an expert is the paper's section 2.2, SiLU and scale = alpha / R are readings.

    Args:
      x_BTD: what the block's own MLP reads.
      a_DS, b_SD: of `joined`, with `memory.expert_scale`.
      gates_BTLE: of `route`.

    Returns:
      y_BTD in the dtype of x_BTD, to be added to the MLP's output.
    """
    hidden_BTS = jax.nn.silu(project(x_BTD, a_DS))
    hidden_BTLER = hidden_BTS.reshape(*gates_BTLE.shape, -1) * gates_BTLE[..., None].astype(x_BTD.dtype)
    return project(hidden_BTLER.reshape(hidden_BTS.shape), b_SD)
