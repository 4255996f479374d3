"""The configuration files of a checkpoint, each read on its own, so that one that fails does not hide the others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filmstrip.checkpoint.defaults import GENERATION_FILE, GenerationDefaults, read_generation_defaults
from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_processor import (
    IMAGE_FILE,
    OLD_TEMPLATE_FILE,
    PROCESSOR_FILE,
    TEMPLATE_FILE,
    VIDEO_FILE,
    ProcessorFiles,
    read_processor_files,
)
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.pku_config import is_original
from filmstrip.checkpoint.pku_towers import TowerSources
from filmstrip.checkpoint.read import read_config
from filmstrip.checkpoint.tower_config import parse_text_tower, parse_vision_tower, tower_kind
from filmstrip.checkpoint.towers import CONFIG_FILE, FAMILY_OF_KIND
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.diagnostics.doctor.findings import Findings
from filmstrip.diagnostics.doctor.weights import add_unreadable
from filmstrip.errors import FilmstripError
from filmstrip.links import LinkError
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.text.tokenizer_files import FILE_NAMES, SENTENCEPIECE_FILE, TOKENIZER_FILE

_Read = TypeVar("_Read")
# Longest names first: one is the end of another.
_FILES = sorted(
    {GENERATION_FILE, IMAGE_FILE, VIDEO_FILE, PROCESSOR_FILE, TEMPLATE_FILE, OLD_TEMPLATE_FILE, *FILE_NAMES}, key=len
)[::-1]


@dataclass(frozen=True)
class Settings:
    """What the files say; None for what cannot be read. `config` is a whole model, or a tower on its own."""

    values: Fields | None = None
    config: AnyConfig | None = None
    generation: GenerationDefaults | None = None
    processor: ProcessorFiles | None = None
    tokenizer: Tokenizer | None = None
    nothing: bool = False  # there is no config.json
    original: bool = False  # the original release's, whose towers may lie elsewhere
    copied_towers: bool = False  # config.json records that the video tower began as a copy of the image tower

    @property
    def model(self) -> ModelConfig | None:
        """The multimodal model that config.json describes, if it is one."""
        return self.config if isinstance(self.config, ModelConfig) else None

    @property
    def family(self) -> str | None:
        """The family of layouts that belongs to the configuration."""
        if self.config is None or isinstance(self.config, ModelConfig):
            return None if self.config is None else self.config.family
        return FAMILY_OF_KIND["text" if isinstance(self.config, TextConfig) else "vision"]


def read_settings(directory: Path, towers: TowerSources, findings: Findings) -> Settings:
    """Read config.json, the processor's files, generation_config.json and the tokenizer; report what fails."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        findings.add("config-missing", CONFIG_FILE, f"{CONFIG_FILE} is not here")
        return Settings(tokenizer=_tokenizer(directory, findings), nothing=True)
    values = _attempt(lambda: Fields(read_json(path), str(path)), "config-damaged", path, findings)
    if values is None:
        return Settings(tokenizer=_tokenizer(directory, findings))
    config = _attempt(lambda: _parse(directory, values, towers), "config-unsupported", path, findings)
    if isinstance(config, VisionConfig):
        return Settings(values, config)  # a tower of pixels: nothing else in the directory is used
    generation = _attempt(
        lambda: read_generation_defaults(directory, values),
        "generation-unusable",
        directory / GENERATION_FILE,
        findings,
    )
    processor = None
    if isinstance(config, ModelConfig):
        processor = _attempt(
            lambda: read_processor_files(directory, config), "processor-unusable", directory / IMAGE_FILE, findings
        )
    original = is_original(_raw(values))
    for code, parts in (("processor-differs", processor), ("setting-ignored", generation)):
        for warning in parts.warnings if parts is not None else ():
            text = warning.replace(f"{directory}/", "").removeprefix(f"{directory} ")
            # The original release never had a processor's file.
            findings.add(code, _file_named(text, CONFIG_FILE), text, severity="note" if original else None)
    tokenizer = _tokenizer(directory, findings)
    return Settings(
        values, config, generation, processor, tokenizer, original=original, copied_towers=_copied_towers(values)
    )


def _parse(directory: Path, values: Fields, towers: TowerSources) -> AnyConfig:
    kind = tower_kind(values.get("model_type"))
    if kind is None or is_original(_raw(values)):
        return read_config(directory, towers).model
    return (parse_text_tower if kind == "text" else parse_vision_tower)(_raw(values), values.where)


def _copied_towers(values: Fields) -> bool:
    section = values.get("filmstrip")
    return isinstance(section, dict) and section.get("copied_towers") is True


def _raw(values: Fields) -> dict[str, Any]:
    return {key: values.get(key) for key in values}


def _tokenizer(directory: Path, findings: Findings) -> Tokenizer | None:
    path = directory / TOKENIZER_FILE
    if findings.about(TOKENIZER_FILE):
        return None
    if not path.is_file() and not (directory / SENTENCEPIECE_FILE).is_file():
        findings.add("tokenizer-missing", TOKENIZER_FILE, f"neither {TOKENIZER_FILE} nor {SENTENCEPIECE_FILE} is here")
        return None
    tokenizer = _attempt(lambda: Tokenizer.from_directory(directory), "tokenizer-unusable", path, findings)
    for warning in tokenizer.warnings if tokenizer is not None else ():
        findings.add("reader-warns", TOKENIZER_FILE, warning)
    return tokenizer


def _attempt(read: Callable[[], _Read], code: str, path: Path, findings: Findings) -> _Read | None:
    """The result of a reader, or None and a finding with the reader's message, about `path` if it names no file."""
    try:
        return read()
    except FilmstripError as error:
        place = error.path if isinstance(error, LinkError) else path.parent / _file_named(str(error), path.name)
        if not findings.about(place.name):
            add_unreadable(code, place, error, findings)
        return None


def _file_named(message: str, default: str) -> str:
    """The configuration file that a reader's message is about."""
    return next((name for name in _FILES if name in message), default)
