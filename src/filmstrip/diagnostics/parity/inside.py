"""Inside a step that introduces a difference: which of its parts is the first whose result differs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from filmstrip.config import MediaKind, ModelConfig
from filmstrip.diagnostics.activations import Difference, fold, is_text_site, largest_difference
from filmstrip.diagnostics.parity.inputs import Inputs
from filmstrip.diagnostics.parity.model_steps import Comparison
from filmstrip.diagnostics.parity.side import OurSide, Precision, Side
from filmstrip.inputs.collate import Batch
from filmstrip.models.record import HookPoint
from filmstrip.shapes import Tensor

# Parts of a block in the order in which they are computed: our name, the module that holds the value, and which of its
# values it is. Names that are no modules are values between two modules.
_ATTENTION = (
    ("q_proj", "q_proj", "output"),
    ("k_proj", "k_proj", "output"),
    ("v_proj", "v_proj", "output"),
)
_VISION_ATTENTION = (*_ATTENTION, ("mixed_values", "out_proj", "input"), ("out_proj", "out_proj", "output"))
_TEXT_ATTENTION = (
    *_ATTENTION,
    ("rotated_query", "q_proj", "query"),
    ("rotated_key", "k_proj", "key"),
    ("mixed_values", "o_proj", "input"),
    ("o_proj", "o_proj", "output"),
)


def _under(prefix: str, parts: Sequence[tuple[str, str, str]]) -> tuple[tuple[str, str, str], ...]:
    return tuple((f"{prefix}.{name}", f"{prefix}.{module}", side) for name, module, side in parts)


VISION_BLOCK = (
    ("temporal.norm", "temporal.norm", "output"),
    *_under("temporal.attention", _VISION_ATTENTION),
    ("after_temporal", "attention_norm", "input"),
    ("attention_norm", "attention_norm", "output"),
    *_under("attention", _VISION_ATTENTION),
    ("after_attention", "mlp_norm", "input"),
    ("mlp_norm", "mlp_norm", "output"),
    ("mlp.fc1", "mlp.fc1", "output"),
    ("mlp.activation", "mlp.fc2", "input"),
    ("mlp.fc2", "mlp.fc2", "output"),
)
TEXT_BLOCK = (
    ("attention_norm", "attention_norm", "output"),
    *_under("attention", _TEXT_ATTENTION),
    ("after_attention", "mlp_norm", "input"),
    ("mlp_norm", "mlp_norm", "output"),
    ("mlp.gate_proj", "mlp.gate_proj", "output"),
    ("mlp.up_proj", "mlp.up_proj", "output"),
    ("mlp.activation", "mlp.down_proj", "input"),
    ("mlp.down_proj", "mlp.down_proj", "output"),
)


@dataclass(frozen=True)
class Part:
    """A place inside a step: its full name, and the hook that reads it on either side."""

    name: str
    point: HookPoint

    @property
    def module(self) -> str:
        """The module, by our name, that computes the part or whose input it is."""
        return self.point.module


@dataclass(frozen=True)
class Found:
    """The part that differs first; `name` is the step's own block or site when none of its parts does."""

    name: str
    module: str
    difference: Difference | None = None
    remark: str = ""


def parts_of(site: str, config: ModelConfig, kinds: Sequence[MediaKind]) -> list[Part]:
    """The parts of the step that ends at `site`, in the order in which they are computed."""
    stage, _, rest = site.partition(".")
    call = _call(stage, rest, config, kinds)
    if rest.startswith("hidden_states."):
        layer = int(rest.removeprefix("hidden_states."))
        if layer:
            rows = TEXT_BLOCK if stage == "text_tower" else VISION_BLOCK
            block = f"{stage}.blocks.{layer - 1}"
            return [_part(f"{block}.{name}", f"{block}.{module}", side, call) for name, module, side in rows]
        return [] if stage == "text_tower" else [_part(f"{stage}.pre_norm", f"{stage}.pre_norm", "output", call)]
    whole = {
        "embeddings": ("text_tower.token_embedding",),
        "logits": ("text_tower.lm_head",),
        "text_tower.final_norm": ("text_tower.final_norm",),
        f"{stage}.embeddings": (f"{stage}.patch_embedding",),
        f"projector.{rest}": ("projector.linear_1", "projector.linear_2"),
    }
    return [_part(name, name, "output", call) for name in whole.get(site, ())]


def block_of(site: str) -> str:
    """The module whose output a site is, as far as it is one."""
    stage, _, rest = site.partition(".")
    if rest.startswith("hidden_states.") and rest != "hidden_states.0":
        return f"{stage}.blocks.{int(rest.removeprefix('hidden_states.')) - 1}"
    return site


def _part(name: str, module: str, side: str, call: int) -> Part:
    return Part(name, HookPoint(f"inside:{name}", module, side, call))  # type: ignore[arg-type]


def _call(stage: str, rest: str, config: ModelConfig, kinds: Sequence[MediaKind]) -> int:
    """Which call of a module a site belongs to: one projector, and a shared tower, run for images, then for videos."""
    shared = stage == "projector" or (config.shared_towers and stage.endswith("_tower"))
    kind = rest if stage == "projector" else stage.removesuffix("_tower")
    return int(shared and kind == "video" and "image" in kinds)


def take_apart(ours: OurSide, theirs: Side, inputs: Inputs, site: str, precision: Precision, bound: float) -> Found:
    """Find the first part of the step at `site` that differs by more than `bound`, both sides reading the same."""
    batch = inputs.adopted
    kinds: list[MediaKind] = ["image"] if batch.pixel_values_images is not None else []
    kinds += ["video"] if batch.pixel_values_videos is not None else []
    parts = parts_of(site, ours.config, kinds)
    lonely = next(_on_one_side(ours, theirs, parts), None)
    if lonely is not None:
        return lonely
    shared = [part for part in parts if ours.module(part.module) and theirs.module(part.module)]
    if not shared:
        return Found(block_of(site), block_of(site))
    points = [part.point for part in shared]
    reference = theirs.activations(inputs.theirs, precision, points)
    placeholders = torch.isin(batch.input_ids, torch.tensor(list(ours.config.placeholder_ids.values())))
    mine = ours.run(batch, precision, Comparison(reference, batch, batch, replay=True), points)
    for part in shared:
        first, second = mine.get(part.point.site), reference.get(part.point.site)
        if first is None or second is None:
            continue
        pair = _aligned(part, first.cpu(), second.cpu(), batch, placeholders)
        if pair is None:
            return Found(part.name, part.module, None, f"shapes {tuple(first.shape)} and {tuple(second.shape)}")
        found = largest_difference(part.name, *pair)
        if not found.relative <= bound:
            return Found(part.name, part.module, found)
    return Found(block_of(site), block_of(site))


def _on_one_side(ours: OurSide, theirs: Side, parts: Sequence[Part]) -> Iterator[Found]:
    """Temporal attention that one side has and the other has not."""
    for part in parts:
        have = [side.module(part.module) is not None for side in (ours, theirs)]
        if have[0] != have[1] and ".temporal." in part.name:
            whole = part.name[: part.name.index(".temporal.")] + ".temporal"
            yield Found(whole, whole, None, f"only {'this model' if have[0] else 'the reference'} has it")


def _aligned(
    part: Part, ours: Tensor, theirs: Tensor, batch: Batch, placeholders_BT: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Both values in one shape, without padding; None when they do not fit.

    Embeddings looked up for placeholders are left out: they are overwritten.
    """
    if part.point.side in ("query", "key"):
        theirs = theirs[:, :: max(1, theirs.shape[1] // ours.shape[1])]  # heads that were repeated for their queries
        ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
    theirs = fold(theirs, tuple(ours.shape))
    if ours.shape != theirs.shape:
        return None
    if is_text_site(part.name):
        keep = batch.attention_mask.cpu().bool()
        if part.module.endswith("token_embedding"):
            keep = keep & ~placeholders_BT
        return ours[keep], theirs[keep]
    return ours, theirs
