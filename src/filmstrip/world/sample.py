"""Random scenes. Every distribution is the same forwards and backwards in time (see `filmstrip.world.splits`).

Frame sets must not give answers about order away. A shape that comes late is in fewer frames, so the timed clips are
staggered: shapes leave in the order they came, and the clip run backwards, which has the same frames as a set, is
equally likely and has the other answer. Shapes of the other clips come late or leave early with equal chance.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from filmstrip.config.checks import require, require_choice
from filmstrip.world.facts import COLOUR_NAMES, COLOURS, DIRECTIONS, MOTIONS, SHAPES, Motion
from filmstrip.world.scene import Background, BackgroundKind, Point, Scene, Shape
from filmstrip.world.splits import HELD_OUT, SPLITS, is_held_out

TICKS = 8
"""Shapes come and leave at eighths of a clip, so that 8 frames sampled from a longer clip tell its order."""

_SHORTEST_STAY = 3  # ticks; two steps are the least that shows a motion
_CANDIDATES = 16  # paths tried at once for a shape
_ATTEMPTS = 6
_OVERLAP_ALLOWED = 0.03  # of the frame's edge, where no placement without overlap was found
_DRIFT = 0.03  # largest sideways displacement of a moving shape


@dataclass(frozen=True)
class SceneOptions:
    """What scenes are sampled from. Sizes and displacements are fractions of the frame's edge.

    `staggered_share` is the share of clips of several shapes that have an order of appearance; in the others each
    shape comes late or leaves early with probability `timed_share`. `same_colour_share` is the share of scenes in
    which two shapes may have one colour. `travel` bounds the displacement of a moving shape while it is visible.
    """

    num_frames: int = TICKS
    max_shapes: int = 3
    size: tuple[float, float] = (0.24, 0.34)
    travel: tuple[float, float] = (0.36, 0.60)
    staggered_share: float = 0.6
    timed_share: float = 0.3
    same_colour_share: float = 0.25
    num_photos: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.max_shapes <= 4, f"a scene has 1 to 4 shapes, not {self.max_shapes}")
        require(0.05 <= self.size[0] <= self.size[1] <= 0.4, f"shape sizes must lie within 0.05..0.4, not {self.size}")
        fits = 0.1 <= self.travel[0] <= self.travel[1] <= 1 - self.size[1]
        require(fits, f"travel {self.travel} does not fit a frame with shapes of size {self.size}")
        require(self.num_photos >= 0, f"num_photos must not be negative, is {self.num_photos}")


CLIP = SceneOptions()
STILL = SceneOptions(num_frames=1, max_shapes=4)


def sample_clip(rng: np.random.Generator, split: str = "train", options: SceneOptions = CLIP) -> Scene:
    """A clip of `options.num_frames` frames (at least 8) of `split`; equal generators give equal scenes.

    Raises `ConfigError` for fewer frames or a split not in `SPLITS`.
    """
    require_choice("split", split, SPLITS)
    require(options.num_frames >= TICKS, f"a clip has at least {TICKS} frames, not {options.num_frames}")
    kinds = _sample_kinds(rng, options, split)
    spans = _sample_spans(rng, len(kinds), options)
    return _place(rng, kinds, spans, options)


def sample_still(rng: np.random.Generator, options: SceneOptions = STILL) -> Scene:
    """A scene of one frame. `options.num_frames` is not used: it is one."""
    count = 1 + int(rng.random() * options.max_shapes)
    names = _sample_names(rng, count, options.same_colour_share)
    kinds: list[tuple[str, str, Motion]] = [(colour, shape, "still") for colour, shape in names]
    return _place(rng, kinds, [(0, 1)] * count, options, num_frames=1)


def _sample_names(rng: np.random.Generator, count: int, same_colour_share: float) -> list[tuple[str, str]]:
    """Distinct (colour, shape) pairs; most scenes have no colour twice."""
    shapes = [SHAPES[int(draw * len(SHAPES))] for draw in rng.random(count)]
    if rng.random() >= same_colour_share:
        return list(zip([COLOUR_NAMES[i] for i in rng.permutation(len(COLOURS))], shapes, strict=False))
    while True:
        palette = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOURS))[:2]]
        names = [(palette[int(draw * 2)], shape) for draw, shape in zip(rng.random(count), shapes, strict=True)]
        if len(set(names)) == count:
            return names
        shapes = [SHAPES[int(draw * len(SHAPES))] for draw in rng.random(count)]


def _sample_kinds(rng: np.random.Generator, options: SceneOptions, split: str) -> list[tuple[str, str, Motion]]:
    """(colour, shape, motion) of every shape, as the split allows."""
    count = 1 + int(rng.random() * options.max_shapes)
    while True:
        names = _sample_names(rng, count, options.same_colour_share)
        motions = [MOTIONS[int(draw * len(MOTIONS))] for draw in rng.random(count)]
        kinds = [(*name, motion) for name, motion in zip(names, motions, strict=True)]
        if split == "test":
            kinds[int(rng.random() * count)] = HELD_OUT[int(rng.random() * len(HELD_OUT))]
            if len({kind[:2] for kind in kinds}) == count:
                return kinds
        elif not any(is_held_out(*kind) for kind in kinds):
            return kinds


@cache
def _staggered(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ways for `count` shapes to come one after another and leave in the same order, with no empty tick."""
    ticks = range(TICKS + 1)
    found = []
    for starts in itertools.combinations(ticks, count):
        for ends in itertools.combinations(ticks, count):
            spans = tuple(zip(starts, ends, strict=True))
            stays = all(end - start >= _SHORTEST_STAY for start, end in spans)
            covered = {tick for start, end in spans for tick in range(start, end)}
            if stays and len(covered) == TICKS:
                found.append(spans)
    return tuple(found)


def _sample_spans(rng: np.random.Generator, count: int, options: SceneOptions) -> list[tuple[int, int]]:
    """First frame and end frame of every shape, in random order."""
    if count > 1 and rng.random() < options.staggered_share:
        choices = _staggered(count)
        chosen = choices[int(rng.random() * len(choices))]
        ticks = [chosen[i] for i in rng.permutation(count)]
    else:
        ticks = [_sample_stay(rng, options.timed_share) for _ in range(count)]
    frames = options.num_frames
    return [(round(start * frames / TICKS), round(end * frames / TICKS)) for start, end in ticks]


def _sample_stay(rng: np.random.Generator, timed_share: float) -> tuple[int, int]:
    """Ticks of a shape that stays for the whole clip, comes late or leaves early (the last two equally often)."""
    kind, draw = rng.random(2)
    if kind >= timed_share:
        return 0, TICKS
    away = 1 + int(draw * (TICKS - _SHORTEST_STAY))
    return (away, TICKS) if kind < timed_share / 2 else (0, TICKS - away)


def _sample_paths(
    rng: np.random.Generator, motion: Motion, size: float, options: SceneOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end points (candidates, 2) of straight paths inside the frame."""
    draws = rng.random((_CANDIDATES, 4))
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


def _clearance(tracks: np.ndarray, size: float, placed: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Least gap (candidates,) between a shape and those already placed, over the frames both are in."""
    gap = np.ones(len(tracks))
    for other, other_size in placed:
        distance = np.sqrt(((tracks - other) ** 2).sum(axis=-1)) - (size + other_size) / 2
        gap = np.fmin(gap, np.fmin.reduce(distance, axis=1))
    return gap


def _place(
    rng: np.random.Generator,
    kinds: Sequence[tuple[str, str, Motion]],
    spans: Sequence[tuple[int, int]],
    options: SceneOptions,
    num_frames: int | None = None,
) -> Scene:
    """Give every shape a size and a path such that they hide each other hardly or not at all."""
    num_frames = num_frames or options.num_frames
    best: tuple[float, tuple[Shape, ...]] = (-np.inf, ())
    for _ in range(_ATTEMPTS):
        placed: list[tuple[np.ndarray, float]] = []
        shapes: list[Shape] = []
        worst = 1.0
        for (colour, name, motion), span in zip(kinds, spans, strict=True):
            size = options.size[0] + rng.random() * (options.size[1] - options.size[0])
            start, end = _sample_paths(rng, motion, size, options)
            tracks = _tracks(start, end, span, num_frames)
            gaps = _clearance(tracks, size, placed)
            chosen = int(np.argmax(np.minimum(gaps, 0.0)))  # the first without overlap, or the least overlapping
            worst = min(worst, float(gaps[chosen]))
            placed.append((tracks[chosen], size))
            path = _path(start[chosen], end[chosen], motion)
            shapes.append(Shape(name, colour, size, motion, path, *span, _tint(rng, colour)))
        if worst > best[0]:
            best = worst, tuple(shapes)
        if worst >= -_OVERLAP_ALLOWED:
            break
    return Scene(best[1], _sample_background(rng, options.num_photos), num_frames)


def _path(start: np.ndarray, end: np.ndarray, motion: Motion) -> tuple[Point, ...]:
    first = (float(start[0]), float(start[1]))
    return (first,) if motion == "still" else (first, (float(end[0]), float(end[1])))


def _tint(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    """The colour, each channel off by at most 10 grey levels."""
    red, green, blue = np.clip(COLOURS[colour] + rng.random(3) * 20 - 10, 0, 255).tolist()
    return red, green, blue


def _sample_background(rng: np.random.Generator, num_photos: int) -> Background:
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
