"""Grounds: plain, gradient, smooth texture, and dulled crops of photographs that the caller passes in."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from filmstrip.config.checks import require
from filmstrip.world.camera import Camera, draw_shot
from filmstrip.world.scene import Background

_GRID = 8  # cells of a texture along an edge
_PHOTO_SATURATION = 0.25  # a photograph's own colours must not be taken for a shape's
_PHOTO_CONTRAST = 0.6
# Linear map from the sum of four pixels' colours to one dulled colour.
_DULL = (_PHOTO_CONTRAST / 4 * ((1 - _PHOTO_SATURATION) / 3 + _PHOTO_SATURATION * np.eye(3))).astype(np.float32)


def draw_background(ground: Background, size: int, photos: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The ground as uint8 (Y, X, 3). `photos` are uint8 (Y, X, 3) of any size.

    Raises `ConfigError` if the ground is a crop of a photograph that is not among `photos`.
    """
    if ground.kind == "plain":
        return np.broadcast_to((np.array(ground.low) + 0.5).astype(np.uint8), (size, size, 3))
    if ground.kind == "photo":
        return _photo_crop(_photo(photos, ground.photo), ground, size)
    rng = np.random.default_rng(ground.seed)
    field = _ramp(rng, size) if ground.kind == "gradient" else _texture(rng, size)
    picture = np.empty((size, size, 3), np.uint8)
    for channel, (low, high) in enumerate(zip(ground.low, ground.high, strict=True)):
        picture[..., channel] = field * np.float32(high - low) + np.float32(low + 0.5)
    return picture


def draw_camera(
    camera: Camera, ground: Background, size: int, photos: Sequence[np.ndarray] = (), *, dull: bool = False
) -> np.ndarray:
    """What a camera sees of the photographs, uint8 (F, Y, X, 3); `dull` as behind shapes, so that these stand out.

    Raises `ConfigError` for a photograph that is not among `photos`.
    """
    shots = [draw_shot(shot, [_photo(photos, shot.source)], size) for shot in camera.shots]
    frames = np.concatenate(shots)
    if not dull:
        return frames
    # One shift for the whole clip: a still ground is drawn towards a grey of its own, which would flicker here.
    seen = frames.reshape(-1, 3).astype(np.float32) @ (4 * _DULL)
    seen += (np.array(ground.low, np.float32) - seen.mean(axis=0)) / 2
    return np.clip(seen, 0, 230, out=seen).astype(np.uint8).reshape(frames.shape)


def _photo(photos: Sequence[np.ndarray], number: int) -> np.ndarray:
    """Photograph `number`, checked."""
    require(
        number < len(photos),
        f"this scene's background is photograph {number}, but {len(photos)} photographs were given",
    )
    photo = photos[number]
    usable = photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[-1] == 3
    require(usable, f"a photograph must be uint8 (height, width, 3), not {photo.dtype} {photo.shape}")
    return photo


def _ramp(rng: np.random.Generator, size: int) -> np.ndarray:
    """A linear ramp (Y, X) from 0 to 1 at a random angle."""
    angle = rng.random() * 2 * np.pi
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    ramp = axis[:, None] * np.float32(np.sin(angle)) + axis[None, :] * np.float32(np.cos(angle))
    reach = (abs(np.sin(angle)) + abs(np.cos(angle))) / 2
    return (ramp / np.float32(reach) + 1) / 2


@lru_cache(maxsize=16)
def _interpolation(size: int, cells: int) -> np.ndarray:
    """Matrix (size, cells) that blends neighbouring cells with a raised cosine."""
    position = (np.arange(size) + 0.5) / size * (cells - 1)
    cell = np.minimum(position.astype(int), cells - 2)
    part = (1 - np.cos(np.pi * (position - cell))) / 2
    matrix = np.zeros((size, cells), np.float32)
    matrix[np.arange(size), cell] = 1 - part
    matrix[np.arange(size), cell + 1] = part
    return matrix


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth value noise (Y, X) in 0..1, coarse cells plus finer ones of half the height."""
    field = np.zeros((size, size), np.float32)
    for cells, weight in ((_GRID // 2, 0.65), (_GRID * 2, 0.35)):
        blend = _interpolation(size, cells)
        field += np.float32(weight) * (blend @ rng.random((cells, cells), dtype=np.float32) @ blend.T)
    return field


def _photo_crop(photo: np.ndarray, ground: Background, size: int) -> np.ndarray:
    """A random square of a photograph, nearly grey and drawn towards the ground's own grey.

    A pixel is the mean of four points of the photograph: as good as an area filter for a ground, and much faster.
    """
    rng = np.random.default_rng(ground.seed)
    height, width = photo.shape[:2]
    edge = min(height, width) * (0.4 + 0.6 * rng.random())
    points = (np.arange(2 * size) + 0.5) * (edge / (2 * size))
    rows = (rng.random() * (height - edge) + points).astype(np.intp)
    columns = (rng.random() * (width - edge) + points).astype(np.intp)
    if rng.random() < 0.5:
        columns = columns[::-1]
    fine = photo.take(rows, axis=0).take(columns, axis=1).astype(np.uint16)
    fine = fine[0::2] + fine[1::2]
    crop = (fine[:, 0::2] + fine[:, 1::2]).astype(np.float32).reshape(-1, 3)
    crop = crop @ _DULL
    crop += (np.array(ground.low, np.float32) - crop.mean(axis=0)) / 2
    dull: np.ndarray = np.clip(crop, 0, 230, out=crop).astype(np.uint8).reshape(size, size, 3)
    return dull
