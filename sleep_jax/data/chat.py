"""Dialogues as text, by the template of a checkpoint, rendered as transformers does."""

import json
import time
from collections.abc import Mapping, Sequence

import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class _Generation(jinja2.ext.Extension):
    """Blocks that mark for transformers what the assistant said; here they are their content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _refuse(message: str):
    raise jinja2.TemplateError(message)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """In place of jinja2's own, which writes for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """A dialogue up to where the model answers.

    Args:
      template: in Jinja.
      messages: each with its "role" and "content".
      names: of special tokens, as "eos_token", that the template may use.

    Raises:
      ValueError: the template is none, or refuses the messages.
    """
    rules = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    rules.filters["tojson"] = _tojson
    rules.globals |= {"raise_exception": _refuse, "strftime_now": time.strftime, **names}
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return rules.from_string(template).render(given)
    except Exception as error:  # a template is a program of others: it fails in any way
        raise ValueError(f"the chat template of the checkpoint refuses this: {error}") from error
