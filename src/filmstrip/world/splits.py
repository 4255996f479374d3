"""Which combinations of colour, shape and motion only test or validation clips show, and the seeds of each split.

Held out are whole (colour, shape, axis) groups, axis being horizontal, vertical or none: a red star that moves left is
never held out without the one that moves right. So every split is closed under reversal of time, and neither the
missing combinations nor the set of frames without their order says which way time runs.

The other plots hold out likewise: shapes that go around or bounce by colour and shape, changes of colour by the pair of
colours whichever comes first, events by event and shape, and each photograph lacks one axis of the camera's movements.

- train: no shape of a held-out group. test: at least one shape of a group that is held out for it in every clip; in
  the plots about changes of colour and about events at least one such pair. Camera clips of the test split are free:
  their photographs are others. val: at least one shape of a group that is held out for it in every clip of the plots
  without a story (`plain`, `arrivals`), and none of what is held out for the test.
- The three splits draw from different random streams even for equal seeds. Images have no motion: they differ by
  stream only.
"""

import zlib

import numpy as np

from filmstrip.config.checks import require_choice
from filmstrip.world.facts import (
    AXIS,
    CAMERA_AXIS,
    COLOUR_NAMES,
    MOTIONS,
    SHAPES,
    CameraMove,
    EventKind,
    Motion,
)

SPLITS: tuple[str, ...] = ("train", "val", "test")

# Chosen so that, of each, every colour, shape and axis loses some combination, and no colour-shape pair loses two.
_TEST_SALT, _TEST_PERCENT = 1291, 10
_VAL_SALT, _VAL_PERCENT = 2780, 6


def split_of(colour: str, shape: str, motion: Motion) -> str:
    """The split that alone shows this combination, or `train`: all do. Decided by a CRC-32 that no seed changes."""
    for split, salt, percent in (("test", _TEST_SALT, _TEST_PERCENT), ("val", _VAL_SALT, _VAL_PERCENT)):
        if zlib.crc32(f"{salt} {colour} {shape} {AXIS[motion]}".encode()) % 100 < percent:
            return split
    return "train"


def is_held_out(colour: str, shape: str, motion: Motion, split: str = "train") -> bool:
    """Whether clips of `split` may not show this combination. Test clips may show all."""
    return split != "test" and split_of(colour, shape, motion) not in ("train", split)


def _held_out_for(split: str) -> tuple[tuple[str, str, Motion], ...]:
    every = ((colour, shape, motion) for colour in COLOUR_NAMES for shape in SHAPES for motion in MOTIONS)
    return tuple(combination for combination in every if split_of(*combination) == split)


HELD_OUT: tuple[tuple[str, str, Motion], ...] = _held_out_for("test")
"""What only test clips show."""

HELD_OUT_VAL: tuple[tuple[str, str, Motion], ...] = _held_out_for("val")
"""What training does not show and every validation clip without a story does."""


HELD_OUT_CHANGES: frozenset[frozenset[str]] = frozenset(
    frozenset(pair) for pair in (("red", "green"), ("orange", "blue"), ("yellow", "purple"))
)
"""Pairs of colours between which only shapes of test clips change, in either direction."""

HELD_OUT_EVENTS: tuple[tuple[EventKind, str], ...] = (
    ("changes colour", "cross"),
    ("blinks", "triangle"),
    ("jumps", "star"),
    ("turns around", "square"),
)
"""What happens to a shape of this kind in test clips only."""

_VIEW_AXES = ("horizontal", "vertical", "zoom")


def held_out_names(motion: Motion) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that only test clips show with a motion of this axis."""
    return [(colour, shape) for colour in COLOUR_NAMES for shape in SHAPES if split_of(colour, shape, motion) == "test"]


def is_held_out_view(move: CameraMove, photo: int) -> bool:
    """Whether no training clip moves the camera this way over photograph number `photo` of the training set."""
    return CAMERA_AXIS[move] == _VIEW_AXES[photo % len(_VIEW_AXES)]


def split_rng(split: str, seed: int, number: int | None = None) -> np.random.Generator:
    """The random stream of `split` for `seed` (not negative), or of its item `number`, which depends on no other.

    Raises `ConfigError` for a split not in `SPLITS`.
    """
    require_choice("split", split, SPLITS)
    return np.random.default_rng([SPLITS.index(split), seed, *([] if number is None else [number])])


def training_rng(task: int, number: int, seed: int) -> np.random.Generator:
    """The random stream of batch `number` of a training task, of the split `train` whatever the seed is."""
    return np.random.default_rng([SPLITS.index("train"), task, number, seed])
