"""How large the values of a chat template are, and how large an operation would make them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_CHARS = 2**20

# What an element of a list or dict counts besides its text: about what it takes in memory and time.
_PER_ITEM = 16

# The largest width or count a template may ask for (`indent(4)`, `round(2)`, `"%10s"`).
MAX_NUMBER = 10_000


class BoundsExceededError(Exception):
    """A template asked for more than it may have."""


def value_size(value: Any, limit: int) -> int:
    """Roughly the characters `str(value)` has; stops counting above `limit`."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return 1 + value.bit_length() // 3
    if isinstance(value, Mapping):
        parts: Iterable[Any] = (part for item in value.items() for part in item)
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    else:
        return 1
    total = 2
    for part in parts:
        total += _PER_ITEM + value_size(part, limit - total)
        if total > limit:
            break
    return total


def check_arguments(values: Iterable[Any], *, numbers: bool) -> None:
    """Refuse arguments that are large: values, and numbers that would be widths or counts."""
    for value in values:
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > MAX_NUMBER:
            raise BoundsExceededError(f"it asks for a width or count of {value}, more than {MAX_NUMBER}")
        if value_size(value, MAX_CHARS) > MAX_CHARS:
            raise BoundsExceededError(f"it builds a value of more than {MAX_CHARS} characters")


def check_growth(name: str, owner: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse operations whose result could be far larger than what they start from."""
    values = [*args, *kwargs.values()]
    texts = sum(value_size(value, MAX_CHARS) for value in values)
    size = value_size(owner, MAX_CHARS)
    if name == "replace" and values:
        old, new = (value_size(value, MAX_CHARS) for value in (*values, "", "")[:2])
        growth = (size // max(old, 1) + 1) * new
    elif name == "join":
        items, separator = (values[:1] or [()])[0], owner
        if not isinstance(owner, str):
            items, separator = owner, (values[:1] or [""])[0]
        growth = (len(items) if hasattr(items, "__len__") else 1) * value_size(separator, MAX_CHARS)
    elif name == "format" and isinstance(owner, str):
        widths = [int(digits) for digits in re.findall(r"\d{1,18}", owner)]
        stars = [value for value in values if isinstance(value, int)]
        growth = owner.count("%") * texts + owner.count("{") * texts + sum(widths) + sum(map(abs, stars))
    elif name in ("indent", "tojson", "batch", "slice", "truncate", "trim", "sum", "round"):
        numbers = [abs(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
        growth = int(max([texts, *numbers]) * (1 + size)) if name in ("indent", "tojson", "batch", "sum") else 0
    else:
        growth = 0
    if growth > 16 * MAX_CHARS:
        raise BoundsExceededError(f"{name!r} would build a value of more than {MAX_CHARS} characters")
