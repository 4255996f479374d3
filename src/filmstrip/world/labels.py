"""What a vision tower can be taught on drawn pictures: which shape, which colour and where, below patch precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from filmstrip.config.checks import require
from filmstrip.world.draw import Stamps, boxes_of, stamps_of
from filmstrip.world.facts import COLOUR_NAMES, SHAPES
from filmstrip.world.scene import Scene

_SLOTS = 5  # background and up to four shapes of a picture
_LEAST_COVERAGE = 0.05  # of a patch; below it the patch counts as background


@dataclass(frozen=True)
class DenseLabels:
    """Labels of N pictures of P patches, patches row by row as the tower numbers them.

    A patch is labelled with the shape that owns most of its pixels (the topmost shape owns a pixel). Classes count
    from 1 in the order of `SHAPES` and `COLOUR_NAMES`; 0 is background.
    """

    shape: np.ndarray  # (N, P) int64
    colour: np.ndarray  # (N, P) int64
    coverage: np.ndarray  # (N, P) float32: part of the patch that its shape owns, 0..1
    offset: np.ndarray  # (N, P, 2) float32: x, y from the patch's centre to its shape's, in patches; 0 without one
    extent: np.ndarray  # (N, P) float32: the size of its shape, of the picture's edge; 0 without one
    shape_present: np.ndarray  # (N, len(SHAPES)) bool
    shape_located: np.ndarray  # (N, len(SHAPES)) bool: exactly one is present, so that it has one centre
    shape_centre: np.ndarray  # (N, len(SHAPES), 2) float32: x, y in 0..1; 0 where not located
    colour_present: np.ndarray  # (N, len(COLOUR_NAMES)) bool
    colour_located: np.ndarray  # (N, len(COLOUR_NAMES)) bool
    colour_centre: np.ndarray  # (N, len(COLOUR_NAMES), 2) float32


def dense_labels(views: Sequence[tuple[Scene, int]], patch_size: int, size: int = 64) -> DenseLabels:
    """Labels of pictures given as (scene, frame), drawn at `size` pixels an edge.

    Raises `ConfigError` if patches of `patch_size` pixels do not tile a picture.
    """
    tiles = patch_size > 0 and size % patch_size == 0
    require(tiles, f"patches of {patch_size} pixels do not tile a picture of {size}")
    stamps = stamps_of(views, size)
    colours = np.array(
        [
            1 + COLOUR_NAMES.index(shape.colour_at(frame))
            for scene, frame in views
            for shape in scene.shapes
            if shape.visible(frame)
        ],
        np.int64,
    )
    count = len(views)
    first = np.searchsorted(stamps.view, np.arange(count))
    slot = 1 + np.arange(len(stamps.view)) - first[stamps.view]
    counts = _owned(stamps, slot, count, size, patch_size)
    winner = counts[:, :, 1:].argmax(axis=-1) + 1
    coverage = np.take_along_axis(counts, winner[..., None], axis=-1)[..., 0] / np.float32(patch_size**2)
    winner[coverage < _LEAST_COVERAGE] = 0
    table = np.zeros((count, _SLOTS, 5), np.float32)
    centres = stamps.centre / np.float32(size)
    table[stamps.view, slot] = np.column_stack([stamps.shape + 1, colours, centres, 2 * stamps.radius / size])
    chosen = table[np.arange(count)[:, None], winner]
    grid = size // patch_size
    row, column = np.divmod(np.arange(grid * grid), grid)
    middle = np.stack([column, row], axis=-1) + np.float32(0.5)
    seen = winner > 0
    return DenseLabels(
        chosen[..., 0].astype(np.int64),
        chosen[..., 1].astype(np.int64),
        np.where(seen, coverage, np.float32(0)),
        np.where(seen[..., None], chosen[..., 2:4] * grid - middle, 0).astype(np.float32),
        np.where(seen, chosen[..., 4], np.float32(0)),
        *_whole(stamps.view, stamps.shape, centres, count, len(SHAPES)),
        *_whole(stamps.view, colours - 1, centres, count, len(COLOUR_NAMES)),
    )


def _owned(stamps: Stamps, slot: np.ndarray, count: int, size: int, patch_size: int) -> np.ndarray:
    """Pixels (N, P, slots) of every patch that each slot owns."""
    boxes = boxes_of(stamps, size)
    owner = np.zeros((count, size, size), np.intp)
    for place, coverage, number in zip(boxes.slices, boxes.coverage, slot, strict=True):
        owner[place][coverage > 0.5] = number
    grid = size // patch_size
    patch = np.arange(size) // patch_size
    patches = (patch[:, None] * grid + patch) + (np.arange(count) * grid * grid)[:, None, None]
    counts = np.bincount((patches * _SLOTS + owner).ravel(), minlength=count * grid * grid * _SLOTS)
    return counts.reshape(count, grid * grid, _SLOTS)


def _whole(
    view: np.ndarray, kind: np.ndarray, centres: np.ndarray, count: int, kinds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Presence, uniqueness and centre of every kind in every picture."""
    number = np.zeros((count, kinds), np.int64)
    np.add.at(number, (view, kind), 1)
    centre = np.zeros((count, kinds, 2), np.float32)
    centre[view, kind] = centres
    located = number == 1
    return number > 0, located, np.where(located[..., None], centre, np.float32(0))
