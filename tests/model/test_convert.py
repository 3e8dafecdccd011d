"""Checkpoints of transformers against transformers: random models of every family, both ways."""

import copy
import dataclasses
import functools
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equality import bit_equal

from sleep_jax import pretrained, tensorfile, trees
from sleep_jax.model import convert, families
from sleep_jax.model.build import build
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.types import Sampling

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
torch.set_num_threads(1)  # of models this small, more threads wait for each other fifty times as long

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"rope_theta": 1000.0, "original_max_position_embeddings": 40}
FAMILIES = {
    "llama": ("Llama", {"head_dim": 12, "rope_parameters": LLAMA3}),
    "llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}},
    ),
    "smollm2": ("Llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2, no window": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 10, "use_sliding_window": True, "sliding_window": 7}),
    "qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}
FAMILIES["qwen3"][1]["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA3 = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 5, "tie_word_embeddings": True}
GEMMA3 |= {"layer_types": FAMILIES["qwen3"][1]["layer_types"]}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
FAMILIES["gemma3"] = ("Gemma3", GEMMA3 | {"rope_parameters": GEMMA3_ROPE})
ALL_SEEN = {"layer_types": ["full_attention"] * 3, "num_attention_heads": 4, "tie_word_embeddings": False}
FAMILIES["gemma3, no window"] = ("Gemma3", GEMMA3 | ALL_SEEN)
OWN = ModelConfig(max_len=128)


def other(name, dtype=torch.float32):
    """A model of transformers whose every number is random."""
    kind, settings = FAMILIES[name]
    there = getattr(transformers, f"{kind}ForCausalLM")
    return shaken(there(there.config_class(**SMALL | settings))).to(dtype)


def shaken(model):
    torch.manual_seed(7)
    for path, x in model.named_parameters():
        x.data = 0.25 * torch.randn_like(x) + float("norm" in path)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name) -> (model, folder)`: as transformers writes it, in one file or in several."""

    @functools.cache
    def make(name, shards=False, dtype=torch.float32):
        folder = tmp_path_factory.mktemp("saved")
        model = other(name, dtype)
        model.save_pretrained(folder, max_shard_size="60KB" if shards else "1GB")
        return model, folder

    return make


def read(folder, mesh=None, devices=1, vocab_size=0):
    tensors = tensorfile.read_folder(folder)
    c = families.read_config(tensorfile.json_object(folder / "config.json"), tensors, OWN)
    model = ours(dataclasses.replace(c, vocab_size=max(c.vocab_size, vocab_size)))
    like = jax.eval_shape(model.init, jax.random.key(0))
    placed = Partitioner(mesh or MeshConfig(), jax.devices()[:devices]).abstract(like)
    return model, convert.load(tensors, placed, c.vocab_size, str(folder))


def ours(config):
    return build(config, MemoryConfig(), eos=config.vocab_size)  # a token that never comes


def write(folder, model, params):
    tensorfile.write(folder / "model.safetensors", *convert.tensors_of(params))
    (folder / "config.json").write_text(json.dumps(families.write_config(model.config)))


def theirs(model, tokens_BT):
    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits.float().numpy()


def tokens(*shape):
    return np.random.default_rng(3).integers(0, 97, shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_says_here_what_it_says_in_transformers_and_back_again(name, saved, tmp_path):
    there, folder = saved(name)
    model, params = read(folder)
    tokens_BT = tokens(2, 50)
    wanted = theirs(there, tokens_BT)
    logits = jax.jit(lambda p, x: model.apply(p, x).logits_BTV)(params, tokens_BT)
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)

    write(tmp_path, model, params)
    back = type(there).from_pretrained(tmp_path)
    assert {k: v for k, v in back.state_dict().items() if (v != there.state_dict()[k]).any()} == {}
    np.testing.assert_array_equal(theirs(back, tokens_BT), wanted)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_greedy_continuations_are_those_of_transformers(name, saved):
    there, folder = saved(name)
    model, params = read(folder)
    prompts_BT = tokens(2, 6)
    sampling = Sampling(64, temperature=0.0)
    keys_B = jax.random.split(jax.random.key(0), 2)
    said = jax.jit(lambda p, x: model.decode(p, x, np.full(2, 6), keys_B, sampling))(params, prompts_BT)
    there.generation_config.eos_token_id = None
    wanted = there.generate(torch.tensor(prompts_BT), do_sample=False, max_new_tokens=64, pad_token_id=0)
    np.testing.assert_array_equal(said.tokens_BT, wanted.numpy())
    assert len(np.unique(said.tokens_BT)) > 12
    logits_BTV = jax.jit(lambda p, x: model.apply(p, x).logits_BTV)(params, said.tokens_BT)
    wanted_BT = jax.nn.log_softmax(logits_BTV).max(-1)[:, 5:-1]
    np.testing.assert_allclose(said.logps_BT[:, 6:], wanted_BT, rtol=1e-3, atol=1e-4)


def test_one_file_and_several_and_a_mesh_give_the_same_bits(saved):
    _, params = read(saved("qwen2")[1])
    folder = saved("qwen2", shards=True)[1]
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert bit_equal(read(folder)[1], params) == []
    mesh = MeshConfig(data=1, fsdp=2, model=2)
    _, split = read(saved("qwen2, no window")[1], vocab_size=100, mesh=mesh, devices=4)
    assert bit_equal(split, read(saved("qwen2, no window")[1], vocab_size=100)[1]) == []
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(split)} == {4}


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_half_precision_stays_and_leaves_as_it_came(name, saved, tmp_path):
    there, folder = saved(name, dtype=torch.bfloat16)
    model, params = read(folder)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    write(tmp_path, model, params)
    back = type(there).from_pretrained(tmp_path)
    assert back.dtype == torch.bfloat16
    assert all(torch.equal(v, there.state_dict()[k]) for k, v in back.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "smollm2"])
def test_words_that_the_checkpoint_lacks_start_as_words_of_their_own_and_change_no_other_logit(name, saved):
    folder = saved(name)[1]
    (small, params), (large, grown) = read(folder), read(folder, vocab_size=101)
    said, said_more = (
        jax.jit(m.apply)(p, tokens(1, 9)).logits_BTV for m, p in ((small, params), (large, grown))
    )
    assert said_more.shape[-1] == 101
    np.testing.assert_allclose(said_more[..., :97], said, rtol=1e-5, atol=1e-5)
    for path, x in trees.named(grown).items():
        if "V" in (letters := path.rpartition("_")[2]):
            had = np.moveaxis(np.asarray(trees.named(params)[path]), letters.index("V"), 0)
            new = np.moveaxis(np.asarray(x), letters.index("V"), 0)[97:]
            away = (new - had.mean(0)) / had.std(0)  # as if drawn from the normal distribution
            assert 0.8 < away.std() < 1.2 and np.abs(away.mean()) < 0.2
            assert np.abs(np.corrcoef(new) - np.eye(4)).max() < 0.9


def test_new_words_are_the_same_whatever_part_of_the_table_a_device_holds(saved):
    folder = saved("llama")[1]
    whole = read(folder, vocab_size=208)[1]  # a device that holds the second half has new words alone
    parted = read(folder, MeshConfig(fsdp=2, model=2), 4, vocab_size=208)[1]
    assert len(parted["embed_VD"].sharding.device_set) == 4
    assert bit_equal(whole, parted) == []


def test_the_host_never_holds_the_model_twice(saved):
    """What jax keeps of an array on CPU may be the very memory that was handed over, and then counts here."""
    c = dataclasses.replace(
        OWN, vocab_size=512, width=256, layers=16, heads=4, kv_heads=4, head_size=64, ff=704
    )
    like = jax.eval_shape(ours(c).init, jax.random.key(0))
    shapes, _ = convert.tensors_of(jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), like))
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, (shape, _) in shapes.items()}
    placed = Partitioner(MeshConfig(), jax.devices()[:1]).abstract(like)
    tracemalloc.start()
    params = convert.load(tensors, placed, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * trees.nbytes(params)


CHANGES = {
    "unknown family": (
        {"model_type": "mamba"},
        "model_type='mamba' is not supported; these are: llama, qwen2, ",
    ),
    "another head": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "is not supported, LlamaForCausalLM is",
    ),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "rope_type='yarn' is not supported",
    ),
    "half a llama3": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "takes factor, original_max_position_embeddings, .* is given factor",
    ),
    "no rope": ({"rope_parameters": None}, "does not say rope_theta"),
    "two ropes": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters and rope_scaling"),
    "a word for a rope": ({"rope_parameters": "linear"}, "rope_parameters='linear' must be an object"),
    "three turned": ({"use_mrope": True}, "use_mrope=True is not supported, False is"),
    "no number": ({"hidden_size": "48"}, "config.json: hidden_size='48' must be a whole number above 0"),
    "half a number": ({"hidden_size": 48.5}, "hidden_size=48.5 must be a whole number above 0"),
    "none at all": ({"num_attention_heads": 0}, "num_attention_heads=0 must be a whole number above 0"),
    "a word for a head": ({"head_dim": "8"}, "head_dim='8' must be a whole number above 0"),
    "families": ({"model_type": ["llama"]}, r"model_type=\['llama'\] is not supported"),
    "a word for a number": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be a number from 0"),
    "a word for a switch": ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
    "gelu": ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, 'silu' is"),
    "biases": ({"mlp_bias": True}, "mlp_bias=True is not supported, False is"),
    "not said": ({"rms_norm_eps": None}, "does not say rms_norm_eps"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not known here"),
    "softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not known here"),
    "too short": ({"max_position_embeddings": 64}, "model.max_len=128 exceeds max_position_embeddings=64"),
    "another size": (
        {"intermediate_size": 81},
        r"down_proj.weight has the shape \[48, 80\], .* makes it \[48, 81\]",
    ),
    "a layer more": ({"num_hidden_layers": 4}, r"lacks 9 of 39 tensors .*: model.layers.3"),
    "a layer less": ({"num_hidden_layers": 2}, r"holds 9 tensors that its config.json has no place for"),
}


ROPES = [
    ({"rope_theta": "abc"}, "config.json: rope_theta='abc' must be a number above 0"),
    ({"rope_theta": True}, "rope_theta=True must be a number above 0"),
    ({"rope_theta": float("inf")}, "rope_theta=inf must be a number above 0"),
    ({"rope_type": ["llama3"]}, r"rope_type=\['llama3'\] is not supported"),
    ({"factor": "8"}, "factor='8' must be a number above 0"),
    ({"factor": None}, "does not say factor"),
    ({"original_max_position_embeddings": 0}, "original_max_position_embeddings=0 must be a whole number"),
]
CHANGES |= {str(rope): ({"rope_parameters": LLAMA3 | rope}, said) for rope, said in ROPES}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_supported_is_named(change, saved, tmp_path):
    folder = saved("llama")[1]
    fields = tensorfile.json_object(folder / "config.json") | CHANGES[change][0]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ValueError, match=CHANGES[change][1]):
        read(tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"use_sliding_window": None}, "does not say use_sliding_window"),
        ({"layer_types": ["sliding_attention"]}, "for each of num_hidden_layers=3"),
        ({"layer_types": ["chunked_attention"] * 3}, "must be 'full_attention' or 'sliding_attention'"),
        ({"layer_types": 3}, "layer_types=3 must be 'full_attention' or 'sliding_attention'"),
        ({"layer_types": [["full_attention"]] * 3}, "must be 'full_attention' or 'sliding_attention'"),
        ({"use_sliding_window": False}, "but use_sliding_window=False and sliding_window=5"),
        ({"use_sliding_window": "yes"}, "use_sliding_window='yes' must be true or false"),
        ({"sliding_window": "5"}, "sliding_window='5' must be a whole number above 0"),
        ({"layer_types": None, "max_window_layers": "1"}, "max_window_layers='1' must be a whole number"),
    ],
)
def test_windows_that_disagree_are_named(change, said, saved):
    refused(saved("qwen2")[1], change, said)


def refused(folder, change, said):
    fields = tensorfile.json_object(folder / "config.json") | change
    with pytest.raises(ValueError, match=said):
        families.read_config(fields, tensorfile.read_folder(folder), OWN)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not known here"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not known here"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported, 'gelu_pytorch_tanh' is"),
        ({"query_pre_attn_scalar": None}, "does not say query_pre_attn_scalar"),
        ({"query_pre_attn_scalar": "7"}, "query_pre_attn_scalar='7' must be a whole number above 0"),
        ({"head_dim": None}, "does not say head_dim"),
        ({"layer_types": None}, "says neither layer_types nor sliding_window_pattern"),
        (
            {"layer_types": None, "sliding_window_pattern": 0},
            "sliding_window_pattern=0 must be a whole number above 0",
        ),
        (
            {"rope_parameters": dict.fromkeys(GEMMA3_ROPE, "linear")},
            "must have an entry for each of .*'sliding_attention'",
        ),
        ({"sliding_window": None}, "has sliding_attention, but sliding_window=None"),
        ({"rope_parameters": None, "rope_theta": 1e6}, "sliding_attention of .* does not say rope_theta"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "must have an entry for each of .*'sliding_attention'"),
        (
            {"rope_parameters": GEMMA3_ROPE | {"full_attention": {"rope_type": "yarn", "rope_theta": 1e6}}},
            "rope_type='yarn' is not supported",
        ),
        (
            {"rope_parameters": GEMMA3_ROPE | {"sliding_attention": GEMMA3_ROPE["full_attention"]}},
            "rope_type='linear' of sliding_attention is not supported, 'default' is",
        ),
    ],
)
def test_what_no_gemma_here_computes_is_named(change, said, saved):
    refused(saved("gemma3")[1], change, said)


def test_of_a_gemma_that_sees_the_text_part_is_read(tmp_path):
    """Its config.json as transformers 4 wrote it: what is everybody's is left out, down to the heads."""
    text = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    text |= {"sliding_window": 4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    text |= {"layer_types": GEMMA3["layer_types"]}
    sight = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=dict(text), vision_config=sight, mm_tokens_per_image=4)
    there = shaken(transformers.Gemma3ForConditionalGeneration(config))
    there.save_pretrained(tmp_path)
    fields = tensorfile.json_object(tmp_path / "config.json") | {"text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = pretrained.find(str(tmp_path))
    c = families.read_config(found.fields, found.tensors, OWN)
    assert (c.heads, c.kv_heads, c.head_size, found.rows) == (8, 4, 256, 97)
    model = ours(c)
    placed = Partitioner(MeshConfig(), jax.devices()[:1]).abstract(
        jax.eval_shape(model.init, jax.random.key(0))
    )
    params = convert.load(found.tensors, placed, found.rows)
    wanted = theirs(there, tokens(2, 20))
    logits = jax.jit(lambda p, x: model.apply(p, x).logits_BTV)(params, tokens(2, 20))
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
    for more in (
        {"quantization_config": {"bits": 4}},
        {"architectures": ["Gemma3ForSequenceClassification"]},
    ):
        with pytest.raises(ValueError, match=next(iter(more))):
            families.read_config(families.text_part(fields | more, found.tensors)[0], found.tensors, OWN)


def test_what_a_gemma_that_sees_does_not_say_is_what_transformers_takes_it_for():
    config = transformers.Gemma3TextConfig()
    said = config.to_dict() | {"sliding_window_pattern": config._sliding_window_pattern}
    said["rope_theta"] = config.rope_parameters["full_attention"]["rope_theta"]
    said["rope_local_base_freq"] = config.rope_parameters["sliding_attention"]["rope_theta"]
    assert {key: said[key] for key in families.UNSAID} == families.UNSAID


def test_older_forms_of_config_json_say_the_same(saved):
    """Before transformers 5 the rotary settings were elsewhere, and windows were a number of layers."""
    for name in ("llama", "llama, linear", "qwen2", "gemma3"):
        folder = saved(name)[1]
        tensors = tensorfile.read_folder(folder)
        new = tensorfile.json_object(folder / "config.json")
        old = copy.deepcopy(new)
        rope = old.pop("rope_parameters")
        if name == "gemma3":
            old |= {
                "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
                "sliding_window_pattern": 2,
            }
            rope = rope["full_attention"]
        old["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
        old["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
        old.pop("layer_types", None)
        assert families.read_config(old, tensors, OWN) == families.read_config(new, tensors, OWN)
        again = families.write_config(families.read_config(new, tensors, OWN))
        other = dataclasses.replace(OWN, rope_factor=2.0, query_scalar=5)  # not theirs to say
        assert families.read_config(again, tensors, other) == families.read_config(new, tensors, OWN)


RELEASED = {  # config.json of released checkpoints, of which transformers writes none again like this
    "Qwen/Qwen2.5-0.5B": (
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151_936}
        | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "max_position_embeddings": 32_768, "max_window_layers": 24}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "sliding_window": 32_768, "use_mrope": False}
        | {"use_sliding_window": False, "tie_word_embeddings": True, "hidden_act": "silu"}
        | {"attention_dropout": 0.0, "bos_token_id": 151_643, "eos_token_id": 151_643}
        | {"initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
        | {"transformers_version": "4.40.1"},
        {"head_size": 64, "qkv_bias": True, "window": 0, "logit_chunk": 64},
    ),
    "google/gemma-3-1b-pt": (
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262_144}
        | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "head_dim": 256}
        | {"num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 32_768}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_local_base_freq": 10_000}
        | {"rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6}
        | {"query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "cache_implementation": "hybrid"}
        | {"attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
        | {"initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True},
        {"query_scalar": 256, "window": 512, "rope_local_theta": 1e4, "logit_chunk": 64},
    ),
    "meta-llama/Llama-3.2-1B": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256}
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
        | {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "hidden_act": "silu"}
        | {
            "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
            | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        }
        | {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "attention_dropout": 0.0}
        | {"bos_token_id": 128_000, "eos_token_id": 128_001, "torch_dtype": "bfloat16", "use_cache": True},
        {"rope_factor": 32.0, "rope_original": 8192, "rope_high": 4.0, "qkv_bias": False, "logit_chunk": 64},
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49_152}
        | {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "hidden_act": "silu"}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
        | {"rms_norm_eps": 1e-5, "rope_theta": 100_000, "rope_scaling": None, "rope_interleaved": False}
        | {"attention_bias": False, "pretraining_tp": 1, "is_llama_config": True, "attention_dropout": 0.0}
        | {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.041666666666666664}
        | {"tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True},
        {"head_size": 64, "rope_theta": 1e5, "rope_factor": 1.0, "qk_norm": False, "logit_chunk": 64},
    ),
    "Qwen/Qwen3-0.6B": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936}
        | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 40_960}
        | {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_scaling": None, "hidden_act": "silu"}
        | {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28}
        | {"attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02}
        | {"bos_token_id": 151_643, "eos_token_id": 151_645, "tie_word_embeddings": True}
        | {"torch_dtype": "bfloat16", "use_cache": True},
        {"head_size": 128, "qk_norm": True, "qkv_bias": False, "window": 0, "logit_chunk": 64},
    ),
}
PARAMETERS = {  # that each is known to have
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "google/gemma-3-1b-pt": 999_885_952,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "Qwen/Qwen3-0.6B": 596_049_920,
}


@pytest.mark.parametrize("name", RELEASED)
def test_what_a_released_checkpoint_says_is_understood(name):
    fields, wanted = RELEASED[name]
    half = {"x": np.zeros(1, jnp.bfloat16)}
    c = families.read_config(fields, half, OWN)
    assert {key: getattr(c, key) for key in wanted} == wanted
    assert (c.param_dtype, c.tie_embeddings) == ("bfloat16", True)
    like = jax.eval_shape(ours(c).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(like)) == PARAMETERS[name]


def test_the_type_of_parameters_is_the_files_or_the_one_that_is_asked_for(saved):
    folder = saved("llama")[1]
    fields, tensors = tensorfile.json_object(folder / "config.json"), tensorfile.read_folder(folder)
    assert families.read_config(fields, tensors, OWN).param_dtype == "float32"
    asked = dataclasses.replace(OWN, param_dtype="bfloat16")
    assert families.read_config(fields, tensors, asked).param_dtype == "bfloat16"


def test_a_model_that_no_architecture_has_cannot_be_written():
    with pytest.raises(ValueError, match="model.qkv_bias=True, model.qk_norm=True, .*model.window=0"):
        families.write_config(dataclasses.replace(OWN, qkv_bias=True, qk_norm=True))
    near = {"window": 4, "window_layers": (0,)}
    for settings in (near, {"query_scalar": 7}, {"post_norms": True}, {"activation": "gelu_tanh"}):
        key, value = next(iter(settings.items()))
        with pytest.raises(ValueError, match=f"model.{key}={value!r}"):
            families.write_config(dataclasses.replace(OWN, **settings))
    with pytest.raises(ValueError, match="model.rope_local_theta=9.0"):
        families.write_config(dataclasses.replace(OWN, qk_norm=True, rope_local_theta=9.0, **near))
