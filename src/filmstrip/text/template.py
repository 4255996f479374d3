"""A checkpoint's chat template (jinja2), rendered as transformers' `apply_chat_template` does, within bounds.

A template is a program from outside. jinja2's sandbox keeps it from reaching Python's internals, but not from running
for ever or filling the memory; `filmstrip.text.template_bounds` adds that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from filmstrip.errors import PromptError
from filmstrip.text.template_bounds import BoundedEnvironment, BoundedTemplate, plain_text
from filmstrip.text.template_sizes import BoundsExceededError

# The longest published chat templates (with tool use) are about 20 kB.
MAX_TEMPLATE_CHARS = 256 * 1024


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads this class attribute as a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Replace the tag by its body, in a scope of its own as in transformers (there it is a call block)."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body).set_lineno(line)]


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
) -> str:
    """Fill a chat template in.

    The template sees `messages` (content as a list of parts), `add_generation_prompt`, the special tokens by role
    (`bos_token`, ...), `raise_exception`, `strftime_now`, the filter `tojson` and the loop controls. Raises
    `PromptError` when it is malformed, raises an exception itself, or exceeds the bounds.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise PromptError(f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE_CHARS}")
    variables: dict[str, Any] = {
        **special_tokens,
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return _compile(template).run(variables)
    except BoundsExceededError as error:
        raise PromptError(f"the chat template was stopped: {plain_text(error)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"the chat template is malformed at line {error.lineno}: {plain_text(error)}") from error
    except (RecursionError, MemoryError) as error:
        raise PromptError("the chat template was stopped: it nests too deeply or needs too much memory") from error
    except Exception as error:  # a template may fail in any way that Python code can
        raise PromptError(f"the chat template failed: {plain_text(error)}") from error


@lru_cache(maxsize=8)
def _compile(template: str) -> BoundedTemplate:
    environment = BoundedEnvironment(extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    environment.add_filter("tojson", _tojson)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment.bounded_template(template)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja2's own filter, as transformers defines it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
