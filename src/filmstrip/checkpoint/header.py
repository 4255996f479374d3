"""The header of a safetensors file, read and checked without reading any tensor.

Format (huggingface/safetensors README): 8 bytes little-endian header length N, N bytes of JSON
`{name: {"dtype", "shape", "data_offsets": [begin, end]}}` with an optional `__metadata__`, then the tensors without
gaps.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.json_file import LFS_POINTER, parse_json
from filmstrip.errors import CheckpointError
from filmstrip.links import require_inside

MAX_HEADER_BYTES = 32 * 2**20  # a 7B checkpoint takes about 100 kB
MAX_TENSORS = 200_000  # a 7B checkpoint has about a thousand
MAX_DIMENSIONS = 8

# Name in the file, torch dtype; None where torch has none that a weight could be.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`, without the module that PyTorch puts before it."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is. `begin` and `end` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes, shapes and places of all tensors in `path`.

    Raises `CheckpointError` for anything but a whole, well-formed file: empty, truncated, a Git-LFS pointer, a
    header that lies about its length, unknown dtypes, offsets that overlap, leave gaps or pass the end.
    """
    header = read_entries(path)
    _check_coverage(path, header)
    return header.tensors


@dataclass(frozen=True)
class Header:
    """The entries of a header, well-formed one by one. `data_start` and `size` are bytes of the file."""

    tensors: dict[str, TensorInfo]
    data_start: int
    size: int


def read_entries(path: Path) -> Header:
    """The header without a look at where its tensors lie: for the diagnosis of a file whose end is missing.

    Raises `CheckpointError` as `read_header` does, but accepts offsets that overlap, leave gaps or pass the end.
    """
    try:
        require_inside(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            _check_start(path, size, start, file.read(32))
            length = int(struct.unpack("<Q", start)[0])
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: its header claims {length} bytes, the file has {size}"
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    _check_counts(path, raw)
    entries = parse_json(raw, f"the header of {path}")
    _check_metadata(path, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"the header of {path} names {len(entries)} tensors; at most {MAX_TENSORS} are accepted")
    infos = {name: _tensor_info(name, entry, path, 8 + length) for name, entry in entries.items()}
    return Header(infos, 8 + length, size)


def _check_start(path: Path, size: int, start: bytes, following: bytes) -> None:
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    if (start + following).startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` where it came from")
    if size < 10 or not following.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file")


def _check_counts(path: Path, raw: bytes) -> None:
    """Before parsing, which takes many times the bytes of small objects: no more of them than the tensors may have.

    Each tensor is one object with two lists and at most `MAX_DIMENSIONS` + 2 numbers, so about a dozen commas. Brackets
    in names count as well, which is no harm: the bound is two hundred times what a 7B checkpoint has.
    """
    limits = {b"{": MAX_TENSORS + 2, b"[": 2 * MAX_TENSORS, b",": 16 * MAX_TENSORS}
    for mark, limit in limits.items():
        if raw.count(mark) > limit:
            raise CheckpointError(
                f"the header of {path} has too many entries; at most {MAX_TENSORS} tensors are accepted"
            )


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"the header of {path}: __metadata__ is not a map of texts")


def _tensor_info(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    where = f"the header of {path}, tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {dtype!r} is not supported (known: {', '.join(DTYPES)})")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: the shape is not a short list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets are not two growing numbers")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(f"{where}: {dtype} of shape {tuple(shape)} needs {expected} bytes, not {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, data_start + end)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_coverage(path: Path, header: Header) -> None:
    """The tensors must cover the file exactly, as the format demands."""
    position, size = header.data_start, header.size
    for info in sorted(header.tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            problem = "overlaps another tensor" if info.begin < position else "leaves a gap before it"
            raise CheckpointError(f"the header of {path}: tensor {info.name!r} {problem}")
        position = info.end
    if position > size:
        raise CheckpointError(
            f"{path} is truncated: its tensors need {position} bytes, the file has {size}; download it again"
        )
    if position < size:
        raise CheckpointError(f"{path} has {size - position} bytes after its last tensor; it is damaged")
