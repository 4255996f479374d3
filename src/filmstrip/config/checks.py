"""Small checks shared by the configuration dataclasses; each failure is one line for the user."""

import difflib
from collections.abc import Iterable

from filmstrip.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(name: str, value: float) -> None:
    """Raise unless `value` is a number above zero."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    require(ok, f"{name} must be a number above zero, not {value!r}")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of `choices`; the message names the nearest one."""
    known = list(choices)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown {name} {value!r} (known: {', '.join(known)}){hint}")
