import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equality import bit_equal
from slots import read_slot

from sleep_jax import optim, trees
from sleep_jax.model import memory as memory_lib

B, T, L, E = 2, 6, 2, 3


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 40, shape).astype(np.int32)


def open_slots(*slots):
    active_LE = np.zeros((L, E), bool)
    for slot in slots:
        active_LE[slot] = True
    return active_LE


@pytest.fixture(scope="module")
def model(tiny):
    return tiny()


@pytest.fixture(scope="module")
def run(model):
    return jax.jit(lambda params, memory, x: model.apply(params, x, memory=memory))


@pytest.mark.parametrize(
    "settings, wanted",
    [
        ({"layers": 5, "ff": 2, "periods": (4, 8)}, [0, 0, 0, 1, 1]),
        ({"layers": 5, "ff": 2, "periods": (4, 8), "static_share": 0.4}, [0, 0, 1, -1, -1]),
        ({"layers": 3, "ff": 2, "periods": (4,)}, [0, 0, 0]),
        ({"layers": 2, "ff": 8, "periods": (4, 8), "reading": "width"}, [0, 0, 0, 0, 1, 1, 1, 1]),
        (
            {"layers": 2, "ff": 8, "periods": (4, 8, 8), "reading": "width", "static_share": 0.25},
            [0, 0, 1, 1, 2, 2, -1, -1],
        ),
    ],
)
def test_levels_own_equal_groups_fastest_first_and_leave_the_static_share(settings, wanted, tiny):
    model = tiny(**settings)
    level_NF = memory_lib.levels(model.config, model.memory_config)
    axis = 0 if settings.get("reading") == "width" else 1
    assert level_NF.shape == (settings["layers"], settings["ff"]) and level_NF.dtype == np.int32
    assert (level_NF == np.expand_dims(wanted, axis)).all()


def test_more_levels_than_layers_is_an_error_with_both_numbers(tiny):
    model = tiny(layers=2, periods=(4, 8), static_share=0.5)
    with pytest.raises(ValueError, match=r"2 levels but only 1 of 2 layers .* memory.static_share=0.5"):
        memory_lib.levels(model.config, model.memory_config)
    model = tiny(layers=2, ff=1, periods=(4, 8), reading="width")
    with pytest.raises(ValueError, match=r"only 1 of 1 hidden units .*model.ff"):
        memory_lib.levels(model.config, model.memory_config)


def test_memory_is_empty_at_birth_but_for_the_slots_own_directions(model):
    memory = model.init_memory(jax.random.key(0))
    table = trees.named(memory)
    a_NLEDR = table.pop("bank/a_NLEDR")
    assert a_NLEDR.shape == (2, L, E, 16, 4) and abs(float(a_NLEDR.std()) * 4 - 1) < 0.1
    assert not any(x.any() for x in table.values())
    assert {x.dtype for k, x in table.items() if k != "active_LE"} == {jnp.dtype("float32")}
    assert memory.active_LE.shape == (L, E) and memory.active_LE.dtype == bool


# Routing.


def test_route_opens_every_active_expert_that_wants_to():
    logits_LE = np.array([[0.5, -2.0, 1.0], [-0.1, 0.0, -1e-6]], np.float32)
    one = {
        "each decides for itself, and opens at 0": (np.ones((L, E), bool), [[1, 0, 1], [0, 1, 0]]),
        "a locked slot never opens": (open_slots((0, 0), (1, 0)), [[1, 0, 0], [0, 0, 0]]),
        "nothing is unlocked": (open_slots(), [[0, 0, 0], [0, 0, 0]]),
    }
    for why, (active_LE, wanted) in one.items():
        assert memory_lib.route(logits_LE[None, None], active_LE)[0, 0].tolist() == wanted, why


def test_gates_are_hard_and_their_gradient_is_the_sigmoids():
    rng = np.random.default_rng(0)
    logits_BTLE = rng.normal(size=(B, T, L, E)).astype(np.float32)
    active_BLE = np.array([open_slots((0, 0), (0, 2), (1, 1)), open_slots((1, 0), (1, 1), (1, 2))])
    weight_BTLE = rng.normal(size=logits_BTLE.shape)

    def value(logits_BTLE):
        gates_BTLE = memory_lib.route(logits_BTLE, active_BLE)
        return jnp.sum(weight_BTLE * gates_BTLE), gates_BTLE

    gradient, gates_BTLE = jax.jit(jax.grad(value, has_aux=True))(logits_BTLE)
    assert set(np.unique(gates_BTLE)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-logits_BTLE.astype(np.float64)))
    wanted = p * (1 - p) * weight_BTLE * active_BLE[:, None]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_a_mask_per_sequence_is_each_sequence_with_its_own():
    logits_BTLE = np.random.default_rng(0).normal(size=(B, T, L, E)).astype(np.float32)
    active_BLE = np.array([open_slots((0, 0), (1, 2)), open_slots((0, 1), (0, 2))])
    together = memory_lib.route(logits_BTLE, active_BLE)
    for b in range(B):
        alone = memory_lib.route(logits_BTLE[b : b + 1], active_BLE[b])
        np.testing.assert_array_equal(together[b], alone[0])


def test_dreaming_opens_one_random_active_expert_more():
    active_LE, rows = open_slots((0, 0), (0, 1), (0, 2), (1, 2)), 600
    logits_BTLE = np.full((rows, 2, L, E), -1, np.float32)
    logits_BTLE[..., 0, 1] = 1  # open anyway
    keys_B = jax.random.split(jax.random.key(0), rows)
    gates_BTLE = np.asarray(memory_lib.route(logits_BTLE, active_LE, keys_B))
    assert (gates_BTLE[:, :, 0, 1] == 1).all() and set(np.unique(gates_BTLE)) == {0.0, 1.0}
    assert gates_BTLE.sum(-1)[..., 0].max() == 2
    np.testing.assert_array_equal(gates_BTLE[:, 0], gates_BTLE[:, 1])
    np.testing.assert_allclose(gates_BTLE[:, 0, 0].mean(0), [1 / 3, 1, 1 / 3], atol=0.06)
    assert gates_BTLE[:, 0, 1].tolist() == [[0, 0, 1]] * rows
    nobody = memory_lib.route(logits_BTLE[:4], open_slots(), keys_B[:4])
    assert not np.asarray(nobody).any()


def test_experts_are_the_loop_over_slots():
    rng = np.random.default_rng(0)
    x_BTD, gates_BTLE = rng.normal(size=(B, T, 5)), rng.integers(0, 2, (B, T, L, E))
    bank = {"a_NLEDR": rng.normal(size=(L, E, 5, 4)), "b_NLERD": rng.normal(size=(L, E, 4, 5))}
    wanted = np.zeros((B, T, 5))
    for at in np.ndindex(L, E):
        h = x_BTD @ bank["a_NLEDR"][at]
        wanted += gates_BTLE[..., *at, None] * (1.5 * (h / (1 + np.exp(-h))) @ bank["b_NLERD"][at])
    x_BTD, bank, gates_BTLE = jax.tree.map(lambda x: x.astype(np.float32), (x_BTD, bank, gates_BTLE))
    pair = memory_lib.joined(bank, 1.5, "float32")
    np.testing.assert_allclose(memory_lib.experts(x_BTD, *pair, gates_BTLE), wanted, rtol=1e-4, atol=1e-4)


# Slots.


def test_unlocking_a_fresh_slot_changes_no_bit_and_puts_it_on_the_path(model, run, grown):
    params, memory = grown(model)
    fresh = memory_lib.fresh_slot(model.config, model.memory_config, jax.random.key(3))
    for older in (open_slots(), open_slots((0, 0), (1, 0), (1, 1))):
        memory = memory_lib.with_active(memory, older)
        written = memory_lib.write_slot(memory, fresh, 1, 2)
        before, after = (run(params, m, tokens(B, T)) for m in (memory, written))
        np.testing.assert_array_equal(after.logits_BTV, before.logits_BTV)
        new_BT = np.asarray(after.routes_BTLE[..., 1, 2])
        assert new_BT.min() == 1, "a fresh slot that is closed would learn nothing"
        np.testing.assert_array_equal(after.routes_BTLE[..., :2], before.routes_BTLE[..., :2])


def test_a_slot_is_written_read_and_cleared_and_no_other_moves(model, grown, scatter):
    _, memory = grown(model)
    memory = memory_lib.with_active(memory, open_slots((0, 0)))
    slot = scatter(memory_lib.fresh_slot(model.config, model.memory_config, jax.random.key(0)), 5)
    written = memory_lib.write_slot(memory, slot, 1, 2)
    assert bit_equal(read_slot(written, 1, 2), slot) == []
    assert np.asarray(written.active_LE).tolist() == open_slots((0, 0), (1, 2)).tolist()
    cleared = memory_lib.clear_slots(written, open_slots((0, 0)))
    assert np.asarray(cleared.active_LE).tolist() == open_slots((1, 2)).tolist()
    for at in np.ndindex(L, E):
        old, new = read_slot(memory, *at), read_slot(written, *at)
        assert bool(bit_equal(old, new)) == (at == (1, 2))
        now = read_slot(cleared, *at)
        if at == (0, 0):
            assert not any(x.any() for x in now.values())
        else:
            assert bit_equal(now, new) == []
    assert bit_equal(written.fast, memory.fast) == []


def test_a_slot_is_written_into_a_mask_per_sequence(model, grown):
    _, memory = grown(model)
    memory = memory_lib.with_active(memory, jnp.stack([open_slots((0, 0)), open_slots()]))
    written = memory_lib.write_slot(memory, read_slot(memory, 0, 1), 0, 1)
    assert written.active_LE.tolist() == [open_slots((0, 0), (0, 1)).tolist(), open_slots((0, 1)).tolist()]


def test_only_the_new_slot_has_a_gradient_and_locked_slots_outlive_adam_and_decay(model, grown):
    params, memory = grown(model)
    memory = memory_lib.with_active(memory, open_slots((0, 0)))
    slot = read_slot(memory, 1, 2)
    x = tokens(B, T)

    def loss(slot, bank):
        student = memory_lib.write_slot(dataclasses.replace(memory, bank=bank), slot, 1, 2)
        return jnp.sum(jax.nn.log_softmax(model.apply(params, x, memory=student).logits_BTV)[..., 7])

    of_slot, of_bank = jax.jit(jax.grad(loss, argnums=(0, 1)))(slot, memory.bank)
    assert all(np.abs(g).max() > 1e-3 for g in of_slot.values()), "router, A and B all learn"
    bank_gradient = dataclasses.replace(memory, bank=of_bank)
    for at in np.ndindex(L, E):
        moved = any(g.any() for g in read_slot(bank_gradient, *at).values())
        assert moved == (at == (0, 0)), "locked slots and the overwritten one have no gradient"

    optimizer = optim.make(optim.OptimConfig(lr=0.1, warmup=0.0, weight_decay=0.5), 4)
    updates, _ = jax.jit(lambda g, x: optimizer.update(g, optimizer.init(x), x))(of_slot, slot)
    trained = optax.apply_updates(slot, updates)
    assert bit_equal(trained, slot) == trees.paths(slot)
    after = memory_lib.write_slot(memory, trained, 1, 2)
    for at in np.ndindex(L, E):
        same = not bit_equal(read_slot(after, *at), read_slot(memory, *at))
        assert same == (at != (1, 2))


def test_locked_slots_behind_the_others_may_be_left_out(model, run, grown):
    params, memory = grown(model)
    x = np.random.default_rng(3).integers(3, 40, (2, 5)).astype(np.int32)
    open_LE = np.array([[True, False, False], [False, True, False]])
    whole = memory_lib.with_active(memory, open_LE)
    few = memory_lib.only_slots(whole, np.arange(2))
    assert few.active_LE.shape == (2, 2) and few.bank["w_NLDE"].shape[-1] == 2
    np.testing.assert_allclose(run(params, few, x).logits_BTV, run(params, whole, x).logits_BTV, atol=1e-5)
    fewer = run(params, memory_lib.only_slots(whole, np.arange(1)), x).logits_BTV
    assert np.abs(fewer - run(params, whole, x).logits_BTV).max() > 0.05, "that slot was open"


@pytest.fixture(scope="module")
def run_five(tiny):
    """As `run`, of a model with five slots."""
    model = tiny(layers=1, slots=5)
    return jax.jit(lambda params, memory, x: model.apply(params, x, memory=memory))


@pytest.mark.parametrize(
    ("in_use", "kept"),
    [
        ((), [0, 1]),
        ((1,), [0, 1]),
        ((4,), [0, 4]),
        ((0, 3), [0, 3]),
        ((1, 2, 4), [0, 1, 2, 4]),
        ((1, 2, 3, 4), [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_slots_that_no_row_has_open_are_left_out_in_pairs(in_use, kept, grown, tiny, run_five):
    params, memory = grown(tiny(layers=1, slots=5))
    masks = np.zeros((3, 2, 5), bool)
    masks[2, 1, list(in_use)] = masks[0, 0, list(in_use)[:1]] = True
    for active in (masks[2], masks):
        whole = memory_lib.with_active(memory, active)
        few = memory_lib.without_locked(whole)
        np.testing.assert_array_equal(few.bank["w_NLDE"], memory.bank["w_NLDE"][..., kept])
        np.testing.assert_array_equal(few.bank["a_NLEDR"], memory.bank["a_NLEDR"][:, :, kept])
        np.testing.assert_array_equal(few.active_LE, active[..., kept])
        out, expected = (run_five(params, m, tokens(3, T)).logits_BTV for m in (few, whole))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    every = memory_lib.with_active(memory, np.ones((2, 5), bool))
    assert memory_lib.without_locked(every) is every


def test_a_batch_of_masks_is_each_sequence_alone(model, run, grown):
    params, memory = grown(model)
    x, masks = tokens(B, T), [open_slots((0, 0), (1, 1)), open_slots((0, 2))]
    together = run(params, memory_lib.with_active(memory, np.array(masks)), x)
    for b, mask in enumerate(masks):
        alone = run(params, memory_lib.with_active(memory, mask), x)
        np.testing.assert_allclose(together.logits_BTV[b], alone.logits_BTV[b], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(together.routes_BTLE[b], alone.routes_BTLE[b])
        assert np.abs(together.logits_BTV[1 - b] - alone.logits_BTV[1 - b]).max() > 0.05


def test_a_forced_slot_is_always_open_if_it_is_unlocked(model, run, grown):
    params, memory = grown(model)
    memory = memory_lib.with_active(memory, open_slots((0, 0), (0, 1)))
    free, forced = (run(params, m, tokens(B, T)) for m in (memory, memory_lib.force_slot(memory, 0, 1)))
    assert (forced.routes_BTLE[..., 0, 1] == 1).all() and free.routes_BTLE[..., 0, 1].min() < 1
    assert not forced.routes_BTLE[..., 0, 2].any()
    out = run(params, memory_lib.force_slot(memory, 0, 2), tokens(B, T))
    np.testing.assert_array_equal(out.logits_BTV, run(params, memory, tokens(B, T)).logits_BTV)


def test_a_cleared_slot_is_as_if_it_had_never_been_open(model, run, grown):
    params, memory = grown(model)
    both, one = (memory_lib.with_active(memory, open_slots(*s)) for s in ([(0, 0), (1, 1)], [(0, 0)]))
    cleared = run(params, memory_lib.clear_slots(both, open_slots((1, 1))), tokens(B, T))
    np.testing.assert_array_equal(cleared.logits_BTV, run(params, one, tokens(B, T)).logits_BTV)
    assert np.abs(cleared.logits_BTV - run(params, both, tokens(B, T)).logits_BTV).max() > 0.05


def test_the_resting_self_is_the_self_with_empty_fast_memory(model, run, grown):
    params, memory = grown(model)
    rest = run(params, memory_lib.rest(memory), tokens(B, T))
    empty = run(params, memory_lib.forget_day(memory), tokens(B, T))
    np.testing.assert_array_equal(empty.logits_BTV, rest.logits_BTV)
    assert np.abs(run(params, memory, tokens(B, T)).logits_BTV - rest.logits_BTV).max() > 0.05
    chex.assert_trees_all_equal(memory_lib.forget_day(memory).bank, memory.bank)
