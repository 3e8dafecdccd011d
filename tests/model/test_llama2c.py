"""Checkpoints and tokenizers of llama2.c: made here in its format, and the real ones where they are."""

import os
import pathlib
import struct

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sleep_jax import pretrained
from sleep_jax.data import llama2c as tokenizer_of
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import llama2c
from sleep_jax.model.build import build
from sleep_jax.model.config import MemoryConfig, ModelConfig
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.types import Sampling

REAL = pathlib.Path(os.environ.get("SLEEP_JAX_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not (REAL / "stories260K").is_dir(), reason=f"no stories260K in {REAL}")

PIECES = [" ", "a", "b", "c", "é", " a", "ab", "aa", "bc", "abc", "aab", " ab"]
# What llama2.c's doc/stories260K.md says that this model says.
STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she \
saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to \
play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, \
"Don't worry, Lily. We can help you."""


def write_tokenizer(path, pieces=PIECES):
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    raw = b"".join(
        struct.pack("<fi", score, len(t.encode())) + t.encode()
        for t, score in zip(tokens, scores, strict=True)
    )
    path.write_bytes(struct.pack("<i", 7) + raw)
    return tokens, scores


def write_model(path, sizes=(12, 20, 2, 2, 1, 30, 16), seed=0):
    """Returns the arrays as they stand there."""
    D, F, N, H, J, V, T = sizes
    K, V = D // H, abs(V)
    shapes = {"emb": (V, D), "n1": (N, D), "q": (N, H * K, D), "k": (N, J * K, D), "v": (N, J * K, D)}
    shapes |= {"o": (N, D, H * K), "n2": (N, D), "w1": (N, F, D), "w2": (N, D, F), "w3": (N, F, D), "n": (D,)}
    shapes |= {"cos": (T, K // 2), "sin": (T, K // 2)} | ({"cls": (V, D)} if sizes[5] < 0 else {})
    rng = np.random.default_rng(seed)
    arrays = {k: rng.normal(size=s).astype("<f4") for k, s in shapes.items()}
    path.write_bytes(struct.pack("<7i", *sizes) + b"".join(x.tobytes() for x in arrays.values()))
    return arrays


def reference(w, sizes, tokens):
    """Logits of the last token, in float64, as llama2.c's run.c computes: rotary pairs are neighbours."""
    D, _, N, H, J, _, _ = sizes
    K = D // H

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def turn(x_THK):
        angle = np.arange(len(x_THK))[:, None] * 10_000.0 ** (-np.arange(0, K, 2) / K)
        z = (x_THK[..., ::2] + 1j * x_THK[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(x_THK.shape)

    w = {k: x.astype(np.float64) for k, x in w.items()}
    x = w["emb"][tokens]
    T = len(tokens)
    for n in range(N):
        h = norm(x, w["n1"][n])
        q, k, v = ((h @ w[a][n].T).reshape(T, -1, K) for a in "qkv")
        q, k, v = turn(q), np.repeat(turn(k), H // J, 1), np.repeat(v, H // J, 1)
        score = np.einsum("thk,shk->hts", q, k) / np.sqrt(K) + np.where(np.tri(T), 0, -np.inf)
        weight = np.exp(score - score.max(-1, keepdims=True))
        y = np.einsum("hts,shk->thk", weight / weight.sum(-1, keepdims=True), v).reshape(T, D)
        x = x + y @ w["o"][n].T
        h = norm(x, w["n2"][n])
        gate = h @ w["w1"][n].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][n].T)) @ w["w2"][n].T
    return norm(x, w["n"]) @ w.get("cls", w["emb"]).T


def load(path, max_len=16):
    c = pretrained.shape(ModelConfig(checkpoint=str(path), max_len=max_len))
    model = build(c, MemoryConfig(), eos=1)
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, pretrained.params(str(path), Partitioner(MeshConfig(), jax.devices()[:1]).abstract(like))


@pytest.mark.parametrize(
    "sizes", [(12, 20, 2, 2, 1, 30, 16), (16, 24, 3, 2, 2, -30, 16)], ids=["tied", "head"]
)
def test_logits_are_those_that_llama2c_computes(sizes, tmp_path):
    arrays = write_model(tmp_path / "model.bin", sizes)
    model, params = load(tmp_path / "model.bin")
    tokens = np.random.default_rng(1).integers(0, 30, 11)
    np.testing.assert_allclose(
        model.apply(params, tokens[None]).logits_BTV[0],
        reference(arrays, sizes, tokens),
        rtol=1e-3,
        atol=2e-3,
    )


def bpe(text, tokens, scores):
    """llama2.c's encode, by its description: join the best pair of neighbours until there is none."""
    ids = []
    for letter in text:
        ids += [tokens.index(letter)] if letter in tokens[259:] else [3 + b for b in letter.encode()]
    while True:
        joined = [tokens[a] + tokens[b] for a, b in zip(ids, ids[1:], strict=False)]
        known = [(scores[tokens.index(t)], -i) for i, t in enumerate(joined) if t in tokens]
        if not known:
            return ids
        at = -max(known)[1]
        ids[at : at + 2] = [tokens.index(joined[at])]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from([*" abcé", "\n", "€", "<", "s", ">"])))
def test_texts_become_the_tokens_of_llama2c_and_come_back(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "tok12.bin"
    tokens, scores = write_tokenizer(path)
    tok = Tokenizer.load(path)
    assert tok.encode(text) == bpe(text, tokens, scores)
    assert tok.decode(tok.encode(text)) == text


def test_special_tokens(tmp_path):
    write_tokenizer(tmp_path / "tok12.bin")
    tok = Tokenizer.load(tmp_path / "tok12.bin")
    assert (tok.bos, tok.eos, tok.appended, tok.vocab_size) == (1, 1, 4, 259 + len(PIECES) + 4)
    assert not {tok.pad, tok.ans, tok.recall, tok.say} & set(range(259 + len(PIECES)))
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.names, again.appended, again.bos) == (tok.names, 0, 1)
    assert again.encode(" abcé\n<s>") == tok.encode(" abcé\n<s>")


def test_bad_files(tmp_path):
    path = tmp_path / "model.bin"
    write_model(path)
    whole = path.read_bytes()
    for content, said in (
        (b"short", "it has 5 bytes, its header 28"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "run `git lfs pull`"),
        (whole[:-4], f"has {len(whole) - 4:,} bytes, but a model of its header {len(whole):,}"),
        (whole + b"....", "fetch it again"),
        (
            struct.pack("<7i", llama2c.MAGIC, 2, 0, 0, 0, 0, 0) + whole,
            "llama2.c of version 2; version 0 can be",
        ),
        (struct.pack("<7i", 12, 20, 2, 5, 1, 30, 16) + whole[28:], "make no model"),
        (struct.pack("<7i", 12, 20, 0, 2, 1, 30, 16) + whole[28:], "make no model"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            llama2c.read(path)
    tok = tmp_path / "tok.bin"
    write_tokenizer(tok)
    whole = tok.read_bytes()
    for content, said in (
        (b"", "0 tokens, of which"),
        (whole[:-1], "of 3 bytes ends behind the file's"),
        (whole[:500], "is no tokenizer of llama2.c, or is cut"),
        (whole + struct.pack("<fi", 0, 1) + b"a", "a token stands there twice"),
        (whole + struct.pack("<fi", 0, 1) + b"\xff", "is no tokenizer of llama2.c"),
    ):
        tok.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            tokenizer_of.read(tok)


def test_what_is_missing_of_a_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file or folder here, and no name on the hub"):
        pretrained.find(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nor one model of llama2.c \(it holds 0: none\)"):
        pretrained.find(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="model.safetensors' is one file, .*: name the folder that holds it"):
        pretrained.find(str(tmp_path / "model.safetensors"))
    for name in "ab":
        write_model(tmp_path / f"{name}.bin")
    with pytest.raises(FileNotFoundError, match=r"\(it holds 2: a.bin, b.bin\)"):
        pretrained.find(str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="has no tokenizer.json or tok.*.bin of its own: name the file"
    ):
        pretrained.tokenizer(str(tmp_path / "a.bin"), "")
    write_tokenizer(tmp_path / "tok12.bin")
    with pytest.raises(ValueError, match="tok12.bin has 271 words, the embedding of .* 30 rows"):
        pretrained.tokenizer(str(tmp_path / "a.bin"), str(tmp_path / "tok12.bin"))


@real
def test_the_story_is_the_one_that_llama2c_documents_word_for_word():
    model, params = load(REAL / "stories260K", max_len=512)
    tok = pretrained.tokenizer(str(REAL / "stories260K"), "")
    sampling, keys_B = Sampling(256, temperature=0.0), jax.random.split(jax.random.key(0), 1)
    decode = jax.jit(lambda p: model.decode(p, np.array([[tok.bos]]), np.array([1]), keys_B, sampling))
    assert tok.decode(decode(params).tokens_BT[0, 1:]).strip() == STORY


@real
def test_two_models_share_a_tokenizer():
    model, params = load(REAL / "llama2xs279K", max_len=256)
    tok = pretrained.tokenizer(str(REAL / "llama2xs279K"), str(REAL / "stories260K" / "tok512.bin"))
    assert (model.config.ff, sum(x.size for x in jax.tree.leaves(params))) == (192, 279_232)
    ids = np.array([[tok.bos, *tok.encode(" " + STORY)]])[:, :200]
    logits_BTV = np.asarray(model.apply(params, ids).logits_BTV)
    logp = np.take_along_axis(logits_BTV[:, :-1], ids[:, 1:, None], -1)[..., 0]
    logp = logp - np.log(np.exp(logits_BTV[:, :-1]).sum(-1))
    assert -logp.mean() < 1.6  # nats a token; wrong weights or tokens give more than log 512 = 6.2
