"""Inference, phase by phase: what stays in memory, and the most that comes and goes.

A phase is estimated as this package's code runs it: `VideoLlava.embed` for media, `TokenLoop` for text.
"""

from functools import lru_cache

from filmstrip.cache import kv_cache_bytes
from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.config import MediaKind, ModelConfig, TextConfig, VisionConfig
from filmstrip.diagnostics.memory_aggregation import aggregated_bytes, aggregation_peak
from filmstrip.diagnostics.memory_blocks import (
    FLOAT32,
    activation_copies,
    choose_attention,
    text_block_peak,
    vision_block_peak,
)
from filmstrip.diagnostics.memory_workload import Extent, PhaseEstimate, Workload, run_layers
from filmstrip.diagnostics.params import PRECISION_BYTES, weight_bytes
from filmstrip.generation.step import chunk_tokens
from filmstrip.kernels import PIECE
from filmstrip.models.weightless import build_meta
from filmstrip.models.wide import widened_sizes

INT64 = 8


def inference_phases(config: AnyConfig, workload: Workload, extent: Extent) -> list[PhaseEstimate]:
    """Loading, media, prefill and decoding of a workload."""
    stays = {"weights": inference_weights(config, workload)}
    widening = widening_bytes(config, workload.dtype, workload.arithmetic)
    phases = [PhaseEstimate("load", dict(stays), widening)]
    stays["inputs"] = input_bytes(config, extent, workload.element, padded=workload.padded)
    stays["widened weights"] = PIECE * workload.element if workload.widens else 0  # one buffer for all products
    if isinstance(config, VisionConfig):
        held = 2 if config.num_layers > 1 else 1
        peak = vision_block_peak(config, extent.clips, extent.frames, held, workload.element, workload.attention)
        return [*phases, PhaseEstimate("vision", stays, peak)]
    text = config if isinstance(config, TextConfig) else config.text
    stays["embeddings"] = extent.batch * extent.length * text.hidden_size * workload.element
    if isinstance(config, ModelConfig) and extent.visual_tokens:
        for kind in ("image", "video"):
            phases += _media_phases(config, workload, extent, stays, kind)
        joined = extent.image_tokens * text.hidden_size * workload.element if config.image_grids else 0
        phases.append(PhaseEstimate("fusion", dict(stays), fusion_bytes(text, extent, workload) + joined))
        del stays["visual tokens"]
    stays["kv cache"] = kv_cache_bytes(text, extent.batch, extent.capacity, PRECISION_BYTES[workload.kept])
    return [*phases, *_text_phases(text, workload, extent, stays)]


def _media_phases(
    config: ModelConfig, workload: Workload, extent: Extent, stays: dict[str, int], kind: MediaKind
) -> list[PhaseEstimate]:
    """Encode and project one kind of media. Its visual tokens stay until all media are fused."""
    pictures = extent.tiles if kind == "image" else extent.clips
    stays.setdefault("visual tokens", 0)
    if not pictures:
        return []
    name = f"vision ({kind}s)"
    phases = [PhaseEstimate(name, dict(stays), tower_peak(config, workload, pictures, extent, kind))]
    projected = projector_peak(config, workload, pictures, extent, kind)
    phases.append(PhaseEstimate(f"projector ({kind}s)", dict(stays), projected))
    tokens = extent.image_tokens if kind == "image" else extent.video_tokens
    stays["visual tokens"] += tokens * config.text.hidden_size * workload.element
    return phases


def _text_phases(text: TextConfig, workload: Workload, extent: Extent, stays: dict[str, int]) -> list[PhaseEstimate]:
    """Prefill, then decoding at the end of the answer, when the cache is full."""
    b, rows = workload.element, extent.batch
    read = chunk_tokens(text, extent.length, extent.length)
    # Queries that are not all of a prompt need a mask.
    path = choose_attention(text, workload.attention, workload.device, masked=workload.padded or read < extent.length)
    stays = stays | {"logits": rows * text.vocab_size * (b + FLOAT32 + 1)}  # as computed, in float32, tokens seen
    prefill = stays | {"rotary and mask": rotary_and_mask(text, workload, extent.batch, read, extent.length)}
    block = text_block_peak(text, rows, read, extent.length, b, path)
    block += widened_cache_bytes(text, workload, rows, extent.length)
    phases = [PhaseEstimate("prefill", prefill, block)]
    if workload.new_tokens:
        masks = rows * extent.capacity * (3 * INT64 + 1) if workload.padded else 0
        # One query needs no causal mask, so without padding there is none.
        path = choose_attention(text, workload.attention, workload.device, masked=workload.padded)
        step = text_block_peak(text, rows, 1, extent.capacity, b, path)
        step += widened_cache_bytes(text, workload, rows, extent.capacity)  # the compiled kernel does without
        phases.append(PhaseEstimate("decode", stays | {"masks": masks}, step))
    return phases


def inference_weights(config: AnyConfig, workload: Workload) -> int:
    """Bytes of all parameters, shared ones once. What is small has the precision of the arithmetic (`widen`)."""
    stored = workload.stored_bytes or _stored_weights(config, workload.dtype, workload.quantize)
    wider = workload.element - PRECISION_BYTES[workload.dtype]
    return stored + wider * sum(_widened(config))


@lru_cache(maxsize=64)
def _stored_weights(config: AnyConfig, dtype: str, quantize: str | None) -> int:
    return weight_bytes(build_meta(config), dtype, quantize)


@lru_cache(maxsize=64)
def _widened(config: AnyConfig) -> tuple[int, ...]:
    return tuple(widened_sizes(build_meta(config)))


def widening_bytes(config: AnyConfig, dtype: str, arithmetic: str) -> int:
    """While a parameter is widened it is there twice: the largest counts."""
    return 0 if dtype == arithmetic else max(_widened(config)) * PRECISION_BYTES[dtype]


def widened_cache_bytes(config: TextConfig, workload: Workload, rows: int, slots: int) -> int:
    """Keys and values of one layer in the precision of the arithmetic, where they are kept in another."""
    if workload.kept == workload.arithmetic:
        return 0
    return 2 * rows * config.num_kv_heads * slots * config.head_dim * workload.element


def input_bytes(config: AnyConfig, extent: Extent, b: int, *, padded: bool) -> int:
    """Token ids (64 bit), their mask where rows are padded, and pixels in the model's precision."""
    ids = extent.batch * extent.length * INT64 * (2 if padded else 1)
    pixels = 0
    if not isinstance(config, TextConfig):
        image = config if isinstance(config, VisionConfig) else config.image_tower
        video = config if isinstance(config, VisionConfig) else config.video_tower
        pixels = extent.tiles * image.num_channels * image.image_size**2
        pixels += extent.clips * extent.frames * video.num_channels * video.image_size**2
    return ids + pixels * b


def tower_peak(
    config: ModelConfig, workload: Workload, pictures: int, extent: Extent, kind: MediaKind, norm_bytes: int = 0
) -> int:
    """The worst moment in a tower: its last block, when every selected hidden state before it is alive.

    Hidden state 0 stays throughout (`VisionTower.forward` names it), and so does the block's input.
    """
    tower, last = config.tower(kind), run_layers(config, kind)
    states = {layer % (tower.num_layers + 1) for layer in config.select_layers}
    held = len({0, last - 1} | {state for state in states if state < last})
    frames = extent.frames if kind == "video" else 1
    if last == 0:
        return 3 * pictures * frames * tower.num_positions * tower.hidden_size * workload.element
    return vision_block_peak(
        tower, pictures, frames, held, workload.element, workload.attention, norm_bytes or workload.element
    )


def selected_bytes(config: ModelConfig, workload: Workload, pictures: int, extent: Extent, kind: MediaKind) -> int:
    """Hidden states that leave the tower, class tokens included; an image's are copied once more without them."""
    frames = extent.frames if kind == "video" else 1
    tokens = pictures * frames * config.tower(kind).num_positions
    copies = 1 if config.keeps_class_token(kind) else 2
    return copies * tokens * config.projector_input_size * workload.element


def projector_peak(config: ModelConfig, workload: Workload, pictures: int, extent: Extent, kind: MediaKind) -> int:
    """Selected hidden states, and the worse of two moments: inside the aggregation, or in the projector with what that
    handed on.
    """
    selected = selected_bytes(config, workload, pictures, extent, kind)
    projecting = projecting_bytes(config, workload, pictures, extent, kind)
    if kind == "image":
        return selected + projecting
    aggregated = aggregated_bytes(config, pictures, extent.frames, workload.element)
    return selected + max(aggregation_peak(config, pictures, extent.frames, workload.element), projecting + aggregated)


def projecting_bytes(config: ModelConfig, workload: Workload, pictures: int, extent: Extent, kind: MediaKind) -> int:
    """The projector's activation: input and output (one more for quick GELU)."""
    tokens = config.clip_tokens(extent.frames) if kind == "video" else config.tokens_per_frame("image")
    inner = pictures * tokens * config.text.hidden_size * workload.element
    return activation_copies(config.projector.activation) * inner


def fusion_bytes(text: TextConfig, extent: Extent, workload: Workload) -> int:
    """`masked_scatter` writes a second copy of the embeddings; CUDA also a mask and a 64-bit running sum of it.

    Tokens of images cut into tiles are, besides, joined into one tensor.
    """
    values = extent.batch * extent.length * text.hidden_size
    return values * workload.element + (values * (INT64 + 1) if workload.device == "cuda" else 0)


def rotary_and_mask(text: TextConfig, workload: Workload, rows: int, queries: int, keys: int) -> int:
    """Cosines and sines for all heads; with padding, or queries that are not all of the prompt, a boolean of queries by
    keys, with padding for each row."""
    tables = 2 * rows * queries * text.head_dim * workload.element
    masks = rows if workload.padded else int(queries < keys)
    return tables + masks * queries * keys
