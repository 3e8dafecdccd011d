"""A checkpoint that a life starts from: where it is, its shape, its tokenizer and its parameters."""

import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np

from sleep_jax import tensorfile
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import convert, families, llama2c
from sleep_jax.model.config import ModelConfig
from sleep_jax.types import Tree

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been found.

    Attributes:
      name: as it was asked for.
      fields: its config.json.
      tensors: views of its files by the names of transformers.
      tokenizer: the file of its tokenizer; None where it has none.
    """

    name: str
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]
    tokenizer: pathlib.Path | None

    @property
    def rows(self) -> int:
        """V, words that it has parameters for."""
        return self.fields["vocab_size"]

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end what it says: a text, and in some a turn of a dialogue."""
        found = self.fields.get("eos_token_id")
        return tuple(found) if isinstance(found, list) else (found,) if found is not None else ()


@functools.cache
def find(name: str) -> Checkpoint:
    """The checkpoint of a name: a folder as transformers writes it, one of llama2.c, or a name on the hub.

    Args:
      name: a folder with config.json and safetensors; a .bin of llama2.c, or a folder that holds one beside
        its tokenizer tok*.bin; or "owner/model", fetched from the Hugging Face hub where there is a network
        and taken from its cache where there is none.

    Raises:
      FileNotFoundError: there is nothing of this name, or a part of it is missing.
      ValueError: what is there cannot be read.
      ImportError: huggingface_hub is not installed, and the name is one of the hub's.
    """
    path = pathlib.Path(name).expanduser()
    if not path.exists():
        path = _fetch(name)
    if path.is_dir() and (path / "config.json").exists():
        tokenizer = path / "tokenizer.json"
        fields, tensors = tensorfile.json_object(path / "config.json"), tensorfile.read_folder(path)
        found = families.text_part(fields, tensors)
        return Checkpoint(name, *found, tokenizer if tokenizer.exists() else None)
    if path.is_file() and path.suffix != ".bin":
        raise ValueError(
            f"model.checkpoint={name!r} is one file, but only a .bin of llama2.c is a whole checkpoint: name "
            "the folder that holds it beside its config.json"
        )
    folder = path if path.is_dir() else path.parent
    tokenizers = sorted(folder.glob("tok*.bin"))
    models = [path] if path.is_file() else [p for p in sorted(folder.glob("*.bin")) if p not in tokenizers]
    if len(models) != 1:
        raise FileNotFoundError(
            f"model.checkpoint={name!r} holds neither a config.json with safetensors nor one model of "
            f"llama2.c (it holds {len(models)}: {tensorfile.some([p.name for p in models]) or 'none'})"
        )
    return Checkpoint(name, *llama2c.read(models[0]), tokenizers[0] if len(tokenizers) == 1 else None)


def _fetch(name: str) -> pathlib.Path:
    if not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(
            f"model.checkpoint={name!r} is no file or folder here, and no name on the hub (owner/model)"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"model.checkpoint={name!r} is no folder here; to fetch it from the hub: pip install "
            "huggingface_hub"
        ) from error
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # of the network, the hub, the name or the cache, of many classes
        raise FileNotFoundError(
            f"model.checkpoint={name!r} is no folder here, is not in the cache of the hub and could not be "
            f"fetched: {type(error).__name__}: {str(error).strip()[:300]}"
        ) from error


def shape(own: ModelConfig) -> ModelConfig:
    """The model of `own.checkpoint`: its sizes, and of `own` what is no property of a checkpoint.

    Raises:
      As `find`, and ValueError as `families.read_config`.
    """
    found = find(own.checkpoint)
    return families.read_config(found.fields, found.tensors, own, f"config.json of {found.name}")


def with_own(found: ModelConfig, own: ModelConfig) -> ModelConfig:
    """A shape that `shape` has found before, with what `own` says that is no property of a checkpoint."""
    return dataclasses.replace(found, **{key: getattr(own, key) for key in families.OWN})


def tokenizer(checkpoint: str, given: str) -> Tokenizer:
    """The tokenizer of a checkpoint, or the given file in its place.

    Raises:
      FileNotFoundError, ValueError: there is none, it cannot be read, or it has more words, beside added
        tokens, than the checkpoint has parameters for.
    """
    found = find(checkpoint)
    if not given and found.tokenizer is None:
        raise FileNotFoundError(
            f"model.checkpoint={checkpoint!r} has no tokenizer.json or tok*.bin of its own: name the file "
            "that it was trained with, --config.tokenizer=FILE"
        )
    tok = Tokenizer.load(given or found.tokenizer)
    words = tok.vocab_size - tok.appended
    if tok.learnt > found.rows:
        raise ValueError(
            f"the tokenizer {given or found.tokenizer} has {tok.learnt:,} words, the embedding of "
            f"model.checkpoint={checkpoint!r} {found.rows:,} rows: they do not belong together"
        )
    if words > found.rows:  # as the <image_soft_token> of a Gemma 3 that only reads
        print(
            f"{checkpoint}: {words - found.rows} words added to its tokenizer have no row: they start as new"
        )
    # Some files hold the embedding a second time, as the head that it is tied to.
    copied = {"lm_head.weight"} if found.fields.get("tie_word_embeddings") else ()
    size = sum(x.size for key, x in found.tensors.items() if key not in copied)
    names = ", ".join(f"{kind} is {name!r}" for kind, name in tok.names.items())
    print(
        f"{checkpoint}: {found.fields['model_type']}, {size:,} parameters, {words:,} words in {found.rows:,} "
        f"rows; {names} ({tok.appended} of them new)",
        flush=True,
    )
    return tok


def params(checkpoint: str, like: Tree) -> Tree:
    """The parameters of a checkpoint, placed as `like` says (`convert.load`)."""
    found = find(checkpoint)
    loaded = convert.load(found.tensors, like, found.rows, found.name)
    find.cache_clear()  # while its files are mapped, what was read of them counts as memory of this process
    return loaded
