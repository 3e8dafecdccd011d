"""The flag --config of the commands, and what is said of a key that there is not."""

import contextlib
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags


@contextlib.contextmanager
def _in_one_line():
    try:
        yield
    except (AttributeError, KeyError) as error:
        while isinstance(error.args[0], Exception):
            error = error.args[0]
        sys.exit(f"--config.KEY=VALUE: {' '.join(error.args[0].split())} (configs/base.py lists every key)")


def config(default: str, what: str):
    """Defines --config; without a file, keys are looked up in the default here and now."""
    with _in_one_line():
        return config_flags.DEFINE_config_file("config", default, what, lock_config=True)


def name(holder: flags.FlagHolder) -> str:
    """What the configuration's file is called."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS[holder.name])).stem


def parse(argv: list[str]) -> list[str]:
    """Flags as absl parses them, for `app.run`; with a file, keys are looked up here."""
    with _in_one_line():
        return app.parse_flags_with_usage(argv)
