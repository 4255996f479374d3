"""Training, phase by phase: one optimizer step in the steady state (the optimizer's averages exist already).

Precision: float32 throughout, or 16 bit under autocast. Then weights that learn stay in float32 (they are the master
copy) and are rounded to 16 bit once a step, frozen ones are stored in 16 bit. The residual stream has the precision of
the token embedding: float32 where the text tower learns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from torch import nn

from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.config import MediaKind, ModelConfig, TextConfig, VisionConfig
from filmstrip.config.checks import require
from filmstrip.diagnostics.memory_aggregation import aggregated_bytes, aggregation_saved
from filmstrip.diagnostics.memory_blocks import (
    FLOAT32,
    adapters_saved,
    choose_attention,
    score_bytes,
    text_block_backward,
    text_block_peak,
    text_block_saved,
    vision_block_saved,
)
from filmstrip.diagnostics.memory_inference import (
    input_bytes,
    projecting_bytes,
    rotary_and_mask,
    selected_bytes,
    tower_peak,
)
from filmstrip.diagnostics.memory_workload import Extent, PhaseEstimate, Workload, run_layers
from filmstrip.diagnostics.params import quantised_bytes, quantised_layers
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import build_meta

LOSS_COPIES = 3  # float32 values per logit in the backward pass of cross entropy: log-softmax and two gradients
ADAM_STATES = 2  # running means of the gradient and of its square
DROPOUT = 0.05  # in front of adapters, as the original trains them (reference sheet 7); its mask is kept
WHOLE = ("finetune", "full")  # trainings in which the text tower itself learns
KINDS: tuple[MediaKind, ...] = ("image", "video")
LEARNS = {"align": ("projector",), "lora": ("projector",), "finetune": ("projector", "text_tower"), "full": ("",)}


@dataclass(frozen=True)
class Learning:
    """Numbers of a model in training.

    `learn` parameters learn; `moved` of them get a gradient (idle parts of a tower get none); `matrices` are the
    largest group of the optimizer. `media` of the moved ones lie outside the text tower. `text_rounded` and
    `media_rounded` are those that autocast rounds; `block` and `block_rounded` those of one text block; `largest` is
    the biggest single one.
    """

    learn: int
    moved: int
    media: int
    matrices: int
    media_rounded: int
    text_rounded: int
    block: int
    block_rounded: int
    largest: int
    frozen_bytes: int


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a number: in products (`compute`) and in the text tower's residual stream."""

    compute: int
    stream: int

    @property
    def rounded(self) -> int:
        """Bytes of a rounded weight's copy; without autocast there is none."""
        return 0 if self.compute == FLOAT32 else self.compute


def training_phases(config: AnyConfig, workload: Workload, extent: Extent) -> Iterator[PhaseEstimate]:
    """Vision, forward, backward (at the loss, the first and the last block) and the optimizer step."""
    require(not isinstance(config, VisionConfig), "a vision tower on its own is estimated for inference only")
    assert not isinstance(config, VisionConfig)
    text = config if isinstance(config, TextConfig) else config.text
    whole = workload.training in WHOLE
    require(whole or isinstance(config, ModelConfig), f"there is no projector for the training {workload.training!r}")
    sizes = _Sizes(workload.element, FLOAT32 if whole else workload.element)
    counts = count_learning(config, _who_learns(workload))
    stays = {
        "weights": counts.learn * FLOAT32 + counts.frozen_bytes,
        "optimizer": counts.learn * FLOAT32 * ADAM_STATES,
    }
    yield PhaseEstimate("load", dict(stays), 0)
    stays["inputs"] = input_bytes(config, extent, workload.element, padded=workload.padded)
    # AdamW's grouped kernels write out the square roots of one group of parameters.
    gradients = {"gradients": counts.moved * FLOAT32}
    optimizer = PhaseEstimate("optimizer", stays | gradients, counts.matrices * FLOAT32)
    saved_media = 0
    if isinstance(config, ModelConfig):
        yield from _vision(config, counts, workload, extent, stays)
        saved_media = _saved_of_media(config, workload, extent) + counts.media_rounded * sizes.rounded
    stays |= _text_inputs(text, workload, extent, sizes)
    yield from _text_phases(text, counts, workload, extent, sizes, stays | {"media activations": saved_media})
    if isinstance(config, ModelConfig):
        there = stays | {"media activations": saved_media, "gradients": (counts.moved - counts.media) * FLOAT32}
        yield PhaseEstimate("backward: media", there, _media_backward(config, workload, extent))
    yield optimizer


def _text_phases(
    text: TextConfig, counts: Learning, workload: Workload, extent: Extent, sizes: _Sizes, stays: dict[str, int]
) -> Iterator[PhaseEstimate]:
    """The text tower there and back. On the way back gradients grow while activations are given back, both evenly, so
    the worst moment is the first or the last block (or the loss before them)."""
    saved = _saved_of_text(text, workload, extent, sizes)
    rounded = {"rounded weights": counts.text_rounded * sizes.rounded}
    kept = stays | {"activations": saved.kept}
    yield PhaseEstimate("forward", kept | rounded, _forward_peak(text, workload, extent, sizes))
    head_learns = workload.training in WHOLE and not text.tie_embeddings
    head = text.vocab_size * text.hidden_size if head_learns else 0
    yield PhaseEstimate("backward: loss", kept | rounded, _loss_peak(text, workload, extent, sizes))
    # Autocast forgets its rounded copies after the forward pass; the graph holds those that it needs, and with
    # checkpointing a block makes its own again.
    one = {"rounded weights": counts.block_rounded * sizes.rounded}
    back = text_block_backward(text, extent.batch * extent.length, sizes.compute, sizes.stream)
    step = saved.recomputed + back + counts.largest * sizes.rounded
    first = kept | (one if workload.checkpointing else rounded)
    yield PhaseEstimate("backward: first block", first | {"gradients": head * FLOAT32}, step)
    before = text.vocab_size * text.hidden_size if workload.training in WHOLE else 0
    done = max(0, counts.moved - counts.media - counts.block - before) if counts.block else 0
    last = stays | one | {"activations": saved.one_block, "gradients": done * FLOAT32}
    yield PhaseEstimate("backward: last block", last, step)


def _who_learns(workload: Workload) -> Workload:
    """Of a workload what decides who learns and in what precision, and nothing else: a search over batches, frames and
    contexts counts once.
    """
    decides = ("training", "lora_rank", "images", "videos", "dtype", "quantize", "compute")
    return Workload(**{name: getattr(workload, name) for name in decides})


@lru_cache(maxsize=64)
def count_learning(config: AnyConfig, workload: Workload) -> Learning:
    """Who learns under a training, adapters included."""
    model = build_meta(config)
    prefixes = LEARNS[workload.training or "full"]
    everything = isinstance(config, TextConfig)
    learns = {name: value for name, value in model.named_parameters() if everything or name.startswith(prefixes)}
    idle = sum(value.numel() for name, value in learns.items() if _is_idle(name, config, workload))
    adapters = _adapter_sizes(model, workload.lora_rank) if workload.training == "lora" else []
    own = {id(value) for value in learns.values()}
    rounded = {
        name: sum(value.numel() for value in layer.parameters(recurse=False) if id(value) in own)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not _is_idle(f"{name}.", config, workload)
    }
    in_text = sum(number for name, number in rounded.items() if everything or name.startswith("text_tower."))
    blocks = len(_text_blocks(model))
    sizes = [value.numel() for value in learns.values()]
    in_text_tower = sum(value.numel() for name, value in learns.items() if name.startswith("text_tower."))
    block = sum(value.numel() for value in _text_blocks(model)[0].parameters() if id(value) in own)
    return Learning(
        learn=sum(adapters) + sum(sizes),
        moved=sum(adapters) + sum(sizes) - idle,
        media=0 if everything else sum(sizes) - idle - in_text_tower,
        matrices=sum(adapters) + sum(value.numel() for value in learns.values() if value.ndim >= 2) - idle,
        media_rounded=sum(rounded.values()) - in_text,
        text_rounded=in_text + sum(adapters),
        block=block + sum(adapters) // blocks,
        block_rounded=block + sum(adapters) // blocks,  # but for the norms' few
        largest=max([*adapters, *sizes]),
        frozen_bytes=_frozen_bytes(model, own, workload),
    )


def _frozen_bytes(model: nn.Module, learning: set[int], workload: Workload) -> int:
    """Weights that do not learn: in the model's precision, or quantised."""
    layers = quantised_layers(model, workload.quantize) if workload.quantize else []
    quantised = {id(layer.linear.weight): layer for layer in layers}
    total = 0
    for value in model.parameters():
        if id(value) in learning:
            continue
        layer = quantised.get(id(value))
        total += value.numel() * workload.element if layer is None else quantised_bytes(layer)
    return total


def _is_idle(name: str, config: AnyConfig, workload: Workload) -> bool:
    """Whether a parameter takes no part: its tower has nothing to see, or its block is past the selected states."""
    kind = name.split("_tower.", maxsplit=1)[0]
    if not isinstance(config, ModelConfig) or kind not in ("image", "video"):
        return False
    seen = workload.images + workload.videos if config.shared_towers else getattr(workload, f"{kind}s")
    parts = name.split(".")
    past = parts[1] == "blocks" and len(parts) > 2 and int(parts[2]) >= run_layers(config, cast(MediaKind, kind))
    return not seen or parts[1] == "post_norm" or past


def _text_blocks(model: nn.Module) -> nn.ModuleList:
    blocks = (model.text_tower if isinstance(model, VideoLlava) else model).blocks
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _adapter_sizes(model: nn.Module, rank: int) -> list[int]:
    """Numbers of the two small matrices beside every linear layer of the text tower's blocks."""
    return [
        rank * width
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("text_tower.blocks.")
        for width in (module.in_features, module.out_features)
    ]


def _vision(
    config: ModelConfig, counts: Learning, workload: Workload, extent: Extent, stays: dict[str, int]
) -> Iterator[PhaseEstimate]:
    """The towers, which keep nothing unless they learn; what an earlier kind of media left stays."""
    stream = FLOAT32 if workload.training in WHOLE else workload.element
    width = config.text.hidden_size
    now = stays | {"embeddings": extent.batch * extent.length * width * stream, "activations": 0}
    kinds = [kind for kind in KINDS if (extent.tiles if kind == "image" else extent.clips)]
    for number, kind in enumerate(kinds, start=1):
        pictures = extent.tiles if kind == "image" else extent.clips
        now["activations"] += _saved_of_tower(config, workload, extent, kind)
        if workload.element != FLOAT32:  # each tower's weights are rounded when it runs
            now["rounded weights"] = counts.media_rounded * workload.element * number // len(kinds)
        norms = FLOAT32 if workload.device == "cuda" else 0  # autocast's layer norm; the CPU's is not widened
        yield PhaseEstimate(f"vision ({kind}s)", dict(now), tower_peak(config, workload, pictures, extent, kind, norms))
        tokens = extent.image_tokens if kind == "image" else extent.video_tokens
        now["activations"] += _saved_of_projector(config, workload, pictures, extent, kind)
        now["activations"] += tokens * width * workload.element


def _media_backward(config: ModelConfig, workload: Workload, extent: Extent) -> int:
    """What is computed again of one block of the larger tower, when towers learn and keep little."""
    if workload.training != "full" or not workload.checkpointing:
        return 0
    image = vision_block_saved(config.image_tower, extent.tiles, 1, workload.element, FLOAT32)
    video = vision_block_saved(config.video_tower, extent.clips, extent.frames, workload.element, FLOAT32)
    return max(image, video)


def _saved_of_tower(config: ModelConfig, workload: Workload, extent: Extent, kind: MediaKind) -> int:
    """What the backward pass needs of one tower, when towers learn."""
    pictures, frames = (extent.tiles, 1) if kind == "image" else (extent.clips, extent.frames)
    if workload.training != "full" or not pictures:
        return 0
    tower = config.tower(kind)
    if workload.checkpointing:
        states = pictures * frames * tower.num_positions * tower.hidden_size * FLOAT32
        return run_layers(config, kind) * states
    return run_layers(config, kind) * vision_block_saved(tower, pictures, frames, workload.element, FLOAT32)


def _saved_of_media(config: ModelConfig, workload: Workload, extent: Extent) -> int:
    """What the backward pass needs of towers and projector: selected states, both sides of the activation."""
    saved = 0
    for kind in KINDS:
        pictures = extent.tiles if kind == "image" else extent.clips
        if pictures:
            saved += _saved_of_tower(config, workload, extent, kind)
            saved += _saved_of_projector(config, workload, pictures, extent, kind)
    return saved


def _saved_of_projector(config: ModelConfig, workload: Workload, pictures: int, extent: Extent, kind: MediaKind) -> int:
    """What the projector was given, and both sides of its activation; with learning towers also what is between."""
    saved = projecting_bytes(config, workload, pictures, extent, kind)
    frames, b = extent.frames, workload.element
    aggregated = aggregated_bytes(config, pictures, frames, b) if kind == "video" else 0
    if not aggregated:  # what was selected, or a view of it
        return saved + selected_bytes(config, workload, pictures, extent, kind)
    learns = workload.training == "full"
    return saved + aggregated + (aggregation_saved(config, pictures, frames, b) if learns else 0)


def _text_inputs(text: TextConfig, workload: Workload, extent: Extent, sizes: _Sizes) -> dict[str, int]:
    """Fused embeddings (the first block's input), rotary tables and mask."""
    n = extent.batch * extent.length
    factor = sizes.stream / workload.element  # the tables have the embedding's precision
    return {
        "embeddings": n * text.hidden_size * sizes.stream,
        "rotary and mask": int(rotary_and_mask(text, workload, extent.batch, extent.length, extent.length) * factor),
    }


@dataclass(frozen=True)
class _Saved:
    """Bytes that the text tower's backward pass needs: kept from the forward pass, of one block, computed again."""

    kept: int
    one_block: int
    recomputed: int


def _saved_of_text(text: TextConfig, workload: Workload, extent: Extent, sizes: _Sizes) -> _Saved:
    n = extent.batch * extent.length
    learns = workload.training in WHOLE
    block = text_block_saved(text, n, sizes.compute, sizes.stream, learns=learns)
    if workload.training == "lora":
        block += adapters_saved(text, n, sizes.compute, workload.lora_rank, workload.device)
    block += _saved_of_scores(text, workload, extent, sizes)
    final = n * text.hidden_size * (FLOAT32 + (sizes.stream if learns else 0))
    if workload.checkpointing:
        inputs = (text.num_layers - 1) * n * text.hidden_size * sizes.stream  # the first is the fused embeddings
        return _Saved(inputs + final, 0, block)
    return _Saved(text.num_layers * block + final, block, 0)


def _saved_of_scores(text: TextConfig, workload: Workload, extent: Extent, sizes: _Sizes) -> int:
    """What attention keeps beside q, k, v and its result. A fused kernel: the mask as numbers, if there is one. Written
    out: the softmax, in 16 bit its rounded copy too, the mask, and the repeated heads."""
    path = choose_attention(text, workload.attention, workload.device, masked=workload.padded)
    pairs = extent.batch * extent.length**2
    if path.name == "fused":
        return pairs * sizes.compute if path.masked else 0
    softmax = pairs * text.num_heads * (FLOAT32 + sizes.rounded)
    repeated = 2 * extent.batch * extent.length * (text.num_heads - text.num_kv_heads) * text.head_dim * sizes.compute
    return softmax + repeated + pairs


def _forward_peak(text: TextConfig, workload: Workload, extent: Extent, sizes: _Sizes) -> int:
    """What the last block holds beyond what it keeps: never more than the block alone without gradients."""
    path = choose_attention(text, workload.attention, workload.device, masked=workload.padded)
    if workload.checkpointing:
        peak = text_block_peak(text, extent.batch, extent.length, extent.length, sizes.compute, path, sizes.stream)
        return peak - extent.batch * extent.length * text.hidden_size * sizes.stream  # its input is kept anyway
    if path.name == "fused":
        return 0
    return score_bytes(extent.batch, extent.length, extent.length, text.num_heads, sizes.compute, path)


def _loss_peak(text: TextConfig, workload: Workload, extent: Extent, sizes: _Sizes) -> int:
    """Logits of the positions with a loss, in float32 where cross entropy is computed, and their hidden states."""
    positions = extent.batch * min(workload.loss_tokens or extent.length, extent.length)
    return positions * (text.vocab_size * LOSS_COPIES * FLOAT32 + text.hidden_size * (sizes.stream + sizes.compute))
