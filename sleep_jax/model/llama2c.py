"""Checkpoints of llama2.c in its first form (".bin, version 0"): seven numbers, then float32 to the end."""

import pathlib
import struct
from typing import Any

import numpy as np

from sleep_jax import tensorfile
from sleep_jax.model import families

HEADER = struct.Struct("<7i")
MAGIC = 0x616B3432  # with which later versions begin
FLOAT32 = np.dtype("float32")


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A checkpoint as the config.json and the tensors of a Llama, for `families` and `convert`.

    The header is dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative where the head is a
    table of its own) and seq_len. The arrays follow without a gap, each stacked over layers, among them two
    tables of the rotary embedding that are not needed. Rotary pairs are neighbours (2k, 2k + 1) there and
    (k, k + K/2) here: the rows of queries and keys are sorted anew.

    Raises:
      ValueError: another version, numbers that make no model, or another length than they make.
    """
    tensorfile.refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ValueError(
            f"{path} is no checkpoint of llama2.c: it has {size} bytes, its header {HEADER.size}"
        )
    D, F, N, H, J, V, T = HEADER.unpack(head)
    if D == MAGIC:
        raise ValueError(f"{path} is a checkpoint of llama2.c of version {F}; version 0 can be read")
    tied, V = V > 0, abs(V)
    if min(D, F, N, H, J, V, T) < 1 or D % H or H % J or (D // H) % 2:
        raise ValueError(
            f"{path} is no checkpoint of llama2.c: dim, hidden_dim, n_layers, n_heads, n_kv_heads, "
            f"vocab_size, seq_len = {D, F, N, H, J, V, T} make no model"
        )
    K = D // H
    shapes = {
        "embed_tokens": (V, D),
        "input_layernorm": (N, D),
        "self_attn.q_proj": (N, H * K, D),
        "self_attn.k_proj": (N, J * K, D),
        "self_attn.v_proj": (N, J * K, D),
        "self_attn.o_proj": (N, D, H * K),
        "post_attention_layernorm": (N, D),
        "mlp.gate_proj": (N, F, D),
        "mlp.down_proj": (N, D, F),
        "mlp.up_proj": (N, F, D),
        "norm": (D,),
        "rotary": (2, T, K // 2),
        **({} if tied else {"lm_head": (V, D)}),
    }
    needed = HEADER.size + 4 * sum(int(np.prod(s)) for s in shapes.values())
    if size != needed:
        raise ValueError(f"{path} has {size:,} bytes, but a model of its header {needed:,}: fetch it again")
    tensors, at = {}, HEADER.size
    for name, shape in shapes.items():
        array = tensorfile.view(path, FLOAT32, shape, at)
        at += array.nbytes
        if name in ("self_attn.q_proj", "self_attn.k_proj"):
            array = array.reshape(N, -1, K // 2, 2, D).swapaxes(2, 3).reshape(shape)
        if name == "lm_head":
            tensors["lm_head.weight"] = array
        elif name in ("embed_tokens", "norm"):
            tensors[f"model.{name}.weight"] = array
        elif name != "rotary":
            tensors |= {f"model.layers.{n}.{name}.weight": array[n] for n in range(N)}
    sizes = {"vocab_size": V, "width": D, "layers": N, "heads": H, "kv_heads": J, "ff": F}
    fields = {theirs: sizes[ours] for ours, theirs in families.SIZES.items()}
    fields |= {"model_type": "llama", "hidden_act": "silu", "rope_theta": 10_000.0, "rms_norm_eps": 1e-5}
    return fields | {"max_position_embeddings": T, "tie_word_embeddings": tied}, tensors
