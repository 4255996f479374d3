"""Questions about when things happen. Each knows its answer for the clip run backwards."""

from collections.abc import Sequence

import numpy as np

from filmstrip.world.facts import COLOUR_NAMES, NUMBERS
from filmstrip.world.question import Question, ask, pick, pick_shape, short_names
from filmstrip.world.scene import Scene, Shape, reverse

NOTHING = "nothing"
_ACTIONS = {"changes colour": "change colour", "blinks": "blink", "jumps": "jump", "turns around": "turn around"}


def order(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Asked only where the clip run backwards has one, other answer: the set of frames then gives nothing away."""
    if scene.medium == "picture":
        return None
    end = "last" if rng.random() < 0.5 else "first"
    backwards = reverse(scene)
    truth, untruth = (
        (scene.appears_last(), backwards.appears_last())
        if end == "last"
        else (scene.appears_first(), backwards.appears_first())
    )
    return _which(scene, rng, f"order-{end}", end, truth, untruth)


def departure(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What leaves first or stays longest; the mirror image of `order`."""
    if scene.medium == "picture":
        return None
    end = "last" if rng.random() < 0.5 else "first"
    backwards = reverse(scene)
    truth, untruth = (
        (backwards.appears_first(), scene.appears_first())
        if end == "last"
        else (backwards.appears_last(), scene.appears_last())
    )
    return _which(scene, rng, f"departure-{end}", end, truth, untruth)


def _which(
    scene: Scene, rng: np.random.Generator, kind: str, end: str, truth: Shape | None, untruth: Shape | None
) -> Question | None:
    if truth is None or untruth is None or truth.name == untruth.name:
        return None
    candidates = [f"the {shape.name}" for shape in scene.shapes]
    return ask(rng, kind, end, (f"the {truth.name}", f"the {untruth.name}"), candidates)


def recolour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """To which colour a shape changes, from which, or both."""
    shape = pick_shape(rng, [one for one in scene.shapes if one.recolour is not None])
    if shape is None or shape.recolour is None:
        return None
    before, after = shape.colour, shape.recolour.colour
    kind = pick(rng, ("to", "from", "both"))
    answers, candidates = {
        "to": ((after, before), COLOUR_NAMES),
        "from": ((before, after), COLOUR_NAMES),
        "both": (
            (f"from {before} to {after}", f"from {after} to {before}"),
            (f"from {before} to {after}", f"from {after} to {before}"),
        ),
    }[kind]
    return ask(rng, f"recolour-{kind}", f"{shape.shape} {kind}", answers, candidates, subject=shape.shape)


def events(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What happens first or last, what before or after something else, or which of two comes before the other."""
    happening = scene.events()
    if len(happening) < 2:
        return None
    told = [_told(shape) for shape in happening]
    kind = pick(rng, ("first", "last", "before", "after", "pair"))
    names = [f"the {event}" for event in told]
    if kind in ("first", "last"):
        answers = (names[0], names[-1]) if kind == "first" else (names[-1], names[0])
        return ask(rng, f"events-{kind}", kind, answers, names)
    place = int(rng.random() * len(told))
    if kind == "pair":
        other = pick(rng, [index for index in range(len(told)) if index != place])
        answers = ("before", "after") if place < other else ("after", "before")
        action = _action(happening[place])
        subject = f"{told[place]} and {told[other]}"
        return ask(rng, "events-pair", subject, answers, ("before", "after"), action=action, event=told[other])
    neighbours = [_at(names, place - 1), _at(names, place + 1)]
    answers = (neighbours[0], neighbours[1]) if kind == "before" else (neighbours[1], neighbours[0])
    return ask(rng, f"events-{kind}", f"{kind} {told[place]}", answers, [*names, NOTHING], event=told[place])


def bounces(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How often a shape turns at a wall."""
    shape = pick_shape(rng, [one for one in scene.shapes if one.bounces is not None])
    if shape is None or shape.bounces is None:
        return None
    subject = pick(rng, [shape.name, *short_names(scene, shape)])
    answer = NUMBERS[shape.bounces]
    return ask(rng, "bounces", shape.name, (answer, answer), NUMBERS[:4], subject=subject)


def _told(shape: Shape) -> str:
    """`star blinks`; shapes in clips of events are all of different kinds."""
    return f"{shape.shape} {shape.event.kind if shape.event else ''}"


def _action(shape: Shape) -> str:
    """`star blink`, as after `does the`."""
    return f"{shape.shape} {_ACTIONS[shape.event.kind] if shape.event else ''}"


def _at(names: Sequence[str], place: int) -> str:
    return names[place] if 0 <= place < len(names) else NOTHING
