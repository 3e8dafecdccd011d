"""Checkpoints of other programs: config.json to `ModelConfig` and back, their tensors to ours and back.

Llama 3, SmolLM2 (which is a Llama), Qwen 2.5 and Qwen 3, as transformers saves them. What a config.json says
is used, or known to change no logit, or refused by its name; there is no default for what it leaves out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import trees
from sleep_jax.model.config import ModelConfig
from sleep_jax.tensorfile import some
from sleep_jax.types import Array, Tree

_LAYER = "model.layers.{n}."
_ATTN, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."
# Our path to the name of theirs and its axes, in our letters: "HK" is one axis, of heads times head size.
# {n} counts layers, which are one array here and one each there. Both directions are read off this table.
TENSORS = {
    "embed_VD": ("model.embed_tokens.weight", "V D"),
    "head_DV": ("lm_head.weight", "V D"),
    "final_norm/scale": ("model.norm.weight", "D"),
    "blocks/attn_norm/scale": (_LAYER + "input_layernorm.weight", "D"),
    "blocks/mlp_norm/scale": (_LAYER + "post_attention_layernorm.weight", "D"),
    "blocks/attn/q_NDHK": (_ATTN + "q_proj.weight", "HK D"),
    "blocks/attn/k_NDJK": (_ATTN + "k_proj.weight", "JK D"),
    "blocks/attn/v_NDJK": (_ATTN + "v_proj.weight", "JK D"),
    "blocks/attn/o_NHKD": (_ATTN + "o_proj.weight", "D HK"),
    "blocks/attn/q_bias_NHK": (_ATTN + "q_proj.bias", "HK"),
    "blocks/attn/k_bias_NJK": (_ATTN + "k_proj.bias", "JK"),
    "blocks/attn/v_bias_NJK": (_ATTN + "v_proj.bias", "JK"),
    "blocks/attn/q_norm/scale": (_ATTN + "q_norm.weight", "K"),
    "blocks/attn/k_norm/scale": (_ATTN + "k_norm.weight", "K"),
    "blocks/mlp/gate_NDF": (_MLP + "gate_proj.weight", "F D"),
    "blocks/mlp/up_NDF": (_MLP + "up_proj.weight", "F D"),
    "blocks/mlp/down_NFD": (_MLP + "down_proj.weight", "D F"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one architecture from another: its class in transformers, and which settings it implies."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: bool = False  # may have layers with a sliding window


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windows=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, windows=True),
}
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
# The only value with which these compute what the modules here do.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "is_llama_config": True,
}
# Of training, of generating or of the file itself: no logit depends on them.
IGNORED = re.compile(
    r"_name_or_path|architectures|attention_dropout|(bos|eos|pad)_token_id|dtype|initializer_range|model_type|"
    r"torch_dtype|transformers(_version|\.js_config)|use_cache"
)
NO_LOGIT = re.compile(r"(.*\.)?rotary_emb\.inv_freq")  # computed anew, as transformers does
CONFIG = "config.json"


def read_config(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], own: ModelConfig, where: str = CONFIG
) -> ModelConfig:
    """The shape of a checkpoint, and of `own` what is not the checkpoint's: max_len, compute_dtype and so on.

    Args:
      fields: config.json.
      tensors: of the checkpoint by their names there. Whether there is a head of its own tells whether
        embeddings are tied where the file does not say, and the widest type is that of the parameters.
      own: `max_len` of it may be at most the checkpoint's.
      where: name of the file, for messages.

    Raises:
      ValueError: another architecture, a setting that no module here has, one that is missing, or a
        `max_len` beyond what the checkpoint was made for.
    """
    fields, kind = dict(fields), fields.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{where}: model_type={kind!r} is not supported; these are: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    if (named := fields.get("architectures")) and named != [family.architecture]:
        raise ValueError(f"{where}: architectures={named} is not supported, {family.architecture} is")

    def take(key: str) -> Any:
        if fields.get(key) is None:
            raise ValueError(f"{where} does not say {key}, without which a {kind} cannot be built")
        return fields.pop(key)

    sizes = {ours: take(theirs) for ours, theirs in SIZES.items()}
    longest = take("max_position_embeddings")
    if own.max_len > longest:
        raise ValueError(f"model.max_len={own.max_len} exceeds max_position_embeddings={longest} of {where}")
    head_size = fields.pop("head_dim", None)
    if head_size is None:
        if kind == "qwen3" or sizes["width"] % sizes["heads"]:
            raise ValueError(f"{where} does not say head_dim, without which a {kind} cannot be built")
        head_size = sizes["width"] // sizes["heads"]
    tied = fields.pop("tie_word_embeddings", None)
    rope = _read_rope(fields, where)
    window, layers = _read_window(fields, family, sizes["layers"], where)
    for key, value in {"hidden_act": take("hidden_act"), **fields}.items():
        if key in FIXED:
            if value != FIXED[key]:
                raise ValueError(f"{where}: {key}={value!r} is not supported, {FIXED[key]!r} is")
        elif not IGNORED.fullmatch(key) and value is not None:
            raise ValueError(
                f"{where}: {key}={value!r} is not known here and may change what a {kind} computes; if it "
                "does not, take it out of the file"
            )
    return dataclasses.replace(
        own,
        **sizes,
        **rope,
        head_size=head_size,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tie_embeddings="lm_head.weight" not in tensors if tied is None else tied,
        window=window,
        window_layers=layers,
        param_dtype=str(functools.reduce(jnp.promote_types, {x.dtype for x in tensors.values()})),
    )


def _read_rope(fields: dict[str, Any], where: str) -> dict[str, float]:
    """Takes the rotary settings out of `fields`, in the form before or after transformers 5."""
    new, old = fields.pop("rope_parameters", None), fields.pop("rope_scaling", None)
    said = dict(new or old or {})
    theta = said.pop("rope_theta", None) or fields.pop("rope_theta", None)
    fields.pop("rope_theta", None)
    if theta is None:
        raise ValueError(f"{where} does not say rope_theta")
    kind = said.pop("rope_type", None) or said.pop("type", "default")
    said.pop("type", None)
    if said.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor is not supported: all channels are turned")
    keys = {
        "default": {},
        "linear": {"rope_factor": "factor"},
        "llama3": {
            "rope_factor": "factor",
            "rope_original": "original_max_position_embeddings",
            "rope_low": "low_freq_factor",
            "rope_high": "high_freq_factor",
        },
    }
    if kind not in keys:
        raise ValueError(f"{where}: rope_type={kind!r} is not supported; these are: {', '.join(keys)}")
    if said.keys() != set(keys[kind].values()):
        raise ValueError(
            f"{where}: rope_type={kind!r} takes {', '.join(keys[kind].values()) or 'no further settings'}, "
            f"but is given {', '.join(said) or 'none'}"
        )
    return {"rope_theta": float(theta), **{ours: said[theirs] for ours, theirs in keys[kind].items()}}


def _read_window(
    fields: dict[str, Any], family: Family, layers: int, where: str
) -> tuple[int, tuple[int, ...]]:
    """Takes window and its layers out of `fields`."""
    if not family.windows:
        return 0, ()
    window, used = fields.pop("sliding_window", None), fields.pop("use_sliding_window", None)
    first, types = fields.pop("max_window_layers", None), fields.pop("layer_types", None)
    if used is None:
        raise ValueError(f"{where} does not say use_sliding_window")
    if types is None:
        if used and first is None:
            raise ValueError(f"{where}: use_sliding_window, but neither layer_types nor max_window_layers")
        types = ["sliding_attention" if used and n >= first else "full_attention" for n in range(layers)]
    if len(types) != layers or set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"{where}: layer_types={types} must be 'full_attention' or 'sliding_attention' for each of "
            f"num_hidden_layers={layers}"
        )
    chosen = tuple(n for n, kind in enumerate(types) if kind == "sliding_attention")
    if chosen and not (used and window):
        raise ValueError(
            f"{where}: layer_types has sliding_attention, but use_sliding_window={used} and "
            f"sliding_window={window}"
        )
    return (window, chosen) if chosen else (0, ())


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The config.json of a model; the inverse of `read_config`, with which it shares its tables.

    Raises:
      ValueError: no family has these settings.
    """
    traits = {k: getattr(c, k) for k in ("qkv_bias", "qk_norm")}
    fit = [
        (kind, f)
        for kind, f in FAMILIES.items()
        if all(getattr(f, k) == v for k, v in traits.items()) and (f.windows or not c.window)
    ]
    if not fit:
        raise ValueError(
            f"no architecture of transformers ({', '.join(FAMILIES)}) has model.qkv_bias={c.qkv_bias}, "
            f"model.qk_norm={c.qk_norm} and model.window={c.window} together: this model cannot be exported"
        )
    kind, family = fit[0]
    fields = {"model_type": kind, "architectures": [family.architecture], "torch_dtype": c.param_dtype}
    fields |= {theirs: getattr(c, ours) for ours, theirs in SIZES.items()}
    fields |= {"head_dim": c.head_size, "max_position_embeddings": c.max_len, "hidden_act": "silu"}
    fields |= {"tie_word_embeddings": c.tie_embeddings, "rope_theta": c.rope_theta, "rope_scaling": None}
    if c.rope_factor != 1 and not c.rope_original:
        fields["rope_scaling"] = {"rope_type": "linear", "factor": c.rope_factor}
    elif c.rope_factor != 1:
        fields["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": c.rope_factor,
            "original_max_position_embeddings": c.rope_original,
            "low_freq_factor": c.rope_low,
            "high_freq_factor": c.rope_high,
        }
    if family.windows:
        types = [("full", "sliding")[n in c.window_layers] + "_attention" for n in range(c.layers)]
        fields |= {"use_sliding_window": bool(c.window), "sliding_window": c.window or None}
        fields |= {"layer_types": types, "max_window_layers": min(c.window_layers, default=c.layers)}
    return fields


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one of our arrays stands in a checkpoint.

    Attributes:
      names: of its tensors, one per layer or the only one.
      stacked: whether layers are one array here.
      shape: of each tensor there.
      split: the same with every axis of ours apart.
      order: of our axes in theirs.
    """

    names: list[str]
    stacked: bool
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of theirs in our axes, without a copy."""
        return tensor.reshape(self.split).transpose(np.argsort(self.order))

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours in their axes."""
        return array.transpose(self.order).reshape(self.shape)


def _place(path: str, shape: tuple[int, ...]) -> _Place:
    name, groups = TENSORS[path]
    stacked = "{n}" in name
    letters = groups if path.endswith("/scale") else path.rpartition("_")[2].removeprefix("N")
    size = dict(zip(letters, shape[stacked:], strict=True))
    joined = groups.replace(" ", "")
    return _Place(
        names=[name.format(n=n) for n in range(shape[0])] if stacked else [name],
        stacked=stacked,
        shape=tuple(math.prod(size[a] for a in group) for group in groups.split()),
        split=tuple(size[a] for a in joined),
        order=tuple(letters.index(a) for a in joined),
    )


def load(tensors: Mapping[str, np.ndarray], like: Tree, rows: int, where: str = "the checkpoint") -> Tree:
    """Our parameters from tensors of theirs, array by array and part by part of the mesh.

    The host holds one array at a time, of which every device gets its part; views of files take none.

    Args:
      tensors: by their names; views of files (`tensorfile.read`), or arrays.
      like: our parameters as shapes, dtypes and shardings (`Partitioner.abstract`).
      rows: V of the checkpoint. Where ours is larger, the words that it lacks start as the mean of all it
        has: no other logit changes, and theirs are those of an average word.
      where: name of the checkpoint, for messages.

    Returns:
      The tree of `like`, placed as it says.

    Raises:
      ValueError: a tensor that is missing, of another shape than config.json makes it, or that has no place.
    """
    table = trees.named(like)
    places = {path: _place(path, _shape_there(path, x.shape, rows)) for path, x in table.items()}
    wanted = {name: place.shape for place in places.values() for name in place.names}
    _check(tensors, wanted, "head_DV" not in table, where)

    def leaf(path: str, x: jax.ShapeDtypeStruct) -> Array:
        place = places[path]
        words = path.rpartition("_")[2].find("V")

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if place.stacked:
                layers = place.names[index[0]]
                out = np.empty((len(layers), *(len(range(n)[i]) for n, i in _zip(x.shape, index))), x.dtype)
                for n, name in enumerate(layers):
                    out[n] = place.ours(tensors[name])[index[1:]]
                return out
            whole = place.ours(tensors[place.names[0]])
            found = whole[index].astype(x.dtype)
            if words < 0 or x.shape[words] == rows:
                return found
            new = len(range(x.shape[words])[index[words]]) - found.shape[words]
            across = tuple(slice(None) if a == words else i for a, i in enumerate(index))
            mean = whole[across].mean(words, dtype=np.float32, keepdims=True).astype(x.dtype)
            return np.concatenate([found, np.repeat(mean, new, words)], words)

        return jax.make_array_from_callback(x.shape, x.sharding, part)

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(path, x) for path, x in table.items()])


def _zip(shape: tuple[int, ...], index: tuple[slice, ...]):
    """Sizes and slices of the axes behind the layers."""
    return zip(shape[1:], index[1:], strict=True)


def _shape_there(path: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    letters = path.rpartition("_")[2]
    return tuple(rows if "V" in letters and letters[i] == "V" else n for i, n in enumerate(shape))


def _check(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], tied: bool, where: str
) -> None:
    """Holds the tensors of a checkpoint to what its config.json makes of them."""
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(wanted)} tensors that its config.json asks for: "
            f"{some(missing)}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{where}: {name} has the shape {list(tensors[name].shape)}, its config.json makes it "
                f"{list(shape)}: they are not of one checkpoint"
            )
    spare = [name for name in tensors if name not in wanted and not NO_LOGIT.fullmatch(name)]
    if tied and "lm_head.weight" in spare:  # written though it is the embedding
        same = np.array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        spare = [name for name in spare if not (name == "lm_head.weight" and same)]
    if spare:
        raise ValueError(
            f"{where} holds {len(spare)} tensors that its config.json has no place for: {some(spare)}"
        )


def tensors_of(params: Tree) -> tuple[dict[str, tuple[tuple[int, ...], str]], Callable[[str], np.ndarray]]:
    """Our parameters as tensors of theirs; the inverse of `load`.

    Returns:
      Shape and dtype of every tensor by its name, and a function that gives the tensor of a name.
    """
    table = trees.named(params)
    places = {path: _place(path, x.shape) for path, x in table.items()}
    at = {name: (path, n) for path, place in places.items() for n, name in enumerate(place.names)}
    shapes = {name: (places[path].shape, str(table[path].dtype)) for name, (path, _) in at.items()}

    def get(name: str) -> np.ndarray:
        path, n = at[name]
        array = table[path][n] if places[path].stacked else table[path]
        return places[path].theirs(np.asarray(array))

    return shapes, get
