"""`config.json` of the original release, `LlavaLlamaForCausalLM`, to `ModelConfig` (reference sheet 1.4).

It says `model_type` "llava", as Hugging Face's LLaVA does, and is known by its `mm_` keys. It describes the text tower
and names two more repositories, whose configurations describe the vision towers.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_config import Extras, HfConfig, read_pad_id, read_text
from filmstrip.config import ModelConfig, ProjectorConfig, VisionConfig
from filmstrip.config.model import SelectStrategy
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.text.tokenizer_files import read_tokenizer_files

ARCHITECTURE = "LlavaLlamaForCausalLM"
TOWER_KEYS = {"image_tower": "mm_image_tower", "video_tower": "mm_video_tower"}
MEDIA_TOKENS = ("<image>", "<video>")

_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_UNSUPPORTED = {
    "quantization_config": "quantised weights are not supported",
    "mm_use_im_start_end": "tokens around media are not supported",
}


def is_original(values: dict[str, Any]) -> bool:
    """Whether a `config.json` is the original release's."""
    return any(values.get(key) is not None for key in TOWER_KEYS.values())


def parse_original(values: dict[str, Any], directory: Path, towers: dict[str, VisionConfig]) -> HfConfig:
    """Translate the original's `config.json`, given the configurations of its towers by name.

    Media have ids behind the vocabulary, as the original has no embedding for them: visual tokens overwrite their
    positions, and nothing is looked up there. Raises `ConfigError` naming the key for what is not supported.
    """
    where = str(directory / "config.json")
    fields = Fields(values, where)
    architectures = fields.get("architectures")
    if architectures is not None and (not isinstance(architectures, list) or ARCHITECTURE not in architectures):
        raise fields.error("architectures", f"supported with {' and '.join(TOWER_KEYS.values())}: {ARCHITECTURE}")
    fields.refuse(_UNSUPPORTED)
    fields.choice("mm_projector_type", "mlp2x_gelu", ("mlp2x_gelu",))
    strategy = fields.choice("mm_vision_select_feature", "patch", _STRATEGIES)
    image, video = towers["image_tower"], towers["video_tower"]
    width = fields.integer("mm_hidden_size", image.hidden_size)
    if width != image.hidden_size:
        raise fields.error("mm_hidden_size", f"the image tower's config.json says {image.hidden_size}")
    text = Fields({key: value for key, value in values.items() if key != "model_type"}, where)
    try:
        config = read_text(text, fields.boolean("tie_word_embeddings", False))
        image_id, video_id = _placeholder_ids(directory, config.vocab_size)
        model = ModelConfig(
            text=config,
            image_tower=image,
            video_tower=video,
            projector=ProjectorConfig(activation="gelu", bias=True),
            select_layers=(_select_layer(fields),),
            select_strategy=cast(SelectStrategy, _STRATEGIES[strategy]),
            image_token_id=image_id,
            video_token_id=video_id,
            pad_token_id=read_pad_id(fields, text),
        )
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error
    frames = video.temporal_frames
    extras = Extras(
        temporal_attention=video.temporal_attention,
        temporal_frames=frames,
        trained_frames=frames if video.temporal_attention else Extras().trained_frames,
        preset="original",
    )
    return HfConfig(model, extras, fields)


def _select_layer(fields: Fields) -> int:
    layer = fields.get("mm_vision_select_layer")
    if layer is None:
        return -2
    if type(layer) is not int:
        raise fields.error("mm_vision_select_layer", "expected a whole number")
    return layer


def _placeholder_ids(directory: Path, vocab_size: int) -> tuple[int, int]:
    """Ids of image and video: the tokenizer's, if it has such tokens, else the first that mean nothing."""
    known: dict[str, int] = {}
    with suppress(CheckpointError):  # whoever needs the tokenizer says what is wrong with it
        known = {token.content: token.id for token in read_tokenizer_files(directory).added_tokens}
    free = max([vocab_size, *(token_id + 1 for token_id in known.values())])
    image, video = (known.get(token) for token in MEDIA_TOKENS)
    image = free if image is None else image
    return image, (max(free, image + 1) if video is None else video)
