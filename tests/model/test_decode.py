import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import bit_equal

from sleep_jax.data.grammar import table
from sleep_jax.model import build, lora
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.decode import decode, drain, filter_logits
from sleep_jax.types import Sampling

EOS, PAD, V = 2, 0, 40
B, T, NEW = 4, 6, 7
LENGTHS = np.array([6, 1, 4, 4])


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def filtered(logits_V, temperature, top_k, top_p):
    """Log-probabilities after temperature, top k and nucleus, one token after the other; -inf where cut."""
    logits_V = np.asarray(logits_V, np.float64) / temperature
    order = sorted(range(len(logits_V)), key=lambda v: -logits_V[v])[: top_k or None]
    kept, mass = [], 0.0
    total = np.exp(logits_V[order]).sum()
    for v in order:
        kept.append(v)
        mass += np.exp(logits_V[v]) / total
        if mass >= top_p:
            break
    logp_V = np.full(len(logits_V), -np.inf)
    logp_V[kept] = log_softmax(logits_V[kept])
    return logp_V


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(0.5, 0, 1.0), (2.0, 5, 1.0), (1.0, 0, 0.7), (0.7, 9, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6)],
)
def test_cuts_are_those_of_a_loop_over_tokens(temperature, top_k, top_p):
    logits_BV = np.random.default_rng(0).normal(size=(20, V)).astype(np.float32) * 2
    cut = jax.jit(filter_logits, static_argnums=(1, 2, 3))
    got_BV = log_softmax(np.asarray(cut(logits_BV, temperature, top_k, top_p), np.float64))
    for got_V, logits_V in zip(got_BV, logits_BV, strict=True):
        wanted_V = filtered(logits_V, temperature, top_k, top_p)
        np.testing.assert_array_equal(got_V < -1e6, wanted_V == -np.inf)
        np.testing.assert_allclose(got_V[got_V > -1e6], wanted_V[wanted_V > -np.inf], rtol=1e-4, atol=1e-5)


# The loop alone, on a scripted network: row b's text is SCRIPT[b], whatever it is asked.

SCRIPT = np.array(
    [
        [0, 0, 0, 0, 0, 0, 11, 12, 13, EOS, 9, 9, 9],
        [0, 21, EOS, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        [0, 0, 0, 0, 31, 32, 33, 34, 35, 36, 37, 38, 9],
        [0, 0, 0, 0, EOS, 9, 9, 9, 9, 9, 9, 9, 9],
    ]
)


def scripted(calls, script=SCRIPT):
    """A network whose keys are the tokens; each call is kept as (position_B, mask_BS, key_BS)."""

    def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
        assert random_keys_B is None
        last = (LENGTHS - 1)[:, None] if cache is None else jnp.zeros((len(LENGTHS), 1), int)
        position_B1 = jnp.take_along_axis(positions_BT, last, axis=1)
        mask_BS = jnp.take_along_axis(mask_BTS, last[..., None], axis=1)[:, 0]
        key_BJSK = tokens_BT[:, None, :, None]
        if cache is not None:
            key_BJSK = jax.lax.dynamic_update_slice_in_dim(cache[0], key_BJSK, cache[1], 2)
        read = position_B1[:, 0], mask_BS, key_BJSK[:, 0, :, 0]
        jax.debug.callback(lambda *x: calls.append(jax.tree.map(np.array, x)), *read)
        next_B = jnp.take_along_axis(jnp.asarray(script), position_B1 + 1, axis=1)[:, 0]
        return jax.nn.one_hot(next_B, V) * 5, key_BJSK

    return step


def greedily(step, max_new=NEW):
    prompts_BT = np.where(np.arange(T) < LENGTHS[:, None], 3, 17)
    keys_B = jax.random.split(jax.random.key(0), B)
    greedy = Sampling(max_new, temperature=0.0)
    return jax.jit(lambda: decode(step, prompts_BT, LENGTHS, keys_B, greedy, eos=EOS))()


def test_completions_follow_their_prompts_without_a_gap():
    calls = []
    rollout = jax.tree.map(np.asarray, greedily(scripted(calls)))
    jax.effects_barrier()
    wanted = [[11, 12, 13, EOS], [21, EOS], [31, 32, 33, 34, 35, 36, 37], [EOS]]
    wanted = [[3] * n + text for n, text in zip(LENGTHS, wanted, strict=True)]
    for b, text in enumerate(wanted):
        assert rollout.tokens_BT[b].tolist() == text + [PAD] * (T + NEW - len(text))
        sampled = [0] * LENGTHS[b] + [1] * (len(text) - LENGTHS[b])
        assert rollout.sampled_BT[b].tolist() == sampled + [0] * (T + NEW - len(text))
        assert rollout.length_B[b] == len(text)
    assert rollout.ended_B.tolist() == [True, True, False, True]
    logp = 5 - np.log(np.exp(5) + V - 1)
    np.testing.assert_allclose(rollout.logps_BT, logp * rollout.sampled_BT, rtol=1e-5)
    # Each call stands at the true end of each row, and reads the row up to there and nothing else.
    calls.sort(key=lambda call: call[0][0])
    assert np.array_equal([position_B for position_B, _, _ in calls], LENGTHS - 1 + np.arange(NEW)[:, None])
    for new, (_, mask_BS, key_BS) in enumerate(calls):
        for b, text in enumerate(wanted):
            text = text + [PAD] * NEW  # rows that have ended go on with padding
            assert key_BS[b, mask_BS[b]].tolist() == text[: LENGTHS[b] + new]


def test_the_loop_stops_when_every_row_has_ended():
    calls, script = [], SCRIPT.copy()
    script[2, 6] = EOS
    rollout = greedily(scripted(calls, script))
    jax.effects_barrier()
    assert len(calls) == 4  # row 0 is the longest: 11, 12, 13, <eos>
    assert np.asarray(rollout.ended_B).all()
    calls.clear()
    assert not np.asarray(greedily(scripted(calls), max_new=1).ended_B)[:3].any()
    jax.effects_barrier()
    assert len(calls) == 1


def test_tokens_come_as_often_as_their_probability_says():
    rows, logits_V = 4000, np.array([0.0, 1.0, 2.0, -1.0, 1.5])

    def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
        kv = jnp.zeros((rows, 1, 1, 1)) if cache is None else cache[0]
        return jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (rows, 5)), kv

    keys_B = jax.random.split(jax.random.key(0), rows)
    prompts_BT, lengths_B = np.full((rows, 1), 3), np.ones(rows, int)
    options = {"temperature": 0.8, "top_k": 4, "top_p": 0.9}
    run = jax.jit(lambda: decode(step, prompts_BT, lengths_B, keys_B, Sampling(2, **options), eos=99))
    first_B, second_B = np.asarray(run().tokens_BT)[:, 1:].T
    p_V = np.exp(filtered(logits_V, **options))
    for drawn_B in (first_B, second_B):
        np.testing.assert_allclose(np.bincount(drawn_B, minlength=5) / rows, p_V, atol=0.03)
    joint = np.bincount(5 * first_B + second_B, minlength=25).reshape(5, 5) / rows
    np.testing.assert_allclose(joint, np.outer(p_V, p_V), atol=0.03)


# With the network: the cache agrees with the full forward pass.


# As much as there is in one model: every family is a part of it.
ALL = {"heads": 4, "kv_heads": 2, "qk_norm": True, "qkv_bias": True, "tie_embeddings": False}
ALL |= {"post_norms": True, "norm_plus_one": True, "scaled_embeddings": True, "activation": "gelu_tanh"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(window=3, window_layers=(1,), rope_local_theta=50.0, query_scalar=3, **ALL)


@pytest.fixture(scope="module")
def self_(model, grown):
    params, memory = grown(model)
    active_LE = np.array([[True, False, True], [False, True, False]])
    return params, memory_lib.with_active(memory, active_LE)


@pytest.fixture(scope="module")
def forward(model):
    run = jax.jit(lambda params, memory, x: model.apply(params, x, memory=memory).logits_BTV)
    return lambda self_, tokens_BT: np.asarray(run(*self_, tokens_BT), np.float64)


@pytest.fixture(scope="module")
def sample(model):
    @functools.cache
    def compiled(**options):
        sampling = Sampling(NEW, **options)
        return jax.jit(
            lambda params, memory, *prompts: model.decode(params, *prompts, sampling, memory=memory)
        )

    def run(self_, prompts, **options):
        return jax.tree.map(np.asarray, compiled(**options)(*self_, *prompts))

    return run


@pytest.fixture(scope="module")
def prompts():
    tokens_BT = np.random.default_rng(0).integers(3, V, (B, T))
    tokens_BT = np.where(np.arange(T) < LENGTHS[:, None], tokens_BT, 17)  # what stands behind must not matter
    return tokens_BT, LENGTHS, jax.random.split(jax.random.key(1), B)


def said(rollout):
    """(row, position) of each sampled token; its logits stand one position earlier."""
    return np.argwhere(rollout.sampled_BT)


CUT = {"temperature": 0.7, "top_k": 6, "top_p": 0.8}


@pytest.mark.parametrize("options", [{}, CUT], ids=["plain", "cut"])
def test_sampled_log_probabilities_are_those_of_the_full_forward_pass(
    options, self_, forward, sample, prompts
):
    rollout = sample(self_, prompts, **options)
    logits_BTV = forward(self_, rollout.tokens_BT)
    assert len(said(rollout)) > 2 * B
    wanted = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    for b, t in said(rollout):
        logp_V = filtered(logits_BTV[b, t - 1], **wanted)
        logp = rollout.logps_BT[b, t]
        np.testing.assert_allclose(logp, logp_V[rollout.tokens_BT[b, t]], rtol=1e-3, atol=1e-4)
    assert not rollout.logps_BT[rollout.sampled_BT == 0].any()
    for b in range(B):
        assert rollout.tokens_BT[b, : LENGTHS[b]].tolist() == prompts[0][b, : LENGTHS[b]].tolist()
        text = rollout.tokens_BT[b, LENGTHS[b] : rollout.length_B[b]].tolist()
        assert (EOS in text) == rollout.ended_B[b] and EOS not in text[:-1]
        assert rollout.ended_B[b] or len(text) == NEW
        assert not rollout.tokens_BT[b, rollout.length_B[b] :].any()


def test_greedy_takes_the_likeliest_of_the_full_forward_pass(self_, forward, sample, prompts):
    rollout = sample(self_, prompts, temperature=0.0)
    logp_BTV = log_softmax(forward(self_, rollout.tokens_BT))
    for b, t in said(rollout):
        assert rollout.tokens_BT[b, t] == logp_BTV[b, t - 1].argmax()
        np.testing.assert_allclose(rollout.logps_BT[b, t], logp_BTV[b, t - 1].max(), rtol=1e-3, atol=1e-4)
    assert len(said(rollout)) > 2 * B


def test_weights_laid_out_for_steps_say_the_same_with_every_memory(
    model, self_, scatter, prompts, monkeypatch
):
    params, memory = self_
    adapter = scatter(jax.eval_shape(lambda: lora.init(model.config, 3, jax.random.key(0))), 7)
    seen, greedy = {"memory": memory, "adapter": adapter}, Sampling(NEW, temperature=0.0)
    rollouts = []
    for turned in (True, False):
        monkeypatch.setattr(build, "worth_turning", lambda turned=turned: turned)
        run = jax.jit(lambda params, *rows: model.decode(params, *rows, greedy, **seen))
        rollouts.append(jax.tree.map(np.asarray, run(params, *prompts)))
    on, off = rollouts
    np.testing.assert_array_equal(on.tokens_BT, off.tokens_BT)
    np.testing.assert_allclose(on.logps_BT, off.logps_BT, rtol=1e-4, atol=1e-5)
    assert len(said(on)) > 2 * B


def test_a_rows_text_does_not_depend_on_its_batch(self_, sample, prompts):
    whole = sample(self_, prompts)
    tokens_BT, lengths_B, keys_B = prompts
    order = np.array([2, 0, 0, 3])  # other places, other neighbours, a twin
    moved = sample(self_, (tokens_BT[order], lengths_B[order], keys_B[order]))
    np.testing.assert_array_equal(moved.tokens_BT, whole.tokens_BT[order])
    np.testing.assert_allclose(moved.logps_BT, whole.logps_BT[order], rtol=1e-4, atol=1e-5)
    other_key = sample(self_, (tokens_BT, lengths_B, jax.random.split(jax.random.key(2), B)))
    assert (other_key.tokens_BT != whole.tokens_BT).any(axis=1).sum() >= 3


def test_an_extra_random_expert_changes_nothing_where_none_is_open(self_, sample, prompts):
    params, memory = self_
    nobody = (params, memory_lib.with_active(memory, np.zeros((2, 3), bool)))
    np.testing.assert_array_equal(
        sample(nobody, prompts, random_expert=True).tokens_BT, sample(nobody, prompts).tokens_BT
    )


def test_an_extra_random_expert_opens_a_slot_that_no_router_chose(model, self_, forward, sample, prompts):
    params, memory = self_
    memory = memory_lib.with_active(memory, np.array([[False, True, False], [False, False, False]]))
    never = {**memory.bank, "bias_NLE": jnp.full_like(memory.bank["bias_NLE"], -1e9)}
    shy = memory.__class__(memory.fast, never, memory.active_LE)
    rollout = sample((params, shy), prompts, random_expert=True)
    forced = memory_lib.force_slot(shy, 0, 1)
    asleep, forced = (forward((params, m), rollout.tokens_BT) for m in (shy, forced))
    at = tuple(said(rollout).T)
    before = (at[0], at[1] - 1, rollout.tokens_BT[at])
    np.testing.assert_allclose(rollout.logps_BT[at], log_softmax(forced)[before], rtol=1e-3, atol=1e-4)
    assert np.abs(rollout.logps_BT[at] - log_softmax(asleep)[before]).max() > 0.05


def test_every_router_draws_its_extra_expert_for_itself(model, self_, prompts, monkeypatch):
    drawn, route = [], memory_lib.route

    def spy(logits_BTLE, active, keys_B):
        # Its result is used, for an effect alone flax does not let out of a scan over layers.
        nothing = jax.pure_callback(note, jax.ShapeDtypeStruct((), np.float32), jax.random.key_data(keys_B))
        return route(logits_BTLE, active, keys_B) + nothing

    def note(keys):
        drawn.extend(map(tuple, np.asarray(keys)))
        return np.float32(0)

    monkeypatch.setattr(memory_lib, "route", spy)
    params, memory = self_
    sampling = Sampling(3, random_expert=True)
    rollout = jax.jit(lambda *prompts: model.decode(params, *prompts, sampling, memory=memory))(*prompts)
    jax.effects_barrier()
    calls = int((rollout.length_B - LENGTHS).max())
    assert len(drawn) == len(set(drawn)) == model.config.layers * calls * B and calls > 1


# A queue samples what a batch samples, whose seats are taken again at once.

QUEUED, SEATS, N = 9, 3, 12


@pytest.fixture(scope="module")
def queue():
    draw = np.random.default_rng(5)
    lengths_N = np.array([6, 1, 4, 2, 6, 3, 1, 5, 2, 1, 1, 1])
    tokens_NT = np.where(np.arange(T) < lengths_N[:, None], draw.integers(3, V, (N, T)), 17)
    return tokens_NT, lengths_N, jax.random.split(jax.random.key(4), N)


HOW = [*((o, True) for o in ({}, CUT, {"temperature": 0.0}, {"random_expert": True})), ({}, False)]
HOW += [({"random_expert": True}, False)]  # who remembers nothing has no expert; cuts ask nobody's memory


@pytest.mark.parametrize("options, remembers", HOW, ids=str)
def test_a_queue_samples_the_texts_of_a_batch(model, self_, queue, options, remembers):
    params, memory = self_
    how, seen = Sampling(NEW, **options), {"memory": memory if remembers else None}
    batch = jax.jit(lambda *rows: model.decode(params, *rows, how, **seen))(*queue)
    drained = jax.jit(lambda *rows: model.drain(params, *rows, np.arange(SEATS), how, **seen))(*queue, QUEUED)
    batch, drained = (jax.tree.map(np.asarray, x) for x in (batch, drained))
    for name in ("tokens_BT", "sampled_BT", "length_B", "ended_B"):
        got, wanted = getattr(drained, name)[:QUEUED], getattr(batch, name)[:QUEUED]
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(drained.logps_BT[:QUEUED], batch.logps_BT[:QUEUED], rtol=1e-4, atol=1e-5)
    assert batch.sampled_BT[:QUEUED].sum() > 2 * QUEUED
    assert not drained.sampled_BT[QUEUED:].any(), "nothing is sampled for what is padding"


GRAMMAR = table([(7, 8, EOS), (7, 9, 8, EOS), (12, EOS), (30, 31, 32, 33, EOS)], V)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}], ids=str)
def test_what_is_sampled_by_a_grammar_is_one_of_its_texts(model, self_, queue, options):
    params, memory = self_
    how, seen = Sampling(NEW, **options), {"memory": memory, "grammar_ZV": GRAMMAR}
    batch = jax.jit(lambda *rows: model.decode(params, *rows, how, **seen))(*queue)
    drained = jax.jit(lambda *rows: model.drain(params, *rows, np.arange(SEATS), how, **seen))(*queue, QUEUED)
    for name in ("tokens_BT", "sampled_BT", "length_B", "ended_B"):
        np.testing.assert_array_equal(getattr(drained, name)[:QUEUED], getattr(batch, name)[:QUEUED])
    batch = jax.tree.map(np.asarray, batch)
    texts = {tuple(batch.tokens_BT[b][batch.sampled_BT[b] == 1].tolist()) for b in range(N)}
    assert texts <= {(7, 8, EOS), (7, 9, 8, EOS), (12, EOS), (30, 31, 32, 33, EOS)}
    assert len(texts) > 1 and batch.ended_B.all()


def test_texts_of_a_grammar_come_as_often_as_the_model_has_them_token_by_token():
    rows, logits_V = 4000, np.array([0.0, 1.0, 2.0, -1.0, 1.5])
    eos, grammar_ZV = 0, table([(1, 2, 0), (1, 3, 0), (4, 0)], 5)

    def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
        kv = jnp.zeros((rows, 1, 1, 1)) if cache is None else cache[0]
        return jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (rows, 5)), kv

    keys_B = jax.random.split(jax.random.key(0), rows)
    prompts = np.full((rows, 1), 3), np.ones(rows, int)
    out = jax.jit(lambda: decode(step, *prompts, keys_B, Sampling(4), eos=eos, grammar_ZV=grammar_ZV))()
    first_B, second_B = np.asarray(out.tokens_BT)[:, 1:3].T
    p_1 = 1 / (1 + np.exp(1.5 - 1))  # against 4
    p_2 = 1 / (1 + np.exp(-1 - 2.0))  # against 3, behind 1
    shares = [((first_B == 1) & (second_B == 2)).mean(), (second_B == 3).mean(), (first_B == 4).mean()]
    np.testing.assert_allclose(shares, [p_1 * p_2, p_1 * (1 - p_2), 1 - p_1], atol=0.03)
    logp_B = np.asarray(out.logps_BT).sum(1)
    np.testing.assert_allclose(logp_B[first_B == 4], np.log(1 - p_1), rtol=1e-5)


def test_a_queue_in_half_precision_says_what_it_scores(tiny, self_, queue):
    small = ALL | {"norm_plus_one": False, "scaled_embeddings": False}  # larger numbers round by more
    half, full = (tiny(**small, **options) for options in ({"compute_dtype": "bfloat16"}, {}))
    params, memory = self_
    forget = memory_lib.with_active(memory, np.zeros((2, 3), bool))  # a hard gate may tip by rounding
    run = jax.jit(lambda *rows: half.drain(params, *rows, np.arange(SEATS), Sampling(NEW), memory=forget))
    out = run(*queue, QUEUED)
    logits_BTV = jax.jit(full.apply)(params, out.tokens_BT, memory=forget).logits_BTV
    logp_BTV = log_softmax(np.asarray(logits_BTV, np.float64))
    assert len(said(out)) > 2 * QUEUED
    for b, t in said(out):
        assert out.logps_BT[b, t] == pytest.approx(logp_BTV[b, t - 1, out.tokens_BT[b, t]], abs=0.15)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_a_row_sits_down_where_another_has_ended_and_reads_its_own_text_alone(count):
    lengths_N = np.array([3, 1, 2, 1, 4, 1, 2, 3, 1, 1])
    new_N = np.array([2, 5, 1, 4, 5, 1, 5, 2, 5, 1])  # <eos> is the last of each but those of 5
    texts = [[10 + n] * (lengths_N[n] + new_N[n] - 1) + [EOS if new_N[n] < 5 else 10 + n] for n in range(10)]
    script = np.array([t + [9] * (10 - len(t)) for t in texts])
    calls, ring = [], 4 + 5 - 1

    def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
        row_B = tokens_BT[:, 0] - 10
        key_BSK = jax.lax.dynamic_update_slice_in_dim(cache[0], tokens_BT[..., None], cache[1], 1)
        read = row_B, positions_BT[:, 0], mask_BTS[:, 0], key_BSK[..., 0], cache[1]
        jax.debug.callback(lambda *x: calls.append(jax.tree.map(np.array, x)), *read, ordered=True)
        return jax.nn.one_hot(jnp.asarray(script)[row_B, positions_BT[:, 0] + 1], V) * 5, key_BSK

    prompts = np.where(np.arange(4) < lengths_N[:, None], script[:, :4], 17), lengths_N
    keys = jax.random.split(jax.random.key(0), 10)
    greedy = Sampling(5, temperature=0.0)

    def empty(slots):
        return jnp.zeros((2, slots, 1), jnp.int32)

    run = jax.jit(lambda *rows: drain(step, empty, *rows, count, np.arange(2), greedy, eos=EOS))
    out = jax.tree.map(np.asarray, run(*prompts, keys))
    jax.effects_barrier()
    for n in range(count):
        assert out.tokens_BT[n, : out.length_B[n]].tolist() == texts[n]
        assert out.ended_B[n] == (new_N[n] < 5)
    ends, rows = np.zeros(2, int), [[], []]  # the plan: the seat that is free first takes the next row
    for n in range(count):
        seat = int(ends.argmin())
        rows[seat] += [n] * (len(texts[n]) - 1)  # the last token is sampled and never read
        ends[seat] += len(texts[n]) - 1
    assert len(calls) == ends.max()
    for i, (row_B, at_B, mask_BS, key_BS, slot) in enumerate(calls):
        for seat in range(2):
            if i < ends[seat]:
                assert row_B[seat] == rows[seat][i]
                by_age = (slot - np.arange(ring)) % ring
                read = key_BS[seat, np.argsort(-by_age)][mask_BS[seat, np.argsort(-by_age)]]
                assert read.tolist() == texts[row_B[seat]][: at_B[seat] + 1]


def test_prompts_that_leave_no_room_are_an_error_with_all_numbers(model, self_, prompts):
    with pytest.raises(ValueError, match=r"6 tokens plus 27 new ones exceed model.max_len=32"):
        model.decode(self_[0], *prompts, Sampling(27))
    with pytest.raises(ValueError, match=r"6 tokens plus 27 new ones exceed model.max_len=32"):
        model.drain(self_[0], *prompts, B, np.arange(2), Sampling(27))


def test_memory_is_an_argument_of_decoding(model, self_, sample, prompts):
    params, memory = self_
    other = sample((params, memory_lib.forget_day(memory)), prompts)
    assert bit_equal(other.tokens_BT, sample(self_, prompts).tokens_BT) != []


@pytest.mark.parametrize(
    "wrong", [{"max_new": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}], ids=str
)
def test_numbers_that_nothing_can_be_drawn_by_are_an_error(wrong):
    with pytest.raises(ValueError, match="max_new must be at least 1"):
        Sampling(**{"max_new": 3} | wrong)
    Sampling(1, temperature=0.0, top_k=0, top_p=1.0)
