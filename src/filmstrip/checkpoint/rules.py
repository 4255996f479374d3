"""Names of tensors on disk and in the model, as data: `Rule`, `Drop`, and the `Layout` they make up.

A pattern is a name whose dotted parts may be wildcards: `{i}` is a layer number, `{p}` (the last part) is `weight` or
`bias`, each at most once. A layout is total (every key of a checkpoint matches one entry or is an error) and
invertible (`from_canonical` undoes `to_canonical`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor

TEMPORAL = ".temporal."  # in names of modules and tensors of temporal attention
SCALES = "scales"  # the tensor that stands beside a quantised `weight` (`quantization`)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
_WILDCARDS = ("{i}", "{p}")
Values = dict[str, str]  # wildcard to the text it stands for


@dataclass(frozen=True)
class Transform:
    """A change of shape between disk and model, with its inverse; both must be views."""

    name: str
    to_canonical: Callable[[Tensor], Tensor]
    from_canonical: Callable[[Tensor], Tensor]

    def canonical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape in the model of a tensor with this shape on disk; None if the transform does not apply to it."""
        try:
            return tuple(self.to_canonical(torch.empty(shape, device="meta")).shape)
        except (RuntimeError, IndexError):
            return None


IDENTITY = Transform("as stored", lambda x: x, lambda x: x)
# The original release keeps its frame embedding as (1, F, E), ready to be broadcast over rows.
WITHOUT_LEADING_ONE = Transform("(1, F, E) to (F, E)", lambda x: x.reshape(x.shape[1:]), lambda x: x[None])


@dataclass(frozen=True)
class Rule:
    """The tensor `disk` is the parameter `canonical`."""

    disk: str
    canonical: str
    transform: Transform = IDENTITY


@dataclass(frozen=True)
class Drop:
    """The tensor `disk` is not loaded, for the reason given."""

    disk: str
    why: str


@dataclass(frozen=True)
class Mapped:
    """What a layout says about one key: the parameter it is and how its shape changes."""

    disk: str
    canonical: str
    transform: Transform


@dataclass(frozen=True)
class Layout:
    """One on-disk family. `name` is its short id, `title` what a person calls it."""

    name: str
    title: str
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()

    def __post_init__(self) -> None:
        _require_unique(self.name, [rule.disk for rule in self.rules] + [drop.disk for drop in self.drops])
        _require_unique(self.name, [rule.canonical for rule in self.rules])
        for rule in self.rules:
            if any(rule.disk.count(wildcard) != rule.canonical.count(wildcard) for wildcard in _WILDCARDS):
                raise ValueError(f"layout {self.name}: the wildcards of {rule} differ between the two sides")

    def to_canonical(self, key: str) -> Mapped | Drop | None:
        """What the key on disk is: a parameter, something to leave out, or (None) unknown to this layout."""
        if key.endswith(f".{SCALES}"):
            weight = self.to_canonical(key.removesuffix(SCALES) + "weight")
            if not isinstance(weight, Mapped) or not weight.canonical.endswith(".weight"):
                return None
            return Mapped(key, weight.canonical.removesuffix("weight") + SCALES, IDENTITY)
        for pattern, values in _patterns_of(key):
            entry = self._by_disk.get(pattern)
            if isinstance(entry, Rule):
                return Mapped(key, _fill(entry.canonical, values), entry.transform)
            if entry is not None:
                return entry
        return None

    def from_canonical(self, name: str) -> Mapped:
        """Where this layout keeps a parameter. Raises `CheckpointError` for one it has no place for."""
        if name.endswith(f".{SCALES}"):
            weight = self.from_canonical(name.removesuffix(SCALES) + "weight")
            return Mapped(weight.disk.removesuffix("weight") + SCALES, name, IDENTITY)
        for pattern, values in _patterns_of(name):
            rule = self._by_canonical.get(pattern)
            if rule is not None:
                return Mapped(_fill(rule.disk, values), name, rule.transform)
        raise CheckpointError(f"the {self.title} has no place for the parameter {name!r}")

    def placed(self, prefix: str) -> "Layout":
        """The same names on disk for a component of a larger model, whose parameters begin with `prefix` there."""
        rules = tuple(Rule(rule.disk, prefix + rule.canonical, rule.transform) for rule in self.rules)
        return Layout(self.name, self.title, rules, self.drops)

    @cached_property
    def _by_disk(self) -> dict[str, Rule | Drop]:
        return {rule.disk: rule for rule in self.rules} | {drop.disk: drop for drop in self.drops}

    @cached_property
    def _by_canonical(self) -> dict[str, Rule]:
        return {rule.canonical: rule for rule in self.rules}


def detect_layout(keys: Iterable[str], layouts: Iterable[Layout], source: str) -> Layout:
    """The first layout to which every key belongs.

    Decided by the set of names alone. Raises `CheckpointError` naming the first keys that the closest layout does
    not know; a mixture of two layouts is such an error.
    """
    names = sorted(keys)
    if not names:
        raise CheckpointError(f"{source} holds no tensors")
    layout, unknown = closest_layout(names, layouts)
    if not unknown:
        return layout
    count = len(unknown)
    shown = ", ".join(repr(name[:120]) for name in unknown[:3]) + (", …" if count > 3 else "")
    if count == len(names):
        raise CheckpointError(f"{source}: none of its {count} tensors belongs to a layout known here: {shown}")
    raise CheckpointError(f"{source}: {count} of {len(names)} tensors do not belong to the {layout.title}: {shown}")


def closest_layout(names: Sequence[str], layouts: Iterable[Layout]) -> tuple[Layout, list[str]]:
    """The first layout that knows every name, else the one that knows most; and the names it does not know."""
    attempts: list[tuple[Layout, list[str]]] = []
    for layout in layouts:
        unknown = [name for name in names if layout.to_canonical(name) is None]
        if not unknown:
            return layout, []
        attempts.append((layout, unknown))
    return min(attempts, key=lambda attempt: len(attempt[1]))


def _require_unique(layout: str, patterns: list[str]) -> None:
    twice = {pattern for pattern in patterns if patterns.count(pattern) > 1}
    if twice:
        raise ValueError(f"layout {layout}: patterns used twice: {sorted(twice)}")


def _patterns_of(name: str) -> Iterator[tuple[str, Values]]:
    """Every pattern that could match `name`, the literal ones first, with the values of its wildcards."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if _NUMBER.fullmatch(part)]
    for number in (None, *numbers):
        pattern, values = parts[:], {}
        if number is not None:
            pattern[number], values["{i}"] = "{i}", parts[number]
        yield ".".join(pattern), values
        if parts[-1] in ("weight", "bias"):
            yield ".".join([*pattern[:-1], "{p}"]), values | {"{p}": parts[-1]}


def _fill(pattern: str, values: Values) -> str:
    for wildcard, value in values.items():
        pattern = pattern.replace(wildcard, value)
    return pattern
