"""The least time that a workload can take on this machine: bytes that must be read, or products that must be made."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from filmstrip.api.load import DTYPES
from filmstrip.cache import kv_cache_bytes
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.bench.machine import Limits
from filmstrip.diagnostics.bench.sizes import text_bytes
from filmstrip.diagnostics.bench.workloads import FRAMES, PROMPT_HEAD, QUESTION_TOKENS, TRAINING_ROWS, Workload
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import build_meta


def limit_seconds(
    config: ModelConfig, workload: Workload, dtype: str, limits: Limits, compute: str, kept: str
) -> float | None:
    """Seconds of one unit of work if nothing but the processor's products or its memory counted; None: no such bound.

    Decoding reads every weight of the text tower, in `dtype`, and all keys and values, which are `kept` in another
    precision, once a step; the rest is bound by products, at the rate of float32, which is what 16-bit weights are
    multiplied in where the processor has no other way. `compute` is the precision of the arithmetic.
    """
    if workload.kind == "decode":
        cached = kv_cache_bytes(config.text, workload.batch, workload.context, DTYPES[kept].itemsize)
        return (text_bytes(config, dtype, compute) + cached) / limits.read_bytes
    if workload.kind == "load":
        return None
    rate = max(limits.flops["float32"], limits.flops.get(dtype, 0.0))
    return work_flops(config, workload) / rate


def work_flops(config: ModelConfig, workload: Workload) -> float:
    """Floating-point operations of the products in one unit of work (a, b) x (b, c) counts 2abc; causal attention, of
    which half is masked, counts half.

    Only what must be computed counts: one position's logits in a prefill, no gradients of what does not learn.
    """
    with torch.device("meta"):
        pixels = torch.empty(1, FRAMES, 3, config.video_tower.image_size, config.video_tower.image_size)
        model = build_meta(config)
        assert isinstance(model, VideoLlava)
        model.set_attention("eager")  # the fused kernel is not counted on every device
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode_videos(pixels)
    vision = float(counter.get_total_flops())
    visual = config.clip_tokens(FRAMES)
    length = PROMPT_HEAD + visual + QUESTION_TOKENS
    head = 2.0 * config.text.hidden_size * config.text.vocab_size
    if workload.kind == "vision":
        return vision
    if workload.kind == "second":
        return _text_flops(config, QUESTION_TOKENS, length) + head
    if workload.kind == "prefill":
        return vision + _text_flops(config, length, length) + head
    # A step of training: forward, and twice that for the gradients of inputs and weights; towers forward alone.
    projector = 2.0 * visual * config.text.hidden_size * (config.projector_input_size + config.text.hidden_size)
    forward = _text_flops(config, length, length) + QUESTION_TOKENS * head + projector
    return TRAINING_ROWS * (vision - projector + 3 * forward)


def _text_flops(config: ModelConfig, new: int, total: int) -> float:
    """The blocks over the last `new` of `total` positions."""
    text = config.text
    widths = text.head_dim * (2 * text.num_heads + 2 * text.num_kv_heads) + 3 * text.intermediate_size
    products = 2.0 * new * text.hidden_size * widths
    read = new * (total - new) + new * (new + 1) / 2  # pairs of a query and a key that it may see
    return text.num_layers * (products + 4.0 * read * text.num_heads * text.head_dim)
