"""What the loader needs to know of a checkpoint: the tensors it is made of, wherever they lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import nn

from filmstrip.checkpoint.describe import AnyConfig, describe, dtype_names
from filmstrip.checkpoint.files import TensorFiles
from filmstrip.checkpoint.rules import Layout, Mapped
from filmstrip.models.weightless import build_meta


class Part(NamedTuple):
    """The tensors of one directory, and the layout that gives them the model's names."""

    files: TensorFiles
    layout: Layout


@dataclass(frozen=True)
class Ignored:
    """A tensor of the checkpoint that is not in the model, and why."""

    key: str
    why: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint of any kind, as `load_weights` sees it.

    `config` is the model that it describes, `layout` and `files` are those of `directory`; `unused` are tensors that
    lie there and are not loaded.
    """

    directory: Path
    config: AnyConfig
    layout: Layout
    files: TensorFiles
    unused: tuple[Ignored, ...] = ()

    # The parameter that stored temporal attention is known by.
    frame_embedding: ClassVar[str] = "blocks.0.temporal.embedding"

    @property
    def parts(self) -> tuple[Part, ...]:
        """All tensors to load, those of the directory itself first."""
        return (Part(self.files, self.layout),)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that is unusual, one line each."""
        return tuple(warning for files, _ in self.parts for warning in files.warnings)

    @property
    def temporal_frames(self) -> int | None:
        """Frames that the stored temporal attention knows, or None when the checkpoint holds none."""
        for files, layout in self.parts:
            for key, info in files.tensors.items():
                mapped = layout.to_canonical(key)
                if isinstance(mapped, Mapped) and mapped.canonical == self.frame_embedding:
                    shape = mapped.transform.canonical_shape(info.shape)
                    return shape[0] if shape else None
        return None

    def build_meta(self) -> nn.Module:
        """The model of `config` on the meta device: shapes and names, no values."""
        return build_meta(self.config)

    def describe(self) -> str:
        """One sentence that says what this is. Parameters are those of `config`, shared ones once."""
        count = sum(parameter.numel() for parameter in self.build_meta().parameters())
        stored = [
            info
            for files, layout in self.parts
            for key, info in files.tensors.items()
            if isinstance(layout.to_canonical(key), Mapped)
        ]
        return describe(self.config, self.layout.title, dtype_names(stored), count)
