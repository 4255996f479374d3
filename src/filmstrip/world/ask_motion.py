"""Questions about how shapes move."""

import numpy as np

from filmstrip.world.facts import MOTIONS, OPPOSITE, Motion
from filmstrip.world.question import Question, ask, pick, short_names
from filmstrip.world.scene import Scene, Shape

STILL_ANSWER = "it stays still"


def direction(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Mostly about `the red star`, sometimes `the star` or `the red shape` where that is enough."""
    if scene.medium == "picture" or scene.plot in ("speed", "events", "camera"):
        return None
    shapes = scene.shapes if scene.plot != "bounces" else [one for one in scene.shapes if one.bounces == 0]
    if not shapes:
        return None
    shape = shapes[int(rng.random() * len(shapes))]
    short = short_names(scene, shape)
    names = [shape.name, shape.name, *short] if shape.recolour is None else short
    subject = pick(rng, names)
    answers = (_direction_answer(shape.motion), _direction_answer(OPPOSITE[shape.motion]))
    candidates = [_direction_answer(motion) for motion in MOTIONS]
    return ask(rng, "direction", shape.known_as, answers, candidates, subject=subject)


def speed(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of two shapes that go around is faster, or slower."""
    moving = [shape for shape in scene.shapes if shape.laps]
    if len(moving) != 2:
        return None
    faster = bool(rng.random() < 0.5)
    slow, fast = sorted(moving, key=lambda shape: shape.laps)
    answer = f"the {(fast if faster else slow).name}"
    more = pick(rng, ("faster",) if faster else ("slower", "more slowly"))
    if more == "more slowly":
        kind, more = "speed-pair", "slower"
    else:
        kind = pick(rng, ("speed", "speed-pair"))
    first, second = (moving[i].name for i in rng.permutation(2))
    candidates = [f"the {shape.name}" for shape in moving]
    return ask(rng, kind, more, (answer, answer), candidates, more=more, subject=first, other=second)


def stillness(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which shape stays still, where exactly one does and another one moves."""
    if scene.medium == "picture" or scene.plot in ("events", "camera"):
        return None
    still = [shape for shape in scene.shapes if shape.motion == "still"]
    if len(still) != 1 or len(scene.shapes) < 2:
        return None
    return _which(scene, rng, still[0])


def _which(scene: Scene, rng: np.random.Generator, shape: Shape) -> Question:
    answer = f"the {shape.known_as}"
    return ask(rng, "stillness", "still", (answer, answer), [f"the {one.known_as}" for one in scene.shapes])


def _direction_answer(motion: Motion) -> str:
    return STILL_ANSWER if motion == "still" else motion
