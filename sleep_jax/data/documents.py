"""A folder of .txt and .md files as a life of reading.

With sub-folders, each is one experience in the order of their names: the first `birth_fraction` of them are
birth, each further one a day. Without, the files in the order of their names are split evenly into birth and
`days` days (days = 0: one file each). What stands beside the sub-folders is not read, and said so.

A document is cut into paragraphs at blank lines; a paragraph is one free text, cut into chunks by tokens
only when it is encoded. Probes: of the paragraphs of an experience with at least 8 words, the last tenth (at
least two) is held out and never read, the even ones for valid, the odd ones for test. A probe's prompt is
the first half of the paragraph, of it the last 24 words at most, and its answer the next 4 words. That
measures how well the learner continues what it has not seen of a text whose beginning it has read. [reading:
the paper has no such task]
"""

import logging
import pathlib
import re

import numpy as np

from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig, divide, merge

SUFFIXES = (".txt", ".md")
HELD_OUT = 0.1  # share of the paragraphs that can be probed
PROBE_WORDS = 8  # a shorter paragraph (a heading) has no half to continue
PROMPT_WORDS = 24
ANSWER_WORDS = 4


def load(config: StreamConfig) -> Stream:
    """Reads the folder `config.path`.

    Args:
      config: `path`, `days` and, with sub-folders, `birth_fraction` are read.

    Returns:
      A stream whose training examples are free text and whose probes are continuations.

    Raises:
      FileNotFoundError: when `path` is no folder.
      ValueError: when there is nothing to read, too little for birth and days, or a file is binary or not
        UTF-8.
    """
    root = pathlib.Path(config.path)
    if not config.path or not root.is_dir():
        raise FileNotFoundError(
            f"stream.path={config.path!r} is not a folder: set it to a folder of .txt and .md files"
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    folders = [p for p in folders if _files(p, "**/*")]
    beside = _files(root, "*")
    if folders:
        if beside:
            logging.warning("%s: not read, because it stands beside sub-folders: %s", root, _names(beside))
        experiences = [_experience(p.name, _files(p, "**/*")) for p in folders]
        return divide(experiences, config.birth_fraction, config.days, f"sub-folders of {root}")
    if not beside:
        raise ValueError(
            f"stream.path={config.path!r} holds no .txt or .md file, neither itself nor in its sub-folders"
        )
    days = config.days or len(beside) - 1
    if days < 1 or days >= len(beside):
        raise ValueError(
            f"stream.path={config.path!r} holds {len(beside)} file(s), but birth and stream.days="
            f"{config.days} need at least {max(days, 1) + 1}: lower stream.days or add files"
        )
    groups = [list(group) for group in np.array_split(np.array(beside, object), days + 1)]
    experiences = [_experience(_names(group), group) for group in groups]
    return Stream(merge("birth", experiences[:1]), tuple(experiences[1:]))


def _files(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    return sorted(
        p
        for p in folder.glob(pattern)
        if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )


def _names(files: list[pathlib.Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"


def _experience(name: str, files: list[pathlib.Path]) -> Experience:
    paragraphs = [paragraph for file in files for paragraph in _paragraphs(file)]
    long = [i for i, paragraph in enumerate(paragraphs) if len(paragraph.split()) >= PROBE_WORDS]
    if len(long) < 3:
        raise ValueError(
            f"{name} in {files[0].parent}: {len(long)} paragraph(s) of at least {PROBE_WORDS} words, "
            "but one to read and two to probe need 3; paragraphs are separated by blank lines. "
            "Add text or put the files together"
        )
    held_out = set(long[-max(2, round(HELD_OUT * len(long))) :])
    probes = [_probe(paragraphs[i]) for i in sorted(held_out)]
    read = [Example("", paragraph) for i, paragraph in enumerate(paragraphs) if i not in held_out]
    return Experience(name, tuple(read), tuple(probes[0::2]), tuple(probes[1::2]))


def _paragraphs(file: pathlib.Path) -> list[str]:
    raw = file.read_bytes()
    if b"\0" in raw:
        raise ValueError(
            f"{file}: not a text: it holds a zero byte at offset {raw.index(0)} "
            "(binary, or UTF-16: convert it to UTF-8)"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 at byte offset {error.start} (byte 0x{raw[error.start]:02x}): "
            "convert or remove the file"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    paragraphs = [p.strip() for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    if not paragraphs:
        logging.warning("%s: skipped, because it is empty", file)
    return paragraphs


def _probe(paragraph: str) -> Example:
    """The first half's end as the prompt and the words after it as the answer, spelt as they stand there."""
    words = list(re.finditer(r"\S+", paragraph))
    cut = len(words) // 2
    first, last = words[max(0, cut - PROMPT_WORDS)], words[min(len(words), cut + ANSWER_WORDS) - 1]
    return Example(
        paragraph[first.start() : words[cut - 1].end()], paragraph[words[cut].start() : last.end()]
    )
