"""A checkpoint directory, understood without reading a single weight."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from filmstrip.checkpoint.defaults import GenerationDefaults, read_generation_defaults
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.files import open_tensors
from filmstrip.checkpoint.hf_config import Extras, HfConfig, parse_config
from filmstrip.checkpoint.hf_processor import IMAGE_FILE, PROCESSOR_FILE, ProcessorFiles, read_processor_files
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.parts import Part, Weights
from filmstrip.checkpoint.pku_config import is_original, parse_original
from filmstrip.checkpoint.pku_towers import OriginalTowers, TowerSources, find_towers
from filmstrip.checkpoint.quantization import Manifest, read_manifest
from filmstrip.checkpoint.rules import detect_layout
from filmstrip.checkpoint.tower_config import tower_kind
from filmstrip.checkpoint.towers import CONFIG_FILE, TowerCheckpoint, read_tower
from filmstrip.config import ModelConfig
from filmstrip.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Weights):
    """A multimodal model's configuration and the names, shapes and places of its tensors.

    `config` is the model as `config.json` describes it; `model_config` gives the variant with or without temporal
    attention. `towers` are tensors of vision towers that lie in directories of their own, as the original release
    keeps them; `tower_warnings` say what was not read of those. `quantization` lists the layers that are quantised.
    """

    config: ModelConfig
    extras: Extras
    generation: GenerationDefaults
    processor: ProcessorFiles
    towers: tuple[Part, ...] = ()
    tower_warnings: tuple[str, ...] = ()
    quantization: Manifest | None = None

    frame_embedding: ClassVar[str] = "video_tower.blocks.0.temporal.embedding"

    @property
    def parts(self) -> tuple[Part, ...]:
        """All tensors to load, those of the directory itself first."""
        return (*super().parts, *self.towers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything in the directories that is unusual, one line each."""
        return super().warnings + self.tower_warnings + self.processor.warnings + self.generation.warnings

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


def read_checkpoint(directory: Path, towers: TowerSources | None = None) -> Checkpoint:
    """Read configuration, processor files and tensor headers of a multimodal checkpoint.

    Hugging Face's Video-LLaVA, LLaVA-1.5 and LLaVA-NeXT-Video, and the original release of Video-LLaVA; `towers` say
    where the latter's vision towers are, if the user knows better than the directory. Raises `CheckpointError` for
    files that are missing, damaged or of an unknown layout, and for a tower on its own; `ConfigError` for a
    configuration that is not supported; one line each.
    """
    checkpoint = read_any(directory, towers)
    if isinstance(checkpoint, TowerCheckpoint):
        raise part_of_a_model(directory, checkpoint.describe())
    return checkpoint


def part_of_a_model(place: Path, description: str) -> CheckpointError:
    """The error for a tower on its own where a multimodal model is wanted."""
    return CheckpointError(
        f"{place} is only a part of a model ({description}); `filmstrip assemble` builds a multimodal model from a "
        "text tower and a vision tower"
    )


def read_any(directory: Path, towers: TowerSources | None = None) -> Checkpoint | TowerCheckpoint:
    """Read whatever checkpoint a directory holds: a multimodal model, a text tower (LLaMA), a vision tower (CLIP).

    Arguments and errors as `read_checkpoint`.
    """
    try:
        return _read_any(directory, towers or TowerSources())
    except OSError as error:  # a directory that may not be entered
        raise CheckpointError(f"cannot read {directory}: {error.strerror or error}") from error


def read_config(directory: Path, towers: TowerSources | None = None) -> HfConfig:
    """The configuration of a multimodal model, weights or not. Arguments and errors as `read_checkpoint`."""
    values = _config_values(directory)
    if is_original(values):
        where = str(directory / CONFIG_FILE)
        found = find_towers(directory, Fields(values, where), None, towers or TowerSources())
        return parse_original(values, directory, found.configs)
    return _parse_config(values, directory, towers)


def _read_any(directory: Path, sources: TowerSources) -> Checkpoint | TowerCheckpoint:
    values = _config_values(directory)
    if is_original(values):
        return _read_original(directory, values, sources)
    if tower_kind(values.get("model_type")) is not None:
        return read_tower(directory)
    parsed = _parse_config(values, directory, sources)
    files, layout = _main_part(directory, parsed.model.family)
    return _checkpoint(directory, parsed, Part(files, layout), OriginalTowers())


def _read_original(directory: Path, values: dict[str, Any], sources: TowerSources) -> Checkpoint:
    main = _main_part(directory, "video-llava")
    found = find_towers(directory, Fields(values, str(directory / CONFIG_FILE)), main, sources)
    checkpoint = _checkpoint(directory, parse_original(values, directory, found.configs), main, found)
    if any((directory / name).is_file() for name in (IMAGE_FILE, PROCESSOR_FILE)):
        return checkpoint
    # That release has no such files, so their absence is nothing to warn of.
    return replace(checkpoint, processor=replace(checkpoint.processor, warnings=()))


def _config_values(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} has no {CONFIG_FILE}; it is not a Hugging Face checkpoint")
    return read_json(path)


def _parse_config(values: dict[str, Any], directory: Path, sources: TowerSources | None) -> HfConfig:
    where = str(directory / CONFIG_FILE)
    if values.get("mm_vision_tower") is not None:
        raise ConfigError(
            f"{where}: this is the original LLaVA's layout (mm_vision_tower), which is not read; use the checkpoint "
            "converted for transformers"
        )
    if sources is not None and sources != TowerSources():
        raise ConfigError(
            f"{directory} has its vision towers inside; towers are chosen for the original release's layout only"
        )
    return parse_config(values, where)


def _main_part(directory: Path, family: str) -> Part:
    files = open_tensors(directory)
    return Part(files, detect_layout(files.tensors, layouts_of(family).values(), str(directory)))


def _checkpoint(directory: Path, parsed: HfConfig, main: Part, towers: OriginalTowers) -> Checkpoint:
    return Checkpoint(
        directory=directory,
        config=parsed.model,
        extras=parsed.extras,
        generation=read_generation_defaults(directory, parsed.values),
        processor=read_processor_files(directory, parsed.model),
        layout=main.layout,
        files=main.files,
        towers=towers.parts,
        unused=towers.unused,
        tower_warnings=towers.warnings,
        quantization=read_manifest(directory),
    )
