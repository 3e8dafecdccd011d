"""Sampling with a key/value cache: a batch until its last row has ended, or a queue through full seats."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleep_jax.ops.masked import MASKED
from sleep_jax.types import Array, Rollout, Sampling, Tree


def filter_logits(logits_BV: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Logits of the distribution that is sampled: over temperature, cut to the top k, then to the nucleus p.

    The nucleus is the smallest set of tokens whose probability, after temperature and top k, reaches `top_p`
    (Holtzman et al. 2019, 1904.09751). Tokens that tie with the last one kept are kept too.

    Args:
      logits_BV: float32.
      temperature: above 0.
      top_k: tokens kept; 0 means all.
      top_p: in (0, 1]; 1 means all.

    Returns:
      logits_BV, `MASKED` where a token was cut.
    """
    logits_BV = logits_BV / temperature
    if top_k:
        kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, MASKED, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
        last_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < last_B1, MASKED, logits_BV)
    return logits_BV


def first_largest(x_BV: Array) -> Array:
    """argmax over the last axis, written as two reductions: XLA on CPU does not vectorise its own argmax."""
    V = x_BV.shape[-1]
    return jnp.min(jnp.where(x_BV == x_BV.max(-1, keepdims=True), jnp.arange(V), V - 1), axis=-1)


def _allowed(logits_BV: Array, grammar_ZV: Array | None, z_B: Array) -> Array:
    """The logits, `MASKED` where the grammar knows no such token in state z."""
    return logits_BV if grammar_ZV is None else jnp.where(jnp.asarray(grammar_ZV)[z_B] < 0, MASKED, logits_BV)


def _next(grammar_ZV: Array | None, z_B: Array, token_B: Array) -> Array:
    """The state behind a token; 0, where a text begins, behind the last token of one."""
    return z_B if grammar_ZV is None else jnp.maximum(jnp.asarray(grammar_ZV)[z_B, token_B], 0)


def _sample(logits_BV: Array, keys_B: Array, number_B: Array, sampling: Sampling) -> tuple[Array, Array]:
    """The next token of each row, the `number`-th that it samples, and its log-probability."""
    if sampling.temperature == 0:
        token_B = first_largest(logits_BV)
    else:
        logits_BV = filter_logits(logits_BV, sampling.temperature, sampling.top_k, sampling.top_p)
        sample_keys_B = jax.vmap(jax.random.fold_in)(keys_B, 2 + number_B)
        gumbel_BV = jax.vmap(lambda k, z: jax.random.gumbel(k, z.shape))(sample_keys_B, logits_BV)
        token_B = first_largest(logits_BV + gumbel_BV)
    logp_B = logits_BV[jnp.arange(len(token_B)), token_B] - jax.nn.logsumexp(logits_BV, axis=-1)
    return token_B.astype(jnp.int32), logp_B


def _expert_keys(keys_B: Array, number_B: Array) -> Array:
    """The keys by which each router draws its extra expert while the `number`-th token is sampled."""
    return jax.vmap(lambda k, n: jax.random.fold_in(jax.random.fold_in(k, 1), n))(keys_B, number_B)


def decode(
    step: Callable[..., tuple[Array, Tree]],
    prompts_BT: Array,
    lengths_B: Array,
    keys_B: Array,
    sampling: Sampling,
    *,
    eos: int,
    grammar_ZV: Array | None = None,
) -> Rollout:
    """Continues right-padded prompts.

    Row b's random numbers come from `keys_B[b]` alone, so the same prompt gives the same text in any batch
    and on any mesh. New tokens share one cache index per iteration behind the padded prompts (positions still
    count from the true end of each prompt): a cache write is then one slice update and never a scatter.

    Args:
      step: `step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B) -> (logits_BV, kv)`: logits after
        the last true token. Where `cache` is None, `kv` is a pytree of the tokens' keys and values of axes
        (..., S, K). Else `cache` is `(kv, at)`, `kv` having room behind the prompts, and it comes back with
        what belongs to the token in slot `at`.
      prompts_BT: int32, right-padded.
      lengths_B: true lengths, at least 1.
      keys_B: one random key per row.
      sampling: an extra random expert is the same for all tokens of a call of `step`.
      eos: token that ends a row.
      grammar_ZV: int32, of `data.grammar.table`: what is sampled is one of its texts, as far as `max_new`
        tokens go, and as likely as the model has it, token by token among those that go on. None: any text.

    Returns:
      Rollout of T + max_new tokens, 0 behind the last of a row. `logps_BT` is of the distribution that was
      sampled from, after temperature and cuts; of the plain softmax where greedy.
    """
    B, T = prompts_BT.shape
    max_new = sampling.max_new

    def random_keys(i):
        return _expert_keys(keys_B, jnp.full(B, i)) if sampling.random_expert else None

    def sample(logits_BV, z_B, i):
        token_B, logp_B = _sample(_allowed(logits_BV, grammar_ZV, z_B), keys_B, jnp.full(B, i), sampling)
        return token_B, logp_B, _next(grammar_ZV, z_B, token_B)

    steps_T = jnp.arange(T)
    prompt_BS = steps_T[None] < lengths_B[:, None]
    causal_BTS = (steps_T[None, :, None] >= steps_T[None, None]) & prompt_BS[:, None]
    positions_BT = jnp.broadcast_to(steps_T, (B, T))
    logits_BV, kv = step(prompts_BT, positions_BT, causal_BTS, None, random_keys(0))
    kv = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, max_new), (0, 0)]), kv)
    token_B, logp_B, z_B = sample(logits_BV, jnp.zeros(B, jnp.int32), 0)
    state = {
        "i": jnp.int32(1),
        "new_BT": jnp.zeros((B, max_new), jnp.int32).at[:, 0].set(token_B),
        "logp_BT": jnp.zeros((B, max_new), jnp.float32).at[:, 0].set(logp_B),
        "count_B": jnp.ones(B, jnp.int32),
        "done_B": token_B == eos,
        "token_B": token_B,
        "z_B": z_B,
        "kv": kv,
    }

    def going(s):
        return (s["i"] < max_new) & ~jnp.all(s["done_B"])

    def advance(s):
        i = s["i"]
        new_BS = jnp.broadcast_to(jnp.arange(max_new) < i, (B, max_new))
        mask_BS = jnp.concatenate([prompt_BS, new_BS], axis=1)
        token_B1, position_B1 = s["token_B"][:, None], (lengths_B + i - 1)[:, None]
        logits_BV, kv = step(token_B1, position_B1, mask_BS[:, None], (s["kv"], T + i - 1), random_keys(i))
        token_B, logp_B, z_B = sample(logits_BV, s["z_B"], i)
        token_B = jnp.where(s["done_B"], 0, token_B)
        return {
            "i": i + 1,
            "new_BT": s["new_BT"].at[:, i].set(token_B),
            "logp_BT": s["logp_BT"].at[:, i].set(jnp.where(s["done_B"], 0.0, logp_B)),
            "count_B": s["count_B"] + ~s["done_B"],
            "done_B": s["done_B"] | (token_B == eos),
            "token_B": token_B,
            "z_B": z_B,
            "kv": kv,
        }

    s = jax.lax.while_loop(going, advance, state)
    return _joined(prompts_BT, lengths_B, s["new_BT"], s["logp_BT"], s["count_B"], s["done_B"])


def _joined(
    prompts_BT: Array,
    lengths_B: Array,
    new_BT: Array,
    logp_BT: Array,
    count_B: Array,
    ended_B: Array,
) -> Rollout:
    """The first `count` new tokens of each row behind the true end of its prompt, without a gap."""
    T, max_new = prompts_BT.shape[1], new_BT.shape[1]
    index_BT = jnp.arange(T + max_new)[None] - lengths_B[:, None]
    sampled_BT = (index_BT >= 0) & (index_BT < count_B[:, None])
    clipped_BT = jnp.clip(index_BT, 0, max_new - 1)
    prompts_BT = jnp.pad(prompts_BT, ((0, 0), (0, max_new)))
    new_BT = jnp.take_along_axis(new_BT, clipped_BT, axis=1)
    in_prompt_BT = index_BT < 0
    return Rollout(
        tokens_BT=jnp.where(sampled_BT, new_BT, jnp.where(in_prompt_BT, prompts_BT, 0)),
        logps_BT=jnp.where(sampled_BT, jnp.take_along_axis(logp_BT, clipped_BT, axis=1), 0.0),
        sampled_BT=sampled_BT.astype(jnp.float32),
        length_B=lengths_B + count_B,
        ended_B=ended_B,
    )


def drain(
    step: Callable[..., tuple[Array, Tree]],
    empty: Callable[[int], Tree],
    prompts_QT: Array,
    lengths_Q: Array,
    keys_Q: Array,
    rows: Array,
    seats_B: Array,
    sampling: Sampling,
    *,
    eos: int,
    grammar_ZV: Array | None = None,
) -> Rollout:
    """Continues a queue of prompts, B at a time: a row that has ended leaves its seat to the next at once.

    The same texts as `decode` up to rounding, without its two kinds of waste: rows that have ended and wait
    for the longest, and prompts that are padded to the longest. Every iteration takes one token of every
    seat, of the prompt first and then of what is sampled ("continuous batching", Orca, Yu et al. 2022). All
    seats write their keys and values into one slot of a ring of S = T + max_new - 1; a row reads what was
    written since it sat down, so a seat needs no clearing and the write is one slice update. In return each
    token of a prompt is a step of its own and pays for the output head: prompts much longer than what is
    sampled are for `decode`.

    Args:
      step: as in `decode`, always with a cache.
      empty: the `kv` of so many empty slots.
      prompts_QT: int32, right-padded.
      lengths_Q: true lengths, at least 1.
      keys_Q: one random key per row.
      rows: how many of the Q there are; nothing is sampled for the rest.
      seats_B: 0, 1, ..., B - 1, split over the mesh as the work shall be.
      sampling: an extra random expert is the same for all tokens of a prompt, and another for each token
        behind it.
      eos, grammar_ZV: as in `decode`.

    Returns:
      Rollout of Q rows of T + max_new tokens, as `decode` has it.
    """
    Q, T = prompts_QT.shape
    max_new = sampling.max_new
    S = T + max_new - 1

    def sit(row_B):
        return jnp.where(row_B < rows, row_B, Q)  # Q: nobody sits here any more

    row_B = sit(seats_B)
    state = {
        "i": jnp.int32(0),
        "next": jnp.int32(len(seats_B)),
        "row_B": row_B,
        "at_B": jnp.zeros_like(row_B),
        "z_B": jnp.zeros_like(row_B),
        "token_B": prompts_QT[jnp.minimum(row_B, Q - 1), 0],
        "kv": empty(S),
        "new_QT": jnp.zeros((Q, max_new), jnp.int32),
        "logp_QT": jnp.zeros((Q, max_new), jnp.float32),
        "count_Q": jnp.zeros(Q, jnp.int32),
        "ended_Q": jnp.zeros(Q, bool),
    }

    def going(s):
        return jnp.any(s["row_B"] < Q)

    def advance(s):
        i, at_B = s["i"], s["at_B"]
        row_B = jnp.minimum(s["row_B"], Q - 1)
        length_B, keys_B = lengths_Q[row_B], keys_Q[row_B]
        mask_BS = (i - jnp.arange(S)) % S <= at_B[:, None]
        number_B = jnp.maximum(at_B + 1 - length_B, 0)
        random_keys_B = _expert_keys(keys_B, number_B) if sampling.random_expert else None
        logits_BV, kv = step(
            s["token_B"][:, None], at_B[:, None], mask_BS[:, None], (s["kv"], i % S), random_keys_B
        )
        logits_BV = _allowed(logits_BV, grammar_ZV, s["z_B"])
        token_B, logp_B = _sample(logits_BV, keys_B, number_B, sampling)
        reading_B = at_B + 1 < length_B
        told_B = jnp.where(reading_B, Q, s["row_B"])  # whose token this is; Q's are dropped
        ended_B = token_B == eos

        left_B = (~reading_B & (ended_B | (number_B + 1 == max_new))) | (s["row_B"] == Q)
        row_B = jnp.where(left_B, sit(s["next"] + jnp.cumsum(left_B) - 1), s["row_B"])
        at_B = jnp.where(left_B, 0, at_B + 1)
        z_B = jnp.where(left_B | reading_B, 0, _next(grammar_ZV, s["z_B"], token_B))
        read_B = prompts_QT[jnp.minimum(row_B, Q - 1), jnp.minimum(at_B, T - 1)]
        return {
            "i": i + 1,
            "next": s["next"] + left_B.sum(dtype=jnp.int32),
            "row_B": row_B,
            "at_B": at_B,
            "z_B": z_B,
            "token_B": jnp.where(left_B | reading_B, read_B, token_B),
            "kv": kv,
            "new_QT": s["new_QT"].at[told_B, number_B].set(token_B, mode="drop"),
            "logp_QT": s["logp_QT"].at[told_B, number_B].set(logp_B, mode="drop"),
            "count_Q": s["count_Q"].at[told_B].add(1, mode="drop"),
            "ended_Q": s["ended_Q"].at[told_B].set(ended_B, mode="drop"),
        }

    s = jax.lax.while_loop(going, advance, state)
    return _joined(prompts_QT, lengths_Q, s["new_QT"], s["logp_QT"], s["count_Q"], s["ended_Q"])
