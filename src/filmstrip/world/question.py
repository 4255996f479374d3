"""A question with its truth, and what the askers of all families share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from filmstrip.world.phrases import PHRASES
from filmstrip.world.scene import Scene, Shape

_T = TypeVar("_T")


@dataclass(frozen=True)
class Question:
    """A question and the truth.

    `subject` says what is asked about within the family. `candidates` are the answers the family allows (for `order`,
    the shapes of the clip), empty for `describe`. `reversed_answer` is the right answer when the frames run backwards.
    `facts` are the statements a description must make (see `scene_facts`), empty for the other families. `phrasing` is
    the sentence with its gaps, as `PHRASES` has it.
    """

    family: str
    subject: str
    text: str
    answer: str
    candidates: tuple[str, ...]
    reversed_answer: str
    facts: frozenset[str] = frozenset()
    phrasing: str = ""


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of `choices`, which must not be empty."""
    return choices[int(rng.random() * len(choices))]


def pick_shape(rng: np.random.Generator, shapes: Sequence[Shape]) -> Shape | None:
    """One of `shapes`; None, without a draw, if there are none."""
    return pick(rng, shapes) if shapes else None


def ask(
    rng: np.random.Generator,
    kind: str,
    subject: str,
    answers: tuple[str, str],
    candidates: Sequence[str],
    /,
    **fields: str,
) -> Question:
    """A question of `kind` (a key of `PHRASES`) in a random phrasing; `answers` are forwards and backwards in time."""
    phrasing = pick(rng, PHRASES[kind])
    text = phrasing.format(**fields)
    family = kind.partition("-")[0]
    return Question(family, subject, text, answers[0], tuple(candidates), answers[1], phrasing=phrasing)


def short_names(scene: Scene, shape: Shape) -> list[str]:
    """What a shape may be called where one word is enough, e.g. `star`, `red shape`; its full name not among them."""
    names = []
    if [one.shape for one in scene.shapes].count(shape.shape) == 1:
        names.append(shape.shape)
    colours = [colour for one in scene.shapes for colour in one.colours]
    if shape.recolour is None and colours.count(shape.colour) == 1:
        names.append(f"{shape.colour} shape")
    return names
