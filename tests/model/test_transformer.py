import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import bit_equal

from sleep_jax import cost, trees
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.types import Memory

QWEN_LIKE = {"qk_norm": True, "qkv_bias": True, "tie_embeddings": False}
STRETCHED = {
    "head_size": 16,
    "rope_theta": 100.0,
    "rope_factor": 4.0,
    "rope_original": 60,
    "window": 3,
    "window_layers": (0,),
}
GEMMA_LIKE = {
    "width": 24,  # whose root bfloat16 rounds
    "param_dtype": "bfloat16",
    "qk_norm": True,
    "norm_plus_one": True,
    "post_norms": True,
    "scaled_embeddings": True,
    "activation": "gelu_tanh",
    "query_scalar": 7,
    "head_size": 16,
    "rope_theta": 100.0,
    "rope_factor": 4.0,
    "rope_local_theta": 20.0,
    "window": 3,
    "window_layers": (0,),
}
B, T = 3, 8


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 40, shape).astype(np.int32)


@functools.cache
def jitted(model):
    """`(params, memory, tokens_BT, **where) -> Output`, compiled once for all tests."""
    return jax.jit(lambda params, memory, x, **where: model.apply(params, x, memory=memory, **where))


def logits(model):
    return lambda *args, **where: np.asarray(jitted(model)(*args, **where).logits_BTV)


def opened(memory, *slots):
    active_LE = np.zeros(memory.active_LE.shape, bool)
    active_LE[tuple(zip(*slots, strict=True))] = True
    return memory_lib.with_active(memory, active_LE)


class Reference:
    """The decoder of one sequence in float64 numpy, written from the papers' formulas."""

    def __init__(self, model, params, memory):
        self.c, self.scale = model.config, model.memory_config.expert_scale
        self.memory = jax.tree.map(np.asarray, memory)
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(self, x, scale):
        scale = scale + self.c.norm_plus_one
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.norm_eps) * scale

    def rope(self, x_TK, local):
        half = self.c.head_size // 2
        frequency = (self.c.rope_local_theta if local else self.c.rope_theta) ** (-np.arange(half) / half)
        if not local and not self.c.rope_original:
            frequency /= self.c.rope_factor
        for k in range(half) if self.c.rope_original else ():
            turns = self.c.rope_original * frequency[k] / (2 * np.pi)
            if turns < self.c.rope_low:
                frequency[k] /= self.c.rope_factor
            elif turns < self.c.rope_high:
                smooth = (turns - self.c.rope_low) / (self.c.rope_high - self.c.rope_low)
                frequency[k] = (1 - smooth) * frequency[k] / self.c.rope_factor + smooth * frequency[k]
        angle = self.positions_T[:, None] * frequency
        z = (x_TK[:, :half] + 1j * x_TK[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=-1)

    def attention(self, p, x_TD, n):
        T, group, heads = len(x_TD), self.c.heads // self.c.kv_heads, []
        for h in range(self.c.heads):
            j = h // group
            q, k, v = (x_TD @ p[f"{w}"][n][:, i] for w, i in (("q_NDHK", h), ("k_NDJK", j), ("v_NDJK", j)))
            if self.c.qkv_bias:
                q, k, v = q + p["q_bias_NHK"][n, h], k + p["k_bias_NJK"][n, j], v + p["v_bias_NJK"][n, j]
            if self.c.qk_norm:
                q, k = self.norm(q, p["q_norm"]["scale"][n]), self.norm(k, p["k_norm"]["scale"][n])
            local = n in self.c.window_layers and self.c.rope_local_theta
            q, k = self.rope(q, local), self.rope(k, local)
            score_TS = q @ k.T / np.sqrt(self.c.query_scalar or self.c.head_size)
            seen_TS = np.tri(T)
            if n in self.c.window_layers:
                seen_TS -= np.tri(T, k=-self.c.window)
            weight_TS = np.exp(score_TS - score_TS.max(-1, keepdims=True)) * seen_TS
            heads.append(weight_TS / weight_TS.sum(-1, keepdims=True) @ v @ p["o_NHKD"][n, h])
        return sum(heads)

    def experts(self, x_TD, n):
        y_TD, bank = np.zeros_like(x_TD), self.memory.bank
        for level, active_E in enumerate(self.memory.active_LE):
            for t, x_D in enumerate(x_TD):
                score_E = x_D @ bank["w_NLDE"][n, level] + bank["bias_NLE"][n, level]
                score_E = score_E + x_TD[: t + 1].mean(0) @ bank["pool_NLDE"][n, level]
                for e in np.flatnonzero(active_E & (score_E >= 0)):
                    h_R = x_D @ bank["a_NLEDR"][n, level, e].astype(np.float64)
                    y_TD[t] += self.scale * (h_R / (1 + np.exp(-h_R))) @ bank["b_NLERD"][n, level, e]
        return y_TD

    def gate(self, g_TF):
        if self.c.activation == "silu":
            return g_TF / (1 + np.exp(-g_TF))
        return 0.5 * g_TF * (1 + np.tanh(np.sqrt(2 / np.pi) * (g_TF + 0.044715 * g_TF**3)))

    def logits(self, tokens_T, positions_T):
        self.positions_T = positions_T
        p, fast = self.params["blocks"], self.memory.fast
        x_TD = self.params["embed_VD"][tokens_T]
        if self.c.scaled_embeddings:
            x_TD = x_TD * float(jnp.asarray(self.c.width**0.5, self.c.param_dtype))

        def add(x_TD, y_TD, norm, n):
            return x_TD + (self.norm(y_TD, p[norm]["scale"][n]) if self.c.post_norms else y_TD)

        for n in range(self.c.layers):
            y_TD = self.attention(p["attn"], self.norm(x_TD, p["attn_norm"]["scale"][n]), n)
            x_TD = add(x_TD, y_TD, "attn_post_norm", n)
            h_TD = self.norm(x_TD, p["mlp_norm"]["scale"][n])
            gate, up, down = (p["mlp"][k][n] + fast[k][n] for k in ("gate_NDF", "up_NDF", "down_NFD"))
            y_TD = (self.gate(h_TD @ gate) * (h_TD @ up)) @ down + self.experts(h_TD, n)
            x_TD = add(x_TD, y_TD, "mlp_post_norm", n)
        x_TD = self.norm(x_TD, self.params["final_norm"]["scale"])
        return x_TD @ (self.params["embed_VD"].T if self.c.tie_embeddings else self.params["head_DV"])


SHAPES = {"llama": {}, "qwen": QWEN_LIKE, "stretched": STRETCHED, "gemma": GEMMA_LIKE}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_a_decoder_written_in_numpy(settings, tiny, grown):
    model = tiny(**settings)
    params, memory = grown(model)
    memory = opened(memory, (0, 0), (0, 2), (1, 1))
    tokens_BT, positions_BT = tokens(B, T), np.tile(np.arange(T), (B, 1))
    where = {}
    if not settings:  # distances count, and not only the order
        positions_BT = where["positions_BT"] = positions_BT * np.array([[1], [2], [5]])
    out = jitted(model)(params, memory, tokens_BT, **where)
    reference = Reference(model, params, memory)
    for row, *given in zip(out.logits_BTV, tokens_BT, positions_BT, strict=True):
        np.testing.assert_allclose(row, reference.logits(*given), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(model.unembed(params, out.hidden_BTD), out.logits_BTV, rtol=1e-4, atol=1e-5)
    routes_BTLE = np.asarray(out.routes_BTLE)
    assert routes_BTLE.shape == (B, T, 2, 3) and set(np.unique(routes_BTLE)) == {0.0, 0.5, 1.0}
    assert not routes_BTLE[..., ~np.asarray(memory.active_LE)].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_open_slots_and_deltas_the_bits_are_those_of_the_plain_decoder(dtype, tiny, grown):
    model = tiny(compute_dtype=dtype, **QWEN_LIKE)
    params, memory = grown(model)
    run, x = logits(model), tokens(B, T)
    plain = run(params, None, x)
    asleep = dataclasses.replace(memory, fast=jax.tree.map(np.zeros_like, memory.fast))
    assert bit_equal(run(params, asleep, x), plain) == []
    assert plain.dtype == jnp.float32
    for changed in (opened(asleep, (0, 1)), memory):
        assert np.abs(run(params, changed, x) - plain).max() > 0.05


def test_a_model_without_a_bank_tells_no_routes(tiny, grown):
    model = tiny()
    params, memory = grown(model)
    fast_alone = Memory(memory.fast, None, None)
    out = jax.eval_shape(lambda m: model.apply(params, tokens(1, 4), memory=m), fast_alone)
    assert out.routes_BTLE is None and out.logits_BTV.shape == (1, 4, 40)


def test_a_token_changes_nothing_before_it(tiny, grown):
    model = tiny(**QWEN_LIKE)
    params, memory = grown(model)
    memory, run, x = opened(memory, (0, 0), (1, 2)), logits(model), tokens(B, T)
    before = run(params, memory, x)
    for t in (0, 3, T - 1):
        changed = x.copy()
        changed[:, t] = (changed[:, t] + 1) % 40
        after = run(params, memory, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after[:, t:] - before[:, t:]).max(axis=-1) > 1e-4).all()


def packed(parts):
    """One row of the parts one after the other and padding to 13 tokens, with its segments and positions."""
    padding = np.zeros(13 - sum(map(len, parts)), int)
    segments = np.concatenate([*(np.full(len(p), i + 1) for i, p in enumerate(parts)), padding])
    positions = np.concatenate([*(np.arange(len(p)) for p in parts), padding])
    row = np.concatenate([*parts, padding]).astype(np.int32)
    return row[None], {"segments_BT": segments[None], "positions_BT": positions[None]}


def test_packed_rows_are_their_parts_and_segments_are_islands(tiny, grown):
    model = tiny(**QWEN_LIKE)
    params, memory = grown(model)
    memory, run = opened(memory, (0, 0), (1, 2)), logits(model)
    parts = [tokens(5), tokens(2, seed=1), tokens(5, seed=2)]
    row, where = packed(parts)
    together = run(params, memory, row, **where)
    start = 0
    for part in parts:
        alone = run(params, memory, packed([part])[0], **packed([part])[1])
        end = start + len(part)
        np.testing.assert_allclose(together[0, start:end], alone[0, : len(part)], rtol=1e-4, atol=1e-5)
        start = end
    changed, _ = packed([parts[0], tokens(2, seed=9), parts[2]])
    islands = run(params, memory, changed, **where)
    others = np.r_[0:5, 7:13]
    np.testing.assert_array_equal(islands[:, others], together[:, others])
    assert np.abs(islands[:, 5:7] - together[:, 5:7]).max() > 0.1


def test_remat_and_unrolling_change_no_number(tiny, grown):
    params, memory = grown(tiny())
    memory, x = opened(memory, (0, 0), (1, 2)), tokens(2, T)

    def gradients(model):
        def loss(params, fast):
            out = model.apply(params, x, memory=dataclasses.replace(memory, fast=fast))
            return jnp.sum(jax.nn.log_softmax(out.logits_BTV)[..., 5])

        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(params, memory.fast)
        return traced.lower().compile()(params, memory.fast), cost.flops(traced)

    wanted, least = gradients(tiny())
    some, more = gradients(tiny(remat="dots"))
    every, most = gradients(tiny(remat="full", unroll=2))
    assert least < more < most, "products of attention are computed again, then those with weights as well"
    chex.assert_trees_all_close(some, wanted, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(every, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"norm_plus_one": True, "post_norms": True}], ids=["", "plus one"])
def test_birth_draws_every_layer_anew_with_variance_one_over_fan_in(more, tiny):
    model = tiny(width=32, ff=48, head_size=16, **QWEN_LIKE, **more)
    params = jax.jit(model.init)(jax.random.key(0))
    table = trees.named(params)
    fan_in = {"q_NDHK": 32, "k_NDJK": 32, "v_NDJK": 32, "o_NHKD": 64, "embed_VD": 32, "head_DV": 32}
    fan_in |= {"gate_NDF": 32, "up_NDF": 32, "down_NFD": 48}
    for path, x in table.items():
        name = path.rsplit("/", 1)[-1]
        if name in fan_in:
            assert abs(float(x.std()) * fan_in[name] ** 0.5 - 1) < 0.1, path
            assert "_N" not in name or not np.allclose(x[0], x[1])
        else:
            assert (x == (0 if "bias" in name or more else 1)).all(), path
    assert {p.rsplit("/", 1)[-1] for p in table} >= {*fan_in, "q_bias_NHK", "k_bias_NJK", "v_bias_NJK"}
    assert table["blocks/attn/k_NDJK"].shape == (2, 32, 2, 16)


def test_a_tied_model_has_no_head_of_its_own(tiny):
    shapes = jax.eval_shape(tiny().init, jax.random.key(0))
    assert not any("head" in path or "bias" in path or "q_norm" in path for path in trees.paths(shapes))


def test_a_sequence_longer_than_the_model_is_an_error_with_both_numbers(tiny, grown):
    model = tiny()
    params, _ = grown(model)
    with pytest.raises(ValueError, match=r"33 tokens .* model.max_len=32"):
        model.apply(params, tokens(1, 33))
    where = {"segments_BT": np.ones((1, 33), int)}
    jax.eval_shape(lambda: model.apply(params, tokens(1, 33), **where))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"heads": 6, "kv_heads": 4}, "model.heads=6 .* model.kv_heads=4"),
        ({"head_size": 7}, "model.head_size=7 is odd"),
        ({"layers": 0}, "model.layers=0 must be at least 1"),
        ({"compute_dtype": "int32"}, "model.compute_dtype='int32'"),
        ({"rope_factor": 0.0}, "model.rope_factor=0.0 must be above 0"),
        ({"rope_high": 1.0}, "model.rope_high=1.0 must be above model.rope_low=1.0"),
        ({"window": 4}, r"model.window=4 and model.window_layers=\(\) go together"),
        ({"window": 4, "window_layers": (0, 4)}, "names 4, but model.layers=4 counts 0 to 3"),
        ({"rope_local_theta": 9.0}, "model.rope_local_theta=9.0 is for the layers with a window, .*window=0"),
        ({"activation": "gelu"}, "model.activation='gelu' is neither 'silu' nor 'gelu_tanh'"),
    ],
)
def test_a_shape_that_cannot_be_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"periods": (16, 40)}, r"\(16, 40\): 16 does not divide 40"),
        ({"periods": (32, 16)}, "32 does not divide 16"),
        ({"periods": ()}, "at least one period"),
        ({"periods": (0, 16)}, "at least 1 token"),
        ({"reading": "both"}, "'both' is neither"),
        ({"static_share": 1.0}, r"static_share=1.0 is not in \[0, 1\)"),
        ({"slots": 2}, "memory.slots=2"),
        ({"rank": 0}, "memory.rank=0"),
    ],
)
def test_a_memory_that_cannot_be_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        MemoryConfig(**settings)
