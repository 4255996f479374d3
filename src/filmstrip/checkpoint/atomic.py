"""Directories, and files, that appear whole or not at all.

Everything is written to a hidden directory `.NAME.<random>.partial` beside the destination, flushed to the disk, and
then takes the destination's name in one step. Its writer holds a lock on it (`flock`, which the system releases when
the process ends, however it ends); so the next writer of the same destination can tell the leftovers of a process that
was killed, which it removes, from the work of one that is still running, which it leaves alone.
"""

import ctypes
import errno
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filmstrip.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

MARKER = "config.json"  # a directory without it is not a checkpoint, and never overwritten
PARTIAL, ASIDE = ".partial", ".old"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def atomic_directory(destination: Path, *, overwrite: bool = False, marker: str = MARKER) -> Iterator[Path]:
    """A new hidden directory to write into; at the end of the block it becomes `destination`.

    If the block raises, everything written is removed. `overwrite` lets it take the place of a checkpoint (a directory
    that holds the file `marker`): on Linux the two change places in one step, so that there is a whole checkpoint at
    every moment; elsewhere there is none for the moment between two renames. Raises `CheckpointError`, one line, for a
    destination that is in the way and for whatever the system refuses (a full disk, a directory that may not be
    written).
    """
    partial = None
    try:
        destination = destination.resolve()
        require_free(destination, overwrite=overwrite, marker=marker)
        remove_leftovers(destination)
        partial, lock = _create(destination)
        try:
            yield partial
            _flush(partial)
            _put_in_place(partial, destination, overwrite=overwrite)
        finally:
            if lock is not None:
                os.close(lock)
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Give the file `path` this content in one step. Raises `CheckpointError` for whatever the system refuses."""
    try:
        swap_file(path, content)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def swap_file(path: Path, content: bytes) -> None:
    """`replace_file` for callers with an error of their own: raises the system's `OSError`."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        partial.write_bytes(content)
        _sync(partial)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def require_free(destination: Path, *, overwrite: bool = False, marker: str = MARKER) -> None:
    """Raise `CheckpointError` unless `destination` may be written: absent, empty, or a checkpoint to overwrite."""
    try:
        if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
            return
        if not overwrite:
            raise CheckpointError(f"{destination} exists and is not empty; choose another place or ask to overwrite")
        if not (destination / marker).is_file():
            raise CheckpointError(f"{destination} holds something other than a checkpoint; it is not overwritten")
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from error


def require_apart(source: Path, destination: Path) -> None:
    """Raise `CheckpointError` when writing `destination` would remove `source` with what it replaces."""
    if destination.resolve() in source.resolve().parents:
        raise CheckpointError(f"{source} lies inside {destination}, which would be replaced")


def remove_leftovers(destination: Path) -> None:
    """Remove what killed writers of `destination` left beside it; running ones keep theirs.

    A checkpoint that had stepped aside for one that never came is put back.
    """
    if not destination.parent.is_dir():
        return
    for left in _hidden(destination):
        try:
            lock = _try_lock(left)
        except OSError:
            continue  # without locks nothing says that its writer is dead
        if lock is None:
            continue
        try:
            if left.suffix == ASIDE and not destination.exists():
                left.rename(destination)
            else:
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _hidden(destination: Path) -> list[Path]:
    """The directories beside `destination` that carry a name of `_create` or `_put_in_place`, and nothing else."""
    found = []
    for path in destination.parent.iterdir():
        name = path.name.removeprefix(f".{destination.name}.")
        is_random = len(name.partition(".")[0]) == 32 and set(name.partition(".")[0]) <= set("0123456789abcdef")
        if name != path.name and is_random and name[32:] in (PARTIAL, ASIDE) and path.is_dir():
            found.append(path)
    return found


def _create(destination: Path) -> tuple[Path, int | None]:
    """A new hidden directory and the descriptor that locks it; None on a file system without locks."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = destination.parent / f".{destination.name}.{uuid.uuid4().hex}{PARTIAL}"
        partial.mkdir()
        try:
            lock = _try_lock(partial)
        except OSError:
            return partial, None
        if lock is not None and partial.exists():
            return partial, lock
        if lock is not None:
            os.close(lock)
        # Another process took it for a leftover in the moment before it was locked, and removes it: once more.


def _try_lock(directory: Path) -> int | None:
    """The descriptor that holds the lock on `directory`; None if another process holds it or it is gone.

    Raises `OSError` where directories cannot be locked: on Windows and on some network mounts.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "directories cannot be locked")
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _flush(directory: Path) -> None:
    """Have everything on the disk before the directory gets its name: a power cut must not leave empty files."""
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            _sync_directory(path)
        else:
            _sync(path)
    _sync_directory(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    if sys.platform != "win32":  # which has no such thing
        _sync(directory)


def _put_in_place(partial: Path, destination: Path, *, overwrite: bool) -> None:
    """Give `partial` the name `destination`. With `overwrite` the checkpoint that is there is removed afterwards."""
    if not (overwrite and destination.exists()):
        partial.rename(destination)  # replaces an empty directory, and is refused by one that has been filled meanwhile
    elif not _exchange(partial, destination):
        aside = partial.with_suffix(ASIDE)
        destination.rename(aside)
        partial.rename(destination)
        shutil.rmtree(aside, ignore_errors=True)
    _sync_directory(destination.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Let two directories change names in one step. False where the system cannot (`renameat2` is Linux's)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)
