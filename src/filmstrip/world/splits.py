"""Which combinations of colour, shape and motion only the test clips show, and the seeds of each split.

Held out are whole (colour, shape, axis) groups, axis being horizontal, vertical or none: a red star that moves left is
never held out without the one that moves right. So every split is closed under reversal of time, and neither the
missing combinations nor the set of frames without their order says which way time runs.

- train, val: no shape of a held-out group. test: at least one shape of a held-out group in every clip.
- The three splits draw from different random streams even for equal seeds. Images have no motion: they differ by
  stream only.
"""

import zlib

import numpy as np

from filmstrip.config.checks import require_choice
from filmstrip.world.facts import AXIS, COLOUR_NAMES, MOTIONS, SHAPES, Motion

SPLITS: tuple[str, ...] = ("train", "val", "test")

_HELD_OUT_PERCENT = 10
_SALT = 1291  # chosen so that every colour, shape and axis loses some combination, and no colour-shape pair two


def is_held_out(colour: str, shape: str, motion: Motion) -> bool:
    """Whether only test clips may show this combination; decided by a CRC-32 that no seed changes."""
    return zlib.crc32(f"{_SALT} {colour} {shape} {AXIS[motion]}".encode()) % 100 < _HELD_OUT_PERCENT


HELD_OUT: tuple[tuple[str, str, Motion], ...] = tuple(
    (colour, shape, motion)
    for colour in COLOUR_NAMES
    for shape in SHAPES
    for motion in MOTIONS
    if is_held_out(colour, shape, motion)
)


def split_rng(split: str, seed: int) -> np.random.Generator:
    """The random stream of `split` for `seed` (not negative). Raises `ConfigError` for a split not in `SPLITS`."""
    require_choice("split", split, SPLITS)
    return np.random.default_rng([SPLITS.index(split), seed])
