"""From a name to the shapes of a model, with or without weights: a checkpoint, its configuration alone, or `7b`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.checkpoint.header import DTYPES, WEIGHT_DTYPES, TensorInfo, dtype_name
from filmstrip.checkpoint.hf_config import parse_config
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.pku_config import is_original
from filmstrip.checkpoint.read import Checkpoint, read_any, read_config
from filmstrip.checkpoint.resolve import resolve
from filmstrip.checkpoint.rules import SCALES
from filmstrip.checkpoint.tower_config import parse_text_tower, parse_vision_tower, tower_kind
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.config import ModelConfig
from filmstrip.errors import ConfigError
from filmstrip.models.weightless import build_meta

PUBLISHED: dict[str, ModelConfig] = {"7b": ModelConfig()}
"""Configurations known by name, no files needed: `7b` is `LanguageBind/Video-LLaVA-7B-hf` (reference sheet 1.1)."""
TRAINED_FRAMES = 8  # of the published model
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


@dataclass(frozen=True)
class ModelSource:
    """What is known of a model: always its configuration, and the headers of its weights where there are any.

    `quantize` names what its weights are quantised to, `int8` or `int4`, if they are (the fewest bits).
    """

    name: str
    title: str
    config: AnyConfig
    trained_frames: int = TRAINED_FRAMES
    stored: tuple[TensorInfo, ...] = ()
    quantize: str | None = None

    @property
    def dtype(self) -> str | None:
        """The dtype of what is not quantised, None where there are no weights."""
        names = {info.dtype for info in self.stored if info.dtype in WEIGHT_DTYPES and not info.name.endswith(SCALES)}
        return dtype_name(DTYPES[names.pop()]) if len(names) == 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of its files."""
        return sum(info.end - info.begin for info in self.stored)

    def build(self) -> nn.Module:
        """The modules on the meta device: shapes and names, no values."""
        return build_meta(self.config)


def find_model(name: str) -> ModelSource:
    """The model that `name` means: `7b`, a bundled model, a directory, a hub id, or a `config.json`.

    A directory may hold nothing but `config.json`. Raises `CheckpointError` or `ConfigError`, one line each.
    """
    if name in PUBLISHED:
        config = PUBLISHED[name]
        return ModelSource(name, f"{config.title}, published configuration {name}", config)
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return _from_config(name, path)
    directory = resolve(name)
    if (directory / CONFIG_FILE).is_file() and not _has_weights(directory.iterdir()):
        return _from_config(name, directory / CONFIG_FILE)
    checkpoint = read_any(directory)
    frames = checkpoint.extras.trained_frames if isinstance(checkpoint, Checkpoint) else TRAINED_FRAMES
    stored = tuple(info for files, _ in checkpoint.parts for info in files.tensors.values())
    manifest = checkpoint.quantization if isinstance(checkpoint, Checkpoint) else None
    quantize = None if manifest is None else f"int{manifest.fewest_bits}"
    return ModelSource(name, checkpoint.describe(), checkpoint.config, frames, stored, quantize)


def _from_config(name: str, path: Path) -> ModelSource:
    values = read_json(path)
    kind = tower_kind(values.get("model_type"))
    if kind is not None:
        parse = parse_text_tower if kind == "text" else parse_vision_tower
        title = "LLaMA text tower" if kind == "text" else "CLIP vision tower"
        return ModelSource(name, f"{title}, configuration only", parse(values, str(path)))
    if is_original(values) and path.name != CONFIG_FILE:
        raise ConfigError(f"{path} is of the original release, whose towers are looked for beside a {CONFIG_FILE}")
    parsed = read_config(path.parent) if is_original(values) else parse_config(values, str(path))
    return ModelSource(name, f"{parsed.model.title}, configuration only", parsed.model, parsed.extras.trained_frames)


def _has_weights(entries: Iterable[Path]) -> bool:
    """Whether there is anything that could be weights or their index; if so, reading it says what is wrong."""
    return any(entry.suffix in WEIGHT_SUFFIXES or entry.name.endswith(".index.json") for entry in entries)
