"""What a conversion or an assembly is about to write, and the writing of it: whole or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.digest import WeightsDigest
from filmstrip.checkpoint.header import dtype_name
from filmstrip.checkpoint.write import DTYPE_NAMES, MAX_SHARD_BYTES, LazyTensor, write_files, write_weights
from filmstrip.errors import CheckpointError

Progress = Callable[[int, int], None]
DTYPE_TITLES = {dtype: dtype_name(dtype) for dtype in DTYPE_NAMES}


@dataclass(frozen=True)
class Output:
    """A checkpoint directory that is known and not yet written.

    `tensors` by their names on disk, `files` by name (everything but weights), `sources` with the hash of the weights
    of each. `left_out` counts parameters of the sources that are not written, by reason; `added_rows` and
    `dropped_rows` are rows of the vocabulary. `notes` are for people.
    """

    tensors: Mapping[str, LazyTensor]
    files: Mapping[str, bytes]
    layout: str
    sources: Mapping[str, str]
    left_out: Mapping[str, int] = field(default_factory=dict)
    added_rows: int = 0
    dropped_rows: int = 0
    notes: tuple[str, ...] = ()
    stand_for: int | None = None

    @property
    def parameters(self) -> int:
        """Weights that are written, copies of shared ones included; or those that quantised numbers stand for."""
        return sum(tensor.numel for tensor in self.tensors.values()) if self.stand_for is None else self.stand_for

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the weights, by torch's names."""
        return tuple(sorted({DTYPE_TITLES[tensor.dtype] for tensor in self.tensors.values()}))


@dataclass(frozen=True)
class WriteOptions:
    """How large a shard may be, and whether a checkpoint in the way is replaced."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    overwrite: bool = False


def write_output(
    output: Output, destination: Path, options: WriteOptions, on_progress: Progress | None = None
) -> list[str]:
    """Write `output` to `destination`; returns the names of the weight files.

    `on_progress` is called with bytes of weights written and in all. Raises `CheckpointError`, one line, for a
    destination that is in the way and for whatever the disk refuses; nothing is left behind then.
    """
    with atomic_directory(destination, overwrite=options.overwrite) as partial:
        write_files(partial, output.files)
        return write_weights(partial, output.tensors, max_shard_bytes=options.max_shard_bytes, on_progress=on_progress)


def require_complete(tensors: Mapping[str, LazyTensor], model: nn.Module, source: str) -> None:
    """Hold tensors, by the names of `model` (built without values), against its parameters.

    Shared parameters may be there under one of their names or all. Raises `CheckpointError` naming the first tensor
    that is missing, not expected, or of another shape.
    """
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    for name in (name for name, _ in model.named_parameters()):
        if name not in tensors:
            raise CheckpointError(f"{source}: the tensor for {name!r} is missing")
    for name, tensor in tensors.items():
        if name not in shapes:
            raise CheckpointError(f"{source}: the tensor for {name!r} is not part of the model that it describes")
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{source}: the tensor for {name!r} has shape {tensor.shape}, its configuration asks for {shapes[name]}"
            )


def require_equal_copies(tensors: Mapping[str, LazyTensor], model: nn.Module, source: str) -> None:
    """Raise `CheckpointError` when tensors that are one parameter of `model` (tied, shared) have other values."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in tensors:
            names.setdefault(parameter, []).append(name)
    for first, *copies in names.values():
        for other in copies:
            if not torch.equal(tensors[first].read(), tensors[other].read()):
                raise CheckpointError(f"{source}: {first!r} and {other!r} differ, but its configuration makes them one")


def source_hash(tensors: Mapping[str, LazyTensor], model: nn.Module) -> str:
    """The hash that loading these tensors into `model` would report (`digest`). Best given views of mapped files, for
    of a large model little is looked at.
    """
    names = sorted(name for name, _ in model.named_parameters())
    digest = WeightsDigest(sum(tensor.nbytes for tensor in tensors.values()))
    for name in names:
        digest.add(name, DTYPE_NAMES[tensors[name].dtype], tensors[name].read())
    return digest.value()
