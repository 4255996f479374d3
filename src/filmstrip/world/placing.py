"""Where shapes go so that they hide each other hardly or not at all, their drawn colours, and the grounds.

A track is where a shape is in every frame, float (F, 2), NaN where it is not there; candidates are tracks (C, F, 2).
"""

from collections.abc import Callable, Sequence

import numpy as np

from filmstrip.world.facts import COLOURS, DIRECTIONS, Motion
from filmstrip.world.options import SceneOptions
from filmstrip.world.scene import Background, BackgroundKind, Point, Scene, Shape

Propose = Callable[[np.random.Generator], np.ndarray]
"""Candidate tracks (C, F, 2) of one shape."""

CANDIDATES = 16  # paths tried at once for a shape
ATTEMPTS = 6
OVERLAP_ALLOWED = 0.03  # of the frame's edge, where no placement without overlap was found
_DRIFT = 0.03  # largest sideways displacement of a moving shape


def sample_paths(
    rng: np.random.Generator, motion: Motion, size: float, options: SceneOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end points (candidates, 2) of straight paths inside the frame."""
    draws = rng.random((CANDIDATES, 4))
    centre = size / 2 + draws[:, :2] * (1 - size)
    if motion == "still":
        return centre, centre
    along = 0 if motion in ("left", "right") else 1
    across = 1 - along
    low, high = options.travel
    travel = low + draws[:, 2] * (min(high, 1 - size) - low)
    drift = (draws[:, 3] * 2 - 1) * _DRIFT
    step = np.empty_like(centre)
    step[:, along] = travel * DIRECTIONS[motion][along]
    step[:, across] = drift
    margin = size / 2 + np.abs(step) / 2
    middle = margin + draws[:, :2] * (1 - 2 * margin)
    return middle - step / 2, middle + step / 2


def _tracks(start: np.ndarray, end: np.ndarray, span: tuple[int, int], num_frames: int) -> np.ndarray:
    """Positions (candidates, frames, 2); NaN where the shape is not there."""
    first, last = span[0], span[1] - 1
    part = (np.arange(first, last + 1) - first) / max(last - first, 1)
    tracks = np.full((len(start), num_frames, 2), np.nan)
    tracks[:, first : last + 1] = start[:, None] + (end - start)[:, None] * part[:, None]
    return tracks


def clearance(tracks: np.ndarray, size: float, placed: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Least gap (candidates,) between a shape and those already placed, over the frames both are in."""
    gap = np.ones(len(tracks))
    for other, other_size in placed:
        distance = np.sqrt(((tracks - other) ** 2).sum(axis=-1)) - (size + other_size) / 2
        gap = np.fmin(gap, np.fmin.reduce(distance, axis=1))
    return gap


def place(
    rng: np.random.Generator,
    kinds: Sequence[tuple[str, str, Motion]],
    spans: Sequence[tuple[int, int]],
    options: SceneOptions,
    num_frames: int | None = None,
    sizes: Sequence[float] | None = None,
) -> Scene:
    """Give every shape a size, unless it has one, and a path such that they hide each other hardly or not at all."""
    num_frames = num_frames or options.num_frames
    best: tuple[float, tuple[Shape, ...]] = (-np.inf, ())
    for _ in range(ATTEMPTS):
        placed: list[tuple[np.ndarray, float]] = []
        shapes: list[Shape] = []
        worst = 1.0
        for number, ((colour, name, motion), span) in enumerate(zip(kinds, spans, strict=True)):
            size = sizes[number] if sizes else options.size[0] + rng.random() * (options.size[1] - options.size[0])
            start, end = sample_paths(rng, motion, size, options)
            tracks = _tracks(start, end, span, num_frames)
            gaps = clearance(tracks, size, placed)
            chosen = int(np.argmax(np.minimum(gaps, 0.0)))  # the first without overlap, or the least overlapping
            worst = min(worst, float(gaps[chosen]))
            placed.append((tracks[chosen], size))
            path = _path(start[chosen], end[chosen], motion)
            shapes.append(Shape(name, colour, size, motion, path, *span, tint(rng, colour)))
        if worst > best[0]:
            best = worst, tuple(shapes)
        if worst >= -OVERLAP_ALLOWED:
            break
    return Scene(best[1], sample_background(rng, options.num_photos), num_frames)


def place_tracks(
    rng: np.random.Generator, proposals: Sequence[Propose], sizes: Sequence[float]
) -> list[np.ndarray] | None:
    """One track (F, 2) of every proposal such that no two shapes overlap by more than `OVERLAP_ALLOWED`, or None."""
    for _ in range(ATTEMPTS):
        placed: list[tuple[np.ndarray, float]] = []
        for propose, size in zip(proposals, sizes, strict=True):
            tracks = propose(rng)
            gaps = clearance(tracks, size, placed)
            chosen = int(np.argmax(np.minimum(gaps, 0.0)))
            if gaps[chosen] < -OVERLAP_ALLOWED:
                break
            placed.append((tracks[chosen], size))
        else:
            return [track for track, _ in placed]
    return None


def path_of(track: np.ndarray) -> tuple[Point, ...]:
    """A track as a path of one point per frame; one point alone for a shape that does not move."""
    points = [(x, y) for x, y in track.tolist()]
    return (points[0],) if all(point == points[0] for point in points) else tuple(points)


def _path(start: np.ndarray, end: np.ndarray, motion: Motion) -> tuple[Point, ...]:
    first = (float(start[0]), float(start[1]))
    return (first,) if motion == "still" else (first, (float(end[0]), float(end[1])))


def tint(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    """The colour, each channel off by at most 10 grey levels."""
    red, green, blue = np.clip(COLOURS[colour] + rng.random(3) * 20 - 10, 0, 255).tolist()
    return red, green, blue


def sample_background(rng: np.random.Generator, num_photos: int) -> Background:
    """A dull ground: greys with a slight tint, never bright enough to be taken for a shape."""
    kinds: tuple[BackgroundKind, ...] = ("plain", "gradient", "texture", "photo")
    draws = rng.random(10).tolist()
    kind = kinds[int(draws[0] * (4 if num_photos else 3))]
    grey = 20 + draws[1] * 190
    other = min(max(grey + (draws[2] * 2 - 1) * 70, 12), 215)
    low = (grey + draws[3] * 16 - 8, grey + draws[4] * 16 - 8, grey + draws[5] * 16 - 8)
    high = (other + draws[6] * 16 - 8, other + draws[7] * 16 - 8, other + draws[8] * 16 - 8)
    seed, photo = int(draws[9] * 2**31), int(rng.random() * max(num_photos, 1))
    return Background(kind, low, high, seed, photo)
