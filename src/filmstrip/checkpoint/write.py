"""Safetensors files written tensor by tensor, in one file or in shards with an index.

The header is known before any value is, so values stream from wherever they are (a memory map, a dequantiser, a
random generator) to the file: one tensor at a time is in memory.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.files import INDEX_FILE, WEIGHTS_FILE
from filmstrip.checkpoint.header import DTYPES
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor

METADATA = {"format": "pt"}  # transformers refuses a file without it
MAX_SHARD_BYTES = 5_000_000_000
ALIGNMENT = 8
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape and dtype are known and whose values are not yet read. `read` gives it on the CPU."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "LazyTensor":
        """A tensor that is in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.numel * self.dtype.itemsize

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """The same tensor in another dtype (None: as it is), converted when read.

        Reading raises `CheckpointError` when a finite value does not fit the new dtype.
        """
        if dtype is None or dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: convert(self.read(), dtype))

    def view(self, change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """The same numbers in another shape."""
        shape = tuple(change(torch.empty(self.shape, device="meta")).shape)
        return LazyTensor(shape, self.dtype, lambda: change(self.read()))


def write_weights(
    directory: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write `model.safetensors`, or numbered shards and their index; returns the names of the weight files.

    A tensor larger than `max_shard_bytes` has a shard to itself. `on_progress` is called with bytes written and in all.
    Raises `CheckpointError` when the disk has no room for them, before anything is written.
    """
    shards = _split(tensors, max_shard_bytes)
    total = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(directory).free
    if total > free:
        raise CheckpointError(f"cannot write {total:,} bytes of weights below {directory.parent}: {free:,} are free")
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [WEIGHTS_FILE]
    done = 0
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        for written in write_safetensors(directory / name, shard):
            done += written
            if on_progress is not None:
                on_progress(done, total)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map})
        (directory / INDEX_FILE).write_bytes(index)
    return names


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> Iterator[int]:
    """Write one file, and yield the number of bytes after each tensor.

    Raises `CheckpointError` for a tensor whose values are not what was announced.
    """
    # Wide dtypes first, so that every tensor lies at a multiple of its element size, as the format's readers expect.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    with path.open("xb") as file:
        file.write(_header(ordered))
        for name, lazy in ordered:
            tensor = lazy.read()
            if tuple(tensor.shape) != lazy.shape or tensor.dtype != lazy.dtype:
                raise CheckpointError(f"tensor {name!r} changed while it was read; is another program writing to it?")
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # or it would still be there while the next one is read
            yield lazy.nbytes


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """An object as the hub's files look: indented, with a newline at the end."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write small files; a name may lie in a sub-directory (`image_tower/config.json`)."""
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def _header(tensors: list[tuple[str, LazyTensor]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": METADATA}
    position = 0
    for name, lazy in tensors:
        end = position + lazy.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[lazy.dtype],
            "shape": list(lazy.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw


def _split(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    """Consecutive runs of at most `limit` bytes each; a larger tensor has a run to itself."""
    shards: list[dict[str, LazyTensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in another dtype. Raises `CheckpointError` when a finite value becomes infinite on the way."""
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    # Masks are as large as the weights: none are made unless the extremes (NaN if there is one) ask for a closer look.
    suspect = narrower and tensor.numel() > 0 and not all(bool(end.isfinite()) for end in converted.aminmax())
    if suspect and bool((converted.isinf() & tensor.isfinite()).any()):
        largest = float(tensor[tensor.isfinite()].abs().max())
        raise CheckpointError(f"a weight of {largest:.3g} does not fit {str(dtype).removeprefix('torch.')}")
    return converted
