"""Tokenizers of llama2.c (tok512.bin): a score and the bytes of each token."""

import pathlib
import struct

import tokenizers
from tokenizers import decoders, models

FIRST_PIECE = 259  # before it <unk>, the two ends of a text and the 256 bytes


def read(path: pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer, and which of its tokens begins and which ends a text: one and the same.

    llama2.c joins, again and again, the two neighbours that together are the piece of the best score; as
    pairs with ranks that is BPE. Characters that are no piece become their bytes. Its models learnt texts
    that each begin with the token 1 and go on to the next, so that is what ends a text too.

    Raises:
      ValueError: not such a file, or cut.
    """
    raw, at, pieces, scores = path.read_bytes(), 4, [], []
    try:
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            at += 8 + length
            if length < 0 or at > len(raw):
                raise ValueError(f"token {len(pieces)} of {length} bytes ends behind the file's")
            pieces.append(raw[at - length : at].decode("utf-8"))
            scores.append(score)
        if len(pieces) <= FIRST_PIECE or pieces[3] != "<0x00>":
            raise ValueError(f"{len(pieces)} tokens, of which the fourth is not the byte <0x00>")
        pieces[:3] = (piece.strip() for piece in pieces[:3])  # "\n<s>\n" in some
        if len(vocabulary := {piece: i for i, piece in enumerate(pieces)}) < len(pieces):
            raise ValueError("a token stands there twice")
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path} is no tokenizer of llama2.c, or is cut: {error}") from error
    known = set(pieces[FIRST_PIECE:])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(known, key=lambda piece: -scores[vocabulary[piece]])
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=pieces[0], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return inner, {"bos": pieces[1], "eos": pieces[1]}
