"""Write a checkpoint directory that transformers loads back: weights, configuration, processor, tokenizer.

Everything is written to a hidden directory beside the destination, which then takes its name in one step: a kill at
any moment leaves no destination or a whole one.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from filmstrip.checkpoint.defaults import GENERATION_FILE, GenerationDefaults, generation_values
from filmstrip.checkpoint.files import INDEX_FILE, WEIGHTS_FILE, is_plain_name
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.checkpoint.hf_processor import IMAGE_FILE, PROCESSOR_FILE, TEMPLATE_FILE, VIDEO_FILE, processor_values
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.read import CONFIG_FILE
from filmstrip.checkpoint.rules import Mapped
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError
from filmstrip.media.transform import PixelSpec
from filmstrip.models.video_llava import VideoLlava
from filmstrip.shapes import Tensor

READABLE = 0o644  # safetensors creates files that only their owner can read
METADATA = {"format": "pt"}  # transformers refuses a file without it
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
    Without `pixels` it is CLIP's transform at the towers' size.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    pixels: PixelSpec | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    chat_template: str | None = None
    trained_frames: int = 8
    preset: str | None = None


@dataclass(frozen=True)
class ExportOptions:
    """How to write: key layout (A is read by every transformers release), dtype (None: the model's), shard size.

    `overwrite` replaces a directory that already holds a checkpoint.
    """

    layout: str = "A"
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5_000_000_000
    overwrite: bool = False


def save_checkpoint(
    model: VideoLlava, directory: Path, companions: Companions, options: ExportOptions | None = None
) -> Path:
    """Write `model` to `directory` and return it.

    Raises `CheckpointError` if the directory is in the way or cannot be written, `ConfigError` for a model that
    Hugging Face's format cannot describe.
    """
    options = options or ExportOptions()
    for name in companions.files:
        if not is_plain_name(name) or name in _WRITTEN:
            raise CheckpointError(f"cannot write {name!r} beside the weights: not a plain name, or one written anyway")
    dtype = options.dtype or model.text_tower.token_embedding.weight.dtype
    partial = directory.parent / f".{directory.name}.{uuid.uuid4().hex}.partial"
    try:
        _require_free(directory, options.overwrite)
        partial.mkdir(parents=True)
        _write_weights(model, partial, dtype, options)
        _write_companions(model, partial, dtype, companions)
        _put_in_place(partial, directory)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _require_free(directory: Path, overwrite: bool) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{directory} exists and is not empty; choose another place or ask to overwrite")
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory} holds something other than a checkpoint; it is not overwritten")


def _put_in_place(partial: Path, directory: Path) -> None:
    """Rename `partial` to `directory`; an earlier checkpoint there steps aside first and is then removed."""
    aside = partial.with_suffix(".old")
    if directory.exists():
        directory.rename(aside)
    partial.rename(directory)
    shutil.rmtree(aside, ignore_errors=True)


def _disk_places(model: VideoLlava, layout_name: str) -> list[Mapped]:
    """Where a layout keeps each tensor of the model.

    A tied head has no place of its own, as in transformers' files; shared towers have two, for it knows no sharing.
    """
    layout = get_layout(layout_name)
    names = [*model.state_dict()]
    if model.config.text.tie_embeddings:
        names.remove("text_tower.lm_head.weight")
    return [layout.from_canonical(name) for name in names]


def _write_weights(model: VideoLlava, directory: Path, dtype: torch.dtype, options: ExportOptions) -> None:
    """One file, or numbered shards; one shard at a time is in memory."""
    state = model.state_dict()
    places = _disk_places(model, options.layout)
    sizes = [state[place.canonical].numel() * dtype.itemsize for place in places]
    shards = _split(places, sizes, options.max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHTS_FILE
        tensors = {place.disk: _disk_tensor(state[place.canonical], place, dtype) for place in shard}
        if len({tensor.data_ptr() for tensor in tensors.values()}) < len(tensors):
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # safetensors refuses shared memory
        save_file(tensors, directory / name, METADATA)
        (directory / name).chmod(READABLE)
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        _write_json(directory / INDEX_FILE, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def _split(places: list[Mapped], sizes: list[int], limit: int) -> list[list[Mapped]]:
    """Consecutive runs of at most `limit` bytes each; a larger tensor has a shard to itself."""
    shards: list[list[Mapped]] = [[]]
    room = limit
    for place, size in zip(places, sizes, strict=True):
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(place)
        room -= size
    return shards


def _disk_tensor(tensor: Tensor, place: Mapped, dtype: torch.dtype) -> Tensor:
    return place.transform.from_canonical(tensor.detach()).to(device="cpu", dtype=dtype).contiguous()


def _write_companions(model: VideoLlava, directory: Path, dtype: torch.dtype, companions: Companions) -> None:
    config = config_values(
        model.config,
        generation=companions.generation,
        dtype=str(dtype).removeprefix("torch."),
        trained_frames=companions.trained_frames,
        preset=companions.preset,
    )
    _write_json(directory / CONFIG_FILE, config)
    _write_json(directory / GENERATION_FILE, generation_values(companions.generation))
    size = model.config.image_tower.image_size
    pixels = companions.pixels or PixelSpec(size=size, crop=size)
    require(pixels.crop == size, f"the images are to be cropped to {pixels.crop} pixels, the towers take {size}")
    for name, values in processor_values(pixels, model.config).items():
        _write_json(directory / name, values)
    if companions.chat_template is not None:
        (directory / TEMPLATE_FILE).write_text(companions.chat_template, encoding="utf-8", newline="")
    for name, content in companions.files.items():
        (directory / name).write_bytes(content)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
