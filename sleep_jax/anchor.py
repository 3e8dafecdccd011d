"""A general-ability anchor: what a life costs in what no day is about, as the loss on general text.

The texts are those of a file, or what the model itself said before it learnt anything here. Of the latter,
sampled at temperature 1, the loss rises by KL(untouched || now) per token, in expectation.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from pydoc_data.topics import topics

import jax
import numpy as np

from sleep_jax import cost, losses, metrics, partition, rollout
from sleep_jax.bounds import at_least
from sleep_jax.data import packing
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.types import Array, Batch, Memory, Model, Sampling, Tree

OWN, PYTHON = "self", "python"
FILE = "anchor.json"
SAID = cost.Kind("sampling general text", cost.SCORED)
LOSS = cost.Kind("the loss on general text", "set model.logit_chunk=64, " + cost.SCORED)


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Which general text.

    Raises:
      ValueError: a value outside its range.
    """

    # a file of text, "python" for the manual of the language that comes with Python, "self" for what the
    # untouched model says, or '' for none
    text: str = ""
    tokens: int = 8192  # of it, at most
    rehearsed: int = 0  # other texts that the untouched model.checkpoint says, read at birth beside documents

    def __post_init__(self):
        at_least(self, "anchor.", tokens=2, rehearsed=0)


def said(
    model: Model, tok: Tokenizer, params: Tree, count: int, length: int, key: Array, batch_size: int
) -> list[str]:
    """At most `count` texts of at most `length` tokens that a model says of itself, sampled at temperature 1.

    What is blank or no text at all is left out.
    """
    opening = np.full((count, 1), tok.bos, np.int32), np.ones(count, np.int32)
    how = Sampling(length - 1)
    out = rollout.generate(model, params, None, opening, key, how, batch_size=batch_size, kind=SAID)
    texts = (tok.decode(ids).removeprefix(" ") for ids in rollout.completions(out, opening[1]))
    return [text for text in texts if text.strip() and "\ufffd" not in text]


def read(path: str) -> list[str]:
    """The text of a file, or the topics of Python's own manual, which is everywhere.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is blank or not UTF-8.
    """
    if path == PYTHON:
        return [text for _, text in sorted(topics.items())]
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"anchor.text={path!r} is neither a file nor 'python' nor 'self'")
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"anchor.text={path!r} is not UTF-8 at byte offset {error.start}") from error
    if not text.strip():
        raise ValueError(f"anchor.text={path!r} is blank: name another file, or none")
    return [text]


def save(folder: pathlib.Path, name: str, texts: Sequence[str], untouched: float | None) -> None:
    """Writes <folder>/anchor.json: the texts, and their loss before birth where there was a model."""
    metrics.write_json(folder, FILE, {"name": name, "untouched": untouched, "texts": list(texts)})


def load(folder: pathlib.Path, name: str) -> tuple[list[str], float | None]:
    """What `save` has written.

    Raises:
      FileNotFoundError: it has not: that birth was without an anchor.
      ValueError: it has of another `anchor.text`.
    """
    if not (folder / FILE).exists():
        raise FileNotFoundError(
            f"{folder} has no {FILE}: that birth had no anchor.text; set anchor.text='' here or take another"
        )
    found = json.loads((folder / FILE).read_text())
    if found["name"] != name:
        raise ValueError(
            f"anchor.text={name!r}, but {folder} was born with {found['name']!r}, and losses on the one say "
            "nothing of the other: set it back or take another birth"
        )
    return found["texts"], found["untouched"]


def rows(tok: Tokenizer, texts: Sequence[str], row_length: int, tokens: int) -> Batch:
    """Packed rows of the first `tokens` tokens: <bos> and a part of a text, whose end is not predicted.

    Raises:
      ValueError: there is no text, as where all that `said` has sampled was none.
    """
    if not texts:
        raise ValueError(
            "anchor.text='self': all that the model said of itself is blank or no text; set anchor.text to a "
            "file, 'python' or '', in another --workdir"
        )
    encoded, left = [], tokens
    for text in texts:
        ids = tok.encode(" " + text)[:left]
        left -= len(ids)
        for first in range(0, len(ids), row_length - 1):
            part = np.array([tok.bos, *ids[first : first + row_length - 1]], np.int32)
            encoded.append(Encoded(part, 1))
    return packing.pack([e for e in encoded if len(e.tokens) > 1], row_length)[0]


def loss(model: Model, params: Tree, memory: Memory | None, batch: Batch, batch_rows: int) -> float:
    """Mean negative log-likelihood of all rows, in nats per token."""
    memory = None if memory is None else memory_lib.without_locked(memory)
    count, total, weight = len(batch.tokens_BT), 0.0, 0.0
    padded = jax.tree.map(lambda x: np.pad(x, [(0, -count % batch_rows), (0, 0)]), batch)
    for start in range(0, count, batch_rows):
        part = jax.tree.map(lambda x, start=start: x[start : start + batch_rows], padded)
        nll = partition.fetch(_nll(model)(LOSS, params, memory, partition.put_rows(part, params)))
        total, weight = total + float(nll.total), weight + float(nll.count)
    return total / weight


@functools.lru_cache(maxsize=8)
def _nll(model: Model):
    return cost.Program(lambda params, memory, batch: losses.next_token(model, params, memory, batch))
