import dataclasses
import gc
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sleep_jax import anchor, cost, losses, rollout, steps
from sleep_jax.data import encoding, packing
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.fit import World
from sleep_jax.model import lora
from sleep_jax.model import memory as memory_lib
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.sleep import consolidate, dream, importance, recall, selves, trials
from sleep_jax.sleep.consolidate import SeedConfig
from sleep_jax.sleep.recall import RecallConfig
from sleep_jax.types import Batch

B, T, LAYERS = 16, 6, 3
D, H, K, F, V = 16, 8, 4, 24, 40
A_23, B_34, C_33 = jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones((3, 3))


def twice(x_23):
    return x_23 @ C_33 @ C_33


def looped(x_23, times):
    return jax.lax.while_loop(lambda s: s[0] < times, lambda s: (s[0] + 1, s[1] @ C_33), (0, x_23))[1]


PROGRAMS = {
    "a product": (lambda: A_23 @ B_34, 2 * 2 * 3 * 4),
    "a batch of products": (lambda: jnp.einsum("bj,bjk->bk", A_23, jnp.ones((2, 3, 5))), 2 * 2 * 15),
    "no product": (lambda: jnp.exp(A_23).sum(), 0),
    "a scan": (lambda: jax.lax.scan(lambda x, _: (twice(x), None), A_23, length=5)[0], 5 * 2 * 36),
    "a scan in a scan": (
        lambda: jax.lax.fori_loop(0, 4, lambda _, x: jax.lax.fori_loop(0, 5, lambda _, y: y @ C_33, x), A_23),
        4 * 5 * 36,
    ),
    "the dearer branch": (lambda: jax.lax.cond(A_23[0, 0] > 0, twice, lambda x: x @ C_33, A_23), 2 * 36),
    "what nothing depends on": (lambda: jax.jit(lambda x: (x, twice(x)))(A_23)[0], 0),
}


@pytest.mark.parametrize("program, wanted", PROGRAMS.values(), ids=PROGRAMS)
def test_every_product_counts_as_often_as_it_is_taken(program, wanted):
    assert cost.flops(jax.jit(program).trace()) == wanted


def test_a_loop_of_unknown_length_counts_as_often_as_it_is_told():
    traced = jax.jit(lambda times: looped(A_23, times)).trace(4)
    assert cost.flops(traced, trips=4) == 4 * 36
    with pytest.raises(ValueError, match="`trips` does not say how often"):
        cost.flops(traced)
    idle = jax.jit(lambda times: jax.lax.while_loop(lambda i: i < times, lambda i: i + 1, 0)).trace(4)
    assert cost.flops(idle) == 0


def traced(model, partitioner=None, micro_batches=1):
    """A step of next-token prediction."""
    partitioner = partitioner or Partitioner(MeshConfig(), jax.devices()[:1])
    optimizer = optax.adam(1e-3)
    state = partitioner.put(steps.init(optimizer, jax.jit(model.init)(jax.random.key(0))))
    ones = np.ones((B, T), np.int32)
    batch = partitioner.put_batch(Batch(ones, ones, ones.astype(np.float32), ones, ones))
    run = partitioner.compile(steps.make(losses.supervised(model), optimizer, micro_batches))
    return run.trace(state, None, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def scanned(tiny):
    return cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=1)))


def test_layers_count_whether_they_are_scanned_or_unrolled(tiny, scanned):
    layer = 4 * D * H * K + 2 * H * K * T + 3 * D * F
    assert scanned == 3 * 2 * B * T * (LAYERS * layer + V * D)
    for unroll in (2, LAYERS):
        assert cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=unroll))) == scanned
    again = cost.flops(traced(tiny(layers=LAYERS, heads=8, kv_heads=8, remat="full")))
    assert again == scanned + 2 * B * T * LAYERS * (layer - F * D), "no gradient asks for a layer's output"


MESHES = {
    "jit": (MeshConfig(data=2, fsdp=2, model=2), 1),
    "map": (MeshConfig(mode="map"), 1),
    "micro-batches": (MeshConfig(fsdp=2), 2),
    "mapped micro-batches": (MeshConfig(mode="map"), 2),
}


@pytest.mark.parametrize("mesh, micro_batches", MESHES.values(), ids=MESHES)
def test_a_step_counts_the_same_however_it_is_split(mesh, micro_batches, tiny, scanned):
    model = tiny(layers=LAYERS, heads=8, kv_heads=8, unroll=1)
    assert cost.flops(traced(model, Partitioner(mesh), micro_batches)) == scanned


def test_what_is_no_product_is_little_of_what_xla_counts(tiny):
    wide = tiny(layers=2, width=64, heads=2, kv_heads=2, head_size=32, ff=256, vocab_size=256, unroll=2)
    step = traced(wide)
    assert 0.9 < cost.flops(step) / step.lower().cost_analysis()["flops"] < 1


def test_a_compiled_program_comes_with_its_cost():
    run, found = cost.compiled(jax.jit(lambda a, b: twice(a) @ b), A_23, B_34)
    np.testing.assert_allclose(run(A_23, B_34), twice(A_23) @ B_34)
    assert found["flops"] == 2 * 36 + 48 and found["bytes"].keys() == {"argument", "output", "alias", "temp"}
    assert found["bytes"]["argument"] == A_23.nbytes + B_34.nbytes and found["bytes"]["output"] == 2 * 4 * 4


def test_what_is_handed_out_in_the_place_of_an_argument_is_taken_once():
    x = jnp.ones((64, 256))
    plain, donating = (
        cost.compiled(jax.jit(lambda x: x + 1, donate_argnums=d), x)[1]["bytes"] for d in ((), (0,))
    )
    assert cost.needed(plain) - plain["temp"] == 2 * x.nbytes
    assert cost.needed(donating) - donating["temp"] == x.nbytes


SIZES = {"argument": 3 * 10**9, "output": 3 * 10**9, "alias": 3 * 10**9, "temp": 10**9}
DREAMING = cost.Kind("dreaming", "lower sleep.recall.batch_size")


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(cost, "_told", {})


def test_what_does_not_fit_is_refused_with_what_to_lower(monkeypatch, capsys):
    monkeypatch.setattr(cost, "room", lambda: 4 * 10**9)
    cost.tell(DREAMING, SIZES)
    assert capsys.readouterr().out == "dreaming takes 4 GB of the 4 GB of each device\n"
    monkeypatch.setattr(cost, "room", lambda: 4 * 10**9 - 1)
    refused = (
        "3 GB for parameters.*1 GB while it runs.*while it runs, lower sleep.recall.batch_size; .*mesh.fsdp"
    )
    with pytest.raises(ValueError, match=refused):
        cost.tell(DREAMING, SIZES)


def test_what_lies_on_the_device_beside_the_arguments_counts(monkeypatch):
    monkeypatch.setattr(cost, "held", lambda: SIZES["argument"] + 10**9)
    monkeypatch.setattr(cost, "room", lambda: 5 * 10**9)
    cost.tell(DREAMING, SIZES)
    monkeypatch.setattr(cost, "room", lambda: 5 * 10**9 - 1)
    with pytest.raises(ValueError, match="1 GB of other things lie there"):
        cost.tell(DREAMING, SIZES)


def test_what_lies_on_a_device_is_its_share_of_every_array():
    gc.collect()
    before, mesh = cost.held(), jax.make_mesh((8,), ("x",))
    kept = jax.device_put(np.zeros((8, 1 << 20), np.uint8), NamedSharding(mesh, PartitionSpec("x")))
    assert cost.held() - before == 1 << 20
    kept.delete()
    assert cost.held() == before


def test_a_kind_is_told_of_once_and_again_where_it_doubles(monkeypatch, capsys):
    monkeypatch.setattr(cost, "room", lambda: 10**10)
    lines = []
    for more in (0, 10**9, 4 * 10**9 - 1, 4 * 10**9, 5 * 10**9):
        cost.tell(DREAMING, SIZES | {"temp": 10**9 + more})
        lines.append(capsys.readouterr().out.count("\n"))
    assert lines == [1, 0, 0, 1, 0]
    cost.tell(dataclasses.replace(DREAMING, name="answering"), SIZES)
    assert capsys.readouterr().out.startswith("answering takes 4 GB")


def test_a_program_is_compiled_once_for_every_shape_and_for_all_kinds(caplog, capsys):
    def shifted(x, by):
        return {"shifted": x["x"] + by}

    run, other = cost.Program(shifted), cost.Kind("other", "")
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for x in (np.ones(3), np.zeros(3), np.ones(4)):
            for kind in (DREAMING, other):
                for by in (1, 2):
                    np.testing.assert_array_equal(run(kind, {"x": x}, by)["shifted"], x + by)
    compiled = [r for r in caplog.records if r.message.startswith("Compiling jit(shifted)")]
    assert len(compiled) == 2
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" takes ")[0] for line in told] == ["dreaming", "other"]


def test_a_program_may_take_the_memory_of_what_it_is_given():
    run, x = cost.Program(lambda x: x + 1, donate=(0,)), jnp.ones((64, 256))
    assert run(DREAMING, x)[0, 0] == 2 and x.is_deleted()


@pytest.fixture(scope="module")
def sleeper(tiny, grown):
    """A model of these tests alone: its programs are never compiled."""
    tok = Tokenizer.train([" where is it? in Bath. a cat is in the hat"] * 3, 301)
    model = tiny(vocab_size=tok.vocab_size, max_len=72, layers=1)
    params, memory = grown(model)
    self_ = selves.Self("birth", ("birth",), np.zeros((2, 3), bool), False, 1)
    return types.SimpleNamespace(model=model, tok=tok, params=params, memory=memory, self_=self_)


TRIAL, KEY = trials.TrialConfig(rank=1, alpha=1.0, steps=1, at_once=1), jax.random.key(0)
EXAMPLES = [Example("where is it?", "in Bath"), Example("", "a cat is in the hat")]


def asked(s):
    config = RecallConfig(max_new=4, rounds=1, batch_size=2)
    return recall.recall(s.model, s.tok, s.params, s.memory, s.self_, None, 1, 0.0, KEY, config, longest=32)


def imagined(s):
    who = dream.Sleeper(s.model, s.tok, s.params, s.memory, 32, 4)
    return dream.imagine(who, None, [dream.Task("", "a cat", EXAMPLES)], dream.DreamConfig(max_new=6), KEY)


def packed(s):
    return packing.pack(encoding.encode(s.tok, EXAMPLES, 32), 32)[0]


def tried(s, run):
    start = lora.init(s.model.config, TRIAL.rank, KEY)
    lesson = trials.lessons([encoding.encode(s.tok, EXAMPLES, 32)], 32)
    return run(s.model, TRIAL, s.params, s.memory, start, lesson)


def looked(s):
    objective = consolidate.objective(s.model, SeedConfig(), consolidate.into_slot(0, 1), (0, 1))
    lesson = consolidate.Lesson(packed(s), np.ones((1, 32, 16), np.float32), np.ones(1, np.float32))
    slot = memory_lib.fresh_slot(s.model.config, s.model.memory_config, KEY)
    return consolidate.mean_kl(objective, lesson, (s.params, memory_lib.rest(s.memory)), 1)(slot)


def ranked(*args):
    *others, lesson = args
    return importance.importance(*others, lesson.rows, lesson.rows, np.zeros(1, int))


REFUSED = {
    "answering": (
        lambda s: rollout.answer(s.model, s.tok, s.params, None, EXAMPLES[:1], max_new=4, batch_size=2),
        "eval_batch or answer_tokens",
    ),
    "dreaming": (asked, "sleep.recall.batch_size or sleep.recall.max_new"),
    "answering dreams": (
        lambda s: recall.day_at_hand(
            s.model, s.tok, s.params, s.memory, s.self_, EXAMPLES, RecallConfig(answer_max_new=5), longest=32
        ),
        "sleep.recall.batch_size or sleep.recall.answer_max_new",
    ),
    "dreaming of a context": (
        imagined,
        "rem.batch_size, rem.max_new or model.max_len",
    ),
    "a round of trials": (lambda s: tried(s, trials.train), "row_length or rem.trials.at_once"),
    "ranking dreams by their gradients": (
        lambda s: tried(s, ranked),
        "row_length or rem.trials.at_once",
    ),
    "answering in trials": (
        lambda s: trials.answers(
            s.model, s.tok, s.params, None, None, [EXAMPLES[:1]], TRIAL, max_new=7
        ),
        "rem.trials.at_once, rem.questions or answer_tokens",
    ),
    "a step of one adapter": (
        lambda s: trials.fit(
            s.model, trials.FitConfig(rank=1, epochs=1, batch_rows=1), s.params, None,
            lora.init(s.model.config, 1, KEY), packed(s), 0,
        ),
        "row_length or rem.learn.batch_rows",
    ),
    "scoring by a teacher": (
        lambda s: consolidate.lessons(
            consolidate.scorer(s.model), s.params, s.memory,
            [(s.self_, encoding.encode(s.tok, EXAMPLES, 32))], 32, 2, 1.0, True,
        ),
        "row_length or eval_batch",
    ),
    "looking at held-out dreams": (looked, "model.logit_chunk=64, lower sleep.batch_rows"),
    "judging free text": (
        lambda s: consolidate.token_accuracy(s.model, s.params, s.memory, packed(s), 2),
        "model.logit_chunk=64, lower row_length or eval_batch",
    ),
    "the loss on general text": (
        lambda s: anchor.loss(s.model, s.params, None, packed(s), 2),
        "model.logit_chunk=64, lower row_length or eval_batch",
    ),
    "finding which slots answered": (
        lambda s: selves.leading(s.model, s.tok, s.params, s.memory, EXAMPLES[:1], ["in Bath"], 2),
        "eval_batch .* or model.max_len",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_every_kind_names_its_own_keys_where_it_does_not_fit(name, sleeper, monkeypatch):
    run, keys = REFUSED[name]
    compiled = types.SimpleNamespace(lower=lambda: compiled, compile=lambda: compiled)
    monkeypatch.setattr(cost.Program, "trace", lambda *_: compiled)
    monkeypatch.setattr(cost, "memory", lambda _: SIZES)
    monkeypatch.setattr(cost, "room", lambda: 1)
    with pytest.raises(ValueError, match=f"^{name} takes .* of the 1 B of each device: .*{keys}"):
        run(sleeper)


@pytest.mark.parametrize(
    "phase, keys", [("wake", "memory.periods;"), ("sleep-merge0", "sleep.batch_rows, or raise micro_batches")]
)
def test_a_training_step_that_does_not_fit_names_the_keys_of_its_phase(phase, keys, monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "room", lambda: 1)
    empty = dict.fromkeys(f.name for f in dataclasses.fields(World))
    place = Partitioner(MeshConfig(), jax.devices()[:1])
    world = World(**empty | {"workdir": tmp_path, "partitioner": place, "costs": {}})

    def step(state, frozen, batch, key, *, reduce):
        return state + batch, {}

    with pytest.raises(
        ValueError, match=f"^a step of {phase} takes .*model.remat=full.*row_length or {keys}"
    ):
        world.compile(phase, step, jnp.ones(3), None, jnp.ones(3), KEY)


def test_the_room_of_a_cpu_device_is_its_share_of_what_the_process_may_take(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "CGROUP", tmp_path / "none")
    host = cost.room()
    assert 2**26 < host < 2**45
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cost, "CGROUP", limit)
    limit.write_text("max\n")
    assert cost.room() == host
    limit.write_text(f"{8 << 20}\n")
    assert cost.room() == (8 << 20) // len(jax.devices())
