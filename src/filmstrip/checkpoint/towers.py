"""A text tower or a vision tower on its own: plain LLaMA and plain CLIP checkpoints (reference sheet 9)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.files import open_tensors
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.load import LoadReport, load_weights
from filmstrip.checkpoint.parts import Weights
from filmstrip.checkpoint.rules import detect_layout
from filmstrip.checkpoint.tower_config import TowerKind, parse_text_tower, parse_vision_tower, tower_kind
from filmstrip.config import TextConfig, VisionConfig
from filmstrip.errors import CheckpointError
from filmstrip.models.decoder import Decoder
from filmstrip.models.vision import VisionTower
from filmstrip.models.weightless import weightless

CONFIG_FILE = "config.json"
FAMILY_OF_KIND: dict[TowerKind, str] = {"text": "llama", "vision": "clip"}


@dataclass(frozen=True, kw_only=True)
class TowerCheckpoint(Weights):
    """A directory that holds one tower. Canonical names are those of `Decoder` (text) or `VisionTower` (vision)."""

    kind: TowerKind
    config: TextConfig | VisionConfig


def read_tower(directory: Path) -> TowerCheckpoint:
    """Read the configuration and the tensor headers of a plain LLaMA, CLIP or LanguageBind directory.

    Of a whole CLIP the vision tower is taken; its text model and projections are left out when weights are loaded.
    Raises `CheckpointError` for files that are missing, damaged or of an unknown layout, `ConfigError` for a
    configuration that is not supported; one line each.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} has no {CONFIG_FILE}; it is not a Hugging Face checkpoint")
    values = read_json(path)
    kind = tower_kind(values.get("model_type"))
    if kind is None:
        supported = "LLaMA (model_type llama), CLIP (clip, clip_vision_model) and LanguageBind"
        raise Fields(values, str(path)).error("model_type", f"supported as a tower on its own: {supported}")
    parse = parse_text_tower if kind == "text" else parse_vision_tower
    config = parse(values, str(path))
    files = open_tensors(directory)
    layout = detect_layout(files.tensors, layouts_of(FAMILY_OF_KIND[kind]).values(), str(directory))
    return TowerCheckpoint(directory=directory, kind=kind, config=config, layout=layout, files=files)


def load_text_tower(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Decoder, LoadReport]:
    """The decoder in a LLaMA directory, filled. Arguments and errors as `load_weights`; see also `read_tower`."""
    checkpoint = read_tower(directory)
    if not isinstance(checkpoint.config, TextConfig):
        raise CheckpointError(f"{directory} is not a text tower: {checkpoint.describe()}")
    with weightless():
        tower = Decoder(checkpoint.config)
    report = load_weights(tower, checkpoint, dtype=dtype, device=device, on_progress=on_progress)
    return tower.eval().requires_grad_(False), report


def load_vision_tower(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[VisionTower, LoadReport]:
    """The vision tower in a CLIP or LanguageBind directory, filled. Arguments and errors as `load_weights`."""
    checkpoint = read_tower(directory)
    if not isinstance(checkpoint.config, VisionConfig):
        raise CheckpointError(f"{directory} is not a vision tower: {checkpoint.describe()}")
    with weightless():
        tower = VisionTower(checkpoint.config)
    report = load_weights(tower, checkpoint, dtype=dtype, device=device, on_progress=on_progress)
    return tower.eval().requires_grad_(False), report
