"""Tensors by a key that says what they were made from: in memory, and on request on disk.

Whoever uses a store makes keys of everything that decides the tensors, so an entry is right or is not found.
"""

import os
import re
import secrets
import shutil
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from filmstrip.errors import FilmstripError
from filmstrip.shapes import Tensor

Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_KEY = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_WRITING = re.compile(rf"[0-9a-f]{{64}}\.\d+-[0-9a-f]{{8}}{re.escape(_PARTIAL)}")  # a directory
_CHECKSUM = "crc32"
_ABANDONED = 3600.0  # seconds after which a half-written entry belongs to nobody
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class ContentStore:
    """The least recently used entries go when there is no room: `max_bytes` in memory, `max_disk_bytes` in `directory`.

    Entries on disk are safetensors files that appear whole or not at all, so several processes may share a directory.
    One that is damaged, or not of the shapes asked for, is removed and counts as not there. Files with other names are
    never touched. `warn` hears, once, when the disk cannot be used; the store then goes on in memory. Raises
    `FilmstripError` for a directory that cannot be made.
    """

    def __init__(
        self,
        max_bytes: int,
        directory: Path | None = None,
        max_disk_bytes: int = 0,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.max_bytes, self.max_disk_bytes, self.directory, self.warn = max_bytes, max_disk_bytes, directory, warn
        self._entries: OrderedDict[str, Tensors] = OrderedDict()
        if directory is not None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # others need not know what was watched
            except OSError as error:
                raise FilmstripError(f"{directory}: cannot be a cache directory ({error.strerror or error})") from error
            with suppress(OSError):  # one that may not be read is found out by reading
                self._sweep(directory)
                self._make_room(directory, 0)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(map(_nbytes, self._entries.values()))

    @property
    def most_bytes(self) -> int:
        """No larger entry is kept anywhere."""
        return max(self.max_bytes, self.max_disk_bytes if self.directory is not None else 0)

    def get(self, key: str, shapes: Shapes) -> Tensors | None:
        """The entry, whose tensors are exactly those of `shapes`, or None. Tensors are not to be written to."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            return found
        found = self._read(key, shapes)
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep an entry where there is room for it; the tensors must not change any more."""
        self._keep(key, tensors)
        if self.directory is not None and _nbytes(tensors) <= self.max_disk_bytes:
            try:
                self._write(self.directory, key, tensors)
            except (OSError, SafetensorError) as error:
                self.warn(f"the cache in {self.directory} cannot be written and is left alone: {error}")
                self.directory = None

    def _keep(self, key: str, tensors: Tensors) -> None:
        size = _nbytes(tensors)
        if size > self.max_bytes:
            return
        self._entries.pop(key, None)
        while self._entries and self.nbytes + size > self.max_bytes:
            self._entries.popitem(last=False)
        self._entries[key] = tensors

    def _path(self, directory: Path, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise FilmstripError(f"not a key of the cache: {key!r}")
        return directory / f"{key}{_SUFFIX}"

    def _read(self, key: str, shapes: Shapes) -> Tensors | None:
        if self.directory is None:
            return None
        path = self._path(self.directory, key)
        try:
            if not path.is_file():
                return None
            with safe_open(path, framework="pt") as file:
                if _shapes_in(file) != dict(shapes):
                    raise SafetensorError("not the tensors that were asked for")
                found = {name: file.get_tensor(name) for name in shapes}
                if (file.metadata() or {}).get(_CHECKSUM) != _checksum(found):
                    raise SafetensorError("its content is not what was written")
        except PermissionError as error:
            self.warn(f"the cache in {self.directory} cannot be read and is left alone: {error}")
            self.directory = None
            return None
        except (OSError, SafetensorError) as error:
            self.warn(f"{path} is damaged ({error}); it is made anew")
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a file of somebody else
            os.utime(path)  # it was used now
        return found

    def _write(self, directory: Path, key: str, tensors: Tensors) -> None:
        path = self._path(directory, key)
        if path.is_file():
            return
        self._make_room(directory, _nbytes(tensors))
        # The library writes a file of its own name beside the one that is asked for: a directory holds both.
        partial = directory / f"{key}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}"
        partial.mkdir(mode=0o700)
        try:
            kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
            save_file(kept, partial / path.name, {_CHECKSUM: _checksum(kept)})
            (partial / path.name).replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, directory: Path, size: int) -> None:
        entries, total = [], 0
        for path in directory.iterdir():
            if _WRITING.fullmatch(path.name):
                total += sum(map(_size, path.iterdir())) if path.is_dir() else 0  # what others are writing now
            elif _ENTRY.fullmatch(path.name):
                with suppress(OSError):  # another process removed it
                    entries.append((path.stat().st_mtime, _size(path), path))
        total += sum(nbytes for _, nbytes, _ in entries)
        for _, nbytes, path in sorted(entries):
            if total + size <= self.max_disk_bytes:
                return
            path.unlink(missing_ok=True)
            total -= nbytes

    def _sweep(self, directory: Path) -> None:
        """Remove what processes that were killed left half-written."""
        for path in directory.iterdir():
            with suppress(OSError):  # another process removed it
                if _WRITING.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    with suppress(OSError):  # another process removed it
        return path.stat().st_size
    return 0


def _shapes_in(file: "safe_open") -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    slices = {name: file.get_slice(name) for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
    return {name: (tuple(part.get_shape()), _DTYPES.get(part.get_dtype())) for name, part in slices.items()}


def _checksum(tensors: Tensors) -> str:
    """Of the bytes: a disk that lost power may keep a file's length and not its content."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
