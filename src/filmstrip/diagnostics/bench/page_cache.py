"""Files out of memory, so that reading them means reading the disk."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from filmstrip.errors import FilmstripError

_LEFT = 0.01  # share of a file's pages that may stay


def evict(files: Iterable[Path]) -> None:
    """Drop files from the page cache. Raises `FilmstripError` where they stay: some process has them mapped, the file
    system lives in memory, or this one offers no way.
    """
    if not hasattr(os, "posix_fadvise"):
        raise FilmstripError("this system has no way to drop a file from memory")
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        share = cached_share(path)
        if share > _LEFT:
            raise FilmstripError(f"{share:.0%} of {path.name} stayed in memory: another process may have it mapped")


def cached_share(path: Path) -> float:
    """The share of a file's pages that are in memory (mincore(2)). Raises `FilmstripError` where that is not told."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        states = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
        view = np.frombuffer(mapped, dtype=np.uint8)
        address, where = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(states.ctypes.data)
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(len(mapped)), where)
        del view  # or the map could not be closed
    if failed:
        raise FilmstripError(f"{path}: {os.strerror(ctypes.get_errno())}")
    return float((states & 1).mean())
