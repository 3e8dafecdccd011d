"""Examples to token sequences and back, in the directions of answering, recalling and reading.

    answering   <bos> prompt <ans> answer <eos>
    recalling   <recall> answer <say> prompt <eos>       (a dream: from the answer back to what asks for it)
    reading     <bos> text <eos>

Byte-level BPE tells ' Bristol' from 'Bristol'. Every part is therefore encoded with one space before it,
which parsing takes away again: a word has the same tokens at the start of a part as inside it, in both
directions.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """One sequence.

    Attributes:
      tokens: int32 [t].
      prompt_length: tokens up to and including <ans> or <say>; 1 (the <bos>) for text that is read.
    """

    tokens: np.ndarray
    prompt_length: int


def encode_answering(tok: Tokenizer, ex: Example, max_len: int | None = None) -> Encoded:
    """<bos> prompt <ans> answer <eos>.

    Args:
      tok: tokenizer.
      ex: example with a prompt and an answer.
      max_len: tokens that the model can hold; None = any number.

    Raises:
      ValueError: when prompt or answer is blank, or the sequence is longer than `max_len`.
    """
    return _encode_pair(tok, ex, (tok.bos, ex.prompt, tok.ans, ex.answer), max_len)


def encode_recalling(tok: Tokenizer, ex: Example, max_len: int | None = None) -> Encoded:
    """<recall> answer <say> prompt <eos>; arguments and errors as in `encode_answering`."""
    return _encode_pair(tok, ex, (tok.recall, ex.answer, tok.say, ex.prompt), max_len)


def encode_text(tok: Tokenizer, text: str, max_len: int) -> list[Encoded]:
    """<bos> text <eos>, in as many chunks as the text needs; no token is lost.

    A text of n tokens becomes ceil(n / (max_len - 2)) chunks whose lengths differ by at most one token: a
    full chunk followed by a scrap would teach the scrap without its context. Chunks do not overlap.

    Args:
      tok: tokenizer.
      text: anything but a blank text.
      max_len: tokens per chunk, <bos> and <eos> included; at least 3.

    Raises:
      ValueError: when the text is blank or `max_len` leaves no room for text.
    """
    if not text.strip():
        raise ValueError(f"a text to be read is blank: {text!r}")
    if max_len < 3:
        raise ValueError(f"max_len={max_len} leaves no room between <bos> and <eos>: raise row_length")
    ids = np.asarray(tok.encode(" " + text), np.int32)
    chunks = np.array_split(ids, -(-len(ids) // (max_len - 2)))
    return [Encoded(np.concatenate([[tok.bos], c, [tok.eos]]).astype(np.int32), 1) for c in chunks]


def encode(tok: Tokenizer, examples: Iterable[Example], max_len: int) -> list[Encoded]:
    """Examples in the answering direction, free texts (prompt '') in chunks, in the given order."""
    encoded = []
    for ex in examples:
        if ex.prompt:
            encoded.append(encode_answering(tok, ex, max_len))
        else:
            encoded.extend(encode_text(tok, ex.answer, max_len))
    return encoded


def texts(examples: Iterable[Example]) -> Iterator[str]:
    """The parts of the examples as they will be encoded, to train a tokenizer on."""
    for ex in examples:
        if ex.prompt:
            yield " " + ex.prompt
        yield " " + ex.answer


def prompts(
    tok: Tokenizer, examples: Sequence[Example], width: int | None = None, key: str = "model.max_len"
) -> tuple[np.ndarray, np.ndarray]:
    """<bos> prompt <ans> of every example, right-padded, to decode the answers from.

    Args:
      tok: tokenizer.
      examples: n examples with prompts.
      width: T of the result; None = the longest prompt.
      key: what sets the width, for the message.

    Returns:
      tokens int32 [n, T] and lengths int32 [n].

    Raises:
      ValueError: when a prompt is blank or longer than `width`.
    """
    sequences = []
    for ex in examples:
        _reject_blank(ex, "prompt", ex.prompt)
        sequences.append([tok.bos, *tok.encode(" " + ex.prompt), tok.ans])
        _reject_long(len(sequences[-1]), width, key, ex.prompt)
    lengths_B = np.array([len(s) for s in sequences], np.int32)
    tokens_BT = np.full((len(sequences), width or lengths_B.max(initial=0)), tok.pad, np.int32)
    for row, sequence in zip(tokens_BT, sequences, strict=True):
        row[: len(sequence)] = sequence
    return tokens_BT, lengths_B


def answer_lengths(tok: Tokenizer, examples: Iterable[Example]) -> np.ndarray:
    """Tokens of each answer, <eos> included, as it is sampled."""
    return np.array([len(tok.encode(" " + ex.answer)) + 1 for ex in examples], np.int32)


def parse_answering(tok: Tokenizer, ids: Sequence[int]) -> Example | None:
    """The example that `encode_answering` would have made `ids` of, or None when there is none.

    None when a special token is missing, doubled or out of place, a part is blank, or its bytes are no UTF-8.
    Padding after <eos> is allowed.
    """
    parts = _parse(tok, ids, tok.bos, tok.ans)
    return parts and Example(prompt=parts[0], answer=parts[1])


def parse_recalling(tok: Tokenizer, ids: Sequence[int]) -> Example | None:
    """The inverse of `encode_recalling`; None as in `parse_answering`."""
    parts = _parse(tok, ids, tok.recall, tok.say)
    return parts and Example(prompt=parts[1], answer=parts[0])


def _encode_pair(
    tok: Tokenizer, ex: Example, parts: tuple[int, str, int, str], max_len: int | None
) -> Encoded:
    opening, first, separator, second = parts
    _reject_blank(ex, "prompt", ex.prompt)
    _reject_blank(ex, "answer", ex.answer)
    head = [opening, *tok.encode(" " + first), separator]
    tokens = np.array([*head, *tok.encode(" " + second), tok.eos], np.int32)
    _reject_long(len(tokens), max_len, "row_length", ex.prompt)
    return Encoded(tokens, len(head))


def _parse(tok: Tokenizer, ids: Sequence[int], opening: int, separator: int) -> tuple[str, str] | None:
    ids = [int(i) for i in ids]
    while ids and ids[-1] == tok.pad:
        ids.pop()
    specials = {tok.pad, tok.bos, tok.eos, tok.ans, tok.recall, tok.say}
    if [i for i in ids if i in specials] != [opening, separator, tok.eos]:
        return None
    if ids[0] != opening or ids[-1] != tok.eos:
        return None
    cut = ids.index(separator)
    first, second = (tok.decode(part).removeprefix(" ") for part in (ids[1:cut], ids[cut + 1 : -1]))
    well_formed = all(part.strip() and "\ufffd" not in part for part in (first, second))
    return (first, second) if well_formed else None


def _reject_blank(ex: Example, name: str, part: str) -> None:
    if not part.strip():
        raise ValueError(
            f"the {name} is blank in {ex!r}; free text (prompt '') is for encode_text, "
            "and is never asked or recalled"
        )


def _reject_long(length: int, max_len: int | None, key: str, text: str) -> None:
    if max_len is not None and length > max_len:
        raise ValueError(
            f"a sequence of {length} tokens does not fit into {max_len} ({key}); it begins {text[:60]!r}"
        )
