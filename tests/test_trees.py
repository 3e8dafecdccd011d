import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from equality import bit_equal

from sleep_jax import trees
from sleep_jax.types import TrainState


def tree():
    return {
        "blocks": {"mlp": {"gate": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}},
        "on": jnp.array([True]),
    }


def test_paths_name_dictionaries_dataclasses_and_optimiser_states():
    params = {"mlp": {"gate_NDF": jnp.ones((2, 3, 4))}}
    state = TrainState(jnp.int32(0), params, optax.adam(1e-3).init(params))
    assert trees.paths(state) == [
        "step",
        "params/mlp/gate_NDF",
        "opt_state/0/count",
        "opt_state/0/mu/mlp/gate_NDF",
        "opt_state/0/nu/mlp/gate_NDF",
    ]


def test_two_leaves_of_one_path_are_an_error():
    with pytest.raises(ValueError, match='"a/b"'):
        trees.paths({"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}})


def test_size_and_bytes_need_no_data():
    abstract = jax.eval_shape(lambda: {"a": jnp.zeros((2, 5), jnp.bfloat16), "b": jnp.int32(1)})
    assert trees.size(abstract) == 11
    assert trees.nbytes(abstract) == 2 * 10 + 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_sees_one_bad_number(bad):
    good = {"a": jnp.ones((2, 2)), "i": jnp.arange(3), "b": jnp.zeros(2, jnp.bfloat16)}
    assert bool(jax.jit(trees.all_finite)(good))
    assert not bool(trees.all_finite({**good, "b": good["b"].at[1].set(bad)}))
    assert bool(trees.all_finite({}))


def test_bit_equal_names_what_differs():
    a = tree()
    assert bit_equal(a, jax.tree.map(jnp.copy, a)) == []
    b = {"blocks": {"mlp": {"gate": a["blocks"]["mlp"]["gate"].at[1, 2].add(1e-6)}}, "new": jnp.zeros(1)}
    assert bit_equal(a, b) == ["blocks/mlp/gate", "on", "new"]


def test_bit_equal_is_about_bits_and_not_about_numbers():
    nan = jnp.array([jnp.nan])
    assert bit_equal({"x": nan}, {"x": nan}) == []
    assert bit_equal({"x": jnp.array([0.0])}, {"x": jnp.array([-0.0])}) == ["x"]
    assert bit_equal({"x": jnp.zeros(2, jnp.int32)}, {"x": jnp.zeros(2, jnp.float32)}) == ["x"]
    assert bit_equal({"x": jnp.zeros((2, 1))}, {"x": jnp.zeros((1, 2))}) == ["x"]
