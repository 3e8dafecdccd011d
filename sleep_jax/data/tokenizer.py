"""Text to token ids and back: byte-level BPE with six tokens of our own, which no text can forge."""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sleep_jax.data import llama2c

KINDS = ("pad", "bos", "eos", "ans", "recall", "say")
CONFIG = "tokenizer_config.json"
SPECIALS = tuple(f"<{kind}>" for kind in KINDS)
UNUSED = re.compile(r"<\|reserved_special_token_\d+\|>|<unused\d+>")  # of Llama 3 and of Gemma


class Tokenizer:
    """A `tokenizers.Tokenizer` with our special tokens.

    A trained one has the specials at ids 0 to 5 and gives back every text exactly. Texts that spell a special
    token are encoded letter by letter, so that what is read can never pass for structure.

    Attributes:
      vocab_size: one more than the highest id.
      pad, bos, eos, ans, recall, say: ids of the special tokens; bos and eos may be one.
      appended: how many of these `inner` lacked.
      names: what they are called in the vocabulary.
      chat_template: Jinja template of a checkpoint's own dialogues, or "".
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, names: Mapping[str, str] | None = None, chat_template: str = ""
    ):
        """Takes over `inner`.

        Args:
          inner: the vocabulary; what it lacks of our tokens is appended.
          names: what they are called, by kind; others are called "<ans>" and so on.
          chat_template: see above.
        """
        self.names = dict(zip(KINDS, SPECIALS, strict=True)) | dict(names or {})
        self.chat_template = chat_template
        before = inner.get_vocab_size()
        inner.add_special_tokens(
            [tokenizers.AddedToken(s, special=True, normalized=False) for s in self.names.values()]
        )
        self.appended = inner.get_vocab_size() - before
        inner.encode_special_tokens = True
        # A given file may cut or fill what it encodes; lengths are checked in encoding.py, aloud.
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        ids = [inner.token_to_id(self.names[kind]) for kind in KINDS]
        self.pad, self.bos, self.eos, self.ans, self.recall, self.say = ids

    @property
    def learnt(self) -> int:
        """One more than the highest id that is no added token: of these a checkpoint must have rows."""
        return max(self._inner.get_vocab(with_added_tokens=False).values(), default=-1) + 1

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
        """Reads a tokenizer.json, ours or any other, or a tokenizer of llama2.c (.bin).

        A tokenizer_config.json beside it, as transformers writes it, says what the special tokens are called
        and what dialogues look like. Of ours that it does not name, a token that the vocabulary keeps free
        becomes each, and where there is none free, it is appended. Without a token that begins texts the one
        that ends them does: in training it mostly stood before the next.

        Raises:
          FileNotFoundError: when there is no such file.
          ValueError: when the file is no tokenizer, or does not hold what is said to be in it.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {str(path)!r}")
        if path.suffix == ".bin":
            return cls(*llama2c.read(path))
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{str(path)!r} is not a tokenizer.json: {error}") from error
        names, template = _said_beside(path)
        for kind, name in names.items():
            if inner.token_to_id(name) is None:
                raise ValueError(
                    f"{path.with_name(CONFIG)} calls {name!r} the {kind}_token; {path.name} lacks it"
                )
        vocabulary = inner.get_vocab(with_added_tokens=True)
        free = {t for t in vocabulary if UNUSED.fullmatch(t)} - set(names.values())
        free = sorted(free, key=vocabulary.__getitem__)
        for kind, name in zip(KINDS, SPECIALS, strict=True):
            if kind not in names and name not in vocabulary and free:
                names[kind] = free.pop(0)
        return cls(inner, names, template)

    def save(self, path: str | os.PathLike) -> None:
        """Writes tokenizer.json and, beside it and before it, tokenizer_config.json."""
        path = pathlib.Path(path)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {f"{kind}_token": self.names[kind] for kind in KINDS[:3]}
        config["extra_special_tokens"] = {f"{kind}_token": self.names[kind] for kind in KINDS[3:]}
        config |= {"chat_template": self.chat_template} if self.chat_template else {}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        for file, write in (
            (path.with_name(CONFIG), lambda half: half.write_text(text, encoding="utf-8")),
            (path, lambda half: self._inner.save(str(half))),
        ):
            half = file.with_name(f".{file.name}.half")
            write(half)
            half.replace(file)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing is put around it.

        Raises:
          ValueError: when the text holds a lone surrogate, which no encoding of text can carry.
        """
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise ValueError(f"not a text that UTF-8 can hold: {text[:60]!r} ({error})") from error

    def asked(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a dialogue up to where the model answers, in the form of the checkpoint's own template.

        Args:
          messages: each with a "role" ("system", "user", "assistant") and its "content"; special tokens are
            those that the template and, unlike in `encode`, the contents spell.

        Raises:
          ValueError: there is no template, or it refuses the messages.
          ImportError: jinja2 is not installed.
        """
        if not self.chat_template:
            raise ValueError("this tokenizer has no chat template: its checkpoint has learnt no dialogues")
        try:
            from sleep_jax.data import chat
        except ImportError as error:
            raise ImportError("chat templates are rendered with jinja2: pip install jinja2") from error
        names = {f"{kind}_token": self.names[kind] for kind in KINDS[:3]}
        text = chat.render(self.chat_template, messages, names)
        self._inner.encode_special_tokens = False
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        finally:
            self._inner.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        """Text of all ids, special tokens dropped; bytes that are no UTF-8 become U+FFFD."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)


def _said_beside(path: pathlib.Path) -> tuple[dict[str, str], str]:
    """Names of special tokens by kind, and the chat template, of the files beside a tokenizer.json."""
    file = path.with_name(CONFIG)
    if not file.exists():
        return {}, ""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        extra = config.get("extra_special_tokens")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a JSON object: {error}") from error
    said = {kind: config.get(f"{kind}_token") for kind in KINDS[:3]}
    said |= {kind: extra.get(f"{kind}_token") for kind in KINDS[3:]} if isinstance(extra, dict) else {}
    names = {
        kind: _name(token, f"{file}: {kind}_token") for kind, token in said.items() if token not in (None, "")
    }
    if "eos" in names:
        names.setdefault("bos", names["eos"])
    if names.get("pad") in (names.get("bos"), names.get("eos")):  # padding must not end a text
        names.pop("pad", None)
    template = path.with_name("chat_template.jinja")
    if template.exists():
        return names, template.read_text(encoding="utf-8")
    return names, _template(config.get("chat_template"), file)


def _name(said: Any, where: str) -> str:
    """What a special token is called: a text, or an object that holds it among other things."""
    name = said.get("content") if isinstance(said, dict) else said
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}={said!r} must be a text, or an object with a text as its content")
    return name


def _template(said: Any, file: pathlib.Path) -> str:
    """The template for dialogues, of one or of several by name; "" where there is none."""
    match said:
        case None:
            return ""
        case str():
            return said
        case [*several] if all(_is_named(x) for x in several):
            return next((x["template"] for x in several if x["name"] == "default"), "")
    raise ValueError(
        f"{file}: chat_template={str(said)[:200]} must be a text, or a list of objects with a name and "
        "a template"
    )


def _is_named(said: Any) -> bool:
    return isinstance(said, dict) and all(isinstance(said.get(key), str) for key in ("name", "template"))
