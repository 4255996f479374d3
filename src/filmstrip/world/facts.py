"""The vocabulary of the world: everything a question can name, and the words for it."""

from typing import Literal

Motion = Literal["left", "right", "up", "down", "still"]
Medium = Literal["picture", "video"]

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

OPPOSITE: dict[Motion, Motion] = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still"}
"""What a motion becomes when the frames run backwards."""

AXIS: dict[Motion, str] = {
    "left": "horizontal",
    "right": "horizontal",
    "up": "vertical",
    "down": "vertical",
    "still": "none",
}

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four")

PLURALS: dict[str, str] = {name: name + ("es" if name.endswith("s") else "s") for name in SHAPES}


def with_article(name: str) -> str:
    """`a red star`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
