import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import bit_equal

from sleep_jax.model import lora
from sleep_jax.types import Sampling

B, T, RANK = 6, 5, 3


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(heads=4, kv_heads=2, qk_norm=True, qkv_bias=True)


@pytest.fixture(scope="module")
def self_(model, grown):
    return grown(model)


@pytest.fixture(scope="module")
def adapters(model):
    """Three that say something."""
    keys = jax.random.split(jax.random.key(7), 3)
    fresh = jax.vmap(lambda key: lora.init(model.config, RANK, key))(keys)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(0).integers(3, 40, (B, T)).astype(np.int32)


@pytest.fixture(scope="module")
def forward(model, self_, tokens_BT):
    run = jax.jit(
        lambda params, adapter, x: model.apply(params, x, memory=self_[1], adapter=adapter).logits_BTV
    )
    return lambda adapter, params=self_[0], x=tokens_BT: np.asarray(run(params, adapter, x))


def test_a_fresh_adapter_changes_nothing(model, forward):
    assert bit_equal(forward(lora.init(model.config, RANK, jax.random.key(0))), forward(None)) == []


def test_an_adapter_is_what_its_product_added_to_the_weights_is(model, self_, adapters, forward):
    adapter = lora.scaled(jax.tree.map(lambda x: x[0], adapters), 0.5)
    wanted = forward(None, lora.merged(self_[0], adapter))
    np.testing.assert_allclose(forward(adapter), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(wanted - forward(None)).max() > 0.1
    for name in lora.SIZES:  # every layer has its own part
        without = {k: x * (not k.startswith(f"{name}_b")) for k, x in adapter.items()}
        assert np.abs(forward(without) - wanted).max() > 1e-3, name


def test_rows_of_several_adapters_are_each_as_with_its_own(model, self_, adapters, forward, tokens_BT):
    together = forward(lora.grouped(adapters))
    params, memory = self_
    decode = jax.jit(
        lambda adapter, *rows: model.decode(
            params, *rows, Sampling(4, temperature=0.0), memory=memory, adapter=adapter
        )
    )
    rows = tokens_BT, np.array([5, 2, 3, 1, 4, 5]), jax.random.split(jax.random.key(0), B)
    texts = decode(lora.grouped(adapters), *rows)
    for i in range(3):
        adapter = jax.tree.map(lambda x, i=i: x[i], adapters)
        mine = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(together[mine], forward(adapter)[mine], rtol=1e-4, atol=1e-5)
        alone = decode(adapter, *(x[mine] for x in rows))
        np.testing.assert_array_equal(texts.tokens_BT[mine], alone.tokens_BT)
    assert len(np.unique(jnp.argmax(together, -1), axis=0)) > 3


def test_the_scale_is_on_b_alone(adapters):
    twice = lora.scaled(adapters, 2.0)
    for name, x in adapters.items():
        np.testing.assert_array_equal(twice[name], x * (2.0 if "_b_" in name else 1.0))
