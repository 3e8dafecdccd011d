"""Takes nights out of a life.

python -m launch.forget --workdir=DIR --night=3
"""

from absl import app, flags, logging

from launch import options

WORKDIR = flags.DEFINE_string("workdir", None, "directory of one life, with its phases/", required=True)
NIGHT = flags.DEFINE_list("night", None, "number of the night, or several with commas", required=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Nights are given as --night=1,2")
    if not all(n.isdecimal() for n in NIGHT.value) or not NIGHT.value:
        raise app.UsageError(f"--night={','.join(NIGHT.value)} must be numbers of nights")

    from sleep_jax import checkpoint, forgetting

    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it opens
    with options.in_one_line(ValueError, OSError, checkpoint.CheckpointError):
        print(forgetting.forget(WORKDIR.value, [int(n) for n in NIGHT.value]))


if __name__ == "__main__":
    app.run(main)
