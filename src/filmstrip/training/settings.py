"""Frozen dataclasses from plain data (YAML, JSON): every key is known, every value has the type that was declared.

The declarations are the documentation: `setting(default, help)` gives a field its default and its meaning.
"""

import difflib
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from filmstrip.errors import ConfigError

T = TypeVar("T")


def setting(default: Any, help: str) -> Any:
    """A field with a default value and a sentence that says what it means."""
    return field(default=default, metadata={"help": help})


def section(kind: type, help: str) -> Any:
    """A field that is itself a dataclass with defaults for everything."""
    return field(default_factory=kind, metadata={"help": help})


def required(help: str) -> Any:
    """A field that has no default."""
    return field(metadata={"help": help})


def build(kind: type[T], values: Any, where: str) -> T:
    """An object of the dataclass `kind` from a mapping. `where` names the place in errors.

    Raises `ConfigError`, one line, for a key that is unknown (naming the nearest), a missing one, a value of another
    type, and whatever the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected settings by name, not {reprlib.repr(values)}")
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown setting {reprlib.repr(key)}{_nearest(str(key), known)}")
        given[key] = convert(hints[key], value, f"{where}, {key}")
    for name, item in known.items():
        if name not in given and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{where}: {name} is missing ({item.metadata.get('help', '')})")
    try:
        return kind(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the declared type. Raises `ConfigError` saying what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(part for part in arguments if part is not type(None)), value, where)
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {reprlib.repr(value)}{_nearest(str(value), arguments)}")
        return value
    if origin in (tuple, dict):
        return (_convert_tuple if origin is tuple else _convert_dict)(arguments, value, where)
    return _convert_plain(hint, value, where)


def _convert_dict(arguments: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected names and values, not {reprlib.repr(value)}")
    return {str(key): convert(arguments[1], item, f"{where}, {key}") for key, item in value.items()}


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [value]  # one name instead of a list of one
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list, not {reprlib.repr(value)}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(convert(arguments[0], item, f"{where} {index + 1}") for index, item in enumerate(value))
    if len(arguments) != len(value):
        raise ConfigError(f"{where}: expected {len(arguments)} values, not {len(value)}")
    return tuple(convert(kind, item, where) for kind, item in zip(arguments, value, strict=True))


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        number = _as_float(value)
        if number is not None:
            return number
        raise ConfigError(f"{where} is {reprlib.repr(value)}; expected a number")
    if hint is bool or hint is int or hint is str:
        names = {bool: "true or false", int: "a whole number", str: "text"}
        if type(value) is not hint:
            raise ConfigError(f"{where} is {reprlib.repr(value)}; expected {names[hint]}")
        return value
    raise TypeError(f"{where}: settings of type {hint} are not supported")


def _as_float(value: Any) -> float | None:
    """YAML 1.1 reads `1e-3` as text: it wants a point in every float."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e30 else None


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(str(item) for item in known)})"
