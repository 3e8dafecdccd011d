"""Safetensors files, read as views of the file on disk and written tensor by tensor.

The format: a little-endian uint64 with the length of a JSON header, the header (name to dtype, shape and the
tensor's first and last byte behind the header), and the bytes of all tensors without a gap. A tensor that is
read is a memory map: it takes memory only where it is looked at, and the kernel takes that back when it
likes.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"  # begins what git keeps in place of a large file that was not fetched
SHOWN = 5  # names in an error


def read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, in one file or in the several that its index names.

    Raises:
      FileNotFoundError: the folder holds no safetensors, or the index names a file that is not there.
      ValueError: a file that is damaged (`read`), or an index that is not what the files hold.
    """
    if (folder / ONE).exists():
        return read(folder / ONE)
    if not (folder / INDEX).exists():
        others = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" ({others[0]} is pickled PyTorch: save it again as safetensors)" if others else ""
        raise FileNotFoundError(f"{folder} holds neither {ONE} nor {INDEX}{hint}")
    index = json_object(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files")
    if wrong := [name for name, file in index.items() if not isinstance(file, str)]:
        raise ValueError(f"{folder / INDEX} places {wrong[0]} in {index[wrong[0]]!r}, which names no file")
    files = sorted(set(index.values()))
    if missing := [f for f in files if not (folder / f).is_file()]:
        raise FileNotFoundError(
            f"{INDEX} names {len(files)} files, of which {len(missing)} are not in {folder}: "
            f"{some(missing)}. Fetch them, or all again"
        )
    held = {file: read(folder / file) for file in files}
    if wrong := [name for name, file in index.items() if name not in held[file]]:
        raise ValueError(
            f"{folder / INDEX} places {some(wrong)} in {index[wrong[0]]}, which does not hold it: index and "
            "files are not of one checkpoint"
        )
    return {name: held[file][name] for name, file in index.items()}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of one file by name, as views of it.

    Raises:
      ValueError: a file that is cut, damaged or of another format, or that holds numbers of another kind than
        float32, float16 and bfloat16; with what it has and what it should have.
    """
    header, start = _header(path)
    spans = {name: _span(f"{path}: {name}", tensor) for name, tensor in header.items()}
    held, at = path.stat().st_size - start, 0
    for name, (*_, first, last) in sorted(spans.items(), key=lambda span: span[1][2:]):
        if first != at:
            raise ValueError(
                f"{path}: {name} begins at byte {first:,}, but what stands before it ends at {at:,}: the "
                "file is damaged"
            )
        at = last
    if at != held:
        raise ValueError(
            f"{path} holds {held:,} bytes of tensors, its header tells of {at:,}: it is "
            f"{'cut' if at > held else 'damaged'}; fetch it again"
        )
    return {name: view(path, dtype, shape, start + first) for name, (dtype, shape, first, _) in spans.items()}


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """What a file says of each tensor by its name, and the byte at which the first begins."""
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(
                f"{path} is no safetensors file, or is cut: of its {size:,} bytes {length:,} should be header"
            )
        header = _object(file.read(length), f"{path} is no safetensors file: its header")
    header.pop("__metadata__", None)
    return header, 8 + length


def _span(where: str, said: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, first and last byte of a tensor, from its entry of the header."""
    match said:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [first, last]} if all(
            type(n) is int and n >= 0 for n in (first, last, *shape)
        ):
            pass
        case _:
            raise ValueError(
                f"{where} has no dtype, shape and data_offsets in whole numbers from 0: its header says "
                f"{str(said)[:200]}; the file is damaged"
            )
    if kind not in DTYPES:
        raise ValueError(
            f"{where} holds numbers of type {kind}; {', '.join(DTYPES)} can be read (a quantised checkpoint "
            "must be saved in one of these first)"
        )
    dtype = jnp.dtype(DTYPES[kind])
    needed = math.prod(shape) * dtype.itemsize
    if last - first != needed:
        raise ValueError(
            f"{where} of {kind}{shape} needs {needed:,} bytes, its header gives it {last - first:,}: the "
            "file is damaged"
        )
    return dtype, tuple(shape), first, last


def refuse_pointer(path: pathlib.Path) -> None:
    """Refuses what git-LFS leaves in place of a file that it has not fetched.

    Raises:
      ValueError: the file is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{path} is a pointer of git-LFS and not the file itself: run `git lfs pull` in its folder, "
                "or download the file"
            )


def view(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """An array of a file, read when and where it is looked at."""
    count = math.prod(shape) * dtype.itemsize
    # As bytes, because not every numpy can map the file as bfloat16 at once.
    raw = np.memmap(path, np.uint8, "r", offset, (count,)) if count else np.zeros(0, np.uint8)
    return raw.view(dtype).reshape(shape)


def write(
    path: pathlib.Path, tensors: Mapping[str, tuple[tuple[int, ...], str]], get: Callable[[str], np.ndarray]
) -> None:
    """Writes a file; nothing has its name before it is complete.

    Args:
      path: the file, replaced if it is there.
      tensors: shape and dtype of each by name.
      get: the tensor of a name, asked for one after another.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in tensors.items():
        last = at + math.prod(shape) * jnp.dtype(dtype).itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [at, last]}
        at = last
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    half = path.with_name(f".{path.name}.half")
    with half.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in tensors.items():
            array = np.asarray(get(name), jnp.dtype(dtype), order="C")
            assert array.shape == tuple(shape), (name, array.shape, shape)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def json_object(path: pathlib.Path) -> dict:
    """The JSON object that a file holds.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else.
    """
    refuse_pointer(path)
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> dict:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} must hold a JSON object, found {type(found).__name__}")
    return found


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
