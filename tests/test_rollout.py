import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax import rollout
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import ModelConfig
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.rollout import WIDTH
from sleep_jax.types import Model, Rollout, Sampling

KEY = jax.random.key(0)
HOW = Sampling(5, temperature=0.9)


@pytest.fixture(scope="module")
def self_(tiny, grown):
    model = tiny(layers=1)
    params, memory = grown(model)
    open_LE = np.array([[True, False, False], [False, True, False]])
    return model, params, memory_lib.with_active(memory, open_LE)


@pytest.fixture(scope="module")
def prompts():
    lengths = np.array([3, 6, 1, 6, 2], np.int32)
    tokens = np.random.default_rng(0).integers(3, 40, (5, 6)).astype(np.int32)
    return np.where(np.arange(6) < lengths[:, None], tokens, 0), lengths


@pytest.fixture(scope="module")
def whole(self_, prompts):
    return rollout.generate(*self_, prompts, KEY, HOW, batch_size=5)


@pytest.mark.parametrize("seats", [2, 8])
def test_texts_do_not_depend_on_the_batch_size(seats, self_, prompts, whole):
    tokens, lengths = prompts
    assert isinstance(whole.tokens_BT, np.ndarray) and len(np.unique(whole.tokens_BT, axis=0)) == 5
    split = rollout.generate(*self_, prompts, KEY, HOW, batch_size=seats)
    np.testing.assert_array_equal(split.tokens_BT, whole.tokens_BT)
    np.testing.assert_array_equal(split.length_B, whole.length_B)
    np.testing.assert_allclose(split.logps_BT, whole.logps_BT, rtol=1e-4, atol=1e-5)
    for row, prompt, n in zip(whole.tokens_BT, tokens, lengths, strict=True):
        assert row[:n].tolist() == prompt[:n].tolist()


@pytest.mark.parametrize("seats", [4, 3])  # a batch, a queue
def test_openings_of_one_token_are_continued_as_if_they_were_padded(seats, self_):
    openings = np.array([[5], [7], [5], [9]], np.int32), np.ones(4, np.int32)
    beside = np.pad(openings[0], ((0, 0), (0, 1))), openings[1]
    short, padded = (rollout.generate(*self_, p, KEY, HOW, batch_size=seats) for p in (openings, beside))
    assert short.tokens_BT.shape == (4, 1 + HOW.max_new) < padded.tokens_BT.shape
    np.testing.assert_array_equal(short.tokens_BT, padded.tokens_BT[:, : short.tokens_BT.shape[1]])
    np.testing.assert_array_equal(short.length_B, padded.length_B)


@pytest.fixture(scope="module")
def on_mesh(self_):
    model, params, memory = self_
    partitioner = Partitioner(MeshConfig())
    assert partitioner.mesh.size == 8
    return model, partitioner.put(params), partitioner.put(memory)


@pytest.mark.parametrize(("seats", "rows"), [(8, 20), (5, 20), (8, 4)])  # 5 do not divide over 8 devices
def test_a_mesh_samples_the_same_texts_from_a_queue(seats, rows, self_, on_mesh, prompts):
    prompts = tuple(np.concatenate([x] * 4)[:rows] for x in prompts)
    one = rollout.generate(*self_, prompts, KEY, HOW, batch_size=rows)
    out = rollout.generate(*on_mesh, prompts, KEY, HOW, batch_size=seats)
    np.testing.assert_array_equal(out.tokens_BT, one.tokens_BT)
    np.testing.assert_allclose(out.logps_BT, one.logps_BT, rtol=1e-4, atol=1e-5)


def test_more_rows_than_a_queue_holds_are_several_queues(self_, prompts, monkeypatch):
    monkeypatch.setattr(rollout, "QUEUE", 2)
    prompts = tuple(np.concatenate([x] * 4)[:17] for x in prompts)
    whole = rollout.generate(*self_, prompts, KEY, HOW, batch_size=17)
    split = rollout.generate(*self_, prompts, KEY, HOW, batch_size=3)
    np.testing.assert_array_equal(split.tokens_BT, whole.tokens_BT)
    np.testing.assert_array_equal(split.length_B, whole.length_B)
    np.testing.assert_array_equal(split.ended_B, whole.ended_B)
    np.testing.assert_allclose(split.logps_BT, whole.logps_BT, rtol=1e-4, atol=1e-5)


def test_prompts_that_are_long_against_what_is_sampled_are_read_in_batches(self_, prompts, monkeypatch):
    whole = rollout.generate(*self_, prompts, KEY, Sampling(4), batch_size=5)
    used = []
    compiled = rollout.compiled
    monkeypatch.setattr(rollout, "compiled", lambda f, how: used.append(f) or compiled(f, how))
    for read, seats in itertools.product((WIDTH / 4, WIDTH / 4 - 1e-6), (2, 5, 8)):
        monkeypatch.setattr(rollout, "READ", read)
        split = rollout.generate(*self_, prompts, KEY, Sampling(4), batch_size=seats)
        np.testing.assert_array_equal(split.tokens_BT, whole.tokens_BT)
    drain, decode = self_[0].drain, self_[0].decode
    assert used == [drain, decode, drain, decode, decode, decode], "one full batch is one, short as it may be"


def test_a_mesh_samples_the_same_texts_in_batches(on_mesh, prompts, whole, monkeypatch):
    monkeypatch.setattr(rollout, "READ", 0)
    for size in (8, 5):  # 5 rows do not divide over 8 devices: all of them compute all
        out = rollout.generate(*on_mesh, prompts, KEY, HOW, batch_size=size)
        np.testing.assert_array_equal(out.tokens_BT, whole.tokens_BT)
        np.testing.assert_allclose(out.logps_BT, whole.logps_BT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [16, 20])  # a batch, a queue
def test_every_device_of_a_mesh_samples_its_own_rows(rows, on_mesh, prompts, monkeypatch):
    compiled, given = rollout.compiled, []
    monkeypatch.setattr(rollout, "QUEUE", 2)  # what is done for the whole queue counts little
    prompts = tuple(np.concatenate([x] * 4)[:rows] for x in prompts)

    def spied(*args):
        run = compiled(*args)
        return lambda *args: given.append((run, args)) or run(*args)

    monkeypatch.setattr(rollout, "compiled", spied)
    rollout.generate(*on_mesh, prompts, KEY, HOW, batch_size=16)
    ((run, (_, params, memory, adapter, grammar_ZV, *told)),) = given

    def flops(told):
        cost = run.trace(params, memory, adapter, grammar_ZV, *told).lower().compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    assert rows == 16 or told[3] == rows, "of 32 places in the queue"
    split = told[0] if rows == 16 else told[-1]  # the prompts, the seats
    assert {len(s.data) for s in split.addressable_shards} == {2}
    assert flops(told) < 0.3 * flops([told[2] if x is told[2] else np.asarray(x) for x in told])


@pytest.mark.parametrize("seats", [5, 2])  # a batch, queues
def test_slots_that_nobody_has_open_are_not_computed(seats, self_, prompts, monkeypatch):
    compiled, shapes = rollout.compiled, []

    def spied(*args):
        run = compiled(*args)
        return lambda *args: shapes.extend(m.bank["w_NLDE"].shape[-1] for m in args[2:3] if m) or run(*args)

    monkeypatch.setattr(rollout, "compiled", spied)
    for slots in ([], [2], [0, 2], [0, 1, 2]):
        active_LE = np.zeros((2, 3), bool)
        active_LE[1, slots] = True
        memory = memory_lib.with_active(self_[2], active_LE)
        rollout.generate(*self_[:2], memory, prompts, KEY, HOW, batch_size=seats)
    rollout.generate(*self_[:2], None, prompts, KEY, HOW, batch_size=seats)
    assert shapes == [2, 2, 2, 3]


def test_no_prompt_is_an_error(self_):
    with pytest.raises(ValueError, match="no prompt"):
        rollout.generate(*self_, rollout.padded([], 4), KEY, HOW, batch_size=2)


def test_prompts_that_leave_no_room_are_an_error(self_):
    with pytest.raises(ValueError, match="28 tokens plus 5 new ones exceed model.max_len=32"):
        rollout.generate(*self_, rollout.padded([[5] * 28]), KEY, HOW, batch_size=1)


def test_padding_and_completions_are_inverse_enough():
    tokens, lengths = rollout.padded([[1, 2, 3], [4], []])
    assert tokens.tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]] and lengths.tolist() == [3, 1, 0]
    assert tokens.dtype == lengths.dtype == np.int32
    assert rollout.padded([[1]], 4)[0].tolist() == [[1, 0, 0, 0]]
    said = Rollout(
        tokens_BT=np.array([[1, 7, 2, 0], [1, 1, 1, 9]]), logps_BT=None, sampled_BT=None,
        length_B=np.array([3, 4]), ended_B=None,
    )  # fmt: skip
    assert rollout.completions(said, np.array([1, 3])) == [[7, 2], [9]]


# Answers, from a stand-in that repeats the second token of its prompt.


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" red green blue white black zero one two three"] * 3, 320)


@pytest.fixture(scope="module")
def parrot(tok):
    def decode(params, prompts_BT, lengths_B, keys_B, sampling, *, memory, adapter, grammar_ZV):
        assert sampling.temperature == 0
        said_BT = jnp.stack([prompts_BT[:, 1], jnp.full(len(prompts_BT), tok.eos)], axis=1)
        tokens_BT = jnp.pad(prompts_BT, ((0, 0), (0, sampling.max_new)))
        put = jax.vmap(lambda row, said, n: jax.lax.dynamic_update_slice(row, said, (n,)))
        tokens_BT = put(tokens_BT, said_BT, lengths_B)
        zeros_BT = jnp.zeros(tokens_BT.shape)
        return Rollout(tokens_BT, zeros_BT, zeros_BT, lengths_B + 2, lengths_B > 0)

    def drain(params, prompts_NT, lengths_N, keys_N, count, seats_B, sampling, **who):
        return decode(params, prompts_NT, lengths_N, keys_N, sampling, **who)

    return Model(ModelConfig(max_len=3 * WIDTH), None, None, None, None, None, decode, drain)


def test_prompts_of_the_full_length_are_not_padded_beyond_the_model(parrot):
    prompts = rollout.padded([[5] * (3 * WIDTH - 6), [6] * 20])
    full = rollout.generate(parrot, {}, None, prompts, KEY, Sampling(5, temperature=0.0), batch_size=2)
    assert full.tokens_BT.shape == (2, 3 * WIDTH)


@pytest.mark.parametrize("max_new", [4, 8])  # in batches, as a queue
def test_answers_come_in_the_order_of_the_questions(max_new, tok, parrot):
    assert 2 * WIDTH in range(4 * rollout.READ + 1, 8 * rollout.READ + 1)
    words = [f" {w}" for w in ("red", "green", "blue", "white", "black")]
    assert all(len(tok.encode(w)) == 1 for w in words)
    lengths = [2 * WIDTH - 2, 2, 1, WIDTH + 1, WIDTH + 4]
    questions = [Example((w * n).strip(), "?") for w, n in zip(words, lengths, strict=True)]
    ask = functools.partial(rollout.answer, parrot, tok, {}, None, max_new=max_new, batch_size=2)
    assert ask(questions) == ["red", "green", "blue", "white", "black"]
    assert ask([]) == []


def test_answers_that_did_not_end_are_blank_to_those_who_want_whole_ones(tok, parrot):
    def cut(params, prompts_BT, *args, **kwargs):
        out = parrot.decode(params, prompts_BT, *args, **kwargs)
        return dataclasses.replace(out, ended_B=prompts_BT[:, 1] != tok.encode(" red")[0])

    hasty = parrot._replace(decode=cut)
    ask = functools.partial(rollout.answer, hasty, tok, {}, None, max_new=4, batch_size=2)
    questions = [Example("red", "?"), Example("green", "?")]
    assert ask(questions) == ["red", "green"] and ask(questions, whole=True) == ["", "green"]
