"""Blanks in what is read, so that no single word is relied on."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.types import Batch


def prompts(tokens_BT: np.ndarray, tok: Tokenizer) -> np.ndarray:
    """bool [B, T]: what stands between <bos> and <ans>; nothing of texts that are read or of <recall>."""
    marks_BT = np.isin(tokens_BT, (tok.pad, tok.bos, tok.eos, tok.ans, tok.recall, tok.say))
    at_T, end = np.arange(tokens_BT.shape[1]), tokens_BT.shape[1] - 1
    before_BT = np.maximum.accumulate(np.where(marks_BT, at_T, 0), axis=1)
    behind_BT = np.minimum.accumulate(np.where(marks_BT, at_T, end)[:, ::-1], axis=1)[:, ::-1]
    opened_BT = np.take_along_axis(tokens_BT, before_BT, axis=1) == tok.bos
    closed_BT = np.take_along_axis(tokens_BT, behind_BT, axis=1) == tok.ans
    return ~marks_BT & opened_BT & closed_BT


def blanked(rows: Batch, draws_BT: np.ndarray, tok: Tokenizer, share: float) -> Batch:
    """Rows whose prompt tokens are replaced by <pad> where `draws_BT`, uniform in [0, 1), is below `share`.

    Blank noising (Xie et al. 2017, arXiv:1703.02573) of prompts alone: what is predicted stays as it was, the
    blanked tokens included. That pieces of words are blanked, and that <pad> stands for them, is ours.
    """
    blank_BT = prompts(rows.tokens_BT, tok) & (draws_BT < share)
    return dataclasses.replace(rows, tokens_BT=np.where(blank_BT, np.int32(tok.pad), rows.tokens_BT))


def of_words(tokens_BT: np.ndarray, tok: Tokenizer, wanted: Callable[[str], bool]) -> np.ndarray:
    """bool [B, T]: every token of the words that are wanted, by how they are written.

    A word begins with a space and goes on to the next one or to a special token: punctuation behind it is its
    own, and where a script writes no spaces a whole sentence is one.
    """
    special_BT = np.isin(tokens_BT, (tok.pad, tok.bos, tok.eos, tok.ans, tok.recall, tok.say))
    edges_BT = special_BT | tok.opens[tokens_BT]
    found_BT, known = np.zeros(tokens_BT.shape, bool), {}
    for row_T, edges_T, special_T, found_T in zip(tokens_BT, edges_BT, special_BT, found_BT, strict=True):
        for start, end in pairwise([0, *np.flatnonzero(edges_T[1:]) + 1, len(row_T)]):
            word = tuple(row_T[start:end])
            if word not in known:
                known[word] = not special_T[start] and wanted(tok.decode(word).strip())
            found_T[start:end] = known[word]
    return found_BT


def uneven(draws_BT: np.ndarray, may_BT: np.ndarray, shares_B: np.ndarray) -> np.ndarray:
    """Draws for `blanked` that blank tokens of `may_BT` alone, each row to a share of its own.

    Args:
      draws_BT: uniform in [0, 1).
      may_BT: bool.
      shares_B: uniform in [0, 1); a row's share is 2 (1 - this) times the one that `blanked` is told, which
        is their mean and at most a half.
    """
    return np.where(may_BT, draws_BT / (2 * (1 - shares_B))[:, None], 1.0)
