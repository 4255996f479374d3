"""What a scene shows, in one or two sentences, and the facts such a description states."""

from collections.abc import Sequence
from itertools import pairwise

from filmstrip.world.facts import CAMERA_WORDS, COLOUR_NAMES, NUMBERS, SHAPES, TIMES, with_article
from filmstrip.world.scene import Scene, Shape


def describe(scene: Scene) -> str:
    """What a scene shows. Shapes come in the order of `COLOURS`, then of `SHAPES`; events in that of time.

    `There are two shapes. A red star moves left and a blue circle stays still.`
    `There are two shapes: a red star and a blue circle. The star turns green, then the circle blinks.`
    """
    shapes = sorted(scene.shapes, key=lambda one: (COLOUR_NAMES.index(one.colour), SHAPES.index(one.shape)))
    number = NUMBERS[len(shapes)] if shapes else "no"
    opening = f"There is {number} shape" if len(shapes) == 1 else f"There are {number} shapes"
    parts = [with_article(shape.name) for shape in shapes]
    names = f"{opening}: {_listed(parts)}." if parts else f"{opening}."
    if scene.medium == "picture":
        return names
    if scene.camera is not None:
        moves = [CAMERA_WORDS[shot.move] for shot in scene.camera.shots]
        return f"{names} The camera {', then after a cut it '.join(moves)}."
    if scene.plot == "events":
        return f"{names} {_capital(', then '.join(f'the {told_event(shape)}' for shape in scene.events()))}."
    told = [f"{part} {' and '.join(doings(shape))}" for part, shape in zip(parts, shapes, strict=True)]
    return f"{opening}. {_capital(_listed(told))}{_arrivals(scene)}."


def scene_facts(scene: Scene) -> frozenset[str]:
    """What `describe` states: the number of shapes, each shape and, in a video, what it does, as `stated_facts`."""
    facts = {f"{NUMBERS[len(scene.shapes)]} shapes", *(shape.name for shape in scene.shapes)}
    if scene.medium == "picture":
        return frozenset(facts)
    if scene.camera is not None:
        first, *others = (CAMERA_WORDS[shot.move] for shot in scene.camera.shots)
        facts |= {f"camera {first}", *(f"camera {move} after cut" for move in others), *["cut"][: len(others)]}
    elif scene.plot == "events":
        events = scene.events()
        facts |= {told_event(shape) for shape in events}
        facts |= {f"{first.shape} before {second.shape}" for first, second in pairwise(events)}
    else:
        facts |= {f"{shape.name} {doing}" for shape in scene.shapes for doing in doings(shape)}
        facts |= {f"{when} {shape.name}" for when, shape in _ends(scene)}
    return frozenset(facts)


def doings(shape: Shape) -> list[str]:
    """What a shape does outside the plot of events: one verb, and a second one if it changes colour."""
    if shape.motion == "around":
        verb = "goes around fast" if shape.laps > 1 else "goes around slowly"
    elif shape.motion == "bounce":
        verb = f"bounces {TIMES[shape.bounces or 0]}"
    else:
        verb = "stays still" if shape.motion == "still" else f"moves {shape.motion}"
    return [verb] if shape.recolour is None else [verb, f"turns {shape.recolour.colour}"]


def told_event(shape: Shape) -> str:
    """What happens to a shape, as a description puts it: `star turns green`, `circle blinks`."""
    kind = shape.event.kind if shape.event else "blinks"
    return f"{shape.shape} {kind if shape.recolour is None else f'turns {shape.recolour.colour}'}"


def _arrivals(scene: Scene) -> str:
    ends = _ends(scene)
    if not ends:
        return ""
    (_, first), (_, last) = ends
    return f"; first comes the {first.name}, last the {last.name}"


def _ends(scene: Scene) -> list[tuple[str, Shape]]:
    first, last = scene.appears_first(), scene.appears_last()
    if scene.plot != "arrivals" or first is None or last is None:
        return []
    return [("first", first), ("last", last)]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
