"""A camera over photographs and footage: square windows that pan, zoom or stay, and the pixels they show.

A window is a square inside the *field*, the largest square of the source. Its place is (x, y, e): centre in fractions
of the field's edge, x to the right, y downwards, and e the natural logarithm of its edge as a fraction of the field's.
A camera that pans right moves its window to the right; one that zooms in makes it smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from filmstrip.config.checks import require
from filmstrip.world.facts import CAMERA_OPPOSITE, TICKS, CameraMove

Window = tuple[float, float, float]

PAN_STEP = (0.06, 0.13)
"""Share of the picture's edge by which a pan moves from one tick to the next: 4 to 8 of 64 pixels."""

ZOOM_STEP = (0.06, 0.12)
"""Change of the logarithm of the window's edge from one tick to the next: over a clip, a factor of 1.5 to 2.3."""

SHORT_STEP = 0.09
"""Least of either step for a shot that a cut ends or begins, of which fewer frames tell."""

_EDGES = (0.34, 0.62)  # of a panning or still window, as a share of the field
_UNIT: dict[CameraMove, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_REDUCE_ABOVE = 3  # source pixels per drawn pixel from which whole blocks are averaged first, which is faster


@dataclass(frozen=True)
class Shot:
    """One uncut stretch of camera work over one source, frames `first_frame <= f < end_frame`.

    The window goes evenly from `start` at the first of these frames to `end` at the last. `source` is the photograph's
    number, `place` (0..1) where along its longer side the field lies, `turn` one of its eight mirrorings and quarter
    turns (0: as it is).
    """

    move: CameraMove
    start: Window
    end: Window
    first_frame: int
    end_frame: int
    source: int = 0
    place: float = 0.5
    turn: int = 0

    def window(self, frame: int) -> Window:
        """The window at `frame`, which must be one of its frames."""
        steps = max(self.end_frame - 1 - self.first_frame, 1)
        past = frame - self.first_frame
        # Whole numbers up to the division, so that a reversed shot gives the same numbers exactly.
        x, y, log_edge = (
            a if a == b else (a * (steps - past) + b * past) / steps for a, b in zip(self.start, self.end, strict=True)
        )
        return x, y, log_edge


@dataclass(frozen=True)
class Camera:
    """Shots that follow each other without a gap; between two of them is a cut."""

    shots: tuple[Shot, ...]

    def shot(self, frame: int) -> Shot:
        """The shot that `frame` belongs to."""
        return next(shot for shot in self.shots if shot.first_frame <= frame < shot.end_frame)

    @property
    def cut(self) -> int | None:
        """The first frame of the second shot, or None without a cut."""
        return self.shots[1].first_frame if len(self.shots) > 1 else None


def reverse_camera(camera: Camera, num_frames: int) -> Camera:
    """The camera of the same frames in opposite order."""
    shots = tuple(
        replace(
            shot,
            move=CAMERA_OPPOSITE[shot.move],
            start=shot.end,
            end=shot.start,
            first_frame=num_frames - shot.end_frame,
            end_frame=num_frames - shot.first_frame,
        )
        for shot in reversed(camera.shots)
    )
    return Camera(shots)


def sample_shot(
    rng: np.random.Generator,
    move: CameraMove,
    span: tuple[int, int],
    num_frames: int,
    source: int = 0,
    *,
    turned: bool = True,
) -> Shot:
    """A random window doing `move` over frames `span` (first, end) of a clip of `num_frames`.

    Steps are those of `PAN_STEP` and `ZOOM_STEP` per eighth of the clip, whatever the number of frames.
    """
    draws = rng.random(6).tolist()
    first, end = span
    ticks = (end - 1 - first) * TICKS / num_frames
    bounds = ZOOM_STEP if move in ("in", "out") else PAN_STEP
    least = max(bounds[0], SHORT_STEP) if end - first < num_frames else bounds[0]
    change = 0.0 if move == "still" else (least + draws[0] * (bounds[1] - least)) * ticks
    windows = _zoom(move, change, draws[1:4]) if move in ("in", "out") else _pan(move, change, draws[1:4])
    return Shot(move, *windows, first, end, source, draws[4], int(draws[5] * 8) if turned else 0)


def _zoom(move: CameraMove, change: float, draws: Sequence[float]) -> tuple[Window, Window]:
    """Windows around one centre, the logarithms of their edges `change` apart."""
    far = (math.log(_EDGES[0]) + change) * draws[0]
    margin = math.exp(far) / 2
    x, y = (margin + draw * (1 - 2 * margin) for draw in draws[1:])
    wide, narrow = (x, y, far), (x, y, far - change)
    return (wide, narrow) if move == "in" else (narrow, wide)


def _pan(move: CameraMove, change: float, draws: Sequence[float]) -> tuple[Window, Window]:
    """Windows of one edge, `change` of that edge apart; the same one twice for a camera that stays still."""
    edge = min(_EDGES[0] + draws[0] * (_EDGES[1] - _EDGES[0]), 0.98 / (1 + change))
    unit = _UNIT.get(move, (0, 0))
    travel = [change * edge * step for step in unit]
    margins = [(edge + abs(way)) / 2 for way in travel]
    x, y = (margin + draw * (1 - 2 * margin) for draw, margin in zip(draws[1:], margins, strict=True))
    half_x, half_y = travel[0] / 2, travel[1] / 2
    return (x - half_x, y - half_y, math.log(edge)), (x + half_x, y + half_y, math.log(edge))


def draw_shot(shot: Shot, sources: Sequence[np.ndarray], size: int) -> np.ndarray:
    """What the camera sees, uint8 (F, Y, X, 3) with Y = X = `size`, one frame for each frame of the shot.

    `sources` is one picture, uint8 (Y, X, 3), for a photograph, or as many as the shot has frames, all of one shape,
    for footage that moves by itself. Windows lie between pixels as exactly as floats do; the filter is Pillow's
    bicubic, whose support grows with the reduction, so that nothing aliases.
    """
    frames = range(shot.first_frame, shot.end_frame)
    require(len(sources) in (1, len(frames)), f"{len(sources)} pictures for a shot of {len(frames)} frames")
    windows = np.array([shot.window(frame) for frame in frames])
    height, width = sources[0].shape[1::-1] if shot.turn & 4 else sources[0].shape[:2]
    field = min(height, width)
    origin = np.array([shot.place * (width - field), shot.place * (height - field)])
    edges = np.exp(windows[:, 2]) * field
    corners = origin + windows[:, :2] * field - edges[:, None] / 2
    margin = 4 * np.ceil(edges.max() / size)  # what the filter reaches beyond the window
    low = np.maximum(np.floor(corners.min(axis=0) - margin), 0).astype(int)
    high = np.ceil((corners + edges[:, None]).max(axis=0) + margin).astype(int)
    block = int(edges.min() / size) // _REDUCE_ABOVE + 1
    seen = np.empty((len(frames), size, size, 3), np.uint8)
    region = None
    for number, (edge, corner) in enumerate(zip(edges, corners - low, strict=True)):
        if region is None or len(sources) > 1:
            turned = turn_picture(sources[number % len(sources)], shot.turn)
            region = Image.fromarray(np.ascontiguousarray(turned[low[1] : high[1], low[0] : high[0]]))
            region = region.reduce(block) if block > 1 else region
        box = np.array([*corner, *(corner + edge)]) / block
        box = np.clip(box, 0, [*region.size, *region.size])  # a rounding error beyond the border
        left, top, right, bottom = box.tolist()
        shown = region.resize((size, size), Image.Resampling.BICUBIC, (left, top, right, bottom))
        seen[number] = np.asarray(shown)
    return seen


def turn_picture(picture: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight mirrorings and quarter turns of (Y, X, 3), as a view: bit 0 mirrors x, bit 1 y, bit 2 swaps."""
    picture = picture.swapaxes(0, 1) if turn & 4 else picture
    picture = picture[:, ::-1] if turn & 1 else picture
    return picture[::-1] if turn & 2 else picture
