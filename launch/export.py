"""Writes a life as a checkpoint that transformers loads, and its experts beside it.

python -m launch.export --workdir=DIR --out=FOLDER [--plain]
"""

from absl import app, flags, logging

from launch import options

WORKDIR = flags.DEFINE_string("workdir", None, "directory of one life, with its phases/", required=True)
OUT = flags.DEFINE_string("out", None, "folder that is written; it must be empty or not there", required=True)
PLAIN = flags.DEFINE_bool("plain", False, "the backbone alone, without fast memory and experts")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")

    from sleep_jax import checkpoint, exporting

    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it opens
    with options.in_one_line(ValueError, OSError, checkpoint.CheckpointError):
        print(exporting.export(WORKDIR.value, OUT.value, PLAIN.value))


if __name__ == "__main__":
    app.run(main)
