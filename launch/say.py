"""Lets a checkpoint go on with a text, or answer in its own form of dialogues.

python -m launch.say --config.model.checkpoint=DIR [--prompt=TEXT] [--chat] [--tokens=256] [--temperature=0]
"""

from absl import app, flags

from launch import options

CONFIG = options.config("configs/base.py", "of model the checkpoint and dtypes, tokenizer, mesh and seed")
PROMPT = flags.DEFINE_string("prompt", "", "a text to go on with, or with --chat what the user says")
CHAT = flags.DEFINE_bool("chat", False, "ask by the checkpoint's own chat template")
TOKENS = flags.DEFINE_integer("tokens", 256, "most tokens said")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "of sampling; 0 takes the likeliest")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Texts are given as --prompt=TEXT")

    from sleep_jax import saying, settings
    from sleep_jax.types import Sampling

    with options.in_one_line(ValueError, OSError, ImportError):
        config = settings.load(CONFIG.value.to_dict())
        if not config.model.checkpoint:
            raise ValueError("no checkpoint is named: --config.model.checkpoint=DIR")
        print(saying.say(config, PROMPT.value, CHAT.value, Sampling(TOKENS.value, TEMPERATURE.value)))


if __name__ == "__main__":
    app.run(main, flags_parser=options.parse)
