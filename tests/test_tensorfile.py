"""Safetensors files against the library of that name, and what is said of damaged ones."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sleep_jax import tensorfile

RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.normal(size=(3, 5)).astype(np.float32),
    "half": RNG.normal(size=(2, 3, 1)).astype(np.float16),
    "brain": RNG.normal(size=7).astype(jnp.bfloat16),
    "none": np.zeros((0, 4), np.float32),
    "one": np.float32(3.5).reshape(()),
}


def write(path, arrays=ARRAYS):
    tensorfile.write(path, {k: (x.shape, str(x.dtype)) for k, x in arrays.items()}, arrays.__getitem__)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
        assert found[name].tobytes() == x.tobytes()


def test_the_library_reads_what_is_written_here_and_the_other_way_round(tmp_path):
    library = pytest.importorskip("safetensors.flax", reason="safetensors is not installed")
    write(tmp_path / "ours.safetensors")
    same({k: np.asarray(x) for k, x in library.load_file(tmp_path / "ours.safetensors").items()}, ARRAYS)
    library.save_file({k: jnp.asarray(x) for k, x in ARRAYS.items()}, tmp_path / "theirs.safetensors")
    same(tensorfile.read(tmp_path / "theirs.safetensors"), ARRAYS)


def test_what_is_written_is_read_and_nothing_half_written_stays(tmp_path):
    write(tmp_path / "model.safetensors")
    same(tensorfile.read_folder(tmp_path), ARRAYS)

    def dies(name):
        raise KeyboardInterrupt

    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tensorfile.write(tmp_path / "model.safetensors", {"a": ((2,), "float32")}, dies)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def raw(header, size):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is no safetensors file, or is cut: of its 0 bytes 0 should be header"),
        (b"PK\3\4 something else", "is no safetensors file, or is cut"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
        (raw(b"{not json", 0), "is no safetensors file: its header is not JSON"),
        (raw([1], 0), "its header must hold a JSON object, found list"),
        (raw(b'{"a":' * 100_000, 0), "its header is not JSON: maximum recursion"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}, 8), "model.safetensors: a has no .*data_offsets"),
        (raw({"a": {**F32, "data_offsets": [0, 8, 9]}}, 8), r"a has no .*says .*\[0, 8, 9\]"),
        (raw({"a": {**F32, "data_offsets": [-8, 0]}, "b": F32}, 8), r"a has no .*says .*\[-8, 0\]"),
        (raw({"a": {**F32, "shape": [-1, -2]}}, 8), r"a has no .*says .*\[-1, -2\]"),
        (raw({"a": {**F32, "shape": [2.5]}}, 8), r"a has no .*says .*\[2.5\]"),
        (raw({"a": {**F32, "dtype": ["F32"]}}, 8), r"a has no .*says .*\['F32'\]"),
        (raw({"a": 3}, 8), "a has no .*says 3"),
        (raw({"a": F32}, 7), "holds 7 bytes of tensors, its header tells of 8: it is cut"),
        (raw({"a": F32}, 9), "holds 9 bytes of tensors, its header tells of 8: it is damaged"),
        (raw({"a": {**F32, "dtype": "F8_E4M3"}}, 8), "a holds numbers of type F8_E4M3; F32, F16, BF16 can"),
        (raw({"a": {**F32, "shape": [3]}}, 8), r"a of F32\[3\] needs 12 bytes, its header gives it 8"),
        (raw({"a": F32, "b": F32}, 8), "b begins at byte 0, but what stands before it ends at 8"),
        (
            raw({"b": {**F32, "data_offsets": [12, 20]}, "a": F32}, 20),
            "b begins at byte 12, but what stands before it ends at 8",
        ),
        (raw({"a": {**F32, "data_offsets": [4, 12]}}, 12), "a begins at byte 4, but what .* ends at 0"),
    ],
)
def test_a_damaged_file_is_told_from_a_good_one(content, said, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        tensorfile.read_folder(tmp_path)


def test_every_shorter_file_is_refused(tmp_path):
    write(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut"):
            tensorfile.read(tmp_path / "cut")


def test_an_index_and_its_files_that_disagree(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor"):
        tensorfile.read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is pickled PyTorch"):
        tensorfile.read_folder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text, said in (("{", "is not JSON"), ("[1]", "must hold a JSON object"), ("{}", "no weight_map")):
        index.write_text(text)
        with pytest.raises(ValueError, match=said):
            tensorfile.read_folder(tmp_path)
    for file in (3, None, ["1.safetensors"]):
        index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "brain": file}}))
        with pytest.raises(ValueError, match="index.json places brain in .*, which names no file"):
            tensorfile.read_folder(tmp_path)
    index.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="index.json is a pointer of git-LFS"):
        tensorfile.read_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "brain": "2.safetensors"}}))
    write(tmp_path / "1.safetensors", {"a": ARRAYS["a"]})
    with pytest.raises(FileNotFoundError, match=r"names 2 files, of which 1 are not in .*: 2.safetensors"):
        tensorfile.read_folder(tmp_path)
    write(tmp_path / "2.safetensors", {"half": ARRAYS["half"]})
    with pytest.raises(ValueError, match="places brain in 2.safetensors, which does not hold it"):
        tensorfile.read_folder(tmp_path)
    write(tmp_path / "2.safetensors", {"brain": ARRAYS["brain"]})
    same(tensorfile.read_folder(tmp_path), {k: ARRAYS[k] for k in ("a", "brain")})
