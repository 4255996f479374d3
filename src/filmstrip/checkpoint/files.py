"""A checkpoint directory as a bounded, hostile thing: which tensors it holds, and where.

Safetensors first, pickles of `torch.save` only where there is nothing else (see `pickled` for how those are kept from
doing anything). Nothing outside the directory's own entries is opened, nothing is executed. An entry may be a
symbolic link, as in the hub's cache.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.header import DTYPES, MAX_TENSORS, TensorInfo, read_header
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.pickled import load_pickled, read_pickled_header
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
MAX_SHARDS = 1000

# Names of whole files and of indices in the order in which they are looked for, and how a file is read.
_Header = Callable[[Path], dict[str, TensorInfo]]
_FORMATS: tuple[tuple[str, str, str, _Header], ...] = (
    (".safetensors", WEIGHTS_FILE, INDEX_FILE, read_header),
    (".bin", PICKLED_FILE, PICKLED_INDEX_FILE, read_pickled_header),
)


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of a directory, known by their headers; values stay on disk until asked for."""

    directory: Path
    tensors: Mapping[str, TensorInfo]
    warnings: tuple[str, ...] = ()


class TensorReader:
    """Reads tensors one at a time; each file is mapped once, when first needed."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files
        self._maps: dict[Path, Callable[[TensorInfo], Tensor]] = {}

    def read(self, name: str) -> Tensor:
        """The tensor `name`, backed by the memory map (no copy). Raises `CheckpointError` if it cannot be read."""
        info = self._files.tensors[name]
        try:
            if info.path not in self._maps:
                self._maps[info.path] = _map(info.path)
            return self._maps[info.path](info)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise _unreadable(info, error) from error

    def read_copy(self, name: str) -> Tensor:
        """The tensor `name` in memory of its own, which is free again as soon as the tensor is.

        A map would keep every page that was once read; whoever converts what is read should not hold both.
        """
        info = self._files.tensors[name]
        if not info.numel:
            return torch.empty(info.shape, dtype=DTYPES[info.dtype])
        buffer = bytearray(info.end - info.begin)
        try:
            with info.path.open("rb", buffering=0) as file:
                file.seek(info.begin)
                view, done = memoryview(buffer), 0
                while done < len(buffer):  # one call reads at most 2 GiB
                    count = file.readinto(view[done:])
                    if not count:
                        raise CheckpointError(f"cannot read tensor {name!r} of {info.path}: the file is too short")
                    done += count
        except OSError as error:
            raise _unreadable(info, error) from error
        return torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).view(info.shape)


def announce(ranges: Iterable[tuple[Path, int, int]]) -> None:
    """Tell the system which bytes (file, first, end) will be read soon, so that a disk serves them side by side.

    Only a hint: it waits for nothing, and systems without it do without.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for path, begin, end in ranges:
        by_file.setdefault(path, []).append((begin, end))
    for path, places in by_file.items():
        with suppress(OSError), path.open("rb") as file:
            for begin, end in sorted(places):
                os.posix_fadvise(file.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)


def _map(path: Path) -> Callable[[TensorInfo], Tensor]:
    """Map a file; the function that gives its tensors.

    `safetensors.safe_open` would read a page of each tensor, and the disk megabytes around it, before anyone asks for a
    value: 5 of the 14 GB of a 7B.
    """
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return partial(_view, mmap(file.fileno(), 0, access=ACCESS_COPY))
    tensors = load_pickled(path)
    return lambda info: tensors[info.name]


def _view(file: mmap, info: TensorInfo) -> Tensor:
    """A tensor's place in its file, with a storage and a version of its own; a copy where it does not begin on a
    multiple of its elements' size.
    """
    dtype = DTYPES[info.dtype]
    if not info.numel:
        return torch.empty(info.shape, dtype=dtype)
    if info.begin % dtype.itemsize:
        raw = torch.frombuffer(file, dtype=torch.uint8, count=info.end - info.begin, offset=info.begin)
        return raw.clone().view(dtype).view(info.shape)
    return torch.frombuffer(file, dtype=dtype, count=info.numel, offset=info.begin).view(info.shape)


def _unreadable(info: TensorInfo, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read tensor {info.name!r} of {info.path}: {_one_line(error)}")


def open_tensors(directory: Path) -> TensorFiles:
    """Find the weights of a directory and read their headers.

    The first of `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and
    `pytorch_model.bin.index.json`; what lies beside it unread is a warning. Raises `CheckpointError`, one line, for a
    directory without any, an index that points outside the directory, at a missing shard or at a tensor its shard does
    not hold, and for every damaged file.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    found = [name for _, single, index, _ in _FORMATS for name in (single, index) if (directory / name).is_file()]
    warnings = tuple(
        f"{directory} has both {found[0]} and {other}; the first was read, as transformers does" for other in found[1:]
    )
    for suffix, single, index, read in _FORMATS:
        if (directory / single).is_file():
            return TensorFiles(directory, read(directory / single), warnings)
        if (directory / index).is_file():
            return TensorFiles(directory, _read_shards(directory, directory / index, suffix, read), warnings)
    hint = ""
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        hint = "; pickles of other names are not opened"
    raise CheckpointError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE} nor {PICKLED_FILE}{hint}")


def has_weights(directory: Path) -> bool:
    """Whether `open_tensors` would find anything to read."""
    return any((directory / name).is_file() for _, single, index, _ in _FORMATS for name in (single, index))


def open_tensor_file(path: Path) -> TensorFiles:
    """The tensors of one `.safetensors` or `.bin` file of any name. Raises `CheckpointError` as `open_tensors` does."""
    for suffix, _, _, read in _FORMATS:
        if path.suffix == suffix and path.is_file():
            return TensorFiles(path.parent, read(path))
    raise CheckpointError(f"{path} is not there, or neither a .safetensors nor a .bin file")


def _read_shards(directory: Path, index: Path, suffix: str, read: _Header) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"{index}: weight_map does not map tensors to files")
    for name, shard in weight_map.items():
        if not is_plain_name(shard) or not shard.endswith(suffix):
            raise CheckpointError(
                f"{index}: tensor {name!r} points to {shard!r}; only {suffix} files of this directory are allowed"
            )
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(shards)} files; at most {MAX_SHARDS} are accepted")
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read(directory / shard).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{directory / shard} holds tensor {name!r}, which {index.name} places elsewhere")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: tensor {name!r} is not in {shard}")
    return tensors


def is_plain_name(name: Any) -> bool:
    """Whether `name` is a file name and nothing more: no separator, drive, parent, hidden or control character."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and not name.startswith(".")
        and name.isprintable()
        and not any(character in name for character in "/\\:")
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
