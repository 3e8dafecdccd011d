import dataclasses
import functools
import types

import jax
import numpy as np
import optax
import pytest
from equality import bit_equal
from jax.extend import core
from jax.interpreters import partial_eval
from scipy import special
from slots import read_slot

from sleep_jax import losses, optim, partition, steps
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.sleep import consolidate, selves
from sleep_jax.sleep.consolidate import Lesson, Practice, SeedConfig
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Batch, Output

KEY = jax.random.key(0)

# The objective, on a bigram model whose student is a delta on the output head.

B, T, V, D = 3, 5, 7, 4


def bigram(chunk=0):
    def apply(params, tokens_BT, *, memory=None, segments_BT=None, positions_BT=None):
        hidden_BTD = params["embed"][tokens_BT]
        return Output(hidden_BTD @ params["head"], hidden_BTD, None, None)

    return types.SimpleNamespace(
        apply=apply,
        unembed=lambda params, h_BTD: h_BTD @ params["head"],
        config=types.SimpleNamespace(logit_chunk=chunk),
    )


def onto_head(delta, params, memory):
    return {**params, "head": params["head"] + delta}, memory


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tokens_BT, more_BT = rng.integers(0, V, (2, B, T)).astype(np.int32)
    ones = np.ones_like(tokens_BT)
    weights_BT = rng.choice([0.0, 0.5, 1.0], (B, T)).astype(np.float32)
    lesson = Lesson(Batch(tokens_BT, tokens_BT, weights_BT, ones, ones), normal(B, T, D), np.ones(B))
    sampled_BT = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0]], np.float32)
    practice = Practice(more_BT, sampled_BT, normal(B, T, D), np.array([0.5, -1.5, 1.0], np.float32))
    params = {"embed": normal(V, D), "head": normal(D, V)}
    return types.SimpleNamespace(
        frozen=(params, None), batch={"lesson": lesson, "practice": practice}, delta=0.5 * normal(D, V)
    )


def by_hand(case, config, delta):
    """alpha ((1 - lambda) off + lambda on) - (1 - alpha) E[r], in plain float64 numpy, and its parts."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), case.frozen[0])

    def log_softmax(z):
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    def kl(p, q):
        return (np.exp(p) * (p - q)).sum(-1)

    def divergence(p, q):
        return config.temperature**2 * at_one(*(log_softmax(z / config.temperature) for z in (p, q)))

    def at_one(p, q):
        if config.beta in (0, 1):
            return kl(p, q) if config.beta == 0 else kl(q, p)
        m = np.log(config.beta * np.exp(p) + (1 - config.beta) * np.exp(q))
        return config.beta * kl(p, m) + (1 - config.beta) * kl(q, m)

    def student(tokens):
        return log_softmax(params["embed"][tokens] @ (params["head"] + delta))

    def teacher(hidden):
        return log_softmax(hidden.astype(np.float64) @ params["head"])

    lesson, practice = case.batch["lesson"], case.batch["practice"]
    w, s = lesson.rows.weights_BT, practice.sampled_BT
    off = (w * divergence(teacher(lesson.hidden_BTD), student(lesson.rows.tokens_BT))).sum() / w.sum()
    logq = student(practice.tokens_BT)
    on = (s * divergence(teacher(practice.hidden_BTD), logq)).sum() / s.sum()
    reward = 0.0
    for b, t in zip(*np.nonzero(s), strict=True):
        reward += practice.advantage_B[b] * logq[b, t, practice.tokens_BT[b, t + 1]]
    reward /= s.sum()
    a, lam = config.alpha, config.on_policy
    return a * ((1 - lam) * off + lam * on) - (1 - a) * reward


@functools.cache
def compiled(config, chunk=0):
    objective, optimizer = consolidate.objective(bigram(chunk), config, onto_head), optax.sgd(1.0)
    return objective, optimizer, jax.jit(steps.make(objective, optimizer))


def gradient_of(config, case, chunk=0, **batch):
    """Of the step itself: with plain gradient descent at rate 1 the parameters move by minus the gradient."""
    objective, optimizer, step = compiled(config, chunk)
    state, metrics = step(steps.init(optimizer, case.delta), case.frozen, batch or case.batch, KEY)
    value = sum(w * float(metrics[k].value()) for k, w in objective.weights.items() if k in metrics)
    return case.delta - np.asarray(state.params), value, metrics


@pytest.mark.parametrize(
    "config",
    [
        SeedConfig(beta=0.0, alpha=0.9, on_policy=0.25),
        SeedConfig(beta=0.5, alpha=0.6, on_policy=0.5, temperature=2.0),
        SeedConfig(beta=1.0, alpha=0.3, on_policy=0.75),
        SeedConfig(beta=0.0, alpha=1.0, on_policy=0.0, temperature=3.0),
        SeedConfig(beta=0.3, alpha=1.0, on_policy=1.0),
        SeedConfig(beta=0.0, alpha=0.0, on_policy=0.5),
    ],
)
def test_the_step_descends_the_objective_written_out_by_hand(case, config):
    gradient_DV, value, _ = gradient_of(config, case)
    wanted_DV = np.zeros((D, V))
    for at in np.ndindex(D, V):
        nudge = np.zeros((D, V))
        nudge[at] = 1e-5
        delta = case.delta.astype(np.float64)
        wanted_DV[at] = (by_hand(case, config, delta + nudge) - by_hand(case, config, delta - nudge)) / 2e-5
    assert np.abs(wanted_DV).max() > 0.04
    np.testing.assert_allclose(gradient_DV, wanted_DV, atol=2e-5)
    assert value == pytest.approx(by_hand(case, config, case.delta.astype(np.float64)), abs=1e-5)


def test_logits_made_a_few_positions_at_a_time_are_the_same_objective(case):
    config = SeedConfig(beta=0.5, alpha=0.6, on_policy=0.5, temperature=2.0)
    (whole_DV, value, metrics), (parts_DV, same, others) = (gradient_of(config, case, n) for n in (0, 2))
    np.testing.assert_allclose(parts_DV, whole_DV, rtol=1e-5, atol=1e-6)
    assert same == pytest.approx(value, rel=1e-6)
    for k, mean in metrics.items():
        assert float(others[k].value()) == pytest.approx(float(mean.value()), rel=1e-5, abs=1e-6)


OPSD = SeedConfig(beta=0.3, alpha=1.0, on_policy=1.0)


@pytest.mark.parametrize("config, counts", [(OPSD, False), (SeedConfig(alpha=0.9, on_policy=0.25), True)])
def test_alpha_1_is_without_rewards_and_lambda_1_without_the_teachers_dreams(case, config, counts):
    lesson, practice = case.batch["lesson"], case.batch["practice"]
    other = [
        {"lesson": dataclasses.replace(lesson, hidden_BTD=2 * lesson.hidden_BTD), "practice": practice},
        {"lesson": lesson, "practice": dataclasses.replace(practice, advantage_B=2 * practice.advantage_B)},
    ]
    gradient = gradient_of(config, case)[0]
    for batch in other:
        assert np.allclose(gradient_of(config, case, **batch)[0], gradient) != counts


@pytest.mark.parametrize("alpha, on_policy", [(0.9, 0.25), (1.0, 0.25), (1.0, 1.0), (0.0, 0.25)])
def test_weights_are_shares_of_one(alpha, on_policy):
    config = SeedConfig(alpha=alpha, on_policy=on_policy)
    weights = consolidate.objective(bigram(), config, onto_head).weights
    assert weights["kl"] + weights["kl_on_policy"] == pytest.approx(alpha)
    assert weights["kl_on_policy"] == pytest.approx(alpha * on_policy)
    assert sum(weights.values()) == pytest.approx(1)


def test_without_practice_the_teachers_dreams_are_all(case):
    config = SeedConfig(alpha=1.0, on_policy=0.0)
    whole, _, metrics = gradient_of(config, case)
    alone, _, fewer = gradient_of(config, case, lesson=case.batch["lesson"])
    np.testing.assert_allclose(alone, whole, atol=1e-6)
    assert fewer.keys() == {"kl", "entropy", "gradient_norm"} < metrics.keys()


def test_a_lesson_of_no_weight_can_be_left_out(case):
    config = SeedConfig(alpha=0.7, on_policy=1.0)
    whole, _, metrics = gradient_of(config, case)
    alone, _, fewer = gradient_of(config, case, practice=case.batch["practice"])
    np.testing.assert_allclose(alone, whole, atol=1e-6)
    assert fewer.keys() == metrics.keys() - {"kl", "entropy"}


@pytest.mark.parametrize("key", ["beta", "alpha", "on_policy", "forced"])
def test_a_weight_outside_its_range_is_named(key):
    with pytest.raises(ValueError, match=rf"sleep.seed.{key}=1.5 is not in \[0, 1\]"):
        SeedConfig(**{key: 1.5})
    with pytest.raises(ValueError, match="sleep.seed.routing=-1 must be at least 0"):
        SeedConfig(routing=-1)
    with pytest.raises(ValueError, match="sleep.seed.temperature=0 must be above 0"):
        SeedConfig(temperature=0)
    with pytest.raises(ValueError, match="sleep.seed.forced=1 with sleep.seed.routing=0"):
        SeedConfig(forced=1, routing=0)


# On the real network.

ROW, BATCH = 28, 4  # tokens per row, rows per call: one shape, so that little is compiled


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["what is it? it is a whale. what sings? the whale sings"] * 3, 300)


@pytest.fixture(scope="module")
def bed(tiny, grown):
    """A network with the slot of night 1 open, a day in fast memory, and the selves that there are."""
    model = tiny(vocab_size=300, max_len=64, slots=4, slow_levels=1)
    params, memory = grown(model)
    past = selves.earlier([Slot(0, 0, (1,), ("day 1",), 10, 5)], (1, 4), "birth", 20)
    return types.SimpleNamespace(
        model=model,
        params=params,
        memory=memory_lib.with_active(memory, past[-1].active),
        past=past,
        awake=selves.awake(past, "day 2", 10),
        score=consolidate.scorer(model),
    )


PAIRS = [("what is it?", "it is a whale"), ("what sings?", "the whale"), ("it?", "whale"), ("sings?", "it")]


@pytest.fixture(scope="module")
def encoded(tok):
    return [encoding.encode_answering(tok, Example(*p)) for p in PAIRS]


@pytest.fixture(scope="module")
def teach(bed):
    def lesson(teachers, own=True):
        return consolidate.lessons(bed.score, bed.params, bed.memory, teachers, ROW, BATCH, 0.5, own)

    return lesson


def fill(lesson):
    """The lesson in rows of the one shape that is compiled; rows of zeros count nothing."""
    missing = BATCH - len(lesson.hidden_BTD)
    return jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), lesson)


def test_every_pair_is_taught_in_both_directions_and_text_as_it_is(tok):
    pair, text = Example("what?", "it"), Example("", "it sings")
    dreams = [Dream(e, "birth", "birth", "dreamt", "") for e in (pair, text)]
    answering, reading = consolidate.encode(tok, dreams, 64)
    [recalling] = consolidate.encode_recalling(tok, dreams, 64)
    assert encoding.parse_answering(tok, answering.tokens) == pair
    assert encoding.parse_recalling(tok, recalling.tokens) == pair
    assert tok.decode(reading.tokens).strip() == "it sings" and reading.prompt_length == 1
    assert answering.prompt_length < len(answering.tokens), "the answer is what is asked for"
    assert recalling.prompt_length == 1, "all of it will be sampled"


def repeat_all(kind, params, memory, adapter, tokens_BT, segments_BT, positions_BT):
    """In place of a teacher's hidden states: what it was shown, and by whom it was read."""
    slots_BT = np.full(tokens_BT.shape, int(memory.active_LE.sum()))
    adapter_BT = np.full(tokens_BT.shape, adapter or 0)
    return np.stack([tokens_BT, segments_BT, positions_BT, slots_BT, adapter_BT], axis=-1)


def test_each_teacher_reads_its_own_rows_in_batches_of_one_shape(bed, encoded):
    shapes = set()

    def score(kind, params, memory, adapter, *fields):
        shapes.add((fields[0].shape, memory.bank["w_NLDE"].shape[-1]))
        return repeat_all(kind, params, memory, adapter, *fields)

    awake = dataclasses.replace(bed.awake, adapter=7)
    teachers = [(bed.past[0], encoded[:3]), (bed.past[1], []), (awake, encoded[:2])]
    lesson = consolidate.lessons(score, bed.params, bed.memory, teachers, 12, 2, 1.0, True)
    rows, seen = lesson.rows, lesson.hidden_BTD
    for k, field_BT in enumerate((rows.tokens_BT, rows.segments_BT, rows.positions_BT)):
        np.testing.assert_array_equal(seen[..., k], field_BT)
    of_birth = int((seen[:, 0, 3] == 0).sum())
    assert shapes == {((2, 12), 2)} and of_birth % 2 and of_birth > 2, "the last batch is not full"
    assert seen[:, 0, 3].tolist() == [0] * of_birth + [1] * (len(seen) - of_birth)
    assert seen[:, 0, 4].tolist() == [0] * of_birth + [7] * (len(seen) - of_birth), "each with its adapter"
    for part, given in ((slice(of_birth), encoded[:3]), (slice(of_birth, None), encoded[:2])):
        assert (rows.segments_BT[part] > 0).sum() == sum(len(e.tokens) for e in given)


def test_a_teacher_with_the_day_in_its_context_reads_it_before_each_sequence(bed, encoded):
    context = [9, 8, 7]
    args = (repeat_all, bed.params, bed.memory, context, encoded)
    lesson = consolidate.lessons_in_context(*args, 24, 64, 3, 0.5)
    assert len(lesson.hidden_BTD) == len(encoded) and lesson.hidden_BTD.shape[1] == 24
    for row, e in enumerate(encoded):
        n = len(e.tokens)
        tokens_T, segments_T, positions_T = lesson.hidden_BTD[row, :n, :3].T
        assert tokens_T.tolist() == lesson.rows.tokens_BT[row, :n].tolist() == e.tokens.tolist()
        assert positions_T.tolist() == list(range(3, 3 + n)) and set(segments_T.tolist()) == {1}
        assert lesson.rows.positions_BT[row, :n].tolist() == list(range(n)), "the student reads it alone"
    whole = consolidate.lessons_in_context(
        lambda *a: np.pad(repeat_all(*a)[:, :3], ((0, 0), (0, 24), (0, 0))), *args[1:], 24, 64, 3, 0.5
    )
    assert not whole.hidden_BTD.any(), "the context's own hidden states are not taught"
    with pytest.raises(ValueError, match="3 tokens of context .*row_length=24 exceed model.max_len=26"):
        consolidate.lessons_in_context(*args, 24, 26, 3, 0.5)


@pytest.fixture(scope="module")
def pupil(bed):
    """The objective over slot 2 of a student, and the jitted KL(teacher || student) of a lesson.

    The student's fast memory is empty: the same function as none, and the same shapes as one that is not.
    """
    objective = consolidate.objective(bed.model, SeedConfig(alpha=1.0), consolidate.into_slot(0, 2))
    kl = jax.jit(lambda slot, frozen, rows: objective.totals(slot, frozen, {"lesson": rows}, None)[0]["kl"])
    masked = memory_lib.forget_day(bed.memory)
    slot = read_slot(bed.memory, 0, 3)
    return types.SimpleNamespace(
        objective=objective, kl=kl, masked=masked, frozen=(bed.params, masked), slot=slot
    )


def products(step, *args):
    """Sorted shapes of all matrix products of a program, but for those that nothing depends on."""

    def of(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield tuple(sorted(eqn.outvars[0].aval.shape))
            for part in core.jaxprs_in_params(eqn.params):
                yield from of(part)

    return set(of(partial_eval.dce_jaxpr(jax.make_jaxpr(step)(*args).jaxpr, True)[0]))


def test_a_night_computes_no_gradient_of_the_backbone(tiny):
    """No product has the shape of one, where in fine-tuning every one has."""
    model = tiny(vocab_size=300, max_len=64, slots=5, rank=5, slow_levels=1)  # no shape occurs twice
    params, memory = jax.eval_shape(lambda: (model.init(KEY), model.init_memory(KEY)))
    slot = jax.eval_shape(lambda: memory_lib.fresh_slot(model.config, model.memory_config, KEY))
    ints = np.ones((BATCH, ROW), np.int32)
    rows = Batch(ints, ints, ints.astype(np.float32), ints, ints)
    lesson = Lesson(rows, np.zeros((BATCH, ROW, model.config.width), np.float32), np.ones(BATCH))
    objective = consolidate.objective(
        model, SeedConfig(alpha=1.0, on_policy=0.0), consolidate.into_slot(0, 2)
    )

    def of(objective, trained, frozen, batch):
        state = jax.eval_shape(lambda x: steps.init(optax.sgd(1.0), x), trained)
        return products(steps.make(objective, optax.sgd(1.0)), state, frozen, batch, KEY)

    seeding = of(objective, slot, (params, memory), {"lesson": lesson})
    tuning = of(losses.supervised(model), params, memory, rows)
    width = model.config.width
    sizes = [x.size // len(x) for x in jax.tree.leaves(params) if x.ndim > 2]  # of one layer, heads as one
    weights = {tuple(sorted((width, size // width))) for size in [*sizes, model.config.vocab_size * width]}
    assert len(weights) > 3 and weights <= tuning and not weights & seeding
    assert (width, 5 * 5) in seeding, "but of the slots"


def test_the_kept_hidden_states_are_the_teachers_logits(bed, encoded, teach, pupil):
    """A student that is the teacher scores the same in place; a fresh slot changes nothing."""
    fresh = memory_lib.fresh_slot(bed.model.config, bed.model.memory_config, KEY)
    minds = [(bed.awake, bed.memory), (bed.past[1], pupil.masked)]
    for teacher, _ in minds:
        lesson = fill(teach([(teacher, encoded)]))
        for self_, memory in minds:
            apart = pupil.kl(fresh, (bed.params, memory), lesson)
            assert (float(apart.total / apart.count) < 1e-5) == (self_ is teacher), (teacher.name, self_.name)


def test_the_router_is_taught_to_open_on_its_own_rows_alone(bed, encoded, teach, pupil):
    own, others = (fill(teach([(bed.awake, encoded)], own)) for own in (True, False))
    config = SeedConfig(routing=2.0, missed=3.0)
    objective = consolidate.objective(bed.model, config, consolidate.into_slot(0, 2), (0, 2))
    totals = jax.jit(lambda slot, lesson: objective.totals(slot, pupil.frozen, {"lesson": lesson}, None))
    student = memory_lib.write_slot(pupil.masked, pupil.slot, 0, 2)
    rows = own.rows
    where = {"segments_BT": rows.segments_BT, "positions_BT": rows.positions_BT}
    out = jax.jit(lambda m: bed.model.apply(bed.params, rows.tokens_BT, memory=m, **where))(student)
    chance_NBT = 1 / (1 + np.exp(-np.asarray(out.router_NBTLE[..., 0, 2], np.float64)))
    read_BT = rows.segments_BT > 0
    entropy_BT = special.entr(special.softmax(np.asarray(out.logits_BTV, np.float64), axis=-1)).sum(-1)
    for lesson, told, weight in ((own, chance_NBT, 3), (others, 1 - chance_NBT, 1)):
        terms, metrics = totals(pupil.slot, lesson)
        counts = objective.counts({"lesson": lesson})
        assert float(terms["routing"].count) == read_BT.sum() == counts["routing"]
        wanted = -weight * np.log(told).mean(0)[read_BT].sum()
        np.testing.assert_allclose(terms["routing"].total, wanted, rtol=1e-4)
        np.testing.assert_allclose(metrics["entropy"].total, (entropy_BT * rows.weights_BT).sum(), rtol=1e-4)
        assert metrics["entropy"].count == rows.weights_BT.sum()
        opened = metrics["open_on_own" if lesson is own else "open_on_others"]
        np.testing.assert_allclose(opened.total, out.routes_BTLE[..., 0, 2][read_BT].sum(), rtol=1e-5)
    assert objective.weights["routing"] == 2.0
    assert "routing" not in pupil.objective.weights, "without a slot there is nothing to route to"


def test_a_forced_step_opens_the_slot_everywhere_and_still_teaches_the_router(bed, encoded, teach, pupil):
    lesson = fill(teach([(bed.past[0], encoded)], False))
    config = SeedConfig(forced=1.0)
    objective = consolidate.objective(bed.model, config, consolidate.into_slot(0, 2), (0, 2))
    totals = jax.jit(lambda slot, key: objective.totals(slot, pupil.frozen, {"lesson": lesson}, key)[0])
    free, forced = totals(pupil.slot, None), totals(pupil.slot, KEY)
    wide_open = totals({**pupil.slot, "bias_N": pupil.slot["bias_N"] + 1e6}, None)
    assert abs(float(forced["kl"].total - free["kl"].total)) > 1e-2, "the slot was open anyway"
    np.testing.assert_allclose(forced["kl"].total, wide_open["kl"].total, rtol=1e-5)
    lifted = memory_lib.lift_slot(memory_lib.write_slot(pupil.masked, pupil.slot, 0, 2), 0, 2, 20.0)
    rows = lesson.rows
    where = {"segments_BT": rows.segments_BT, "positions_BT": rows.positions_BT}
    out = jax.jit(lambda m: bed.model.apply(bed.params, rows.tokens_BT, memory=m, **where))(lifted)
    score_NBT = np.asarray(out.router_NBTLE[..., 0, 2], np.float64) - 20
    read_BT = rows.segments_BT > 0
    wanted = np.log1p(np.exp(score_NBT)).mean(0)[read_BT].sum()
    np.testing.assert_allclose(forced["routing"].total, wanted, rtol=1e-4)


def test_packed_rows_are_the_sequences_one_by_one(bed, encoded, teach, pupil):
    packed = teach([(bed.awake, encoded)])
    assert len(packed.hidden_BTD) < len(encoded), "nothing was packed"
    together = pupil.kl(pupil.slot, pupil.frozen, fill(packed))
    one_by_one = (fill(teach([(bed.awake, [e])])) for e in encoded)
    alone = [pupil.kl(pupil.slot, pupil.frozen, lesson) for lesson in one_by_one]
    np.testing.assert_allclose(together.total, sum(float(m.total) for m in alone), rtol=1e-4)
    assert float(together.count) == sum(float(m.count) for m in alone) > 0


def test_a_lesson_weighs_prompts_and_answers(encoded, teach, bed):
    rows = teach([(bed.awake, encoded)]).rows
    answers = sum(len(e.tokens) - e.prompt_length for e in encoded)
    prompts = sum(e.prompt_length - 1 for e in encoded)
    assert rows.weights_BT.sum() == answers + 0.5 * prompts


def test_the_mean_over_a_lesson_is_over_its_tokens_whatever_the_batch(bed, encoded, teach, pupil):
    lesson = teach([(bed.awake, encoded), (bed.past[0], encoded[:1])])
    assert len(lesson.hidden_BTD) % 2, "the last batch is not full"
    whole = pupil.kl(pupil.slot, pupil.frozen, fill(lesson))
    mean = consolidate.mean_kl(pupil.objective, lesson, pupil.frozen, 2)(pupil.slot)
    assert mean == pytest.approx(float(whole.total / whole.count), rel=1e-4)


def test_a_mesh_scores_and_looks_row_by_row_to_the_same_numbers(bed, encoded, teach, pupil, monkeypatch):
    teachers = [(bed.awake, encoded)]
    lesson = teach(teachers)
    wanted = consolidate.mean_kl(pupil.objective, lesson, pupil.frozen, 2)(pupil.slot)
    partitioner = Partitioner(MeshConfig(), jax.devices()[:2])
    params, memory, frozen, slot = map(partitioner.put, (bed.params, bed.memory, pupil.frozen, pupil.slot))
    rows, put_rows = [], partition.put_rows

    def spied(*args):
        placed = put_rows(*args)
        rows.append({x.addressable_shards[0].data.shape[0] for x in jax.tree.leaves(placed)})
        return placed

    monkeypatch.setattr(partition, "put_rows", spied)
    apart = consolidate.lessons(bed.score, params, memory, teachers, ROW, BATCH, 0.5, True)
    np.testing.assert_allclose(apart.hidden_BTD, lesson.hidden_BTD, rtol=1e-4, atol=1e-5)
    mean = consolidate.mean_kl(pupil.objective, lesson, frozen, 2)(slot)
    assert mean == pytest.approx(wanted, rel=1e-4)
    assert rows == [{BATCH // 2}] * -(-len(lesson.hidden_BTD) // BATCH) + [{1}] * -(
        -len(lesson.hidden_BTD) // 2
    )


@pytest.fixture(scope="module")
def seeded(bed, encoded, teach, pupil):
    """Some steps of seeding the awake self's lesson: fast memory masked first, and in the printed order."""
    optimizer = optim.make(optim.OptimConfig(lr=0.1, warmup=0.0, weight_decay=0.1), 60)
    lesson = fill(teach([(bed.awake, encoded)]))
    run = jax.jit(steps.make(pupil.objective, optimizer))

    def seed(student):
        fresh = memory_lib.fresh_slot(bed.model.config, bed.model.memory_config, KEY)
        state = steps.init(optimizer, fresh)
        for _ in range(60):
            state, _ = run(state, (bed.params, student), {"lesson": lesson}, KEY)
        awoken = dataclasses.replace(student, fast=pupil.masked.fast)

        def value(slot, student):
            mean = pupil.kl(slot, (bed.params, student), lesson)
            return float(mean.total / mean.count)

        return types.SimpleNamespace(
            fresh=fresh,
            slot=state.params,
            student=student,
            before=value(fresh, student),
            after=value(state.params, student),
            untaught=value(fresh, awoken),
            in_the_morning=value(state.params, awoken),
        )

    return types.SimpleNamespace(masked=seed(pupil.masked), printed=seed(bed.memory))


def test_seeding_brings_the_student_to_its_teacher(seeded):
    night = seeded.masked
    assert night.after < 0.5 * night.before
    assert not np.asarray(night.fresh["b_NRD"]).any() and np.abs(night.slot["b_NRD"]).max() > 0.01
    assert len(bit_equal(night.slot, night.fresh)) == len(night.slot), "A, B and the router all learn"


def test_nothing_but_the_slot_moves(seeded, bed):
    student = seeded.masked.student
    params, written = consolidate.into_slot(0, 2)(seeded.masked.slot, bed.params, student)
    assert params is bed.params and written.fast is student.fast
    for e in range(4):
        moved = bit_equal(read_slot(written, 0, e), read_slot(student, 0, e))
        assert bool(moved) == (e == 2)
    assert written.active_LE.tolist() == [[True, False, True, False]]


def test_what_is_seeded_with_fast_memory_masked_stays_when_the_day_is_erased(seeded):
    """Reading (e): in the printed order the student already has what it should learn, and then loses it."""
    masked, printed = seeded.masked, seeded.printed
    assert masked.in_the_morning == masked.after
    assert printed.before < 1e-5 and printed.after < 1e-2, "the student is its own teacher"
    assert printed.in_the_morning > 0.9 * printed.untaught > 10 * printed.after, "the reset brings it back up"
    assert masked.in_the_morning < 0.5 * printed.in_the_morning


def test_without_expansion_the_delta_is_added_to_the_mlp(bed):
    delta = jax.tree.map(lambda x: 0.1 * x, bed.memory.fast)
    resting = memory_lib.rest(bed.memory)
    params, memory = consolidate.into_backbone(delta, bed.params, resting)
    assert params is bed.params and bit_equal(memory.fast, delta) == []
    _, memory = consolidate.into_backbone(delta, bed.params, bed.memory)
    for k, x in bed.memory.fast.items():
        np.testing.assert_allclose(memory.fast[k], 1.1 * x, rtol=1e-5)
    assert memory.bank is bed.memory.bank
