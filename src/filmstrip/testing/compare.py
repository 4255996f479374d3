"""Two implementations side by side: named activations of each, paired by name, and how far apart they are.

Ours are recorded through taps (`Recorder`), another's through forward hooks on its modules (`record_hooks`), and
`compare` pairs them. Which module of transformers' port holds which of our sites is a table (`transformers_points`);
nothing here imports transformers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from filmstrip.config import MediaKind, ModelConfig
from filmstrip.shapes import Int, Tensor

Activations = dict[str, Tensor]


class Recorder:
    """Taps that keep every value they see, by site, and change none."""

    def __init__(self) -> None:
        self.activations: Activations = {}

    def __call__(self, site: str, value: Tensor) -> Tensor:
        """Keep `value` under `site`."""
        self.activations[site] = value.detach()
        return value


@dataclass(frozen=True)
class HookPoint:
    """Where another implementation holds the value of our `site`: an input or output of `module` in its n-th call.

    `argument` names the input when the module is called with keywords; otherwise it is the first positional one.
    """

    site: str
    module: str
    side: Literal["input", "output"] = "output"
    call: int = 0
    argument: str = ""


def transformers_points(config: ModelConfig, kinds: Sequence[MediaKind]) -> tuple[HookPoint, ...]:
    """Where `VideoLlavaForConditionalGeneration` of transformers 5 holds each of our sites.

    `kinds` are the kinds of media in the call: its one projector runs for images first, then for videos.
    """
    points: list[HookPoint] = []
    in_order: tuple[MediaKind, ...] = ("image", "video")
    for call, kind in enumerate(kind for kind in in_order if kind in kinds):
        tower, theirs = f"{kind}_tower", f"model.{kind}_tower"
        points += [HookPoint(f"{tower}.embeddings", f"{theirs}.embeddings")]
        points += [HookPoint(f"{tower}.hidden_states.0", f"{theirs}.pre_layrnorm")]
        points += [
            HookPoint(f"{tower}.hidden_states.{layer + 1}", f"{theirs}.encoder.layers.{layer}")
            for layer in range(config.tower(kind).num_layers)
        ]
        points += [
            HookPoint(f"{tower}.selected", "model.multi_modal_projector", "input", call),
            HookPoint(f"projector.{kind}", "model.multi_modal_projector", "output", call),
        ]
    text = "model.language_model"
    points += [HookPoint("embeddings", text, "input", argument="inputs_embeds")]
    points += [HookPoint("text_tower.hidden_states.0", f"{text}.layers.0", "input")]
    points += [
        HookPoint(f"text_tower.hidden_states.{layer + 1}", f"{text}.layers.{layer}")
        for layer in range(config.text.num_layers)
    ]
    points += [HookPoint("text_tower.final_norm", f"{text}.norm"), HookPoint("logits", "lm_head")]
    return tuple(points)


@contextmanager
def record_hooks(model: nn.Module, points: Iterable[HookPoint]) -> Iterator[Activations]:
    """Record the values at `points` while the block runs `model`; the hooks are gone afterwards.

    Raises `AttributeError` when the model has no module of a point's name.
    """
    activations: Activations = {}
    by_module: dict[str, list[HookPoint]] = {}
    for point in points:
        by_module.setdefault(point.module, []).append(point)
    handles = []
    for name, group in by_module.items():
        hook = partial(_hook, activations, group, [0])
        handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    activations: Activations,
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
        value = output
        if point.side == "input":
            value = kwargs[point.argument] if point.argument else args[0]
        # Some releases return a tuple from a layer, with attention weights after the hidden state.
        activations[point.site] = (value[0] if isinstance(value, tuple) else value).detach()
    calls[0] += 1


@dataclass(frozen=True)
class Difference:
    """How far one activation is from its reference: the largest absolute difference, and the reference's own size."""

    site: str
    max_abs: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest difference as a part of the reference's largest absolute value."""
        return self.max_abs / max(self.scale, torch.finfo(torch.float32).tiny)

    @property
    def kind(self) -> str:
        """The site without its layer number."""
        return self.site.rstrip("0123456789").rstrip(".")


def compare(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], attention_mask: Int[Tensor, "B T"] | None = None
) -> tuple[Difference, ...]:
    """Differences at every site of ours, in our order.

    A reference that keeps clips and frames on one axis is folded into our shape. With `attention_mask`, only real
    positions of the sites of shape (B, T, ...) count: what padding holds is nobody's business. NaN on either side is
    an infinite difference. Raises `KeyError` for a site that the reference does not have, `ValueError` when the
    numbers of values differ.
    """
    return tuple(_difference(site, value, theirs[site], attention_mask) for site, value in ours.items())


def _difference(site: str, ours: Tensor, theirs: Tensor, attention_mask: Tensor | None) -> Difference:
    if ours.numel() != theirs.numel() or ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(f"{site}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} do not hold the same values")
    first, second = ours.double(), theirs.reshape(ours.shape).double()
    if attention_mask is not None and is_text_site(site):
        real_BT = attention_mask.bool()
        first, second = first[real_BT], second[real_BT]
    difference = (first - second).abs().nan_to_num(nan=torch.inf).max()
    return Difference(site, float(difference), float(second.abs().max()))


def is_text_site(site: str) -> bool:
    """Whether the site's value has one row per batch row and one entry per token."""
    return site in ("embeddings", "logits") or site.startswith("text_tower.")


def worst(differences: Iterable[Difference]) -> dict[str, Difference]:
    """The largest difference of each kind of site."""
    found: dict[str, Difference] = {}
    for difference in differences:
        known = found.get(difference.kind)
        if known is None or difference.max_abs > known.max_abs:
            found[difference.kind] = difference
    return found
