"""Antialiased drawing with signed distance functions, all shapes of all frames at once.

Every visible shape of every frame is one stamp: a small box around it in which the distance of each pixel's centre to
the outline is computed. Coverage falls from 1 to 0 over one pixel across the outline.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from filmstrip.config.checks import require
from filmstrip.world.background import draw_background, draw_camera
from filmstrip.world.facts import SHAPES
from filmstrip.world.scene import Scene


class Stamps(NamedTuple):
    """N stamps in the order of drawing. `view` is the picture drawn into, `shape` an index into `SHAPES`."""

    view: np.ndarray  # (N,) int
    shape: np.ndarray  # (N,) int
    centre: np.ndarray  # (N, 2) float32: x, y in pixels
    radius: np.ndarray  # (N,) float32: half the size in pixels
    rgb: np.ndarray  # (N, 3) float32


class Boxes(NamedTuple):
    """Where N stamps lie in their pictures, and how much of each pixel they cover."""

    slices: list[tuple[int, slice, slice]]  # view, rows, columns
    coverage: np.ndarray  # (N, b, b) float32 in 0..1


def draw_clip(scene: Scene, size: int = 64, photos: Sequence[np.ndarray] = ()) -> np.ndarray:
    """All frames of a scene, uint8 (F, Y, X, 3) with Y = X = `size`.

    `photos` must be those the scene was sampled for (`SceneOptions.num_photos`); raises `ConfigError` if one is
    missing.
    """
    _check_size(size)
    if scene.camera is None:
        canvas = np.repeat(draw_background(scene.background, size, photos)[None], scene.num_frames, axis=0)
    else:
        canvas = draw_camera(scene.camera, scene.background, size, photos, dull=bool(scene.shapes))
    return _paint(canvas, stamps_of([(scene, frame) for frame in range(scene.num_frames)], size))


def draw_stills(scenes: Sequence[Scene], size: int = 64, photos: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The first frame of every scene, uint8 (N, Y, X, 3); faster than drawing them one by one."""
    _check_size(size)
    canvas = np.stack([draw_background(scene.background, size, photos) for scene in scenes])
    return _paint(canvas, stamps_of([(scene, 0) for scene in scenes], size))


def stamps_of(views: Sequence[tuple[Scene, int]], size: int) -> Stamps:
    """The stamps of pictures given as (scene, frame), at `size` pixels an edge."""
    rows = []
    for view, (scene, frame) in enumerate(views):
        for shape in scene.shapes:
            if shape.visible(frame):
                x, y = shape.position(frame)
                kind = SHAPES.index(shape.shape)
                rows.append((view, kind, x * size, y * size, shape.size * size / 2, *shape.rgb_at(frame)))
    table = np.array(rows, np.float32).reshape(-1, 8)
    whole = table[:, :2].astype(np.intp)
    return Stamps(whole[:, 0], whole[:, 1], table[:, 2:4], table[:, 4], table[:, 5:8])


def boxes_of(stamps: Stamps, size: int) -> Boxes:
    """The pixels around every stamp and their coverage; a box at the border is moved inside the picture."""
    edge = min(int(np.ceil(2 * stamps.radius.max(initial=1))) + 3, size)
    origin = np.clip(np.floor(stamps.centre - edge / 2).astype(np.intp), 0, size - edge)
    steps = np.arange(edge)
    columns = (origin[:, 0, None] + steps)[:, None, :]
    rows = (origin[:, 1, None] + steps)[:, :, None]
    corners = zip(stamps.view.tolist(), origin.tolist(), strict=True)
    slices = [(view, slice(row, row + edge), slice(column, column + edge)) for view, (column, row) in corners]
    scale = (1 / stamps.radius)[:, None, None]
    x = (columns + np.float32(0.5) - stamps.centre[:, 0, None, None]) * scale
    y = (rows + np.float32(0.5) - stamps.centre[:, 1, None, None]) * scale
    coverage = np.empty((len(stamps.view), edge, edge), np.float32)
    for kind in np.unique(stamps.shape):
        chosen = stamps.shape == kind
        distance = OUTLINES[SHAPES[kind]](x[chosen], y[chosen])
        coverage[chosen] = np.clip(0.5 - distance * stamps.radius[chosen, None, None], 0, 1)
    return Boxes(slices, coverage)


def _check_size(size: int) -> None:
    require(16 <= size <= 1024, f"the world is drawn at 16 to 1024 pixels an edge, not {size}")


def _paint(canvas: np.ndarray, stamps: Stamps) -> np.ndarray:
    """Blend the stamps over uint8 (V, Y, X, 3) in their order, in place."""
    boxes = boxes_of(stamps, canvas.shape[1])
    for place, coverage, rgb in zip(boxes.slices, boxes.coverage[..., None], stamps.rgb, strict=True):
        under = canvas[place]
        canvas[place] = under + coverage * (rgb - under) + np.float32(0.5)
    return canvas


# Signed distances to the outlines, negative inside, for a shape that fits the square -1..1 (x right, y down). They
# are exact at straight edges, which is all that antialiasing needs.


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.sqrt(x * x + y * y) - np.float32(0.96)
    return distance


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.86)
    return distance


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Apex (0, -0.95), base from (-1, 0.8) to (1, 0.8)."""
    run, rise = 1.0, 1.75
    length = np.hypot(run, rise)
    sides = (np.abs(x) * np.float32(rise) - (y + np.float32(0.95)) * np.float32(run)) / np.float32(length)
    distance: np.ndarray = np.maximum(sides, y - np.float32(0.8))
    return distance


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points at radius 1, the first upwards; notches at radius 0.42. Ten mirrored edges, folded into one."""
    sector = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    folded = np.abs(angle - sector * np.round(angle / sector))
    radius = np.sqrt(x * x + y * y)
    notch_x, notch_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    length = np.hypot(1 - notch_x, notch_y)
    normal_x, normal_y = np.float32(notch_y / length), np.float32((1 - notch_x) / length)
    beyond_tip = radius * np.cos(folded) - np.float32(1)
    distance: np.ndarray = beyond_tip * normal_x + radius * np.sin(folded) * normal_y
    return distance


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two bars, a third of the square wide."""
    x, y = np.abs(x), np.abs(y)
    long, short = np.float32(0.96), np.float32(0.34)
    distance: np.ndarray = np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))
    return distance


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
"""Signed distance function of every shape in `SHAPES`."""
