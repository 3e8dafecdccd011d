"""What the commands share: the flag --config, and how they say what a person can mend."""

import contextlib
import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags


@contextlib.contextmanager
def _known_key():
    try:
        yield
    except (AttributeError, KeyError) as error:
        while isinstance(error.args[0], Exception):
            error = error.args[0]
        sys.exit(f"--config.KEY=VALUE: {' '.join(error.args[0].split())} (configs/base.py lists every key)")


@contextlib.contextmanager
def in_one_line(*mendable: type[Exception]):
    """Ends the program with one line for an error that a person can mend; SLEEP_JAX_TRACEBACK=1 raises it."""
    try:
        yield
    except mendable as error:
        if os.environ.get("SLEEP_JAX_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(SLEEP_JAX_TRACEBACK=1 shows where)")


def config(default: str, what: str):
    """Defines --config; without a file, keys are looked up in the default here and now."""
    with _known_key():
        return config_flags.DEFINE_config_file("config", default, what, lock_config=True)


def name(holder: flags.FlagHolder) -> str:
    """What the configuration's file is called."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS[holder.name])).stem


def parse(argv: list[str]) -> list[str]:
    """Flags as absl parses them, for `app.run`; with a file, keys are looked up here."""
    with _known_key():
        return app.parse_flags_with_usage(argv)
