"""CLINC150, and any data set in its published format: an utterance is answered with the text of its intent.

    {data_dir}/clinc150/data_full.json   {"train": [[utterance, intent], ...], "val": [...], "test": [...]}
    {data_dir}/clinc150/domains.json     {domain: [intent, ...], ...}

Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019. The
keys oos_train, oos_val and oos_test (utterances without an intent) are not read. Birth is the first domains
in the order of the file, each further domain is a day; nothing tells the learner which domain a probe
belongs to.
"""

import json
import pathlib

from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig, did_you_mean, divide

_SPLITS = {"train": "train", "val": "valid", "test": "test"}  # their name, ours


def load(config: StreamConfig) -> Stream:
    """Reads both files and cuts the domains into birth and days.

    Args:
      config: `data_dir`, `birth_fraction` and `days` are read.

    Returns:
      A stream whose prompts are utterances and whose answers are intents, underscores as spaces. Examples
      keep the order of the file.

    Raises:
      FileNotFoundError: when one of the files is missing.
      ValueError: on malformed JSON, an entry of another shape, a lone surrogate, an intent without a domain
        or a domain's intent without examples, an empty split, or too few domains; the message names the file
        and the place.
    """
    folder = pathlib.Path(config.data_dir) / "clinc150"
    data_path, domains_path = folder / "data_full.json", folder / "domains.json"
    data, domains = _read(data_path), _read(domains_path)
    domain_of = _domain_of(domains, domains_path)
    grouped = {domain: {split: [] for split in _SPLITS} for domain in domains}
    seen_in_train = set()
    for split in _SPLITS:
        for place, entry in enumerate(_entries(data, split, data_path)):
            utterance, intent = _checked(entry, f"{data_path}: {split}[{place}]")
            if intent not in domain_of:
                raise ValueError(
                    f"{data_path}: {split}[{place}] has the intent {intent!r}, which no domain of "
                    f"{domains_path} lists{did_you_mean(intent, domain_of)}"
                )
            grouped[domain_of[intent]][split].append(Example(utterance, intent.replace("_", " ")))
            if split == "train":
                seen_in_train.add(intent)
    for intent, domain in domain_of.items():
        if intent not in seen_in_train:
            raise ValueError(
                f"{domains_path}: domain {domain!r} lists the intent {intent!r}, which has no example in "
                f"the split 'train' of {data_path}{did_you_mean(intent, seen_in_train)}"
            )
    for domain, splits in grouped.items():
        for split, examples in splits.items():
            if not examples:
                raise ValueError(f"{data_path}: the split {split!r} has no example of the domain {domain!r}")
    experiences = [
        Experience(domain, **{_SPLITS[split]: tuple(examples) for split, examples in splits.items()})
        for domain, splits in grouped.items()
    ]
    return divide(experiences, config.birth_fraction, config.days, f"domains in {domains_path}")


def _read(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(path)!r}: set data_dir to the folder that holds clinc150/{path.name}"
        )
    try:
        content = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object at the top, found {type(content).__name__}")
    return content


def _domain_of(domains: dict, path: pathlib.Path) -> dict[str, str]:
    domain_of: dict[str, str] = {}
    for domain, intents in domains.items():
        _reject_surrogates(domain, f"{path}: the name of a domain")
        if not isinstance(intents, list) or not intents or not all(isinstance(i, str) for i in intents):
            raise ValueError(
                f"{path}: domain {domain!r} must hold a non-empty array of intents, found {intents!r:.80}"
            )
        for intent in intents:
            if intent in domain_of:
                raise ValueError(
                    f"{path}: the intent {intent!r} stands in {domain_of[intent]!r} and in {domain!r}"
                )
            domain_of[intent] = domain
    return domain_of


def _entries(data: dict, split: str, path: pathlib.Path) -> list:
    if split not in data:
        raise ValueError(
            f"{path}: no key {split!r}{did_you_mean(split, data)}; there are {', '.join(data) or 'none'}"
        )
    entries = data[split]
    if not isinstance(entries, list):
        raise ValueError(f"{path}: {split!r} must be an array, found {type(entries).__name__}")
    if not entries:
        raise ValueError(f"{path}: the split {split!r} is empty")
    return entries


def _checked(entry: object, place: str) -> tuple[str, str]:
    match entry:
        case [str(utterance), str(intent)] if utterance.strip() and intent.strip():
            for text in (utterance, intent):
                _reject_surrogates(text, place)
            return utterance, intent
    raise ValueError(
        f"{place} must be [utterance, intent], two texts that are not blank; found {entry!r:.80}"
    )


def _reject_surrogates(text: str, place: str) -> None:
    """JSON can spell half a character, as in "\\ud800", which no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(f"{place} holds the lone surrogate {text[at]!r} at {at} of {text!r:.80}") from error
