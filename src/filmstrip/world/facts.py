"""The vocabulary of the world: everything a question can name, and the words for it."""

from typing import Literal

Motion = Literal["left", "right", "up", "down", "still", "around", "bounce", "turn"]
Medium = Literal["picture", "video"]
EventKind = Literal["changes colour", "blinks", "jumps", "turns around"]
CameraMove = Literal["left", "right", "up", "down", "in", "out", "still"]

TICKS = 8
"""What happens in a clip happens at its eighths, so that 8 frames sampled from a longer clip show it."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
"""Names of the shapes. Class c of a label is SHAPES[c - 1]; 0 is background."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 42),
    "orange": (250, 142, 24),
    "yellow": (246, 226, 46),
    "green": (38, 172, 62),
    "cyan": (60, 212, 222),
    "blue": (44, 78, 232),
    "purple": (158, 52, 196),
}
"""RGB of every colour, in the fixed order in which descriptions list them. Label classes count from 1."""

COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

DIRECTIONS: dict[Motion, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit step (x, y) of every direction; y grows downwards, as in the picture."""

MOTIONS: tuple[Motion, ...] = (*DIRECTIONS, "still")
"""The motions that `direction` asks about. The others (`around`, `bounce`, `turn`) belong to plots of their own."""

OPPOSITE: dict[Motion, Motion] = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "still": "still",
    "around": "around",
    "bounce": "bounce",
    "turn": "turn",
}
"""What a motion becomes when the frames run backwards."""

AXIS: dict[Motion, str] = {
    "left": "horizontal",
    "right": "horizontal",
    "up": "vertical",
    "down": "vertical",
    "still": "none",
    "around": "around",
    "bounce": "wall",
    "turn": "turn",
}

EVENTS: tuple[EventKind, ...] = ("changes colour", "blinks", "jumps", "turns around")
"""What can happen to a shape at one moment of a clip. Each is itself when the frames run backwards."""

CAMERA_WORDS: dict[CameraMove, str] = {
    "left": "pans left",
    "right": "pans right",
    "up": "pans up",
    "down": "pans down",
    "in": "zooms in",
    "out": "zooms out",
    "still": "stays still",
}
"""What the camera does, in words. A camera that pans right shows more of what lies to the right."""

CAMERA_MOVES: tuple[CameraMove, ...] = tuple(CAMERA_WORDS)

CAMERA_OPPOSITE: dict[CameraMove, CameraMove] = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "in": "out",
    "out": "in",
    "still": "still",
}
"""What a camera's movement becomes when the frames run backwards."""

CAMERA_AXIS: dict[CameraMove, str] = {
    "left": "horizontal",
    "right": "horizontal",
    "up": "vertical",
    "down": "vertical",
    "in": "zoom",
    "out": "zoom",
    "still": "none",
}

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four")

PLURALS: dict[str, str] = {name: name + ("es" if name.endswith("s") else "s") for name in SHAPES}

TIMES: tuple[str, ...] = ("not once", "once", "twice", "three times")
"""How often a shape bounces, in a description."""


def with_article(name: str) -> str:
    """`a red star`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
