import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import rng

FROZEN = (3883092994, 2028590661)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_streams_are_fixed_numbers():
    """A checkpoint of last year resumes only if these never change."""
    assert data(rng.stream(0, "sleep/rollout")) == FROZEN
    code = (
        "import jax; from sleep_jax.rng import stream; print(jax.random.key_data(stream(0, 'sleep/rollout')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    root = pathlib.Path(__file__).parent.parent
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, env=environment, cwd=root).stdout
    assert tuple(int(n) for n in out.strip(" []\n").split()) == FROZEN


def test_name_seed_and_every_number_in_order_matter():
    base = rng.stream(0, "a")
    keys = [
        base,
        rng.stream(1, "a"),
        rng.stream(0, "b"),
        rng.fold(base, 1),
        rng.fold(base, 1, 2),
        rng.fold(base, 2, 1),
    ]
    assert len({data(k) for k in keys}) == len(keys)
    assert data(rng.fold(base, 3, 4)) == data(rng.fold(rng.fold(base, 3), 4))
    assert data(jax.jit(rng.fold)(base, 3, 4)) == data(rng.fold(base, 3, 4))


def test_a_row_keeps_its_key_in_a_batch_of_another_size():
    key = rng.stream(0, "rows")
    small, large = (jax.random.key_data(rng.per_row(key, n)) for n in (3, 8))
    np.testing.assert_array_equal(small, large[:3])
    assert len({data(k) for k in rng.per_row(key, 8)}) == 8
    with jax.threefry_partitionable(False):  # here split(key, n)[i] does depend on n
        small, large = (jax.random.key_data(rng.per_row(key, n)) for n in (3, 8))
        np.testing.assert_array_equal(small, large[:3])


def test_sharded_rows_draw_what_a_single_device_draws():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.P("data"))
    keys = rng.per_row(rng.stream(0, "rows"), 16)
    draw = jax.vmap(lambda k: jax.random.uniform(k, (3,)))
    np.testing.assert_array_equal(jax.jit(draw)(jax.device_put(keys, split)), draw(keys))
    np.testing.assert_array_equal(jnp.stack([jax.random.uniform(k, (3,)) for k in keys]), draw(keys))
