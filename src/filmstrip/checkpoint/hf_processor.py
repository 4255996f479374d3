"""Processor files of a checkpoint: how pixels are made and how a conversation is written.

Before transformers 5: `preprocessor_config.json` (flat), perhaps `video_preprocessor_config.json`, a
`processor_config.json` of a few keys or none, and `chat_template.json`. Since 5: one `processor_config.json` with
sections `image_processor` and `video_processor`, and `chat_template.jinja`. The newer wins where both are present.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_sisters import read_grids
from filmstrip.checkpoint.json_file import read_bounded, read_json
from filmstrip.config import Family, ModelConfig
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.media.transform import PixelSpec

PROCESSOR_FILE = "processor_config.json"
IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
MAX_TEMPLATE_BYTES = 2**20
BICUBIC = 3  # PIL's number

_SIDES = ("height", "width")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_CLIP_TYPES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor")


@dataclass(frozen=True)
class _Names:
    """What a family's processors are called: the whole, the image's (written first, all read), the video's."""

    processor: str
    images: tuple[str, ...]
    video: str | None
    padding_images: tuple[str, ...] = ()  # those that know `do_pad`: put the image on a square first


_NAMES: dict[Family, _Names] = {
    "video-llava": _Names(
        "VideoLlavaProcessor", ("VideoLlavaImageProcessor", *_CLIP_TYPES), "VideoLlavaVideoProcessor"
    ),
    "llava": _Names(
        "LlavaProcessor",
        (*_CLIP_TYPES, "LlavaImageProcessor", "LlavaImageProcessorFast"),
        None,
        padding_images=("LlavaImageProcessor", "LlavaImageProcessorFast"),
    ),
    "llava-next-video": _Names(
        "LlavaNextVideoProcessor",
        # Early files of the family name the processor of its videos, which has the same numbers.
        ("LlavaNextImageProcessor", "LlavaNextImageProcessorFast", "LlavaNextVideoImageProcessor"),
        "LlavaNextVideoVideoProcessor",
    ),
}


@dataclass(frozen=True)
class ProcessorFiles:
    """What the processor files say. `chat_template` is Jinja source, None when the checkpoint has none."""

    pixels: PixelSpec
    chat_template: str | None = None
    warnings: tuple[str, ...] = ()


def read_processor_files(directory: Path, model: ModelConfig) -> ProcessorFiles:
    """Read the processor files in either layout and hold them against the model's configuration.

    Raises `ConfigError` for a transform that is not supported, for images and videos that are to be transformed
    differently, and for a crop (or, where images are cut up, a tile) that is not the tower's image size.
    """
    processor = _optional(directory / PROCESSOR_FILE) or Fields({}, str(directory / PROCESSOR_FILE))
    image = processor.section("image_processor") or _optional(directory / IMAGE_FILE)
    video = processor.section("video_processor") or _optional(directory / VIDEO_FILE)
    warnings = _contradictions(processor, image, model)
    size = model.image_tower.image_size
    if image is None:
        warnings.append(f"{directory} has no {IMAGE_FILE}; CLIP's transform at {size} pixels is used")
    pixels = PixelSpec(size=size, crop=size) if image is None else _pixel_spec(image, model)
    if video is not None and model.video_token_id is not None:
        _require_same(_pixel_spec(video, model), pixels, video)
        if video.boolean("do_sample_frames", False):
            warnings.append(f"{video.where} asks for its own frame sampling; the preset decides here")
    if pixels.do_center_crop and pixels.crop != size:
        raise ConfigError(
            f"{directory}: the image processor crops to {pixels.crop} pixels, the vision tower takes {size}"
        )
    if model.image_grids and (pixels.size, pixels.crop) != (size, size):
        raise ConfigError(
            f"{directory}: the image processor makes tiles of {pixels.size} (crop {pixels.crop}) pixels, the vision "
            f"tower takes {size}"
        )
    return ProcessorFiles(
        pixels=pixels,
        chat_template=_chat_template(directory, processor),
        warnings=tuple(warnings),
    )


def _optional(path: Path) -> Fields | None:
    return Fields(read_json(path), str(path)) if path.is_file() else None


def _pixel_spec(fields: Fields, model: ModelConfig) -> PixelSpec:
    names, tiled = _NAMES[model.family], bool(model.image_grids)
    if "image_processor_type" in fields:
        fields.choice("image_processor_type", "", names.images)
    fields.integer("resample", BICUBIC, low=BICUBIC, high=BICUBIC)
    pads = fields.get("image_processor_type") in names.padding_images
    if not pads and not tiled:  # with tiles, `do_pad` only fills batches up to the same number of them
        fields.refuse({"do_pad": "padding is not supported"})
    steps = {step: fields.boolean(step, True) for step in _STEPS}
    try:
        return PixelSpec(
            size=_edge(fields, "size", ("shortest_edge",), *([_SIDES] if tiled else [])),
            crop=_edge(fields, "crop_size", _SIDES),
            pad_to_square=pads and fields.boolean("do_pad", False),
            mean=_channels(fields, "image_mean", PixelSpec().mean),
            std=_channels(fields, "image_std", PixelSpec().std),
            rescale=fields.number("rescale_factor", 1 / 255),
            **steps,
        )
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(fields.where) else f"{fields.where}: {message}") from error


def _edge(fields: Fields, key: str, *spellings: tuple[str, ...]) -> int:
    """A size: a plain number (old files) or an object with exactly the names of one spelling, all equal."""
    value = fields.get(key)
    if not isinstance(value, dict):
        return fields.integer(key, 224, high=16_384)
    edges = Fields(value, f"{fields.where}, {key}")
    names = next((names for names in spellings if set(edges) == set(names)), None)
    if names is None or len({repr(edges.get(name)) for name in names}) != 1:
        raise fields.error(key, f"supported: one size under {' or '.join(' and '.join(names) for names in spellings)}")
    return edges.integer(names[0], 224, high=16_384)


def _channels(fields: Fields, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = fields.get(key)
    if value is None:
        return default
    parts = value if isinstance(value, list) else [value] * 3
    if len(parts) != 3:
        raise fields.error(key, "expected one number for each of R, G, B")
    red, green, blue = (Fields({key: part}, fields.where).number(key, 0.0) for part in parts)
    return red, green, blue


def _require_same(video: PixelSpec, image: PixelSpec, fields: Fields) -> None:
    for name in PixelSpec.__dataclass_fields__:
        if getattr(video, name) != getattr(image, name):
            raise ConfigError(
                f"{fields.where}: {name} is {getattr(video, name)!r} for videos and {getattr(image, name)!r} for "
                "images; one transform for both is supported"
            )


def _contradictions(processor: Fields, image: Fields | None, model: ModelConfig) -> list[str]:
    """Settings by which transformers counts placeholders and that disagree with config.json, which is used here."""
    expected = {
        "patch_size": model.image_tower.patch_size,
        "vision_feature_select_strategy": model.select_strategy,
        "num_additional_image_tokens": 1,
    }
    found = [
        f"{processor.where}: {key} is {processor.get(key)!r}, config.json means {value!r}; config.json is used"
        for key, value in expected.items()
        if key in processor and processor.get(key) != value
    ]
    if model.image_grids and image is not None and read_grids(image) != model.image_grids:
        found.append(f"{image.where}: image_grid_pinpoints are not those of config.json; config.json is used")
    return found


def _chat_template(directory: Path, processor: Fields) -> str | None:
    """The first of: chat_template.jinja, chat_template.json, processor_config.json, tokenizer_config.json."""
    path = directory / TEMPLATE_FILE
    if path.is_file():
        try:
            return read_bounded(path, MAX_TEMPLATE_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text") from error
    sources = (_optional(directory / OLD_TEMPLATE_FILE), processor, _optional(directory / "tokenizer_config.json"))
    for fields in sources:
        if fields is not None and "chat_template" in fields:
            return _named_template(fields)
    return None


def _named_template(fields: Fields) -> str:
    """A template is a string, or several with names, of which `default` is meant."""
    value: Any = fields.get("chat_template")
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
        raise fields.error("chat_template", "expected Jinja source, or several with one named 'default'")
    return value


def processor_values(pixels: PixelSpec, model: ModelConfig) -> dict[str, dict[str, Any]]:
    """Content of the processor files, by name, spelt so that transformers 4.41 to 5.23 read them."""
    names = _NAMES[model.family]
    common: dict[str, Any] = {
        "crop_size": {"height": pixels.crop, "width": pixels.crop},
        "do_convert_rgb": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "processor_class": names.processor,
        "resample": BICUBIC,
        "rescale_factor": pixels.rescale,
        "size": {"shortest_edge": pixels.size},
    }
    common |= {step: getattr(pixels, step) for step in _STEPS}
    image = common | {"image_processor_type": names.images[0]}
    if pixels.pad_to_square:
        require(bool(names.padding_images), f"no image processor of {model.title} puts images on squares")
        image |= {"image_processor_type": names.padding_images[0], "do_pad": True}
    if model.image_grids:
        image |= {"image_grid_pinpoints": [list(grid) for grid in model.image_grids], "do_pad": True}
    counting = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": model.image_tower.patch_size,
        "processor_class": names.processor,
        "vision_feature_select_strategy": model.select_strategy,
    }
    if names.video is None:
        return {IMAGE_FILE: image, PROCESSOR_FILE: counting}
    return {
        IMAGE_FILE: image,
        VIDEO_FILE: common | {"video_processor_type": names.video, "do_sample_frames": False},
        PROCESSOR_FILE: counting | {"video_token": "<video>"},
    }
