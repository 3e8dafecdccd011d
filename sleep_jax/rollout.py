"""Sampling and answering over whole sets of prompts, as batches or queues of few compiled shapes."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sleep_jax import cost, partition, rng
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.types import Array, Memory, Model, Rollout, Sampling, Tree

WIDTH = 16  # longer prompts are padded to a multiple of this, so that few shapes are compiled
QUEUE = 16  # batches in a compiled queue: the seats that empty at its end cost little
READ = 4  # times as long as what is sampled: longer prompts are read in one go and not token by token
ANSWERS = cost.Kind("answering", "lower eval_batch or answer_tokens, or ask shorter questions")


@functools.lru_cache(maxsize=64)
def compiled(sampler: Callable[..., Rollout], sampling: Sampling):
    """`run(kind, params, memory, adapter, grammar_ZV, *rows)` of a model's `decode` or `drain`."""

    @cost.Program
    def run(params, memory, adapter, grammar_ZV, *rows):
        return sampler(params, *rows, sampling, memory=memory, adapter=adapter, grammar_ZV=grammar_ZV)

    return run


def generate(
    model: Model,
    params: Tree,
    memory: Memory | None,
    prompts: tuple[np.ndarray, np.ndarray],
    key: Array,
    sampling: Sampling,
    *,
    batch_size: int,
    adapter: Tree | None = None,
    grammar_ZV: np.ndarray | None = None,
    kind: cost.Kind = ANSWERS,
) -> Rollout:
    """Continues n prompts: in batches, or as a queue for `batch_size` seats.

    A queue whatever n is, so that one shape is compiled; but exactly one full batch is decoded as such, and
    prompts that are long against what is sampled (`READ`) in batches. Either way gives the same texts up to
    rounding.

    Args:
      model, params, memory: who speaks.
      prompts: int32 [n, T] right-padded and their true lengths [n].
      key: row i samples with `rng.per_row(key, n)[i]`, whatever the batch size.
      batch_size: rows computed at once; a batch of fewer is padded with copies of the first, in a queue of
        fewer some seats stay empty.
      adapter: one of `lora`, scaled, for all rows; or, where a batch holds all n rows, one for each group of
        neighbours (`lora.grouped`).
      grammar_ZV: the texts that may be sampled, as in `decode.decode`; None for any.
      kind: what is sampled for, which says the keys that `batch_size` and the like come from.

    Returns:
      Rollout of numpy arrays with n rows.

    Raises:
      ValueError: there is no prompt, prompts and new tokens exceed `model.max_len`, or a device has less
        memory than it takes.
    """
    tokens, lengths = prompts
    n = len(tokens)
    if not n:
        raise ValueError("generate was given no prompt")
    longest = tokens.shape[1]
    room = max(model.config.max_len - sampling.max_new, longest)
    # A dream opens with one token: a cache of WIDTH more would be read for nothing.
    width = 1 if longest == 1 else min(-(-longest // WIDTH) * WIDTH, room)
    tokens = np.pad(tokens, ((0, 0), (0, width - longest)))
    keys = rng.per_row(key, n)
    if memory is not None:
        memory = memory_lib.without_locked(memory)
    queued = n != batch_size and width <= READ * sampling.max_new
    run = compiled(model.drain if queued else model.decode, sampling)
    rows = QUEUE * batch_size if queued else batch_size
    order = np.argsort(-lengths, kind="stable") if queued else np.arange(n)  # long ones last would sit alone
    parts = []
    for start in range(0, n, rows):
        index = np.arange(start, start + rows)
        index = order[np.where(index < n, index, 0)]
        told = tokens[index], lengths[index], keys[index]
        if queued:
            seats = partition.put_rows(np.arange(batch_size, dtype=np.int32), params)
            out = run(kind, params, memory, adapter, grammar_ZV, *told, min(n - start, rows), seats)
        else:
            told = *partition.put_rows(told[:2], params), told[2]
            out = run(kind, params, memory, adapter, grammar_ZV, *told)
        # Fetched before the next is begun: CPU devices that wait for each other must not hold two at once.
        parts.append(partition.fetch(out))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[np.argsort(order)], *parts)


def padded(sequences: Sequence[Sequence[int]], width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded int32 tokens [n, T] and lengths [n]; T is `width`, or the longest."""
    lengths = np.array([len(s) for s in sequences], np.int32)
    tokens = np.zeros((len(sequences), width or lengths.max(initial=0)), np.int32)
    for row, s in zip(tokens, sequences, strict=True):
        row[: len(s)] = s
    return tokens, lengths


def completions(rollout: Rollout, lengths: np.ndarray) -> list[list[int]]:
    """The sampled tokens of each row, the closing end-of-text token included."""
    return [
        tokens[start:end].tolist()
        for tokens, start, end in zip(rollout.tokens_BT, lengths, rollout.length_B, strict=True)
    ]


def answer(
    model: Model,
    tok: Tokenizer,
    params: Tree,
    memory: Memory | None,
    questions: Sequence[Example],
    *,
    max_new: int,
    batch_size: int,
    adapter: Tree | None = None,
    whole: bool = False,
    kind: cost.Kind = ANSWERS,
) -> list[str]:
    """Greedy answers to the prompts of `questions`.

    An answer that did not end is what there was of it, or '' where only `whole` ones will do.

    Args:
      model, tok, params, memory: who is asked.
      questions: n examples; their answers are not looked at.
      max_new: most tokens of an answer.
      batch_size: questions answered at once.
      adapter, kind: as in `generate`.
      whole: for those who would learn from the answers, which must not learn to stop too early.

    Raises:
      ValueError: as `generate`, or a prompt is blank.
    """
    if not questions:
        return []
    prompts = encoding.prompts(tok, questions)
    rollout = generate(
        model,
        params,
        memory,
        prompts,
        jax.random.key(0),
        Sampling(max_new, temperature=0.0),
        batch_size=batch_size,
        adapter=adapter,
        kind=kind,
    )
    told = zip(completions(rollout, prompts[1]), rollout.ended_B, strict=True)
    return [tok.decode(ids).strip() if ended or not whole else "" for ids, ended in told]
