"""A checkpoint directory, understood without reading a single weight."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from filmstrip.checkpoint.defaults import GenerationDefaults, read_generation_defaults
from filmstrip.checkpoint.files import TensorFiles, open_tensors
from filmstrip.checkpoint.hf_config import Extras, parse_config
from filmstrip.checkpoint.hf_processor import ProcessorFiles, read_processor_files
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.layouts import LAYOUTS
from filmstrip.checkpoint.rules import Layout, Mapped, detect_layout
from filmstrip.config import ModelConfig
from filmstrip.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
FRAME_EMBEDDING = "video_tower.blocks.0.temporal.embedding"


@dataclass(frozen=True)
class Checkpoint:
    """A directory's configuration and the names, shapes and places of its tensors.

    `config` is the model as `config.json` describes it; `model_config` gives the variant with or without temporal
    attention.
    """

    directory: Path
    config: ModelConfig
    extras: Extras
    generation: GenerationDefaults
    processor: ProcessorFiles
    layout: Layout
    files: TensorFiles

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything in the directory that is unusual, one line each."""
        return self.files.warnings + self.processor.warnings + self.generation.warnings

    @property
    def temporal_frames(self) -> int | None:
        """Frames that the stored temporal attention knows, or None when the checkpoint holds none."""
        for key, info in self.files.tensors.items():
            mapped = self.layout.to_canonical(key)
            if isinstance(mapped, Mapped) and mapped.canonical == FRAME_EMBEDDING:
                shape = mapped.transform.canonical_shape(info.shape)
                return shape[0] if shape else None
        return None

    def model_config(self, *, temporal_attention: bool | None = None) -> ModelConfig:
        """The configuration to build: as the checkpoint says, or with temporal attention on or off by choice.

        Raises `ConfigError` when temporal attention is asked for and the weights for it are not there.
        """
        if temporal_attention is None or temporal_attention == self.config.video_tower.temporal_attention:
            return self.config
        frames = self.config.video_tower.temporal_frames
        if temporal_attention:
            stored = self.temporal_frames
            if stored is None:
                raise ConfigError(
                    f"{self.directory} has no weights for temporal attention; the preset 'transformers' needs none"
                )
            frames = stored
        video = replace(self.config.video_tower, temporal_attention=temporal_attention, temporal_frames=frames)
        image = video if self.config.shared_towers else self.config.image_tower
        return replace(self.config, image_tower=image, video_tower=video)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read configuration, processor files and tensor headers of a Hugging Face Video-LLaVA directory.

    Raises `CheckpointError` for files that are missing, damaged or of an unknown layout, `ConfigError` for a
    configuration that is not supported; one line each.
    """
    try:
        return _read_checkpoint(directory)
    except OSError as error:  # a directory that may not be entered
        raise CheckpointError(f"cannot read {directory}: {error.strerror or error}") from error


def _read_checkpoint(directory: Path) -> Checkpoint:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} has no {CONFIG_FILE}; it is not a Hugging Face checkpoint")
    parsed = parse_config(read_json(path), str(path))
    files = open_tensors(directory)
    layout = detect_layout(files.tensors, LAYOUTS.values(), str(directory))
    return Checkpoint(
        directory=directory,
        config=parsed.model,
        extras=parsed.extras,
        generation=read_generation_defaults(directory, parsed.values),
        processor=read_processor_files(directory, parsed.model),
        layout=layout,
        files=files,
    )


def describe(config: ModelConfig, layout_title: str, dtype: str, parameters: int) -> str:
    """One sentence that says what a model is, for people."""
    temporal = "with" if config.video_tower.temporal_attention else "without"
    return f"Video-LLaVA {temporal} temporal attention, {layout_title}, {dtype}, {short_count(parameters)} parameters"


def short_count(number: int) -> str:
    """A count with two digits at least and its unit: 7.4 B, 303 M, 1.9 M, 512."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.1f} {name}" if math.floor(value) < 100 else f"{value:.0f} {name}"
    return str(number)
