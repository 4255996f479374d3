"""A jinja2 sandbox with bounds on time, steps and size.

Every value a template builds passes a check, so none grows past `MAX_CHARS` before it is noticed: loops, calls,
filters and operators are counted against a budget; whatever can multiply a size in one operation is refused
beforehand; literals and results are measured afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from filmstrip.text.template_sizes import (
    MAX_CHARS,
    BoundsExceededError,
    check_arguments,
    check_growth,
    value_size,
)

MAX_OUTPUT_CHARS = 2**26
MAX_STEPS = 100_000
MAX_SECONDS = 5.0

# fmt: off
ALLOWED_FILTERS = frozenset((
    "abs", "batch", "bool", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title",
    "tojson", "trim", "truncate", "unique", "upper", "wordcount",
))
# fmt: on

# fmt: off
ALLOWED_STR_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
    "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
))
# fmt: on


@dataclass
class _Budget:
    """What one rendering has used so far."""

    constant_chars: int = 0
    steps: int = 0
    chars: int = 0
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise BoundsExceededError(f"it takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise BoundsExceededError(f"it takes longer than {MAX_SECONDS:g} seconds")

    def output(self, count: int) -> None:
        self.chars += count
        if self.chars > MAX_OUTPUT_CHARS:
            raise BoundsExceededError(f"it writes more than {MAX_OUTPUT_CHARS} characters")


class _PlainNamespace(Namespace):
    """jinja2's namespace, without a text form that could grow without bound and without underscore names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict(...)` without the type itself, whose attributes are no business of a template."""
    return dict(*args, **kwargs)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace cannot have the attribute {name!r}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Chat-template conventions of transformers (trimmed blocks), with bounds."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, extensions: list[Any]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_finalize)
        self._local = threading.local()
        for name in list(self.filters):
            if name in ALLOWED_FILTERS:
                self.filters[name] = self._bounded(self.filters[name], name)
            else:
                del self.filters[name]
        self.filters["bounded_iter"] = self._iterate
        self.filters["bounded_value"] = self._measured
        self.globals = {"range": self.globals["range"], "dict": _make_dict, "namespace": _PlainNamespace}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Register a filter, with its arguments and result checked."""
        self.filters[name] = self._bounded(function, name)

    def bounded_template(self, source: str) -> BoundedTemplate:
        """Compile a template with checks put around its loops, concatenations and literals."""
        self._local.budget = _Budget()
        tree = _AddChecks().visit(self.parse(source))
        constant_chars = sum(len(node.data) for node in tree.find_all(jinja2.nodes.TemplateData))
        template = jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))
        return BoundedTemplate(self, template, constant_chars)

    @property
    def budget(self) -> _Budget:
        """The budget of the rendering under way in this thread."""
        budget: _Budget = self._local.budget
        return budget

    def start(self, constant_chars: int) -> None:
        """Begin a rendering. `constant_chars` bounds the constant text that one turn of a loop writes."""
        self._local.budget = _Budget(constant_chars)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template comes through here (jinja2's sandbox)."""
        self.budget.step()
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps `str.format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name not in ALLOWED_STR_METHODS:
                raise BoundsExceededError(f"the string method {name!r} is not available")
            check_growth(name, owner, args, kwargs)
        if isinstance(function, Macro):
            self.count_iteration()
        free_numbers = isinstance(function, Macro) or function is self.globals["range"]
        check_arguments([*args, *kwargs.values()], numbers=not free_numbers)
        return self._measured(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can multiply a size are checked before, all after."""
        self.budget.step()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(value, "__len__") and len(value) * times > MAX_CHARS:
                    raise BoundsExceededError("it repeats a text or list too often")
        if operator == "**" and not (abs(left) <= MAX_NUMBER and abs(right) <= 64):
            raise BoundsExceededError("it raises a number to a large power")
        if operator == "%" and isinstance(left, str):
            check_growth("format", left, right if isinstance(right, tuple) else (right,), {})
        return self._measured(super().call_binop(context, operator, left, right))

    def _bounded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            values = [value for value in args if not isinstance(value, Context | jinja2.Environment)]
            values = [value for value in values if not isinstance(value, jinja2.nodes.EvalContext)]
            check_arguments([*values[1:], *kwargs.values()], numbers=name not in ("default", "d", "int", "float"))
            if values:
                check_growth(name, self._measured(values[0]), values[1:], kwargs)
            result = function(*args, **kwargs)
            return self._measured(list(self._count(result)) if isinstance(result, Iterator) else result)

        # `jinja_pass_arg` marks filters that want the context, the evaluation context or the environment first.
        if hasattr(function, "jinja_pass_arg"):
            checked.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return checked

    def _iterate(self, values: Iterable[Any]) -> Any:
        if isinstance(values, str | list | tuple | dict | range):
            return _CountedSequence(values, self) if not isinstance(values, dict) else self._count(values)
        return self._count(values)

    def _count(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.count_iteration()
            yield value

    def count_iteration(self) -> None:
        """Charge one turn of a loop or one call of a macro, and the constant text it may write."""
        self.budget.step()
        self.budget.output(self.budget.constant_chars)

    def _measured(self, value: Any) -> Any:
        if value_size(value, MAX_CHARS) > MAX_CHARS:
            raise BoundsExceededError(f"it builds a value of more than {MAX_CHARS} characters")
        return value


class _CountedSequence:
    """A sequence whose iteration is counted, and whose length a loop may still ask for (`loop.last`)."""

    def __init__(self, values: Any, environment: BoundedEnvironment) -> None:
        self._values, self._environment = values, environment

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._environment.count_iteration()
            yield value


class BoundedTemplate:
    """A compiled template that renders within the bounds."""

    def __init__(self, environment: BoundedEnvironment, template: jinja2.Template, constant_chars: int) -> None:
        self._environment, self._template, self._constant_chars = environment, template, constant_chars

    def run(self, variables: Mapping[str, Any]) -> str:
        """Render with a fresh budget."""
        self._environment.start(self._constant_chars)
        context = self._template.new_context(dict(variables))
        return "".join(self._template.root_render_func(context))


class _AddChecks(NodeTransformer):
    """Puts the counting filter around what loops iterate over, the measuring one around literals and `~`."""

    def _wrap(self, node: Any, name: str) -> Any:
        wrapped = jinja2.nodes.Filter(node, name, [], [], None, None)
        return wrapped.set_lineno(node.lineno).set_environment(node.environment)

    def visit_For(self, node: jinja2.nodes.For) -> Any:  # noqa: N802 - jinja2 finds visitors by node name
        super().generic_visit(node)
        node.iter = self._wrap(node.iter, "bounded_iter")
        return node

    def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Measure literals and concatenations, and the parts that a concatenation turns into text."""
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, jinja2.nodes.Concat):
            node.nodes = [self._wrap(part, "bounded_value") for part in node.nodes]
            return self._wrap(node, "bounded_value")
        literal = isinstance(node, jinja2.nodes.List | jinja2.nodes.Dict | jinja2.nodes.Tuple)
        return self._wrap(node, "bounded_value") if literal and getattr(node, "ctx", "load") == "load" else node


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Called for every `{{ value }}`: charge its text. Asking for the context also keeps jinja2 from folding constants
    while it compiles, outside of any budget."""
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    environment.budget.step()
    chars = value_size(value, MAX_CHARS)
    if chars > MAX_CHARS:
        raise BoundsExceededError(f"it writes a value of more than {MAX_CHARS} characters")
    environment.budget.output(chars)
    return value


def plain_text(error: BaseException) -> str:
    """An exception's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
