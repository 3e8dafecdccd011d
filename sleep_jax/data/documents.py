"""A folder of .txt and .md files as a life of reading.

With sub-folders, each is one experience in the order of their names (folders that are called by their dates
are days); without, the files in the order of their names are split evenly into experiences. Numbers in names
count as numbers: "day 10" comes after "day 2". What a name with a leading dot hides is left alone. The first
of them are birth: `birth_fraction` of the sub-folders, or as many files as a day has. With `stream.birth`,
which names another source for birth, all of them are days. What stands beside sub-folders is not read, and
said so; a link to a folder is followed where it stands as a sub-folder, and no deeper.

A document is cut into paragraphs at blank lines; a paragraph is one free text, cut into chunks by tokens only
when it is encoded.

Probes are the lines of files questions.jsonl anywhere in the folder:

    {"question": "Where does Ada live?", "answer": "Oslo", "document": "2026-11-02/ada.md"}

The document, from where the file stands, says of which experience it is asked; it may be left out where all
that lies beside and below the file is one experience. An experience of which nothing is asked keeps what it
will be asked back from what is read, unless it is to be asked what the learner makes of it (`notes`, behind
`stream.birth`): of its paragraphs with at least 8 words the last tenth (at least two) is held out, the even
ones for valid, the odd ones for test. Such a probe's prompt is the first half of the paragraph, of it the
last 24 words at most, and its answer the next 4 words. That measures how well the learner continues what it
has not seen of a text whose beginning it has read. [reading: the paper has no such task]
"""

import json
import logging
import pathlib
import re

import numpy as np

from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig, divide, merge

SUFFIXES = (".txt", ".md")
QUESTIONS = "questions.jsonl"
HELD_OUT = 0.1  # share of the paragraphs that can be probed
PROBE_WORDS = 8  # a shorter paragraph (a heading) has no half to continue
PROMPT_WORDS = 24
ANSWER_WORDS = 4


def load(config: StreamConfig) -> Stream:
    """Reads the folder `config.path`.

    Args:
      config: `path`, `birth`, `days` and, with sub-folders, `birth_fraction` are read.

    Returns:
      A stream whose training examples are free text. With `birth` its birth is empty, and days of which no
      file asks have no probes yet.

    Raises:
      FileNotFoundError: when `path` is no folder.
      ValueError: when there is nothing to read, too little for birth and days, a file is binary or not UTF-8,
        a line of questions.jsonl is none, or two of them ask the same of an experience with other answers.
    """
    root = pathlib.Path(config.path)
    if not config.path or not root.is_dir():
        raise FileNotFoundError(
            f"stream.path={config.path!r} is not a folder: set it to a folder of .txt and .md files"
        )
    paths = _visible(root)
    files = sorted((p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()), key=_order)
    beside = [p for p in files if p.parent == root]
    folders: dict[pathlib.Path, list[pathlib.Path]] = {}
    for file in files:
        if file.parent != root:
            folders.setdefault(root / file.relative_to(root).parts[0], []).append(file)
    if not folders and not beside:
        raise ValueError(
            f"stream.path={config.path!r} holds no .txt or .md file, neither itself nor in its sub-folders"
        )
    _tell_unread(root, paths, beside if folders else [])
    if folders:
        groups = [(folder.name, folders[folder]) for folder in sorted(folders, key=_order)]
        days = config.days or len(groups)
    else:
        born = not config.birth  # of these files
        days = config.days or len(beside) - born
        if not 1 <= days <= len(beside) - born:
            raise ValueError(
                f"stream.path={config.path!r} holds {len(beside)} file(s), but {'birth and ' * born}"
                f"stream.days={config.days} need at least {max(days, 1) + born}: lower stream.days or add "
                "files"
            )
        parts = [list(part) for part in np.array_split(np.array(beside, object), days + born)]
        groups = [(_names(part), part) for part in parts]
    asked = _questions([p for p in paths if p.name == QUESTIONS and p.is_file()], groups)
    read: dict[tuple[str, ...], pathlib.Path] = {}
    experiences = [
        _experience(name, files, asked.get(name, ()), read, hold_out=not config.birth)
        for name, files in groups
    ]
    if config.birth:
        if days > len(groups):
            raise ValueError(f"stream.days={days}, but {root} has {len(groups)} sub-folders: lower it")
        return Stream(Experience("birth", (), (), ()), tuple(experiences[:days]))
    if folders:
        return divide(experiences, config.birth_fraction, config.days, f"sub-folders of {root}")
    return Stream(merge("birth", experiences[:1]), tuple(experiences[1:]))


def _order(path: pathlib.Path) -> tuple:
    """Where a path comes among others: folder by folder, by text and numbers in turn."""

    def pieces(name: str) -> list[tuple[str, int]]:
        return [(words, int(number or -1)) for words, number in re.findall(r"(\D*)(\d*)", name)]

    named = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return [pieces(name) for name in named.parts], str(path)


def _visible(root: pathlib.Path) -> list[pathlib.Path]:
    """What neither its own name nor that of a folder on the way hides."""
    tops = (top for top in root.iterdir() if not top.name.startswith("."))
    found = (p for top in tops for p in (top, *top.glob("**/*")))
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts)]


def _tell_unread(root: pathlib.Path, paths: list[pathlib.Path], beside: list[pathlib.Path]) -> None:
    def tell(why: str, unread: list[pathlib.Path]) -> None:
        if names := sorted(str(p.relative_to(root)) for p in unread):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            logging.warning("%s: not read, because %s: %s%s", root, why, ", ".join(names[:5]), more)

    others = [p for p in paths if p.is_file() and p.suffix.lower() not in SUFFIXES and p.name != QUESTIONS]
    asking = [p for p in others if p.suffix.lower() == ".jsonl"]
    if beside:
        logging.warning("%s: not read, because it stands beside sub-folders: %s", root, _names(beside))
    tell("they are neither .txt nor .md", [p for p in others if p not in asking])
    tell(f"only a file that is called {QUESTIONS} asks", asking)
    tell("they are links that lead nowhere", [p for p in paths if p.is_symlink() and not p.exists()])
    linked = [p for p in paths if p.is_symlink() and p.is_dir() and p.parent != root]
    tell("they are links to folders, which only sub-folders of the first level may be", linked)


def _names(files: list[pathlib.Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} to {files[-1].name}"


def _experience(
    name: str,
    files: list[pathlib.Path],
    asked: tuple[Example, ...],
    before: dict[tuple[str, ...], pathlib.Path],
    hold_out: bool,
) -> Experience:
    """One experience of some files; `before` are the texts of earlier ones, to which its own are added."""
    texts: dict[tuple[str, ...], pathlib.Path] = {}
    for file in files:
        paragraphs = tuple(_paragraphs(file))
        if paragraphs and paragraphs in texts:
            logging.warning("%s: not read again, it is the same text as %s", file, texts[paragraphs])
        elif paragraphs and paragraphs in before:  # which may well be meant, where the later word counts
            logging.warning("%s: read once more, it is the same text as %s", file, before[paragraphs])
        texts.setdefault(paragraphs, file)
    before |= texts
    read = [paragraph for paragraphs in texts for paragraph in paragraphs]
    if not read:
        raise ValueError(f"{name} in {files[0].parent}: there is nothing to read: add text or remove it")
    if asked or not hold_out:
        return Experience(name, tuple(Example("", p) for p in read), (), asked)
    long = [i for i, paragraph in enumerate(read) if len(paragraph.split()) >= PROBE_WORDS]
    if len(long) < 3:
        raise ValueError(
            f"{name} in {files[0].parent}: {len(long)} paragraph(s) of at least {PROBE_WORDS} words, "
            "but one to read and two to probe need 3; paragraphs are separated by blank lines. "
            f"Add text, put the files together or write a {QUESTIONS}"
        )
    held_out = set(long[-max(2, round(HELD_OUT * len(long))) :])
    probes = [_probe(read[i]) for i in sorted(held_out)]
    kept = tuple(Example("", paragraph) for i, paragraph in enumerate(read) if i not in held_out)
    return Experience(name, kept, tuple(probes[0::2]), tuple(probes[1::2]))


def _text(file: pathlib.Path) -> str:
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
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _paragraphs(file: pathlib.Path) -> list[str]:
    paragraphs = [p.strip() for p in re.split(r"\n[ \t]*\n", _text(file)) if p.strip()]
    if not paragraphs:
        logging.warning("%s: skipped, because it is empty", file)
    return paragraphs


def _questions(
    sources: list[pathlib.Path], groups: list[tuple[str, list[pathlib.Path]]]
) -> dict[str, tuple[Example, ...]]:
    """What the files questions.jsonl ask, by experience."""
    of = {file: name for name, files in groups for file in files}
    beneath: dict[pathlib.Path, set[str]] = {}  # experiences of every folder
    for file, name in of.items():
        for folder in file.parents:
            beneath.setdefault(folder, set()).add(name)
    asked: dict[str, tuple[Example, ...]] = {}
    before: dict[tuple[str, str], tuple[str, str]] = {}  # answer and place, by experience and question
    for source in sorted(sources, key=_order):
        below = sorted(beneath.get(source.parent, ()))
        for number, line in enumerate(_text(source).split("\n"), 1):
            if not line.strip():
                continue
            place = f"{source}, line {number}"
            question, document = _question(line, place)
            if document and source.parent / document not in of:
                raise ValueError(f"{place}: document {document!r} is none that is read, seen from there")
            if not document and len(below) != 1:
                raise ValueError(
                    f"{place} names no document, and beside and below it are {len(below)} experiences "
                    f'({", ".join(below[:3])}): add "document", a path from there'
                )
            name = of[source.parent / document] if document else below[0]
            answer, there = before.setdefault((name, _plain(question.prompt)), (question.answer, place))
            if _plain(answer) != _plain(question.answer):
                raise ValueError(
                    f"{place} asks {question.prompt!r} of {name} with the answer {question.answer!r}, but "
                    f"{there} with {answer!r}: only one is ever given; remove one or ask them differently"
                )
            asked[name] = (*asked.get(name, ()), question)
    return asked


def _plain(text: str) -> str:
    """A text by which others are told to be the same."""
    return " ".join(text.casefold().split())


def _question(line: str, place: str) -> tuple[Example, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: malformed JSON: {error}") from error
    match entry:
        case {"question": str(question), "answer": str(answer)} if question.strip() and answer.strip():
            document = entry.get("document", "")
            if isinstance(document, str):
                return Example(question.strip(), answer.strip()), document
    raise ValueError(f'{place} must hold a "question" and an "answer", not blank; found {line.strip():.80}')


def _probe(paragraph: str) -> Example:
    """The first half's end as the prompt and the words after it as the answer, spelt as they stand there."""
    words = list(re.finditer(r"\S+", paragraph))
    cut = len(words) // 2
    first, last = words[max(0, cut - PROMPT_WORDS)], words[min(len(words), cut + ANSWER_WORDS) - 1]
    return Example(
        paragraph[first.start() : words[cut - 1].end()], paragraph[words[cut].start() : last.end()]
    )
