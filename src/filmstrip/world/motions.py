"""Ways to move, as functions that propose tracks: each returns candidates (C, F, 2) from a generator.

Ways are given by where a shape is at each tick, the eighth of a clip. Between two ticks it goes straight on; in the
last it rests, so that the 8 frames `i * F // 8` of a clip of any length show all of it.
"""

import numpy as np

from filmstrip.world.facts import DIRECTIONS, TICKS, Motion
from filmstrip.world.options import SceneOptions
from filmstrip.world.placing import CANDIDATES, Propose, sample_paths

_ORBIT_RADIUS = (0.115, 0.14)
_TURN_STEP = (0.09, 0.11)  # per tick
_JUMP = (0.32, 0.6)

# The places of a bouncing shape between the walls (0 and 1), and the order in which it visits them by how often it
# bounces. Two places lie at each wall, so that every order of the same eight has its turns there.
_PLACES = np.array([0.0, 0.03, 0.25, 0.42, 0.58, 0.75, 0.97, 1.0])
_ORDERS = (
    (0, 1, 2, 3, 4, 5, 6, 7),
    (0, 2, 4, 6, 7, 5, 3, 1),
    (2, 4, 6, 7, 3, 0, 1, 5),
    (4, 7, 3, 0, 1, 5, 6, 2),
)
_SPREAD = 0.03  # by how much an inner place may lie elsewhere


def stay(size: float, num_frames: int) -> Propose:
    """Rests anywhere in the frame."""

    def propose(rng: np.random.Generator) -> np.ndarray:
        centre = size / 2 + rng.random((CANDIDATES, 1, 2)) * (1 - size)
        return np.repeat(centre, num_frames, axis=1)

    return propose


def straight(size: float, motion: Motion, options: SceneOptions) -> Propose:
    """Goes one way, or stays still, as in the plain plot."""

    def propose(rng: np.random.Generator) -> np.ndarray:
        start, end = sample_paths(rng, motion, size, options)
        part = (np.arange(options.num_frames) / (options.num_frames - 1))[:, None]
        return start[:, None] * (1 - part) + end[:, None] * part

    return propose


def orbit(size: float, laps: int, num_frames: int) -> Propose:
    """Goes around on a circle, `laps` times in the clip, either way round."""

    def propose(rng: np.random.Generator) -> np.ndarray:
        draws = rng.random((CANDIDATES, 5))
        radius = _ORBIT_RADIUS[0] + draws[:, 0] * (_ORBIT_RADIUS[1] - _ORBIT_RADIUS[0])
        margin = (size / 2 + radius)[:, None]
        centre = margin + draws[:, 1:3] * (1 - 2 * margin)
        way = np.where(draws[:, 3] < 0.5, 1, -1)[:, None]
        angle = 2 * np.pi * (draws[:, 4, None] + way * laps * np.arange(num_frames) / num_frames)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return centre[:, None] + radius[:, None, None] * circle

    return propose


def bounce(size: float, bounces: int, way: Motion, num_frames: int) -> Propose:
    """Goes from wall to wall and turns back there `bounces` times, 0 to 3; sets out in the direction `way`."""
    along = 0 if DIRECTIONS[way][0] else 1

    def propose(rng: np.random.Generator) -> np.ndarray:
        places = _PLACES.copy()
        places[2:6] += (rng.random(4) * 2 - 1) * _SPREAD
        order = np.array(_ORDERS[bounces])
        backwards = bool(rng.random() < 0.5)
        visited = places[order[::-1] if backwards else order]
        if (visited[1] > visited[0]) != (DIRECTIONS[way][along] > 0):
            visited = 1 - visited
        tracks = np.empty((CANDIDATES, num_frames, 2))
        tracks[..., along] = size / 2 + _between_ticks(visited, num_frames) * (1 - size)
        tracks[..., 1 - along] = size / 2 + rng.random((CANDIDATES, 1)) * (1 - size)
        return tracks

    return propose


def turn_around(size: float, tick: int, num_frames: int) -> Propose:
    """Goes one way up to `tick`, then back, at one speed."""

    def propose(rng: np.random.Generator) -> np.ndarray:
        draws = rng.random((CANDIDATES, 4))
        step = _TURN_STEP[0] + draws[:, 0] * (_TURN_STEP[1] - _TURN_STEP[0])
        distance = step[:, None] * np.abs(np.arange(TICKS) - tick)
        reach = distance.max(axis=1)
        turning = size / 2 + reach + draws[:, 2] * (1 - size - reach)
        places = turning[:, None] - distance
        places = np.where(rng.random((CANDIDATES, 1)) < 0.5, places, 1 - places)
        moving = np.stack([_between_ticks(row, num_frames) for row in places])
        resting = np.repeat((size / 2 + draws[:, 3] * (1 - size))[:, None], num_frames, axis=1)
        upright = (draws[:, 1] < 0.5)[:, None, None]
        return np.where(upright, np.stack([resting, moving], axis=-1), np.stack([moving, resting], axis=-1))

    return propose


def jump(size: float, tick: int, num_frames: int) -> Propose:
    """Rests in one place, and from `tick` on in another one that is clearly apart."""

    def propose(rng: np.random.Generator) -> np.ndarray:
        pairs = size / 2 + rng.random((4 * CANDIDATES, 2, 2)) * (1 - size)
        distance = np.sqrt(((pairs[:, 1] - pairs[:, 0]) ** 2).sum(axis=-1))
        fitting = pairs[(distance >= _JUMP[0]) & (distance <= _JUMP[1])][:CANDIDATES]
        after = np.arange(num_frames) >= round(tick * num_frames / TICKS)
        return np.where(after[:, None], fitting[:, 1:], fitting[:, :1])

    return propose


def _between_ticks(places: np.ndarray, num_frames: int) -> np.ndarray:
    """Positions at all frames (F,) of what is at `places` (8,) at the ticks."""
    return np.interp(np.arange(num_frames) * TICKS / num_frames, np.arange(TICKS), places)
