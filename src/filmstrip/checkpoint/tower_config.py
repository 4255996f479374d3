"""`config.json` of a plain LLaMA or of a plain CLIP (or LanguageBind) to the tower that it describes."""

from typing import Any, Literal

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_config import MAX_FRAMES, read_text, read_vision
from filmstrip.config import TextConfig, VisionConfig
from filmstrip.errors import ConfigError

TowerKind = Literal["text", "vision"]

_TEXT_TYPES = ("llama",)
_VISION_TYPES = ("clip", "clip_vision_model", "languagebindimage", "languagebindvideo")


def tower_kind(model_type: Any) -> TowerKind | None:
    """Which tower a `model_type` means, or None when it is something else."""
    if model_type in _TEXT_TYPES:
        return "text"
    return "vision" if isinstance(model_type, str) and model_type.lower() in _VISION_TYPES else None


def parse_text_tower(values: dict[str, Any], where: str) -> TextConfig:
    """A `LlamaConfig`. Raises `ConfigError` naming `where` and the key."""
    fields = Fields(values, where)
    try:
        return read_text(fields, fields.boolean("tie_word_embeddings", False))
    except ConfigError as error:
        raise _in_file(error, where) from error


def parse_vision_tower(values: dict[str, Any], where: str) -> VisionConfig:
    """A `CLIPVisionConfig`, or the `vision_config` of a whole CLIP or LanguageBind.

    LanguageBind's keys `add_time_attn` and `num_frames` say that the tower has temporal attention, and over how many
    frames. Raises `ConfigError` naming `where` and the key.
    """
    section = Fields(values, where)
    if "vision_config" in section or "vision_config_dict" in section:
        # Old CLIP files have both, and the second wins in transformers.
        parts = [section.section(key) for key in ("vision_config", "vision_config_dict")]
        merged = {key: part.get(key) for part in parts if part is not None for key in part}
        section = Fields(merged, f"{where}, vision_config")
    try:
        vision = read_vision(section)
        if not section.boolean("add_time_attn", False):
            return vision
        frames = section.integer("num_frames", 1, high=MAX_FRAMES)
        return VisionConfig(**(vars(vision) | {"temporal_attention": True, "temporal_frames": frames}))
    except ConfigError as error:
        raise _in_file(error, where) from error


def _in_file(error: ConfigError, where: str) -> ConfigError:
    message = str(error)
    return ConfigError(message if message.startswith(where) else f"{where}: {message}")
