"""From configuration to `Model`: the network as pure functions on plain nested dicts."""

import functools

import jax
import jax.numpy as jnp

from sleep_jax.model import decode as decode_lib
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.model.layers import worth_turning
from sleep_jax.model.transformer import Transformer, apart
from sleep_jax.types import Array, Memory, Model, Output, Rollout, Sampling, Tree


def _layer_inputs(memory: Memory | None, adapter: Tree | None) -> Tree:
    layer = {} if adapter is None else {"adapter": adapter}
    if memory is None:
        return layer
    layer |= {} if memory.bank is None else {"bank": memory.bank}
    return layer if memory.fast is None else {**layer, "fast": memory.fast}


@functools.cache  # the same shapes give the same functions: lives in one process share what is compiled
def build(config: ModelConfig, memory_config: MemoryConfig, *, eos: int) -> Model:
    """The pure functions of a decoder of this shape; `eos` is the token that ends a text."""
    net = Transformer(config, memory_config)

    def init(key: Array) -> Tree:
        tokens = jnp.zeros((1, 1), jnp.int32)
        shared = {"positions_BT": tokens, "mask_BTS": jnp.ones((1, 1, 1), bool)}
        return net.init(key, tokens, {}, shared, method=lambda m, *xs: m.unembed(m(*xs)[0]))["params"]

    def run(params, tokens_BT, positions_BT, mask_BTS, memory, layer, random_keys_B=None):
        shared = {"positions_BT": positions_BT, "mask_BTS": mask_BTS}
        if memory is not None and memory.bank is not None:
            shared["active"] = memory.active_LE
            if random_keys_B is not None:
                shared["random_keys_B"] = random_keys_B
        return net.apply({"params": params}, tokens_BT, layer, shared)

    def unembed(params: Tree, hidden_BTD: Array) -> Array:
        return net.apply({"params": params}, hidden_BTD, method=net.unembed)

    def apply(
        params: Tree,
        tokens_BT: Array,
        *,
        memory: Memory | None = None,
        adapter: Tree | None = None,
        segments_BT: Array | None = None,
        positions_BT: Array | None = None,
    ) -> Output:
        """Logits and last hidden states of whole sequences.

        Args:
          params: backbone.
          tokens_BT: int32.
          memory: fast deltas and expert slots; its `active_LE` may be [L, E], or [B, L, E] for a mask per
            sequence. None is the plain decoder.
          adapter: of `lora`, scaled; one for all rows, or `lora.grouped`.
          segments_BT: tokens attend within their segment; None is one segment per row.
          positions_BT: counted from 0 in each segment; None is 0, 1, 2, ...

        Returns:
          Output with logits_BTV and hidden_BTD, and routes_BTLE and router_NBTLE where there is a bank.

        Raises:
          ValueError: the sequence is longer than `model.max_len` (packed rows may be: nobody looks at how
            long their segments are).
        """
        B, T = tokens_BT.shape
        if segments_BT is None and config.max_len < T:
            raise ValueError(
                f"a sequence of {T} tokens is longer than model.max_len={config.max_len}; "
                "shorten it or raise the key"
            )
        steps_T = jnp.arange(T)
        mask_BTS = jnp.broadcast_to(steps_T[:, None] >= steps_T[None], (B, T, T))
        if segments_BT is not None:
            mask_BTS &= segments_BT[:, :, None] == segments_BT[:, None]
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(steps_T, (B, T))
        layer = _layer_inputs(memory, adapter)
        hidden_BTD, ys = run(params, tokens_BT, positions_BT, mask_BTS, memory, layer)
        routes = ys["gates_BTLE"]
        routes_BTLE = None if routes is None else routes.mean(0)
        return Output(unembed(params, hidden_BTD), hidden_BTD, routes_BTLE, ys["router_BTLE"])

    def stepper(params: Tree, memory: Memory | None, adapter: Tree | None):
        """`step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B)` of decoding, with a cache."""

        def lay_out(turned: bool) -> tuple[Tree, list[Tree]]:
            return apart(config, memory_config, params, _layer_inputs(memory, adapter), turned)

        laid_out = lay_out(turned=True) if worth_turning() else None

        def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
            head, layers = laid_out or lay_out(turned=False)
            kvs, at = cache
            layers = [{**own, "cache": (*kv, at)} for own, kv in zip(layers, kvs, strict=True)]
            hidden_BTD, ys = run(params, tokens_BT, positions_BT, mask_BTS, memory, layers, random_keys_B)
            return net.apply(head, hidden_BTD, method=net.unembed)[:, 0], ys["kv"]

        return step

    def check_length(prompt: int, new: int) -> None:
        if config.max_len < prompt + new:
            raise ValueError(
                f"prompts padded to {prompt} tokens plus {new} new ones exceed "
                f"model.max_len={config.max_len}; shorten the prompts, sample less or raise the key"
            )

    def decode(
        params: Tree,
        prompts_BT: Array,
        lengths_B: Array,
        keys_B: Array,
        sampling: Sampling,
        *,
        memory: Memory | None = None,
        adapter: Tree | None = None,
        grammar_ZV: Array | None = None,
    ) -> Rollout:
        """Samples continuations; arguments and returns as in `decode.decode`, the rest as in `apply`.

        Raises:
          ValueError: padded prompts and new tokens together are longer than `model.max_len`.
        """
        check_length(prompts_BT.shape[1], sampling.max_new)

        later = stepper(params, memory, adapter)

        def step(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B):
            if cache is not None:
                return later(tokens_BT, positions_BT, mask_BTS, cache, random_keys_B)
            layer = _layer_inputs(memory, adapter)
            hidden_BTD, ys = run(params, tokens_BT, positions_BT, mask_BTS, memory, layer, random_keys_B)
            # Only the last true token of each row is read.
            hidden_BTD = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)
            kvs = [tuple(x[n] for x in ys["kv"]) for n in range(config.layers)]
            return unembed(params, hidden_BTD)[:, 0], kvs

        rows = prompts_BT, lengths_B, keys_B
        return decode_lib.decode(step, *rows, sampling, eos=eos, grammar_ZV=grammar_ZV)

    def drain(
        params: Tree,
        prompts_QT: Array,
        lengths_Q: Array,
        keys_Q: Array,
        rows: Array,
        seats_B: Array,
        sampling: Sampling,
        *,
        memory: Memory | None = None,
        adapter: Tree | None = None,
        grammar_ZV: Array | None = None,
    ) -> Rollout:
        """Samples continuations of a queue; arguments and returns as in `decode.drain`, memory as in `apply`
        but with one mask of slots, and one adapter, for all; raises as `decode`.
        """
        check_length(prompts_QT.shape[1], sampling.max_new)

        def empty(slots: int) -> Tree:
            def read():
                tokens_BT = jnp.zeros((len(seats_B), slots), jnp.int32)
                mask_BTS = jnp.ones((len(seats_B), slots, slots), bool)
                layer = _layer_inputs(memory, None)
                return run(params, tokens_BT, tokens_BT, mask_BTS, memory, layer)[1]["kv"]

            shapes = jax.eval_shape(read)
            return [tuple(jnp.zeros(x.shape[1:], x.dtype) for x in shapes) for _ in range(config.layers)]

        queue = prompts_QT, lengths_Q, keys_Q, rows, seats_B
        step = stepper(params, memory, adapter)
        return decode_lib.drain(step, empty, *queue, sampling, eos=eos, grammar_ZV=grammar_ZV)

    return Model(
        config=config,
        memory_config=memory_config,
        init=init,
        init_memory=functools.partial(memory_lib.init, config, memory_config),
        apply=apply,
        unembed=unembed,
        decode=decode,
        drain=drain,
    )
