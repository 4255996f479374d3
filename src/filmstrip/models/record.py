"""Named activations of a run: ours through taps (`Recorder`), any module's through forward hooks (`record_hooks`).

What is recorded is the value itself, detached unless gradients are to pass; nothing is changed by looking.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.overrides import TorchFunctionMode

from filmstrip.shapes import Tensor

Activations = dict[str, Tensor]


class Recorder:
    """Taps that keep every value they see, by site, and change none. Losses are made of values not to `detach`."""

    def __init__(self, *, detach: bool = True) -> None:
        self.activations: Activations = {}
        self.detach = detach

    def __call__(self, site: str, value: Tensor) -> Tensor:
        """Keep `value` under `site`."""
        self.activations[site] = value.detach() if self.detach else value
        return value


@dataclass(frozen=True)
class HookPoint:
    """Where an implementation holds the value of our `site`: an input or output of `module` in its n-th call.

    `query` and `key` are what the first fused attention after that call reads: queries and keys that were turned.

    `argument` names the input when the module is called with keywords; otherwise it is the first positional one.
    `item` is the place in the output when that is a tuple.
    """

    site: str
    module: str
    side: Literal["input", "output", "query", "key"] = "output"
    call: int = 0
    argument: str = ""
    item: int = 0


@contextmanager
def record_hooks(model: nn.Module, points: Iterable[HookPoint]) -> Iterator[Activations]:
    """Record the values at `points` while the block runs `model`; the hooks are gone afterwards.

    Raises `AttributeError` when the model has no module of a point's name.
    """
    activations: Activations = {}
    attention = _AttentionInputs(activations)
    by_module: dict[str, list[HookPoint]] = {}
    for point in points:
        by_module.setdefault(point.module, []).append(point)
    handles = []
    for name, group in by_module.items():
        hook = partial(_hook, attention, group, [0])
        handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        with attention:
            yield activations
    finally:
        for handle in handles:
            handle.remove()


class _AttentionInputs(TorchFunctionMode):
    """Records the operands of the next fused attention for the points that wait for them."""

    def __init__(self, activations: Activations) -> None:
        super().__init__()
        self.activations = activations
        self.waiting: list[HookPoint] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            for point in self.waiting:
                self.activations[point.site] = args[0 if point.side == "query" else 1].detach()
            self.waiting.clear()
        return func(*args, **(kwargs or {}))


def _hook(
    attention: _AttentionInputs,
    points: list[HookPoint],
    calls: list[int],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    for point in points:
        if point.call != calls[0]:
            continue
        if point.side in ("query", "key"):
            attention.waiting.append(point)
            continue
        value = output
        if point.side == "input":
            value = kwargs[point.argument] if point.argument else args[0]
        # Some releases return a tuple from a layer, with attention weights after the hidden state.
        attention.activations[point.site] = (value[point.item] if isinstance(value, tuple) else value).detach()
    calls[0] += 1


def has_hooks(model: nn.Module) -> bool:
    """Whether anything was hung into the model, or into all modules, that may change what it computes."""
    return bool(hook_numbers(model))


def hook_numbers(model: nn.Module) -> list[int]:
    """The forward hooks of a model's modules and those of all modules; every hook of a process has its own number."""
    of_all = (torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks)
    own = (hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))
    return [number for hooks in (*of_all, *own) for number in hooks]
