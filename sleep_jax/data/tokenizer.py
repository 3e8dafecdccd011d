"""Text to token ids and back: byte-level BPE with six tokens of our own, which no text can forge."""

import os
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = ("<pad>", "<bos>", "<eos>", "<ans>", "<recall>", "<say>")


class Tokenizer:
    """A `tokenizers.Tokenizer` with our special tokens.

    A trained one has the specials at ids 0 to 5 and gives back every text exactly. Texts that spell a special
    token are encoded letter by letter, so that what is read can never pass for structure.

    Attributes:
      vocab_size: one more than the highest id.
      pad, bos, eos, ans, recall, say: ids of the special tokens.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        """Takes over `inner`, appending those of the specials that it lacks."""
        inner.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in SPECIALS])
        inner.encode_special_tokens = True
        # A given file may cut or fill what it encodes; lengths are checked in encoding.py, aloud.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.pad, self.bos, self.eos, self.ans, self.recall, self.say = map(inner.token_to_id, SPECIALS)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE of the texts; the same texts in the same order give the same tokenizer.

        Args:
          texts: what to learn merges from, see `encoding.texts`.
          vocab_size: upper bound; the outcome is smaller when the texts offer fewer merges.

        Raises:
          ValueError: when `vocab_size` cannot hold the 256 bytes and the specials.
        """
        least = 256 + len(SPECIALS)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size={vocab_size} cannot hold 256 bytes and {len(SPECIALS)} specials ({least})"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a tokenizer.json, ours or any other; specials that it lacks get the ids after its last.

        Raises:
          FileNotFoundError: when there is no such file.
          ValueError: when the file is not a tokenizer.json.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no tokenizer at {os.fspath(path)!r}")
        try:
            return cls(tokenizers.Tokenizer.from_file(os.fspath(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{os.fspath(path)!r} is not a tokenizer.json: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer.json."""
        self._inner.save(os.fspath(path))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing is put around it.

        Raises:
          ValueError: when the text holds a lone surrogate, which no encoding of text can carry.
        """
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise ValueError(f"not a text that UTF-8 can hold: {text[:60]!r} ({error})") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids, special tokens dropped; bytes that are no UTF-8 become U+FFFD."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)
