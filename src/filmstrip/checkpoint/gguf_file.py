"""The container format GGUF: metadata, and where each tensor lies. Values are read when asked for.

The library `gguf` trusts the counts and lengths in a file; here each is held against the file's size first, so a
damaged or hostile file costs one clear error. Format (ggml-org/ggml docs/gguf.md, versions 2 and 3, little-endian):
`GGUF`, version u32, number of tensors u64, number of metadata entries u64; entries of key, type u32, value; tensors of
name, dimensions (innermost first), type u32, offset u64; then, aligned, the data.
"""

import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from filmstrip.checkpoint.header import MAX_TENSORS
from filmstrip.checkpoint.json_file import LFS_POINTER
from filmstrip.checkpoint.write import LazyTensor, convert
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor
from filmstrip.text.sentencepiece import MAX_PIECES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 65_536
MAX_METADATA_BYTES = 2**28  # a vocabulary of 256k tokens with its merges takes about 12 MB
MAX_SHOWN = 64  # numbers of an array that is kept though not used, for a message about it
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**16
CHUNK_ELEMENTS = 2**24  # dequantised at a time; bounds the float32 copy of a large matrix

_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", _FLOAT32: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}

# Lists take many times their bytes in the file, so only those that are used are made.
_USED_ARRAYS = {f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges")}


@dataclass(frozen=True)
class UnreadArray:
    """Stands for an array of the metadata that is stepped over; of a type that no setting accepts."""

    count: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as stored. `shape` is torch's (outermost first), `kind` ggml's name of the type (`Q4_1`)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What a file says about itself. Metadata values are numbers, booleans, texts, or lists of one of them.

    Long arrays that no one here asks for, and all such arrays of texts, are `UnreadArray`.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def lazy(self, name: str, dtype: torch.dtype) -> LazyTensor:
        """The tensor `name`, dequantised to float32 and converted to `dtype` when read."""
        tensor = self.tensors[name]
        return LazyTensor(tensor.shape, dtype, lambda: _dequantize(self.path, tensor, dtype))


def read_gguf(path: Path) -> GgufFile:
    """Read everything but the values.

    Raises `CheckpointError`, one line, when the library is missing and for a file that is not GGUF, is cut short, lies
    about a length, names something twice, or holds a type that cannot be dequantised.
    """
    sizes = _quantisations()
    try:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes); download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data, min(size, MAX_METADATA_BYTES)), size, sizes)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _quantisations() -> dict[int, tuple[str, int, int]]:
    """Of every type that ggml has: its name, elements in a block, bytes of a block."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise CheckpointError("GGUF files need the library gguf: pip install 'filmstrip[gguf]'") from error
    return {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}


def _require_readable(path: Path, tensors: Iterable[GgufTensor]) -> None:
    """Try the library on one block of zeros of each type that occurs."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    for name, example in {tensor.kind: tensor.name for tensor in tensors}.items():
        kind = GGMLQuantizationType[name]
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{path}: tensor {example[:80]!r} is stored as {name}, which cannot be read"
            ) from error


class _Cursor:
    """Reads the metadata from front to back and never past `limit`."""

    def __init__(self, path: Path, data: mmap.mmap, limit: int) -> None:
        self.path, self.data, self.limit, self.position = path, data, limit, 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a whole GGUF file: {problem}")

    def take(self, count: int) -> int:
        """Step over `count` bytes and return where they begin."""
        begin = self.position
        if count > self.limit - begin:
            raise self.error(f"its metadata ends early (at byte {begin:,})")
        self.position += count
        return begin

    def scalar(self, code: str) -> Any:
        begin = self.take(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.data, begin)[0]

    def text(self) -> str:
        length = self.scalar("Q")
        begin = self.take(length)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a text at byte {begin:,} is not UTF-8") from error

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(key in _USED_ARRAYS)
        if kind not in _SCALARS:
            raise self.error(f"unknown type {kind} of a metadata value (at byte {self.position:,})")
        number = self.scalar(_SCALARS[kind])
        if isinstance(number, float) and not math.isfinite(number):
            raise self.error(f"a metadata value is {number} (before byte {self.position:,})")
        return _shortest(number) if kind == _FLOAT32 else number

    def _array(self, used: bool) -> list[Any] | UnreadArray:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind != _STRING and kind not in _SCALARS:
            raise self.error(f"an array of type {kind} is not supported (at byte {self.position:,})")
        width = 8 if kind == _STRING else struct.calcsize(f"<{_SCALARS[kind]}")
        self._require_room(count, width)
        used = used or (kind != _STRING and count <= MAX_SHOWN)
        if used and count > MAX_PIECES:
            raise self.error(f"an array claims {count:,} values; at most {MAX_PIECES:,} are accepted")
        if kind == _STRING and used:
            return [self.text() for _ in range(count)]
        if kind == _STRING:
            for _ in range(count):
                self.take(self.scalar("Q"))
            return UnreadArray(count)
        begin = self.take(count * width)
        if not used:
            return UnreadArray(count)
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, begin))

    def _require_room(self, count: int, width: int) -> None:
        if count > (self.limit - self.position) // width:
            raise self.error(f"an array claims {count:,} values (at byte {self.position:,})")


def _shortest(number: float) -> float:
    """The shortest decimal that means the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _parse(path: Path, cursor: _Cursor, size: int, sizes: dict[int, tuple[str, int, int]]) -> GgufFile:
    start = cursor.data[: len(LFS_POINTER)]
    if start == LFS_POINTER:
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` where it came from")
    if start[:4] != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file")
    cursor.take(4)
    version, num_tensors, num_entries = (cursor.scalar(code) for code in "IQQ")
    if version not in VERSIONS:
        raise CheckpointError(f"{path} is GGUF of version {version}; supported: 2 and 3, little-endian")
    if num_tensors > MAX_TENSORS or num_entries > MAX_ENTRIES:
        raise cursor.error(f"it claims {num_tensors:,} tensors and {num_entries:,} metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.text()
        if key in metadata:
            raise cursor.error(f"it names the metadata key {key[:80]!r} twice")
        metadata[key] = cursor.value(key, cursor.scalar("I"))
    tensors: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _tensor_info(cursor, sizes)
        if tensor.name in tensors:
            raise cursor.error(f"it names the tensor {tensor.name[:80]!r} twice")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
        raise cursor.error(f"general.alignment is {alignment!r}")
    _require_readable(path, tensors.values())
    data_start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, metadata, _place(cursor, tensors, data_start, size))


def _tensor_info(cursor: _Cursor, sizes: dict[int, tuple[str, int, int]]) -> GgufTensor:
    name, num_dimensions = cursor.text(), cursor.scalar("I")
    if not 0 < num_dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"tensor {name[:80]!r} has {num_dimensions} dimensions")
    dimensions = [cursor.scalar("Q") for _ in range(num_dimensions)]
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in sizes:
        raise CheckpointError(f"{cursor.path}: tensor {name[:80]!r} is of the ggml type {kind}, which is not known")
    title, block, block_bytes = sizes[kind]
    if min(dimensions) < 1 or math.prod(dimensions) >= 2**40 or dimensions[0] % block:
        raise cursor.error(f"tensor {name[:80]!r} has the shape {dimensions} in {title}")
    nbytes = math.prod(dimensions) // block * block_bytes
    return GgufTensor(name, title, tuple(reversed(dimensions)), offset, nbytes)


def _place(cursor: _Cursor, tensors: Mapping[str, GgufTensor], data_start: int, size: int) -> dict[str, GgufTensor]:
    """The same tensors with places counted from the start of the file; none overlaps another or passes the end."""
    placed: dict[str, GgufTensor] = {}
    position = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
        if tensor.begin < position:
            raise cursor.error(f"tensor {tensor.name[:80]!r} overlaps another one")
        position = tensor.begin + tensor.nbytes
        begin = data_start + tensor.begin
        placed[tensor.name] = GgufTensor(tensor.name, tensor.kind, tensor.shape, begin, tensor.nbytes)
    if data_start + position > size:
        raise CheckpointError(
            f"{cursor.path} is truncated: its tensors need {data_start + position:,} bytes, the file has {size:,}; "
            "download it again"
        )
    return {name: placed[name] for name in tensors}


def _dequantize(path: Path, tensor: GgufTensor, dtype: torch.dtype) -> Tensor:
    """Values of one tensor, some rows at a time: float32 of a whole vocabulary would be gigabytes."""
    from gguf import GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType[tensor.kind]
    width, rows = tensor.shape[-1], math.prod(tensor.shape[:-1])
    values = torch.empty((rows, width), dtype=dtype)
    step = max(1, CHUNK_ELEMENTS // width)
    try:
        stored = np.memmap(path, np.uint8, "r", tensor.begin, (rows, tensor.nbytes // rows))
        for first in range(0, rows, step):
            chunk = dequantize(np.array(stored[first : first + step]), kind)
            part = torch.from_numpy(np.asarray(chunk, dtype=np.float32).reshape(-1, width))
            values[first : first + step] = convert(part, dtype)
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(f"cannot read tensor {tensor.name!r} of {path}: {error}") from error
    return values.reshape(tensor.shape)
