"""Parts of a model named by path: `projector`, `text_tower.blocks.*.attention`, `*`.

A pattern matches a parameter when it matches its name or the path of a module around it; `*` stands for anything,
dots included.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from filmstrip.errors import ConfigError


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` names this parameter or module, or a module that holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` matches."""
    return any(matches(name, pattern) for pattern in patterns)


def require_matches(patterns: Iterable[str], names: Sequence[str], what: str) -> None:
    """Raise `ConfigError` for a pattern that matches none of `names`: it is misspelt."""
    for pattern in patterns:
        if any(matches(name, pattern) for name in names):
            continue
        paths = sorted({".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)})
        near = difflib.get_close_matches(pattern, paths, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{what}: {pattern!r} is the path of no part of the model{hint}")


def trainable_parts(task: nn.Module) -> dict[str, nn.Parameter]:
    """A task's parameters by the paths that recipes use: those of the model, and of heads beside it."""
    return {name.removeprefix("model."): parameter for name, parameter in task.named_parameters()}


def freeze(task: nn.Module, train: Sequence[str], frozen: Sequence[str]) -> None:
    """Let only the parameters learn that `train` matches and `frozen` does not.

    Raises `ConfigError` for a pattern that matches nothing, and when nothing is left to learn.
    """
    parts = trainable_parts(task)
    require_matches(train, [*parts], "train")
    require_matches(frozen, [*parts], "freeze")
    for name, parameter in parts.items():
        parameter.requires_grad_(matches_any(name, train) and not matches_any(name, frozen))
    if not any(parameter.requires_grad for parameter in parts.values()):
        raise ConfigError("nothing is left to train: `freeze` covers all of `train`")
