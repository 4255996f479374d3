"""Symbolic links in directories from outside: followed only where they stay inside."""

from pathlib import Path

from filmstrip.errors import CheckpointError


class LinkError(CheckpointError):
    """An entry of a checkpoint that is a link to something outside its directory; `path` is the entry."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is a link to something outside its directory, which is not followed")
        self.path = path


def require_inside(path: Path) -> None:
    """Raise `LinkError` for a symbolic link, to a file or a directory, that leads out of the directory it lies in.

    The hub's cache keeps `snapshots/<revision>/<file>` as a link to `blobs/<hash>` beside `snapshots`; that is inside.
    """
    if leads_outside(path):
        raise LinkError(path)


def leads_outside(path: Path) -> bool:
    """Whether `path` itself is a link that leads out of its directory (see `require_inside`)."""
    if not path.is_symlink():
        return False
    target, home = path.resolve(), path.parent.resolve()
    caches = [parent.parent.parent / "blobs" for parent in (home, *home.parents) if parent.parent.name == "snapshots"]
    return not target.is_relative_to(home) and target.parent not in caches
