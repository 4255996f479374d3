"""Bounds on media from outside, checked before memory is taken for them."""

from dataclasses import dataclass
from pathlib import Path

from filmstrip.errors import MediaError


@dataclass(frozen=True)
class MediaLimits:
    """What one medium may cost.

    `max_pixels` bounds one image or frame as stored, `max_aspect` its longer side over its shorter one (the shorter
    side is resized to a fixed length, so the ratio decides how large the result is). `max_frames` and
    `max_clip_bytes` bound the frames that are kept of one clip (uint8 RGB), `max_scanned_frames` the packets or
    frames that are looked at to find them (a million is nine hours at 30 frames a second).
    """

    max_pixels: int = 64_000_000
    max_aspect: float = 200.0
    max_frames: int = 1024
    max_clip_bytes: int = 2 * 1024**3
    max_scanned_frames: int = 1_000_000
    max_file_bytes: int = 16 * 1024**3


DEFAULT_LIMITS = MediaLimits()


def check_file(path: Path, limits: MediaLimits) -> None:
    """Raise `MediaError` unless `path` is a regular, readable, non-empty file of an accepted size."""
    try:
        if path.is_dir():
            raise MediaError(f"{path}: is a directory, not an image or video")
        if not path.exists():
            raise MediaError(f"{path}: no such file")
        if not path.is_file():
            raise MediaError(f"{path}: is not a regular file")
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be opened ({reason})") from error
    if size == 0:
        raise MediaError(f"{path}: the file is empty")
    if size > limits.max_file_bytes:
        raise MediaError(f"{path}: {size:,} bytes are above the limit of {limits.max_file_bytes:,}")


def check_size(path: Path, width: int, height: int, limits: MediaLimits) -> None:
    """Raise `MediaError` unless a picture of `width` x `height` pixels is within the limits."""
    if width < 1 or height < 1:
        raise MediaError(f"{path}: has no pixels ({width}x{height})")
    if width * height > limits.max_pixels:
        raise MediaError(
            f"{path}: {width}x{height} pixels are above the limit of {limits.max_pixels:,}; make it smaller first"
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise MediaError(
            f"{path}: {width}x{height} pixels are too long and narrow "
            f"(sides may differ by a factor of {limits.max_aspect:g}); crop it first"
        )


def check_clip(path: Path, count: int, width: int, height: int, limits: MediaLimits) -> None:
    """Raise `MediaError` when `count` uint8 RGB frames of `width` x `height` pixels would take too much memory."""
    size = count * width * height * 3
    if size > limits.max_clip_bytes:
        raise MediaError(
            f"{path}: {count} frames of {width}x{height} take {size:,} bytes, the limit is "
            f"{limits.max_clip_bytes:,}; ask for fewer frames"
        )
