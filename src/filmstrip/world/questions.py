"""Questions about a scene, with their answers. Wording is in `filmstrip.world.phrases`, scoring in `scoring`.

A question is asked only where it has one right answer: the colour of the star if there is one star, the shape that
appears last if no two appear together. Families come in the groups of `GROUPS`; pictures have those of `still` and
`describe`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from filmstrip.config.checks import require_choice
from filmstrip.world import ask_camera, ask_motion, ask_still, ask_time
from filmstrip.world.options import CLIPS, STILLS, SceneOptions
from filmstrip.world.question import Question
from filmstrip.world.sample import sample_clip, sample_still
from filmstrip.world.scene import Scene

_TRIES = 6  # draws of a family before its turn is skipped


def ask_about(
    scene: Scene, rng: np.random.Generator, count: int, families: Sequence[str] | None = None
) -> list[Question]:
    """Up to `count` questions about `scene`, families in turn and in random order, no subject twice.

    Fewer come back only if the scene has no more to ask in these families. Raises `ConfigError` for an unknown family.
    """
    for family in families or ():
        require_choice("question family", family, FAMILIES)
    pending = list(families or FAMILIES)
    pending = [pending[i] for i in rng.permutation(len(pending))]
    asked: dict[tuple[str, str], Question] = {}
    while pending and len(asked) < count:
        family = pending.pop(0)
        for _ in range(_TRIES):
            question = _ASKERS[family](scene, rng)
            if question is None:
                break
            if (family, question.subject) not in asked:
                asked[family, question.subject] = question
                pending.append(family)
                break
    return list(asked.values())


def corpus(
    rng: np.random.Generator, count: int, clip: SceneOptions = CLIPS, still: SceneOptions = STILLS
) -> Iterator[tuple[str, str]]:
    """`count` pairs of question and answer text about videos and pictures, for training a tokenizer."""
    left = count
    while left > 0:
        scene = sample_clip(rng, "train", clip) if rng.random() < 0.7 else sample_still(rng, still)
        for question in ask_about(scene, rng, min(left, 6)):
            left -= 1
            yield question.text, question.answer


_ASKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "count": ask_still.count,
    "colour": ask_still.colour,
    "shape": ask_still.shape,
    "presence": ask_still.presence,
    "describe": ask_still.description,
    "direction": ask_motion.direction,
    "order": ask_time.order,
    "size": ask_still.size,
    "position": ask_still.position,
    "speed": ask_motion.speed,
    "stillness": ask_motion.stillness,
    "departure": ask_time.departure,
    "recolour": ask_time.recolour,
    "events": ask_time.events,
    "bounces": ask_time.bounces,
    "camera": ask_camera.camera,
    "cut": ask_camera.cut,
}

GROUPS: dict[str, tuple[str, ...]] = {
    "still": ("count", "colour", "shape", "presence", "size", "position"),
    "motion": ("direction", "speed", "stillness"),
    "time": ("order", "departure", "recolour", "events", "bounces"),
    "camera": ("camera", "cut"),
    "describe": ("describe",),
}
"""Every family by what it takes to answer it, in the order of reports."""

OVER_TIME: tuple[str, ...] = (*GROUPS["motion"], *GROUPS["time"], *GROUPS["camera"])
"""The families that take several frames to answer."""

FAMILIES: tuple[str, ...] = tuple(family for families in GROUPS.values() for family in families)
"""Every family, in the order of reports."""
