"""Lives that start from a checkpoint: its shape, its tokenizer, its words, and what birth makes of it."""

import dataclasses
import json
import os
import pathlib
import sys
import types

import jax
import lives
import numpy as np
import pytest
import tokenizers
from equality import bit_equal
from tokenizers import decoders, models, pre_tokenizers

from sleep_jax import life, metrics, pretrained, saying, settings, tensorfile
from sleep_jax.data import stream
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import convert, families
from sleep_jax.model.build import build
from sleep_jax.model.config import ModelConfig
from sleep_jax.types import Sampling

REAL = pathlib.Path(os.environ.get("SLEEP_JAX_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SHAPE = ModelConfig(
    vocab_size=270, width=32, layers=1, heads=2, kv_heads=1, head_size=16, ff=64, max_len=96, qk_norm=True
)
CHAT = (
    "{% for m in messages %}\n<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def write_tokenizer(folder, *words, config=None):
    """Byte-level, with these words as special tokens behind the 256 letters."""
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(words))
    inner.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


@pytest.fixture
def folder(tmp_path, scatter):
    """A Qwen 3 with 270 rows of which its tokenizer uses 258, without a token that begins texts."""
    path = tmp_path / "qwen"
    path.mkdir()
    write_tokenizer(
        path, "<|end|>", "<|start|>", config={"eos_token": {"content": "<|end|>"}, "chat_template": CHAT}
    )
    params = scatter(jax.eval_shape(build(SHAPE, settings.MemoryConfig(), eos=0).init, jax.random.key(0)), 5)
    tensorfile.write(path / "model.safetensors", *convert.tensors_of(params))
    (path / "config.json").write_text(json.dumps(families.write_config(SHAPE)))
    return path


def born(folder, workdir, epochs, **changes):
    changes = {"model": {"checkpoint": str(folder), "max_len": 96}, "row_length": 96, **changes}
    config = lives.config(birth={"epochs": epochs}, **changes)
    sized = life.sized(config, workdir.parent)
    return life.birth(sized, sized.seed, workdir, stream.load(sized.stream)), sized


def test_without_passes_over_birth_a_checkpoint_is_taken_as_it_is(folder, tmp_path, compiled, capsys):
    with lives.quick(compiled):
        newborn, config = born(folder, tmp_path / "birth", epochs=0)
    assert dataclasses.replace(config.model, checkpoint="") == SHAPE
    assert newborn.params["embed_VD"].shape == (270, 32)
    stored = tensorfile.read(folder / "model.safetensors")
    np.testing.assert_array_equal(newborn.params["embed_VD"], stored["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        newborn.params["blocks"]["mlp"]["up_NDF"][0], stored["model.layers.0.mlp.up_proj.weight"].T
    )
    assert (newborn.tok.bos, newborn.tok.eos, newborn.tok.pad) == (256, 256, 258)
    assert "258 words in 270 rows" in capsys.readouterr().out
    for file in folder.iterdir():  # a birth that has been is taken up without its checkpoint
        file.unlink()
    pretrained.find.cache_clear()
    with lives.quick(compiled):
        again = life.birth(config, config.seed, tmp_path / "birth", stream.load(config.stream))
    assert bit_equal(again.params, newborn.params) == []
    assert again.tok.names == newborn.tok.names
    asked = dataclasses.replace(config, model=settings.ModelConfig(checkpoint=str(folder), max_len=96))
    (tmp_path / "config.json").write_text(settings.as_json(config))
    assert life.sized(asked, tmp_path) == config and "What has been born of it" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        life.sized(asked, tmp_path / "elsewhere")


def test_the_files_of_what_is_loaded_are_no_memory_of_the_process(folder):
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("Linux tells what is mapped")
    config = pretrained.shape(ModelConfig(checkpoint=str(folder)))
    like = jax.eval_shape(build(config, settings.MemoryConfig(), eos=0).init, jax.random.key(0))
    assert str(folder) in maps.read_text()
    pretrained.params(str(folder), jax.tree.map(placed, like))
    assert str(folder) not in maps.read_text()


def test_birth_documents_are_read_on_top_of_what_the_checkpoint_knows(folder, tmp_path, compiled):
    with lives.quick(compiled):
        newborn, config = born(folder, tmp_path / "birth", epochs=1)
        first = metrics.read_jsonl(tmp_path / "birth" / "metrics.jsonl")[0][0]
    params = pretrained.params(str(folder), jax.tree.map(placed, newborn.params))
    moved = bit_equal(newborn.params, params)
    assert "embed_VD" in moved and "blocks/attn/q_norm/scale" in moved
    assert np.abs(newborn.params["embed_VD"] - params["embed_VD"]).mean() < 0.1  # and not far
    assert first["step"] == 1


def placed(x):
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )


def test_a_vocabulary_without_room_grows_by_what_it_lacks(folder, tmp_path, compiled):
    words = [f"<{i}>" for i in range(14)]  # all 270 rows
    write_tokenizer(folder, *words, config={"eos_token": "<0>", "bos_token": "<1>", "pad_token": "<0>"})
    with lives.quick(compiled):
        newborn, _ = born(folder, tmp_path / "birth", epochs=0)
    tok, embed_VD = newborn.tok, np.asarray(newborn.params["embed_VD"])
    assert (tok.eos, tok.bos, tok.appended) == (256, 257, 4) and embed_VD.shape[0] == 274
    apart = np.linalg.norm(embed_VD[270:, None] - embed_VD[None, 270:], axis=-1)
    usual = np.linalg.norm(embed_VD[:4, None] - embed_VD[None, :4], axis=-1)  # no two of them are one word
    assert 0.5 < apart[~np.eye(4, dtype=bool)].min() / usual[~np.eye(4, dtype=bool)].mean() < 2


def test_added_words_may_stand_beyond_the_rows_and_are_new(folder, tmp_path, compiled, capsys):
    """As <image_soft_token> of the Gemma 3 that only read; a vocabulary beyond the rows is another's."""
    write_tokenizer(folder, *(f"<{i}>" for i in range(15)), config={"eos_token": "<0>", "bos_token": "<1>"})
    tok = pretrained.tokenizer(str(folder), "")
    assert (tok.learnt, tok.vocab_size, tok.appended) == (256, 275, 4)
    assert "1 words added to its tokenizer have no row" in capsys.readouterr().out
    fields = json.loads((folder / "config.json").read_text()) | {"vocab_size": 255}
    (folder / "config.json").write_text(json.dumps(fields))
    pretrained.find.cache_clear()
    with pytest.raises(ValueError, match="has 256 words, the embedding of .* 255 rows"):
        pretrained.tokenizer(str(folder), "")


def test_a_head_that_is_the_embedding_is_counted_once(folder, capsys):
    stored = tensorfile.read(folder / "model.safetensors")
    size = sum(x.size for x in stored.values())
    stored = {k: np.array(x) for k, x in stored.items()}
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    shapes = {k: (x.shape, "float32") for k, x in stored.items()}
    tensorfile.write(folder / "model.safetensors", shapes, stored.__getitem__)
    pretrained.tokenizer(str(folder), "")
    assert f"{size:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, config, wanted",
    [
        (["<bos>", "<pad>"], None, {"bos": 256, "pad": 257, "eos": 258}),
        (
            ["<e>"],
            {"eos_token": "<e>", "bos_token": None, "pad_token": "<e>"},
            {"bos": 256, "eos": 256, "pad": 257},
        ),
        (
            ["<b>", "<e>", "<p>"],
            {"eos_token": "<e>", "bos_token": "<b>", "pad_token": "<p>"},
            {"pad": 258, "ans": 259},
        ),
        (
            ["<b>", "<|reserved_special_token_1|>", "<|reserved_special_token_0|>", "<e>"],
            {"eos_token": "<e>", "bos_token": "<b>"},
            {"bos": 256, "eos": 259, "pad": 257, "ans": 258, "recall": 260},
        ),
        (
            ["<say>", "<unused7>", "<x>"],
            {"eos_token": "<x>", "extra_special_tokens": {"ans_token": "<unused7>"}},
            {"eos": 258, "ans": 257, "say": 256, "pad": 259},
        ),
        (["<x>"], {"eos_token": "<x>", "extra_special_tokens": ["<x>"]}, {"eos": 256, "ans": 258}),
    ],
    ids=["ours", "no bos", "all three", "reserved", "named", "a list"],
)
def test_special_tokens_go_by_their_names(words, config, wanted, tmp_path):
    tok = Tokenizer.load(write_tokenizer(tmp_path, *words, config=config))
    assert {kind: getattr(tok, kind) for kind in wanted} == wanted
    distinct = [tok.pad, tok.eos, tok.ans, tok.recall, tok.say]
    assert len(set(distinct)) == 5 and tok.bos not in (tok.pad, tok.ans, tok.recall, tok.say)
    for name in tok.names.values():
        assert len(tok.encode(name)) > 1  # no text can spell them
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.names, again.vocab_size, again.appended) == (tok.names, tok.vocab_size, 0)


def test_a_name_that_the_vocabulary_lacks_is_an_error(tmp_path):
    path = write_tokenizer(tmp_path, "<e>", config={"eos_token": "</s>"})
    with pytest.raises(ValueError, match="calls '</s>' the eos_token; tokenizer.json lacks it"):
        Tokenizer.load(path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer_config.json is not a JSON object"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"eos_token": {}}, "eos_token={} must be a text, or an object with a text as its content"),
        ({"eos_token": {"content": None}}, "eos_token={'content': None} must be a text"),
        ({"eos_token": 3}, "eos_token=3 must be a text"),
        ({"extra_special_tokens": {"ans_token": ["<e>"]}}, "ans_token=.* must be a text"),
        ({"chat_template": {"default": CHAT}}, "chat_template={'default': .* must be a text, or a list of"),
        (
            {"chat_template": [{"name": "default"}]},
            "chat_template=.* list of objects with a name and a template",
        ),
        ({"chat_template": ["default"]}, "chat_template=.* list of objects with a name and a template"),
    ],
)
def test_what_is_said_beside_a_tokenizer_in_another_type_is_named(config, said, tmp_path):
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {said}"):
        Tokenizer.load(write_tokenizer(tmp_path, "<e>", config=config))


DIALECT = (  # what templates take to be there
    "{% if tools is none and documents is none %}no tools{% endif %}\n"
    "{% set said = 'outside' %}{% for m in messages %}\n  {% generation %}\n"
    "{% set said = m.role %}{{ said ~ loop.index }}{% endgeneration %}\n{% endfor %}{{ said }}\n"
    "{{ messages | tojson(false, 2, sort_keys=true) }}{{ messages | tojson(separators=(',', ':')) }}"
)


@pytest.mark.parametrize("form", ["config", "named", "file", "dialect"])
def test_dialogues_are_those_that_transformers_renders(form, tmp_path):
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    named = [{"name": "default", "template": CHAT}]
    chat = {"config": CHAT, "named": named, "file": None, "dialect": DIALECT}[form]
    config = {"eos_token": "<|end|>", "chat_template": chat, "tokenizer_class": "PreTrainedTokenizerFast"}
    path = write_tokenizer(tmp_path, "<|end|>", "<|start|>", config=config)
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(CHAT)
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Où?"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    tok = Tokenizer.load(path)
    assert tok.asked(messages) == list(wanted)
    assert len(tok.encode("<|end|>")) > 1  # which is a text again

    for template, said in (("raise_exception('no ' + messages[0].role)", "no system"), ("1 + 'a'", "unsupp")):
        tok.chat_template = "{{ " + template + " }}"
        with pytest.raises(ValueError, match=f"refuses this: {said}"):
            tok.asked(messages)
    tok.chat_template = ""
    with pytest.raises(ValueError, match="has no chat template"):
        tok.asked(messages)


def test_a_name_of_the_hub_is_fetched_or_said_to_be_out_of_reach(folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "Qwen/none":
            raise OSError("offline, and not cached")
        return str(folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert pretrained.find("Qwen/Qwen3-tiny").fields["hidden_size"] == 32
    assert asked == [("Qwen/Qwen3-tiny", ["*.json", "*.safetensors", "*.jinja"])]
    with pytest.raises(FileNotFoundError, match="could not be fetched: OSError: offline, and not cached"):
        pretrained.find("Qwen/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        pretrained.find("Qwen/other")


def test_settings_that_disagree():
    with pytest.raises(ValueError, match="birth.epochs=0 with neither birth.checkpoint nor model.checkpoint"):
        settings.load({"birth": {"epochs": 0}})
    for key in ("birth", "model"):
        values = {"birth": {"epochs": 0}, "model": {}}
        values[key] |= {"checkpoint": "x"}
        assert settings.load(values).birth.epochs == 0


def test_a_text_ends_at_every_token_that_config_json_calls_an_end(folder):
    """The turns of a Gemma end with another token than its texts."""
    config = settings.load({"model": {"checkpoint": str(folder)}})
    sampling = Sampling(12, 1.0)
    whole = saying.say(config, "Where?", True, sampling)
    fields = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    stop = next(letter for letter in whole if letter in vocabulary and whole.index(letter) > 1)
    fields["eos_token_id"] = [256, vocabulary[stop]]
    (folder / "config.json").write_text(json.dumps(fields))
    pretrained.find.cache_clear()
    assert saying.say(config, "Where?", True, sampling) == whole[: whole.index(stop)].strip()


@pytest.mark.skipif(not (REAL / "stories260K").is_dir(), reason=f"no stories260K in {REAL}")
def test_a_real_checkpoint_goes_on_with_its_story():
    source = str(REAL / "stories260K")
    config = settings.load({"model": {"checkpoint": source}})
    begin = "Once upon a time, there was a little girl named Lily. She loved"
    assert saying.say(config, "", False, Sampling(40, 0.0)).startswith(begin)
    assert saying.say(config, begin, False, Sampling(12, 0.0)).startswith(" to play outside in the park")
