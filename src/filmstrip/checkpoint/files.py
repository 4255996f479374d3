"""A checkpoint directory as a bounded, hostile thing: which tensors it holds, and where.

Nothing is unpickled, nothing outside the directory's own entries is opened, nothing is executed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from filmstrip.checkpoint.header import MAX_TENSORS, TensorInfo, read_header
from filmstrip.checkpoint.json_file import read_json
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARDS = 1000


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
        self._handles: dict[Path, Any] = {}

    def read(self, name: str) -> Tensor:
        """The tensor `name`, backed by the memory map (no copy). Raises `CheckpointError` if it cannot be read."""
        info = self._files.tensors[name]
        try:
            if info.path not in self._handles:
                self._handles[info.path] = safe_open(info.path, framework="pt")
            tensor: Tensor = self._handles[info.path].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"cannot read tensor {name!r} of {info.path}: {_one_line(error)}") from error
        return tensor


def open_tensors(directory: Path) -> TensorFiles:
    """Find `model.safetensors` or the shards of `model.safetensors.index.json` and read their headers.

    Raises `CheckpointError`, one line, for a directory without safetensors, an index that points outside the
    directory, at a missing shard or at a tensor its shard does not hold, and for every damaged file.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        both = f"{directory} has both {WEIGHTS_FILE} and {INDEX_FILE}; the first was read, as transformers does"
        return TensorFiles(directory, read_header(single), (both,) if index.is_file() else ())
    if index.is_file():
        return TensorFiles(directory, _read_shards(directory, index))
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise CheckpointError(
            f"{directory} has pickled weights only (.bin, .pth), which are never opened here; "
            f"a copy with {WEIGHTS_FILE} is needed"
        )
    raise CheckpointError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(directory: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"{index}: weight_map does not map tensors to files")
    for name, shard in weight_map.items():
        if not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: tensor {name!r} points to {shard!r}; only .safetensors files of this directory are allowed"
            )
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(shards)} files; at most {MAX_SHARDS} are accepted")
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for name, info in read_header(directory / shard).items():
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
