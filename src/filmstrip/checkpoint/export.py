"""Write a checkpoint directory that transformers loads back: weights, configuration, processor, tokenizer.

The directory appears whole or not at all (`atomic`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.defaults import GENERATION_FILE, GenerationDefaults, generation_values
from filmstrip.checkpoint.files import INDEX_FILE, WEIGHTS_FILE, is_plain_name
from filmstrip.checkpoint.header import dtype_name
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.checkpoint.hf_processor import IMAGE_FILE, PROCESSOR_FILE, TEMPLATE_FILE, VIDEO_FILE, processor_values
from filmstrip.checkpoint.hf_sisters import FORMAT_OF_FAMILY
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.resolve import CONFIG_FILE
from filmstrip.checkpoint.rules import Mapped
from filmstrip.checkpoint.write import MAX_SHARD_BYTES, LazyTensor, json_bytes, write_files, write_weights
from filmstrip.config import ModelConfig
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError
from filmstrip.media.transform import PixelSpec
from filmstrip.models.video_llava import VideoLlava
from filmstrip.models.wide import is_quantised

_WRITTEN = {
    CONFIG_FILE,
    GENERATION_FILE,
    WEIGHTS_FILE,
    INDEX_FILE,
    TEMPLATE_FILE,
    IMAGE_FILE,
    VIDEO_FILE,
    PROCESSOR_FILE,
}


@dataclass(frozen=True)
class Companions:
    """What a checkpoint holds beside weights and model configuration.

    `files` are written as they are: the tokenizer's (`tokenizer.json`, `tokenizer_config.json`, …), a model card.
    Without `pixels` it is CLIP's transform at the towers' size. The last three are of `hf_config.Extras`.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    pixels: PixelSpec | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    chat_template: str | None = None
    trained_frames: int = 8
    preset: str | None = None
    copied_towers: bool | None = None


@dataclass(frozen=True)
class ExportOptions:
    """How to write: key layout (A is read by every transformers release), dtype (None: the model's), shard size.

    `overwrite` replaces a directory that already holds a checkpoint.
    """

    layout: str = "A"
    dtype: torch.dtype | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    overwrite: bool = False


def save_checkpoint(
    model: VideoLlava, directory: Path, companions: Companions, options: ExportOptions | None = None
) -> Path:
    """Write `model` to `directory` and return it.

    Raises `CheckpointError` if the directory is in the way or cannot be written, `ConfigError` for a model that
    Hugging Face's format cannot describe.
    """
    options = options or ExportOptions()
    if is_quantised(model):
        raise CheckpointError("a quantised model is not written anew; save the one that it was made from")
    if max(model.config.placeholder_ids.values()) >= model.config.text.vocab_size:
        hint = "`filmstrip convert` adds them"
        raise CheckpointError(f"a model of the original layout has no embeddings for media; {hint}")
    dtype = options.dtype or model.text_tower.token_embedding.weight.dtype
    files = companion_files(model.config, dtype, companions)
    with atomic_directory(directory, overwrite=options.overwrite) as partial:
        write_weights(partial, _disk_tensors(model, dtype, options.layout), max_shard_bytes=options.max_shard_bytes)
        write_files(partial, files)
    return directory


def _disk_places(model: VideoLlava, layout_name: str) -> list[Mapped]:
    """Where a layout keeps each tensor of the model.

    A tied head has no place of its own, as in transformers' files; shared towers have two where the format has two
    towers, for it knows no sharing.
    """
    layout = get_layout(layout_name, model.config.family)
    names = [*model.state_dict()]
    if FORMAT_OF_FAMILY[model.config.family].one_tower:
        names = [name for name in names if not name.startswith("video_tower.")]
    if model.config.text.tie_embeddings:
        names.remove("text_tower.lm_head.weight")
    return [layout.from_canonical(name) for name in names]


def _disk_tensors(model: VideoLlava, dtype: torch.dtype, layout_name: str) -> dict[str, LazyTensor]:
    state = model.state_dict()

    def lazy(place: Mapped) -> LazyTensor:
        tensor = place.transform.from_canonical(state[place.canonical].detach())
        return LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.cpu).to(dtype)

    return {place.disk: lazy(place) for place in _disk_places(model, layout_name)}


def companion_files(config: ModelConfig, dtype: torch.dtype, companions: Companions) -> dict[str, bytes]:
    """Everything but the weights, by file name: configuration, processor, template and `companions.files`."""
    for name in companions.files:
        if not is_plain_name(name) or name in _WRITTEN:
            raise CheckpointError(f"cannot write {name!r} beside the weights: not a plain name, or one written anyway")
    values = config_values(
        config,
        generation=companions.generation,
        dtype=dtype_name(dtype),
        trained_frames=companions.trained_frames,
        preset=companions.preset,
        copied_towers=companions.copied_towers,
    )
    size = config.image_tower.image_size
    pixels = companions.pixels or PixelSpec(size=size, crop=size)
    require(pixels.crop == size, f"the images are to be cropped to {pixels.crop} pixels, the towers take {size}")
    contents = {CONFIG_FILE: values, GENERATION_FILE: generation_values(companions.generation)}
    contents |= processor_values(pixels, config)
    files = {name: json_bytes(content) for name, content in contents.items()}
    if companions.chat_template is not None:
        files[TEMPLATE_FILE] = companions.chat_template.encode()
    return files | dict(companions.files)
