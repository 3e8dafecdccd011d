"""Blanks in what is read, so that no single word is relied on."""

import dataclasses

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
