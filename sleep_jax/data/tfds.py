"""Text classification from TensorFlow Datasets, read as a data source: without TensorFlow at run time.

The text is answered with the name of its label. Birth is the first `birth_fraction` of the classes in the
order of the data set's label names; the others are split evenly into `days` days (days = 0: one class a day).
"""

import numpy as np

from sleep_jax.data.stream import Example, Experience, Stream, StreamConfig, did_you_mean, size_at_birth


def load(config: StreamConfig) -> Stream:
    """Reads `config.tfds_name`, downloading and preparing it when `data_dir` does not hold it yet.

    Args:
      config: `tfds_name`, `tfds_text`, `tfds_label`, `tfds_splits`, `data_dir` ('' = TFDS's own),
        `birth_fraction` and `days` are read.

    Returns:
      A stream whose prompts are texts and whose answers are label names, underscores as spaces.

    Raises:
      ImportError: when tensorflow_datasets is not installed; names the extra.
      ValueError: on a missing name, unknown features, a label that is no ClassLabel, text that is blank or
        not UTF-8, a day without examples in one of the splits, or too few classes.
    """
    if not config.tfds_name:
        raise ValueError(
            "stream.source='tfds' needs the name of a data set, as in stream.tfds_name='ag_news_subset'"
        )
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"stream.source='tfds' needs the extra 'tfds': pip install 'sleep_jax[tfds]' ({error})"
        ) from error
    sources = tensorflow_datasets.data_source(
        config.tfds_name,
        split=list(config.tfds_splits),
        data_dir=config.data_dir or None,
        # Random access needs it, and the default format cannot even be written without TensorFlow.
        builder_kwargs={"file_format": "array_record"},
    )
    names = _label_names(config, sources[0].dataset_info.features)
    grouped = [
        _by_class(config, source, split, names)
        for source, split in zip(sources, config.tfds_splits, strict=True)
    ]
    born = size_at_birth(len(names), config.birth_fraction, f"classes of {config.tfds_name!r}")
    left = len(names) - born
    if config.days > left:
        raise ValueError(
            f"stream.days={config.days}, but {left} of the {len(names)} classes of {config.tfds_name!r} are "
            f"left after birth (stream.birth_fraction={config.birth_fraction}); lower one of the two"
        )
    parts = [range(born), *np.array_split(np.arange(born, len(names)), config.days or left)]
    life = [
        Experience(
            ", ".join(names[c] for c in part) if day else "birth",
            *(tuple(example for c in part for example in split[c]) for split in grouped),
        )
        for day, part in enumerate(parts)
    ]
    for experience in life:
        for ours, split in zip(("train", "valid", "test"), config.tfds_splits, strict=True):
            if not getattr(experience, ours):
                raise ValueError(
                    f"{config.tfds_name!r}: the split {split!r} ({ours}) has no example of "
                    f"{experience.name!r}; take a larger share (stream.tfds_splits) or more classes a day "
                    "(stream.days)"
                )
    return Stream(life[0], tuple(life[1:]))


def _label_names(config: StreamConfig, features) -> list[str]:
    for key, name in (("tfds_text", config.tfds_text), ("tfds_label", config.tfds_label)):
        if name not in features:
            raise ValueError(
                f"stream.{key}={name!r} is not a feature of {config.tfds_name!r}"
                f"{did_you_mean(name, list(features))}; there are {', '.join(features)}"
            )
    names = getattr(features[config.tfds_label], "names", None)
    if not names:
        raise ValueError(
            f"stream.tfds_label={config.tfds_label!r} of {config.tfds_name!r} is no ClassLabel with names"
        )
    return [name.replace("_", " ") for name in names]


def _by_class(config: StreamConfig, source, split: str, names: list[str]) -> list[list[Example]]:
    grouped: list[list[Example]] = [[] for _ in names]
    for place in range(len(source)):
        record = source[place]
        text, label = record[config.tfds_text], int(record[config.tfds_label])
        where = f"{config.tfds_name!r}, split {split!r}, example {place}"
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 at byte offset {error.start}") from error
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{where}: stream.tfds_text={config.tfds_text!r} must be a text that is not blank, "
                f"found {text!r:.60}"
            )
        if not 0 <= label < len(names):
            raise ValueError(
                f"{where}: label {label}, but there are {len(names)} label names (unlabelled split?)"
            )
        grouped[label].append(Example(text, names[label]))
    return grouped
