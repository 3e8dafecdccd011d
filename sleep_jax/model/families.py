"""Families of decoders by their config.json: to `ModelConfig` and back.

Llama 3, SmolLM2 (which is a Llama), Qwen 2.5, Qwen 3 and Gemma 3, as transformers saves them. What a
config.json says is used, or known to change no logit, or refused by its name; there is no default for what it
leaves out, but those of `UNSAID`, which transformers leaves out itself.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sleep_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one architecture from another: its class in transformers, the settings that it implies, and
    what its config.json says beside that of the others.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_plus_one: bool = False
    post_norms: bool = False
    scaled_embeddings: bool = False
    activation: str = "silu"
    head_dim: bool = False  # is always said
    query_scalar: bool = False  # query_pre_attn_scalar is said
    local_theta: bool = False  # layers with a window have a rotary base of their own
    windows: str = ""  # field that tells these layers where layer_types does not; "": there are none


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windows="max_window_layers"),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, head_dim=True, windows="max_window_layers"),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        qk_norm=True,
        norm_plus_one=True,
        post_norms=True,
        scaled_embeddings=True,
        activation="gelu_tanh",
        head_dim=True,
        query_scalar=True,
        local_theta=True,
        windows="sliding_window_pattern",
    ),
}
TRAITS = ("qkv_bias", "qk_norm", "norm_plus_one", "post_norms", "scaled_embeddings", "activation")
ACTIVATIONS = {"silu": ("hidden_act", "silu"), "gelu_tanh": ("hidden_activation", "gelu_pytorch_tanh")}
LAYER_TYPES = ("full_attention", "sliding_attention")
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ff": "intermediate_size",
}
# The only value with which these compute what the modules here do.
FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "is_llama_config": True,
    "use_bidirectional_attention": False,
    "use_mrope": False,
}
# Of training, of generating or of the file itself: no logit depends on them.
IGNORED = re.compile(
    r"_name_or_path|_sliding_window_pattern|architectures|attention_dropout|cache_implementation|dtype|"
    r"(bos|eos|pad)_token_id|initializer_range|model_type|torch_dtype|transformers(_version|\.js_config)|"
    r"use_cache"
)
OWN = ("checkpoint", "max_len", "compute_dtype", "remat", "unroll")  # no checkpoint says these
LARGE, CHUNK = 16_384, 64  # words whose logits never exist for all positions at once; how many then
CONFIG = "config.json"


def read_config(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], own: ModelConfig, where: str = CONFIG
) -> ModelConfig:
    """The shape of a checkpoint, and of `own` what is not the checkpoint's: max_len, compute_dtype and so on.

    Args:
      fields: config.json.
      tensors: of the checkpoint by their names there. Whether there is a head of its own tells whether
        embeddings are tied where the file does not say, and the widest type is that of the parameters.
      own: `max_len` of it may be at most the checkpoint's. A `param_dtype` other than float32 is what the
        parameters become; a `logit_chunk` of 0 is 64 where there are more than 16,384 words.
      where: name of the file, for messages.

    Raises:
      ValueError: another architecture, a setting that no module here has, one that is missing, or a
        `max_len` beyond what the checkpoint was made for.
    """
    fields, kind = dict(fields), fields.get("model_type")
    if kind not in tuple(FAMILIES):  # what JSON holds may have no hash
        raise ValueError(f"{where}: model_type={kind!r} is not supported; these are: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    if (named := fields.get("architectures")) and named != [family.architecture]:
        raise ValueError(f"{where}: architectures={named} is not supported, {family.architecture} is")

    number = functools.partial(_number, fields, where=where)
    sizes = {ours: number(theirs, whole=True) for ours, theirs in SIZES.items()}
    longest = number("max_position_embeddings", whole=True)
    if own.max_len > longest:
        raise ValueError(f"model.max_len={own.max_len} exceeds max_position_embeddings={longest} of {where}")
    if fields.get("head_dim") is None and not (family.head_dim or sizes["width"] % sizes["heads"]):
        fields["head_dim"] = sizes["width"] // sizes["heads"]
    sizes["head_size"] = number("head_dim", whole=True)
    if family.query_scalar:
        sizes["query_scalar"] = number("query_pre_attn_scalar", whole=True)
    norm_eps = number("rms_norm_eps", zero=True)
    tied = _switch(fields, "tie_word_embeddings", where)
    window, layers = _read_window(fields, family, sizes["layers"], where)
    rope = _read_ropes(fields, family.local_theta, bool(window), where)
    activation, function = ACTIVATIONS[family.activation]
    fixed = {**FIXED, activation: function}
    for key, value in {activation: _take(fields, activation, where), **fields}.items():
        if key in fixed:
            if value != fixed[key]:
                raise ValueError(f"{where}: {key}={value!r} is not supported, {fixed[key]!r} is")
        elif not IGNORED.fullmatch(key) and value is not None:
            raise ValueError(
                f"{where}: {key}={value!r} is not known here and may change what a {kind} computes; if it "
                "does not, take it out of the file"
            )
    return ModelConfig(
        **{key: getattr(own, key) for key in OWN},
        **sizes,
        **rope,
        **{trait: getattr(family, trait) for trait in TRAITS},
        norm_eps=norm_eps,
        tie_embeddings="lm_head.weight" not in tensors if tied is None else tied,
        window=window,
        window_layers=layers,
        param_dtype=_dtype(tensors) if own.param_dtype == "float32" else own.param_dtype,
        logit_chunk=own.logit_chunk or CHUNK * (sizes["vocab_size"] > LARGE),
    )


def _take(said: dict[str, Any], key: str, where: str) -> Any:
    """Takes a setting that has no default out of `said`."""
    if said.get(key) is None:
        raise ValueError(f"{where} does not say {key}, without which no such model can be built")
    return said.pop(key)


def _number(
    said: dict[str, Any], key: str, where: str, whole: bool = False, zero: bool = False
) -> int | float:
    """Takes a number above 0, or from 0 where `zero` may be, out of `said`."""
    value = _take(said, key, where)
    kind = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not kind or not 0 <= value < math.inf or (value == 0 and not zero):
        raise ValueError(
            f"{where}: {key}={value!r} must be a {'whole ' if whole else ''}number "
            f"{'from' if zero else 'above'} 0"
        )
    return value


def _switch(said: dict[str, Any], key: str, where: str) -> bool | None:
    """Takes what is on or off out of `said`, or None where that is not said."""
    if not isinstance(value := said.pop(key, None), bool | None):
        raise ValueError(f"{where}: {key}={value!r} must be true or false")
    return value


def _dtype(tensors: Mapping[str, np.ndarray]) -> str:
    return str(functools.reduce(jnp.promote_types, {x.dtype for x in tensors.values()}))


def _read_ropes(fields: dict[str, Any], local: bool, windows: bool, where: str) -> dict[str, float]:
    """Takes the rotary settings out of `fields`, in the form before or after transformers 5."""
    new, old = (_settings(fields.pop(k, None), k, where) for k in ("rope_parameters", "rope_scaling"))
    if new and old:
        raise ValueError(f"{where} has rope_parameters and rope_scaling: one of them must go")
    said, near = ({"rope_theta": fields.pop(key, None)} for key in ("rope_theta", "rope_local_base_freq"))
    if not local:
        return _read_rope(said | (new or old), where)
    parts = new or {LAYER_TYPES[0]: old}
    if parts.keys() - set(LAYER_TYPES) or not all(isinstance(x, Mapping | None) for x in parts.values()):
        raise ValueError(f"{where}: rope_parameters={new} must have an entry for each of {LAYER_TYPES}")
    said, near = (x | (parts.get(kind) or {}) for x, kind in zip((said, near), LAYER_TYPES, strict=True))
    settings = _read_rope(said, where)
    if windows:
        if (kind := near.get("rope_type", "default")) != "default":
            raise ValueError(
                f"{where}: rope_type={kind!r} of sliding_attention is not supported, 'default' is"
            )
        settings["rope_local_theta"] = _read_rope(near, f"sliding_attention of {where}")["rope_theta"]
    return settings


def _settings(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{where}: {key}={value!r} must be an object of settings")
    return value or {}


def _read_rope(said: dict[str, Any], where: str) -> dict[str, float]:
    said = dict(said)
    settings = {"rope_theta": float(_number(said, "rope_theta", where))}
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
    if kind not in tuple(keys):
        raise ValueError(f"{where}: rope_type={kind!r} is not supported; these are: {', '.join(keys)}")
    if said.keys() != set(keys[kind].values()):
        raise ValueError(
            f"{where}: rope_type={kind!r} takes {', '.join(keys[kind].values()) or 'no further settings'}, "
            f"but is given {', '.join(said) or 'none'}"
        )
    for ours, theirs in keys[kind].items():
        settings[ours] = _number(said, theirs, where, whole=ours == "rope_original")
    return settings


def _read_window(
    fields: dict[str, Any], family: Family, layers: int, where: str
) -> tuple[int, tuple[int, ...]]:
    """Takes window and its layers out of `fields`."""
    if not family.windows:
        return 0, ()
    said = {k: fields.pop(k, None) for k in ("sliding_window", "layer_types", family.windows)}
    window, types = said["sliding_window"], said["layer_types"]
    pattern = family.windows == "sliding_window_pattern"
    used = pattern or _switch(fields, "use_sliding_window", where)
    if used is None:
        raise ValueError(f"{where} does not say use_sliding_window")
    if types is None and used:
        if said[family.windows] is None:
            raise ValueError(f"{where} says neither layer_types nor {family.windows}")
        number = _number(said, family.windows, where, whole=True, zero=not pattern)
        near = [(n + 1) % number > 0 if pattern else n >= number for n in range(layers)]
        types = [LAYER_TYPES[x] for x in near]
    elif types is None:
        types = [LAYER_TYPES[0]] * layers
    if not isinstance(types, list) or len(types) != layers or any(x not in LAYER_TYPES for x in types):
        raise ValueError(
            f"{where}: layer_types={types} must be 'full_attention' or 'sliding_attention' for each of "
            f"num_hidden_layers={layers}"
        )
    chosen = tuple(n for n, kind in enumerate(types) if kind == "sliding_attention")
    if chosen and not (used and window):
        switch = "" if pattern else f"use_sliding_window={used} and "
        raise ValueError(f"{where}: layer_types has sliding_attention, but {switch}sliding_window={window}")
    return (_number(said, "sliding_window", where, whole=True), chosen) if chosen else (0, ())


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The config.json of a model; the inverse of `read_config`, with which it shares its tables.

    Raises:
      ValueError: no family has these settings.
    """
    fit = [(kind, f) for kind, f in FAMILIES.items() if _has(f, c)]
    if not fit:
        keys = (*TRAITS, "query_scalar", "window", "rope_local_theta")
        asked = ", ".join(f"model.{key}={getattr(c, key)!r}" for key in keys)
        raise ValueError(
            f"no architecture of transformers ({', '.join(FAMILIES)}) has all of {asked}: this model cannot "
            "be exported"
        )
    kind, family = fit[0]
    fields = {"model_type": kind, "architectures": [family.architecture], "torch_dtype": c.param_dtype}
    fields |= {theirs: getattr(c, ours) for ours, theirs in SIZES.items()}
    fields |= {"rms_norm_eps": c.norm_eps, "head_dim": c.head_size, "max_position_embeddings": c.max_len}
    fields |= dict([ACTIVATIONS[c.activation]])
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
    if family.query_scalar:
        fields["query_pre_attn_scalar"] = c.query_scalar or c.head_size
    if c.rope_local_theta:
        fields["rope_local_base_freq"] = c.rope_local_theta
    if family.windows:
        fields["layer_types"] = [LAYER_TYPES[n in c.window_layers] for n in range(c.layers)]
        # Gemma 3 wants a window even where no layer has it.
        fields["sliding_window"] = c.window or (c.max_len if family.local_theta else None)
    if family.windows == "max_window_layers":
        fields["use_sliding_window"] = bool(c.window)
        fields["max_window_layers"] = min(c.window_layers, default=c.layers)
    return fields


def _has(family: Family, c: ModelConfig) -> bool:
    """Whether a family has all settings of a model."""
    local_theta = family.local_theta and bool(c.window)
    return (
        all(getattr(family, trait) == getattr(c, trait) for trait in TRAITS)
        and bool(family.windows or not c.window)
        and (family.query_scalar or c.query_scalar in (0, c.head_size))
        and local_theta == bool(c.rope_local_theta)
    )


# What the text_config of a Gemma 3 means that does not say these: transformers 4 wrote what differs alone.
UNSAID = {
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
OF_IMAGES = re.compile(r"vision_config|mm_tokens_per_image|(boi|eoi|image)_token_(index|id)")
SEEING = re.compile(r"vision_tower\..*|multi_modal_projector\..*")


def text_part(
    fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """config.json and tensors of a Gemma 3 that sees images (4B and above), as those of one that only reads.

    What either says beyond text and images stays as it is, to be refused. Other checkpoints pass unchanged.

    Raises:
      ValueError: its text_config is no object.
    """
    if fields.get("model_type") != "gemma3":
        return fields, tensors
    rest = {
        k: v
        for k, v in fields.items()
        if k not in ("text_config", "model_type") and not OF_IMAGES.fullmatch(k)
    }
    if rest.get("architectures") == ["Gemma3ForConditionalGeneration"]:
        del rest["architectures"]
    tensors = {k.removeprefix("language_model."): x for k, x in tensors.items() if not SEEING.fullmatch(k)}
    text = _settings(fields.get("text_config"), "text_config", CONFIG)
    return {**UNSAID, **rest, **text}, tensors
