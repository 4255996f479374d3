"""Memory formulas of the aggregations: what is alive at the worst moment of one, and what training keeps of it.

Read beside `models/aggregate.py`, `models/resampler.py` and `models/merging.py`. All results are bytes. n are the
tokens that leave the tower, r the queries of all clips, E the width; what leaves the tower is counted elsewhere.
"""

from filmstrip.config import ModelConfig
from filmstrip.diagnostics.memory_blocks import activation_copies


def aggregation_peak(config: ModelConfig, clips: int, frames: int, b: int) -> int:
    """The worst moment inside the aggregation, its result included."""
    width, out = config.projector_input_size * b, clips * config.clip_tokens(frames)
    n = _tower_tokens(config, clips, frames)
    if config.aggregation == "resampler":
        r, inner = out, config.video_tower.intermediate_size * b
        # The source, and in a block: its normed copy beside what is read, or that with keys and values.
        reading = n * width + (n + r) * 3 * width + 5 * r * width
        return max(reading, n * width + 4 * r * width + activation_copies(config.video_tower.activation) * r * inner)
    if config.aggregation == "token-merging" and config.clip_tokens(frames) < n // clips:
        # Of the first round: directions, sums before and after, and the half that is added.
        return 3 * n * width + (n - max(out, n // 2)) * width
    if config.aggregation == "strided-pool":
        return n * width + out * width  # patches are copied into maps
    copies = {"temporal-spatial-pool": 2, "mean-frames": 1}  # class tokens and kept ones are views
    return copies.get(config.aggregation, 0) * out * width


def aggregated_bytes(config: ModelConfig, clips: int, frames: int, b: int) -> int:
    """What the aggregation hands on, where that is not a view of what it was given."""
    if config.aggregation in ("keep-all", "class-token"):
        return 0
    return clips * config.clip_tokens(frames) * config.projector_input_size * b


def aggregation_saved(config: ModelConfig, clips: int, frames: int, b: int) -> int:
    """What the backward pass needs of an aggregation through which gradients pass."""
    width, out = config.projector_input_size * b, clips * config.clip_tokens(frames)
    n = _tower_tokens(config, clips, frames)
    if config.aggregation == "resampler":
        inner = activation_copies(config.video_tower.activation) * config.video_tower.intermediate_size * b
        block = 3 * (n + out) * width + 7 * out * width + out * inner
        return n * width + config.aggregation_settings.layers * block + 2 * out * width
    # Merging keeps its weighted sums and sizes; means keep nothing.
    return n * width if config.aggregation == "token-merging" else 0


def _tower_tokens(config: ModelConfig, clips: int, frames: int) -> int:
    class_token = int(config.keeps_class_token("video"))
    return clips * frames * (config.video_tower.num_patches + class_token)
