"""A life that is written out: transformers runs it, and its experts are what adapter_config.json says."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import lives
import numpy as np
import pytest

from sleep_jax import checkpoint, exporting, pretrained, tensorfile
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.build import build
from sleep_jax.phases import State
from sleep_jax.settings import as_json
from sleep_jax.sleep.selves import Slot

ROOT = pathlib.Path(__file__).parent.parent
TEXTS = [" Where was Anna Kowal born? Bristol"] * 3


@pytest.fixture
def life(tmp_path, grown):
    """`life(**model settings) -> (workdir, model, state)`: fast memory is not empty, two slots open."""

    def make(fast=1.0, method="sleep", **settings):
        config = lives.config(model={"layers": 2, "max_len": 64, **settings})
        tok = Tokenizer.train(TEXTS, 300)
        model = build(config.model.holding(tok.vocab_size), config.memory, eos=tok.eos)
        params, memory = grown(model)
        memory = memory_lib.with_active(memory, np.array([[True, False, True]]))
        memory = dataclasses.replace(memory, fast=jax.tree.map(lambda x: fast * x, memory.fast))
        slots = [Slot(0, i, (n,), (f"day {n}",), 4, 4, "") for n, i in enumerate((0, 2), 1)]
        extra = {"fisher": params, "anchor": params} if method == "ewc" else {}
        state = State(params, memory, extra, slots=slots if method == "sleep" else [])
        workdir = tmp_path / "life"
        meta = {"of": {"method": [method]}, "state": state.record()}
        checkpoint.save_boundary(workdir, "002-sleep", state.arrays(), meta)
        (workdir / "config.json").write_text(as_json(config))
        (workdir / "birth").mkdir()
        tok.save(workdir / "birth" / "tokenizer.json")
        return workdir, model, state

    return make


def tokens(model):
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (1, 20))


def in_transformers(folder, tokens_BT, experts=None):
    """Logits, with `experts(name, h_TD)` added to what every MLP gives."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, module in model.named_modules():
        if experts and name.endswith(".mlp"):
            module.register_forward_hook(lambda _, args, y, name=name: y + experts(name, args[0][0]))
    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits.float().numpy()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


GEMMA3 = {"qk_norm": True, "norm_plus_one": True, "post_norms": True, "scaled_embeddings": True}
GEMMA3 |= {"activation": "gelu_tanh", "window": 5, "window_layers": (1,), "rope_local_theta": 50.0}
FAMILIES = {"llama": {}, "qwen3": {"qk_norm": True, "tie_embeddings": False}, "gemma3_text": GEMMA3}


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_what_is_written_says_in_transformers_what_the_life_says(settings, life, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    workdir, model, state = life(**settings)
    told = exporting.export(workdir, tmp_path / "out")
    assert "2 experts are in experts/ and NOT in model.safetensors" in told
    assert "fast memory is in the MLP weights" in told
    tokens_BT = tokens(model)
    shut = dataclasses.replace(state.memory, active_LE=jnp.zeros((1, 3), bool))
    without = model.apply(state.params, tokens_BT, memory=shut).logits_BTV
    close(in_transformers(tmp_path / "out", tokens_BT), without)

    about = tensorfile.json_object(tmp_path / "out/experts/adapter_config.json")
    assert [e["nights"] for e in about["experts"]] == [[1], [2]]
    held = {
        k: torch.tensor(np.array(x))
        for k, x in tensorfile.read(tmp_path / "out/experts/adapter_model.safetensors").items()
    }

    def experts(name, h_TD):
        """The formula of adapter_config.json, word by word."""
        total = 0
        for i in range(2):
            w = {
                k: held[f"base_model.model.{name}.experts.{i}.{k}"]
                for k in ("lora_A.weight", "lora_B.weight", "router.weight", "router.pool", "router.bias")
            }
            for_itself = h_TD @ w["router.weight"] + w["router.bias"]
            mean = (h_TD @ w["router.pool"]).cumsum(0) / torch.arange(1, len(h_TD) + 1)
            says = torch.nn.functional.silu(h_TD @ w["lora_A.weight"].T) @ w["lora_B.weight"].T
            total = total + ((for_itself + mean) >= 0)[:, None] * about["scale"] * says
        return total

    wanted = model.apply(state.params, tokens_BT, memory=state.memory).logits_BTV
    assert np.abs(wanted - without).max() > 0.05 * np.abs(wanted).max()
    close(in_transformers(tmp_path / "out", tokens_BT, experts), wanted)


def test_plain_is_the_backbone_alone_and_comes_back_as_a_checkpoint(life, tmp_path):
    workdir, model, state = life()
    assert "without the 2 experts" in exporting.export(workdir, tmp_path / "out", plain=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    c = pretrained.shape(dataclasses.replace(model.config, checkpoint=str(tmp_path / "out"), width=999))
    assert dataclasses.replace(c, checkpoint="") == model.config
    tok = pretrained.tokenizer(c.checkpoint, "")
    assert (tok.appended, tok.vocab_size, tok.encode(" Anna")) == (
        0, model.config.vocab_size, Tokenizer.train(TEXTS, 300).encode(" Anna"),
    )  # fmt: skip
    like = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), like)
    jax.tree.map(np.testing.assert_array_equal, pretrained.params(c.checkpoint, like), state.params)


def test_every_token_that_ended_a_text_of_the_checkpoint_still_does(life, tmp_path, monkeypatch):
    workdir, model, _ = life(checkpoint="where it came from")
    end = Tokenizer.load(workdir / "birth" / "tokenizer.json").eos
    found = types.SimpleNamespace(fields={"max_position_embeddings": 999}, ends=(7, end))
    monkeypatch.setattr(pretrained, "find", lambda name: found)
    exporting.export(workdir, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["max_position_embeddings"]) == ([end, 7], 999)


def test_fast_memory_that_is_empty_changes_no_bit(life, tmp_path):
    workdir, _, state = life(fast=0.0, method="ewc", param_dtype="bfloat16")
    assert "fast memory" not in exporting.export(workdir, tmp_path / "out")
    held = tensorfile.read(tmp_path / "out" / "model.safetensors")
    stored = np.asarray(state.params["blocks"]["mlp"]["down_NFD"][1]).T
    np.testing.assert_array_equal(held["model.layers.1.mlp.down_proj.weight"], stored)


def test_what_cannot_be_written_is_said_before_anything_is(life, tmp_path):
    with pytest.raises(ValueError, match="holds no life"):
        exporting.export(tmp_path, tmp_path / "out")
    workdir, *_ = life(qk_norm=True, qkv_bias=True)
    with pytest.raises(ValueError, match="model.qkv_bias=True, model.qk_norm=True, .* cannot be exported"):
        exporting.export(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is there and not an empty folder"):
        exporting.export(workdir, workdir)


def test_the_command(life, tmp_path):
    workdir, *_ = life(method="sequential")
    command = [sys.executable, "-m", "launch.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert run.returncode == 0 and "LlamaForCausalLM of" in run.stdout, run.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert again.returncode == 1 and len(again.stderr.splitlines()) == 2
