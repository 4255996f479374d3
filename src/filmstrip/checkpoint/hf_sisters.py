"""What tells the `config.json` of Video-LLaVA and its sisters apart, one entry for each (reference sheets 1.1 and 9).

Defaults are those of the configuration classes of transformers 5.23. Everything that an entry does not mention is the
same for all of them and read in `hf_config`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.variant import PREFIX
from filmstrip.config import Family, ModelConfig, VisionConfig
from filmstrip.config.aggregation import POOL_STRIDE
from filmstrip.config.model import MAX_GRIDS

# LLaVA-NeXT's grids of 336-pixel tiles, (height, width) in pixels.
DEFAULT_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
MAX_GRID_SIDE = 65_536

_EARLY_NEXT_TYPE = "llava_next"


def _no_settings(_: Fields) -> dict[str, Any]:
    return {}


def _no_keys(_: ModelConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Format:
    """One family's `config.json`.

    `vision` is the tower of a file without `vision_config`, `settings` reads the family's own keys as fields of
    `ModelConfig`, `write_settings` is its inverse. `inner_tie`: a `tie_word_embeddings` in `text_config` counts even
    when the outer one says no.
    """

    family: Family
    model_type: str
    architecture: str
    vision: VisionConfig
    image_token_id: int
    video_token_id: int | None
    trained_frames: int = 8
    one_tower: bool = False
    inner_tie: bool = False
    settings: Callable[[Fields], dict[str, Any]] = _no_settings
    write_settings: Callable[[ModelConfig], dict[str, Any]] = _no_keys

    def plain_fields(self, model: ModelConfig) -> dict[str, Any]:
        """The fields of `ModelConfig` that a family decides, as they are read back from its keys for `model`."""
        common = {"aggregation": "keep-all", "video_class_token": True, "image_grids": ()}
        return common | self.settings(Fields(self.write_settings(model), "config.json"))


def _llava_settings(_: Fields) -> dict[str, Any]:
    return {"video_class_token": False}


def _next_video_settings(fields: Fields) -> dict[str, Any]:
    """Frames are pooled, images tiled; other ways of pooling are refused by name."""
    fields.choice("spatial_pool_mode", "average", ("average",))
    fields.integer("spatial_pool_stride", POOL_STRIDE, low=POOL_STRIDE, high=POOL_STRIDE)
    if not fields.boolean("use_image_newline_parameter", True):
        raise fields.error("use_image_newline_parameter", "only models with the newline vector are supported")
    return {"video_class_token": False, "aggregation": "strided-pool", "image_grids": read_grids(fields)}


def _write_next_video_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "image_grid_pinpoints": [list(grid) for grid in model.image_grids],
        "spatial_pool_mode": "average",
        "spatial_pool_stride": POOL_STRIDE,
    }


def read_grids(fields: Fields) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints`: pairs of height and width in pixels; LLaVA-NeXT's own five when absent."""
    key = "image_grid_pinpoints"
    value = fields.get(key)
    if value is None:
        return DEFAULT_GRIDS
    if not isinstance(value, list) or not 0 < len(value) <= MAX_GRIDS:
        raise fields.error(key, f"expected a list of 1 to {MAX_GRIDS} pairs of height and width")
    for pair in value:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(side) is int for side in pair)
        if not whole or not all(0 < side <= MAX_GRID_SIDE for side in pair):
            raise fields.error(key, f"expected pairs of height and width, each from 1 to {MAX_GRID_SIDE} pixels")
    return tuple((height, width) for height, width in value)


_TOWER_336 = VisionConfig(image_size=336)
FORMATS: dict[str, Format] = {
    entry.model_type: entry
    for entry in (
        Format(
            "video-llava",
            "video_llava",
            "VideoLlavaForConditionalGeneration",
            VisionConfig(),
            image_token_id=32_000,
            video_token_id=32_001,
        ),
        Format(
            "llava",
            "llava",
            "LlavaForConditionalGeneration",
            _TOWER_336,
            image_token_id=32_000,
            video_token_id=None,
            one_tower=True,
            inner_tie=True,
            settings=_llava_settings,
        ),
        Format(
            "llava-next-video",
            "llava_next_video",
            "LlavaNextVideoForConditionalGeneration",
            _TOWER_336,
            image_token_id=32_001,
            video_token_id=32_000,
            trained_frames=32,
            one_tower=True,
            inner_tie=True,
            settings=_next_video_settings,
            write_settings=_write_next_video_settings,
        ),
    )
}
FORMAT_OF_FAMILY: dict[Family, Format] = {entry.family: entry for entry in FORMATS.values()}


def format_of(fields: Fields) -> Format:
    """The entry for a `config.json`. Raises `ConfigError` for a model type or architecture that is not supported.

    That of this program's own variant (`variant`) is the entry of the family that it varies.
    An early revision of LLaVA-NeXT-Video on the hub calls itself `llava_next`; its architecture tells it from
    LLaVA-NeXT.
    """
    architectures = fields.get("architectures")
    own = str(fields.get("model_type")).removeprefix(PREFIX)
    if own != fields.get("model_type") and own in FORMATS:
        return FORMATS[own]
    next_video = FORMAT_OF_FAMILY["llava-next-video"]
    if fields.get("model_type") == _EARLY_NEXT_TYPE and architectures == [next_video.architecture]:
        return next_video
    entry = FORMATS[fields.choice("model_type", "(absent)", FORMATS)]
    if architectures is not None and (not isinstance(architectures, list) or entry.architecture not in architectures):
        raise fields.error("architectures", f"supported: {entry.architecture}")
    return entry
