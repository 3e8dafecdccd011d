"""The decoder: embedding, a scan over stacked layers, last norm, output head."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from sleep_jax.model import lora
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.model.layers import (
    GLU,
    TOGETHER,
    Attention,
    RMSNorm,
    Turned,
    frequencies,
    last_seen,
    project,
    rotation,
    summed,
)
from sleep_jax.types import Array, Tree


class Block(nn.Module):
    """x + attention(norm(x)); then x + MLP(norm(x)) + the experts that the routers chose.

    With `post_norms` each of the two branches ends in a norm; the experts are part of the MLP's, inside it.

    The call takes what is this layer's own (`index`, and where there are any `fast` deltas, expert `bank`,
    its `experts` already joined, `adapter` and `cache`) and what all layers share (`rotation_BTK`,
    `mask_BTS`, `active` slots, `random_keys_B`). Where some layers look back a window alone, `windowed` says
    whether this one does, and `near_BTS` is their mask; routers see all. It returns x_BTD and this layer's
    new keys and values, its gates and its router scores.
    """

    config: ModelConfig
    memory_config: MemoryConfig

    @nn.compact
    def __call__(self, x_BTD: Array, layer: Tree, shared: Tree) -> tuple[Array, Tree]:
        c = self.config
        h_BTD = RMSNorm(c, name="attn_norm")(x_BTD)
        attention = Attention(c, name="attn")
        cache = layer.get("cache")
        kv_cache = None if cache is None else (*cache[:2], cache[-1])
        adapter = layer.get("adapter")
        mask_BTS = shared["mask_BTS"]
        if c.window:
            mask_BTS = jnp.where(layer["windowed"], shared["near_BTS"], mask_BTS)
        rotation_BTK = shared["rotation_BTK"]
        if c.rope_local_theta:
            rotation_BTK = jax.tree.map(
                functools.partial(jnp.where, layer["windowed"]), shared["near_rotation_BTK"], rotation_BTK
            )
        y_BTD, kv = attention(h_BTD, rotation_BTK, mask_BTS, kv_cache, adapter)
        if c.post_norms:
            y_BTD = RMSNorm(c, name="attn_post_norm")(y_BTD)
        x_BTD = x_BTD + y_BTD
        h_BTD = RMSNorm(c, name="mlp_norm")(x_BTD)
        y_BTD = GLU(c, name="mlp")(h_BTD, layer.get("fast"), adapter)
        gates_BTLE = logits_BTLE = None
        if "bank" in layer:
            bank = layer["bank"]
            own_BTLE, seen_BSM = memory_lib.router_scores(h_BTD, bank)
            if cache is not None:
                seen_BSM = jax.lax.dynamic_update_slice_in_dim(cache[2], seen_BSM, cache[3], axis=1)
            kv = (*kv, seen_BSM)
            logits_BTLE = memory_lib.router_logits(own_BTLE, seen_BSM, shared["mask_BTS"])
            keys_B = shared.get("random_keys_B")
            if keys_B is not None:
                keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer["index"])
            gates_BTLE = memory_lib.route(logits_BTLE, shared["active"], keys_B)
            pair = layer.get("experts") or memory_lib.joined(
                bank, self.memory_config.expert_scale, c.compute_dtype
            )
            y_BTD = y_BTD + memory_lib.experts(h_BTD, *pair, gates_BTLE)
        if c.post_norms:
            y_BTD = RMSNorm(c, name="mlp_post_norm")(y_BTD)
        return x_BTD + y_BTD, {"kv": kv, "gates_BTLE": gates_BTLE, "router_BTLE": logits_BTLE}


class Transformer(nn.Module):
    """tokens -> normed hidden states; `unembed` turns those into logits."""

    config: ModelConfig
    memory_config: MemoryConfig

    def setup(self):
        c = self.config
        block = Block
        if c.remat != "none":
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if c.remat == "dots" else None
            block = nn.remat(Block, prevent_cse=False, policy=keep)
        embed = nn.initializers.normal(c.width**-0.5)
        self.embed_VD = self.param("embed_VD", embed, (c.vocab_size, c.width), c.param_dtype)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
            unroll=min(c.unroll, c.layers),
        )(c, self.memory_config, name="blocks")
        self.final_norm = RMSNorm(c, name="final_norm")
        if not c.tie_embeddings:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.head_DV = self.param("head_DV", init, (c.width, c.vocab_size), c.param_dtype)

    def __call__(self, tokens_BT: Array, layer: Tree | list[Tree], shared: Tree) -> tuple[Array, Tree]:
        """tokens_BT and the per-layer and shared inputs of `Block` -> hidden_BTD and per-layer outputs.

        The former are stacked, or with caches a list of what `apart` gives with the `cache` of each. The
        latter are given by positions_BT and mask_BTS, what follows from these is computed once.
        """
        c = self.config
        x_BTD = self.embed_VD[tokens_BT].astype(c.compute_dtype)
        if c.scaled_embeddings:  # by the root as the parameters' type holds it: so they were trained
            x_BTD *= jnp.asarray(c.width**0.5, c.param_dtype).astype(c.compute_dtype)
        shared = {**shared, "rotation_BTK": rotation(frequencies(c), shared["positions_BT"])}
        if c.rope_local_theta:
            near = frequencies(c, windowed=True)
            shared["near_rotation_BTK"] = rotation(near, shared["positions_BT"])
        walked = isinstance(layer, list)
        if c.window:
            newest = layer[0]["cache"][-1] if walked else tokens_BT.shape[1] - 1
            shared = {**shared, "near_BTS": last_seen(shared["mask_BTS"], c.window, newest)}
        if walked:
            x_BTD, ys = self._walk(x_BTD, layer, shared)
        else:
            x_BTD, ys = self.blocks(x_BTD, numbered(c, layer), shared)
        return self.final_norm(x_BTD), ys

    def _walk(self, x_BTD: Array, layers: list[Tree], shared: Tree) -> tuple[Array, Tree]:
        """The blocks one after the other; their caches come and go as a list with one entry per layer.

        A scan would stack the caches, and so copy them whole at every token.
        """
        block = Block(self.config, self.memory_config, parent=None)
        kvs = []
        for layer in layers:
            own = {k: v for k, v in layer.items() if k != "variables"}
            x_BTD, ys = block.apply(layer["variables"], x_BTD, own, shared)
            kvs.append(ys["kv"])
        return x_BTD, {"kv": kvs}

    def unembed(self, hidden_BTD: Array) -> Array:
        """Float32 logits of hidden states."""
        if self.has_variable("turned", "head_DV"):
            head_DV = Turned(self.get_variable("turned", "head_DV"))
        else:
            head_DV = (self.embed_VD.T if self.config.tie_embeddings else self.head_DV).astype(
                self.config.compute_dtype
            )
        return project(hidden_BTD, head_DV).astype(jnp.float32)


def numbered(c: ModelConfig, layer: Tree) -> Tree:
    """Per-layer inputs with those that say which layer it is."""
    layer = {"index": jnp.arange(c.layers), **layer}
    if c.window:
        layer["windowed"] = jnp.zeros(c.layers, bool).at[jnp.array(c.window_layers)].set(True)
    return layer


def apart(
    c: ModelConfig, m: MemoryConfig, params: Tree, layer: Tree, turned: bool
) -> tuple[Tree, list[Tree]]:
    """What steps of decoding read, layer by layer.

    Args:
      c, m: of the network.
      params: of the network.
      layer: stacked per-layer inputs.
      turned: whether every weight is laid out as `layers.Turned` says, its fast memory added.

    Returns:
      The variables that `unembed` takes, and of each layer its `variables` and own inputs.
    """
    stacked = {"params": params["blocks"], **numbered(c, layer)}
    layers = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(c.layers)]
    if not turned:
        return {"params": params}, [{"variables": {"params": x.pop("params")}, **x} for x in layers]
    head_VD = params["embed_VD"] if c.tie_embeddings else params["head_DV"].T
    head = {"params": params, "turned": {"head_DV": head_VD.astype(c.compute_dtype)}}
    return head, [_turned(c, m, **x) for x in layers]


def _turned(c: ModelConfig, m: MemoryConfig, params: Tree, fast: Tree | None = None, **own: Tree) -> Tree:
    """What `apart` gives of one layer."""
    turned: Tree = {}
    for part, names in lora.STORED.items():
        for name, key in names.items():
            w = summed(params[part][key], (fast or {}).get(key), c.compute_dtype)
            turned.setdefault(part, {})[key] = w.reshape(lora.SIZES[name](c)).T
    for part, keys in TOGETHER.items():
        turned[part]["+".join(keys)] = jnp.concatenate([turned[part].pop(key) for key in keys])
    if "bank" in own:
        pair = memory_lib.joined(own["bank"], m.expert_scale, c.compute_dtype)
        own["experts"] = tuple(Turned(w.T) for w in pair)
    return {"variables": {"params": params, "turned": turned}, **own}
