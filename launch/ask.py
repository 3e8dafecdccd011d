"""Asks a life that launch.main has lived.

python -m launch.ask --workdir=DIR                          a prompt, until an empty line
python -m launch.ask --workdir=DIR --question=TEXT [--compare]
"""

from absl import app, flags, logging

from launch import options

WORKDIR = flags.DEFINE_string("workdir", None, "directory of one life, with its phases/", required=True)
QUESTION = flags.DEFINE_string("question", "", "what is asked; without it questions are read line by line")
COMPARE = flags.DEFINE_bool("compare", False, "also ask what it said before its last sleep")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? A question is given as --question=TEXT")

    from sleep_jax import asking, checkpoint, standing

    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it opens
    with options.in_one_line(ValueError, OSError, checkpoint.CheckpointError):
        asker = asking.Asker(standing.read(WORKDIR.value), COMPARE.value)
        if QUESTION.value:
            tell(asker(QUESTION.value))
            return
        print(f"{asker.life.workdir}, {asker.moments[-1][0]}; an empty line ends it")
        while question := read():
            try:
                tell(asker(question))
            except ValueError as error:  # of this question: the next may be shorter
                print(error)


def read() -> str:
    """The next question; '' at the end."""
    try:
        return input("? ").strip()
    except EOFError:
        return ""


def tell(answers) -> None:
    """Prints answers, with when they were given only where there are several."""
    answers = list(answers)
    for said in answers:
        print(f"{said.text or '(nothing)'}    [{f'{said.when}: ' if len(answers) > 1 else ''}{said.by}]")


if __name__ == "__main__":
    app.run(main)
