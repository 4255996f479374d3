"""Names and shapes of two models, without a weight: `--structure`. A `config.json` alone is enough."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.hf_config import parse_config
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.pku_config import is_original
from filmstrip.checkpoint.read import part_of_a_model, read_checkpoint, read_config
from filmstrip.checkpoint.resolve import CONFIG_FILE, resolve
from filmstrip.checkpoint.rules import Mapped
from filmstrip.checkpoint.tower_config import tower_kind
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.model_source import PUBLISHED, find_model
from filmstrip.diagnostics.parity.run import NEEDS_TRANSFORMERS, TRANSFORMERS
from filmstrip.errors import CheckpointError
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import weightless

Shapes = dict[str, tuple[int, ...]]
BUILT = "built from its configuration"


@dataclass(frozen=True)
class StructureReport:
    """Parameters under our names: those of both, and where they differ. Tied weights and shared towers count once."""

    model: str
    against: str
    sources: tuple[str, str]
    tensors: tuple[int, int]
    parameters: tuple[int, int]
    only_ours: Shapes
    only_theirs: Shapes
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def same(self) -> bool:
        """Whether every parameter is on both sides with one shape."""
        return not (self.only_ours or self.only_theirs or self.shapes)

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if self.same:
            return f"equal: {self.tensors[0]:,} tensors with {self.parameters[0]:,} parameters, same names and shapes"
        parts = []
        for side, names in (("this model", self.only_ours), ("the reference", self.only_theirs)):
            if names:
                parts.append(f"{len(names):,} tensors ({_count(names):,} parameters) only in {side}")
        if self.shapes:
            parts.append(f"{len(self.shapes):,} of another shape")
        return f"different: {', '.join(parts)}"

    @property
    def exit_code(self) -> int:
        """0: the same, 1: not."""
        return 0 if self.same else 1

    def to_dict(self) -> dict[str, Any]:
        """What `filmstrip parity --structure --json` prints."""
        both = [{"ours": list(ours), "theirs": list(theirs)} for ours, theirs in self.shapes.values()]
        return {
            "verdict": self.verdict,
            "same": self.same,
            "model": self.model,
            "against": self.against,
            "sources": {"ours": self.sources[0], "theirs": self.sources[1]},
            "tensors": {"ours": self.tensors[0], "theirs": self.tensors[1]},
            "parameters": {"ours": self.parameters[0], "theirs": self.parameters[1]},
            "only_ours": {name: list(shape) for name, shape in self.only_ours.items()},
            "only_theirs": {name: list(shape) for name, shape in self.only_theirs.items()},
            "shapes": dict(zip(self.shapes, both, strict=True)),
        }


def compare_structure(model: str, against: str) -> StructureReport:
    """Compare parameters of two models by name and shape.

    Either is what `filmstrip params` takes, `7b` included. Against `transformers`, both are built on the meta device
    from the configuration of `model`. Against another checkpoint, what its files hold counts (or, where there is only a
    configuration, what that asks for), and so for `model`. Raises `CheckpointError` or `ConfigError` for what cannot
    be read.
    """
    if against == TRANSFORMERS:
        config, values = _configuration(model)
        ours, source = _built(config), BUILT
        theirs = _transformers_shapes(values, config, model)
        their_source = "built by transformers from the same configuration"
    else:
        (ours, source), (theirs, their_source) = (_stored_or_built(name) for name in (model, against))
    shared = ours.keys() & theirs.keys()
    return StructureReport(
        model=model,
        against=against,
        sources=(source, their_source),
        tensors=(len(ours), len(theirs)),
        parameters=(_count(ours), _count(theirs)),
        only_ours={name: shape for name, shape in ours.items() if name not in theirs},
        only_theirs={name: shape for name, shape in theirs.items() if name not in ours},
        shapes={name: (ours[name], theirs[name]) for name in sorted(shared) if ours[name] != theirs[name]},
    )


def _config_path(name: str) -> Path:
    """The `config.json` of a model: the file itself, or that of a directory or a name."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return path
    return resolve(name) / CONFIG_FILE


def _built(config: ModelConfig) -> Shapes:
    """Every parameter of our model once, on the meta device."""
    with weightless():
        model = VideoLlava(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _configuration(name: str) -> tuple[ModelConfig, dict[str, Any]]:
    """A model's configuration, and the content of a `config.json` that says the same to transformers."""
    if name in PUBLISHED:
        config = PUBLISHED[name]
        return config, config_values(config, generation=GenerationDefaults(), dtype="float16")
    path = _config_path(name)
    return _read_config(path), read_json(path)


def _read_config(path: Path) -> ModelConfig:
    values = read_json(path)
    if tower_kind(values.get("model_type")) is not None and not is_original(values):
        raise part_of_a_model(path, find_model(str(path)).title)
    if path.name == CONFIG_FILE:
        return read_config(path.parent).model
    return parse_config(values, str(path)).model


def _stored_or_built(name: str) -> tuple[Shapes, str]:
    if name in PUBLISHED:
        return _built(PUBLISHED[name]), BUILT
    path = _config_path(name)
    directory = path.parent
    if path.name != CONFIG_FILE or not _has_weights(directory):
        return _built(_read_config(path)), BUILT
    checkpoint = read_checkpoint(directory)
    shapes: Shapes = {}
    for files, layout in checkpoint.parts:
        for key, info in files.tensors.items():
            mapped = layout.to_canonical(key)
            if isinstance(mapped, Mapped):
                shapes[mapped.canonical] = mapped.transform.canonical_shape(info.shape) or info.shape
    if checkpoint.config.text.tie_embeddings:
        shapes.pop("text_tower.lm_head.weight", None)  # some files hold the shared weight twice
    return shapes, f"as stored, {checkpoint.layout.title}"


def _has_weights(directory: Path) -> bool:
    """Whether there are files of weights, whole or damaged; damaged ones are an error when they are read."""
    return any(any(directory.glob(pattern)) for pattern in ("*.safetensors*", "pytorch_model*.bin*"))


def _transformers_shapes(values: dict[str, Any], config: ModelConfig, name: str) -> Shapes:
    if importlib.util.find_spec("transformers") is None:
        raise CheckpointError(NEEDS_TRANSFORMERS)
    from filmstrip.diagnostics.parity.reference_side import structure

    return structure(values, config.family, name)


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
