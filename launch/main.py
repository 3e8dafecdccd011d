"""Lives one life, or several to compare.

python -m launch.main [--config=configs/tiny.py] [--workdir=DIR] [--config.KEY=VALUE ...]
"""

from absl import app, flags, logging

from launch import heap, options

CONFIG = options.config("configs/tiny.py", "what to live, and how")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "where everything is written; the same directory resumes (default: runs/ and the config)"
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Keys are set as --config.KEY=VALUE")
    heap.keep()
    import jax

    from sleep_jax import checkpoint, life, settings
    from sleep_jax.studies import few_shot, incorporation

    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it opens
    print(
        f"process {jax.process_index()} of {jax.process_count()}, "
        f"{jax.local_device_count()} of {jax.device_count()} {jax.default_backend()} devices",
        flush=True,
    )
    with options.in_one_line(
        ValueError, OSError, ImportError, FloatingPointError, checkpoint.CheckpointError
    ):
        config = settings.load(CONFIG.value.to_dict())
        study = {"life": life.run, "incorporation": incorporation.run, "few_shot": few_shot.run}[config.study]
        study(config, WORKDIR.value or f"runs/{options.name(CONFIG)}")


if __name__ == "__main__":
    app.run(main, flags_parser=options.parse)
