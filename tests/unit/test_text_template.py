"""Chat templates come from outside: they cannot escape, run for ever or fill the memory."""

import time
from typing import Any

import pytest

from filmstrip.errors import PromptError
from filmstrip.text import template_bounds
from filmstrip.text.template import render_template

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x | length }}"


def growing(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


def run(template: str) -> str:
    return render_template(template, MESSAGES, {"bos_token": "<s>"}, True)


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "double recursion": "{% macro f(n) %}{% if n %}{% set a = f(n-1) ~ f(n-1) %}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "long output": "{% for a in range(99999) %}" + "y" * 10_000 + "{% endfor %}",
    "hidden output": "{% for a in range(99999) %}{% set x %}{{ 'y' * 100000 }}{% endset %}{% endfor %}",
    "repetition": "{{ 'a' * 10**9 }}",
    "repetition, reversed": "{{ (10**8) * [1] }}",
    "power": "{{ 9 ** 99999999 }}",
    "big integers": growing("9", "ns.x * ns.x"),
    "concatenation": growing("'ab'", "ns.x ~ ns.x"),
    "addition": growing("['ab']", "ns.x + ns.x"),
    "shared lists": growing("['ab']", "[ns.x, ns.x]"),
    "shared dicts": growing("['ab']", "dict(a=ns.x, b=ns.x)"),
    "replace": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 100000 %}{{ x | replace('', x) }}",
    "join": "{% set x = 'a' * 100000 %}{{ x.join(x) }}",
    "join filter": "{% set x = 'a' * 100000 %}{{ range(99999) | map('string') | join(x) }}",
    "format operator": "{{ '%1000000000d' % 1 }}",
    "format star": "{{ '%*d' % (1000000000, 1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "padding method": "{{ 'a'.ljust(1000000000) }}",
    "padding filter": "{{ ['a'] | map('center', 1000000000) | list }}",
    "indent": "{{ 'a' | indent(1000000000) }}",
    "indent lines": "{% set x = 'a\\n' * 400000 %}{{ x | indent(9000) }}",
    "json separators": "{% set x = 'a' * 999999 %}{{ range(9999) | list | tojson(separators=(x, x)) }}",
    "batch fill": "{{ [1] | batch(10000, 'a' * 1000000) | list }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "source": "x" * 300_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_STEPS", 5000)  # under test every step is also type-checked, and slow
    start = time.monotonic()
    with pytest.raises(PromptError, match="the chat template") as caught:
        run(BOMBS[name])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    # The clock stops a template after 5 s; more would mean that one operation ran on behind its back.
    assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages | attr('append') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_no_escape(template: str) -> None:
    with pytest.raises(PromptError):
        run(template)


def test_messages_given_are_not_changed() -> None:
    run("{% set messages = messages[1:] %}{{ messages }}")
    assert MESSAGES == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_errors_name_their_cause() -> None:
    with pytest.raises(PromptError, match="failed: Only users may speak"):
        run("{{ raise_exception('Only users\\nmay speak') }}")
    with pytest.raises(PromptError, match="malformed at line 2"):
        run("a\n{% for %}")
    with pytest.raises(PromptError, match="'nothing' is undefined"):
        run("{{ nothing.at.all }}")


def test_a_long_ordinary_conversation_is_within_bounds() -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "word " * 200}]} for _ in range(500)]
    template = (
        "{% for m in messages %}{{ m.role | upper }}: {% for p in m.content %}{{ p.text }} {% endfor %}{% endfor %}"
    )
    assert len(render_template(template, turns, {}, True)) == 500 * (len("USER: ") + 1001)


def test_generation_tag_prints_its_body() -> None:
    assert run("a {% generation %}{% set x = 1 %}b{{ messages[0].role }}{% endgeneration %} c") == "a buser c"
