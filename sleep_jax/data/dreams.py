"""What a dream is asked for, and what it says: prompts and text forms, as data.

A dream of a context is a text of lines; each is something to learn by itself. A line `question -> answer` is
an example that is asked, any other line is text that is read. SEAL (2506.10943) calls such a text a self-edit
and trains on its lines in the same way.
"""

from collections.abc import Iterable

from sleep_jax.data.stream import Example

# By role, what stands before the context. Their roles are SEAL's (implications, rewrite, self-questions, no
# request at all, how to study a puzzle) and statements to complete, which a small model that knows such
# takes for another kind of thing than a text. The words are ours, and few: small models read them too.
PROMPTS = {
    "implications": "What follows from this? {context}",
    "rewrite": "Say it in other words. {context}",
    "questions": "Ask and answer. {context}",
    "completions": "Begin and complete. {context}",
    "free": "{context}",
    "regimen": "How to study this? {context}",
}
ARROW = " -> "


def prompt(role: str, context: str) -> str:
    """What the model is asked for a dream of this context.

    Raises:
      ValueError: there is no such role.
    """
    if role not in PROMPTS:
        raise ValueError(f"{role!r} is not a role of dreams; there are {', '.join(PROMPTS)}")
    return PROMPTS[role].format(context=context)


def write(examples: Iterable[Example]) -> str:
    """The dream that says these, one line each.

    Raises:
      ValueError: a text holds a line break, or a question an arrow: it could not be read back.
    """
    examples = tuple(examples)
    lines = [f"{e.prompt}{ARROW}{e.answer}" if e.prompt else e.answer for e in examples]
    if [e for line in lines for e in read(line)] != list(examples):
        raise ValueError(f"these do not come back from their text: {examples!r}")
    return "\n".join(lines)


def read(dream: str) -> list[Example]:
    """What a dream says; lines that are blank, or a question or an answer alone, say nothing."""
    said = []
    for line in dream.split("\n"):
        question, arrow, answer = (part.strip() for part in line.partition(ARROW.strip()))
        if arrow and question and answer:
            said.append(Example(question, answer))
        elif not arrow and question:
            said.append(Example("", question))
    return said
