"""Frames of one medium, and where they came from."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from filmstrip.config import MediaKind


@dataclass(frozen=True, eq=False)
class Clip:
    """Decoded frames of one image or video. An image is a clip of one frame.

    `frames` is uint8 RGB (F, Y, X, 3), upright. `times` are seconds from the first frame of the file, `indices`
    positions among its `total_frames` shown frames in presentation order, `duration` seconds from the first frame
    to the end of the last. `warnings` say what was lost or is unusual, one line each.
    """

    path: str
    kind: MediaKind
    frames: NDArray[np.uint8]
    times: tuple[float, ...]
    indices: tuple[int, ...]
    total_frames: int
    duration: float
    warnings: tuple[str, ...] = ()


def pixel_hash(frames: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of the shape and the pixels of `frames`: equal exactly when every pixel is."""
    digest = hashlib.sha256(repr((frames.shape, str(frames.dtype))).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()
