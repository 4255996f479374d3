"""Questions that one frame may answer: how many, which colour and shape, how large, where; and descriptions."""

from itertools import permutations

import numpy as np

from filmstrip.world.describe import describe, scene_facts
from filmstrip.world.facts import COLOUR_NAMES, NUMBERS, PLURALS, SHAPES, with_article
from filmstrip.world.phrases import HAPPENS, PHRASES
from filmstrip.world.question import Question, ask, pick, pick_shape
from filmstrip.world.scene import Scene, Shape, reverse

_SIZE_RATIO = 1.3  # from which one shape is clearly bigger than another
_APART = 0.12  # of the frame's edge: from which one shape is clearly left of, or above, another
_RELATIONS = (("to the left of", "to the right of"), ("above", "below"))
_MOST = (("leftmost", "rightmost"), ("highest", "lowest"))


def count(scene: Scene, rng: np.random.Generator) -> Question:
    """Of all shapes, of one colour or of one kind; a third of the last two ask for what is not there."""
    draw, absent = rng.random(2)
    plural, number = "shapes", len(scene.shapes)
    if draw >= 0.5 and scene.shapes:
        colours = [shape.colour for shape in scene.shapes]
        kinds = [shape.shape for shape in scene.shapes]
        by_colour = draw < 0.75 and not _recoloured(scene)
        of, known = (colours, COLOUR_NAMES) if by_colour else (kinds, SHAPES)
        name = pick(rng, [one for one in known if one not in of]) if absent < 1 / 3 else pick(rng, sorted(set(of)))
        plural = f"{name} shapes" if by_colour else PLURALS[name]
        number = of.count(name)
    answer = NUMBERS[number]
    return ask(rng, "count", plural, (answer, answer), NUMBERS, plural=plural, medium=scene.medium)


def colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Of the one shape of its kind that keeps its colour."""
    kinds = [shape.shape for shape in scene.shapes]
    chosen = pick_shape(rng, [one for one in scene.shapes if kinds.count(one.shape) == 1 and one.recolour is None])
    if chosen is None:
        return None
    return ask(rng, "colour", chosen.shape, (chosen.colour,) * 2, COLOUR_NAMES, subject=chosen.shape)


def shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Of the one shape that has this colour at any time."""
    colours = [colour for one in scene.shapes for colour in one.colours]
    chosen = pick_shape(rng, [one for one in scene.shapes if colours.count(one.colour) == 1 and one.recolour is None])
    if chosen is None:
        return None
    return ask(rng, "shape", chosen.colour, (chosen.shape,) * 2, SHAPES, subject=chosen.colour)


def presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Yes and no equally often. A wrong name mostly joins the colour of one thing seen to the shape of another."""
    if not scene.shapes:
        return None
    kind = rng.random()
    names = {name for one in scene.shapes for name in one.names}
    subject = pick(rng, sorted(names))
    if kind >= 0.5:
        colours = sorted({colour for one in scene.shapes for colour in one.colours}) if kind < 0.9 else COLOUR_NAMES
        kinds = sorted({one.shape for one in scene.shapes}) if kind < 0.8 or kind >= 0.9 else SHAPES
        wrong = [name for name in (f"{colour} {one}" for colour in colours for one in kinds) if name not in names]
        wrong = wrong or [name for name in (f"{colour} {kinds[0]}" for colour in COLOUR_NAMES) if name not in names]
        subject = pick(rng, wrong)
    answer = "yes" if subject in names else "no"
    return ask(
        rng,
        "presence",
        subject,
        (answer, answer),
        ("yes", "no"),
        subject=with_article(subject),
        medium=scene.medium,
    )


def size(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of two is bigger or smaller, or which of three or more is the biggest or smallest; clear cases only."""
    bigger = bool(rng.random() < 0.5)
    ordered = sorted(scene.shapes, key=lambda one: one.size, reverse=bigger)
    if len(ordered) > 2 and _differ(ordered[0], ordered[1]):
        answer = f"the {ordered[0].known_as}"
        most = pick(rng, ("biggest", "largest") if bigger else ("smallest",))
        candidates = [f"the {one.known_as}" for one in scene.shapes]
        subject = "biggest" if bigger else "smallest"
        return ask(rng, "size-most", subject, (answer, answer), candidates, most=most, medium=scene.medium)
    pairs = [pair for pair in permutations(scene.shapes, 2) if _differ(*pair)]
    if not pairs:
        return None
    one, other = pick(rng, pairs)
    names = [f"the {one.known_as}", f"the {other.known_as}"]
    answer = names[(one.size > other.size) != bigger]
    more = pick(rng, ("bigger", "larger") if bigger else ("smaller",))
    subject = f"{'bigger' if bigger else 'smaller'} of {' and '.join(sorted(names))}"
    return ask(
        rng, "size-pair", subject, (answer, answer), names, more=more, subject=one.known_as, other=other.known_as
    )


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How two shapes lie to each other, or which lies furthest to one side, where that holds in all frames."""
    if scene.plot == "events":  # jumps and turns would have it hold for a part of the clip
        return None
    axis = int(rng.random() * 2)
    before = {(a.known_as, b.known_as) for a, b in permutations(scene.shapes, 2) if _lies_before(scene, a, b, axis)}
    names = [one.known_as for one in scene.shapes]
    end = int(rng.random() * 2)
    ahead = {(b, a) for a, b in before} if end else before
    most = [name for name in names if all((name, other) in ahead for other in names if other != name)]
    if len(names) > 2 and most and rng.random() < 0.5:
        answer = f"the {most[0]}"
        word = _MOST[axis][end]
        candidates = [f"the {name}" for name in names]
        return ask(rng, "position-most", word, (answer, answer), candidates, most=word, medium=scene.medium)
    if not before:
        return None
    one, other = pick(rng, sorted(before))
    if end:
        one, other = other, one
    true = rng.random() < 0.5
    relation = _RELATIONS[axis][end if true else 1 - end]
    answer = "yes" if true else "no"
    subject = f"{one} {relation} {other}"
    fields = {"subject": one, "other": other, "relation": relation, "medium": scene.medium}
    return ask(rng, "position-pair", subject, (answer, answer), ("yes", "no"), **fields)


def description(scene: Scene, rng: np.random.Generator) -> Question:
    """In one or two sentences."""
    phrasing = pick(rng, PHRASES["describe"] + (HAPPENS if scene.medium == "video" else ()))
    text = phrasing.format(medium=scene.medium)
    backwards = describe(reverse(scene))
    return Question("describe", "scene", text, describe(scene), (), backwards, scene_facts(scene), phrasing)


def _recoloured(scene: Scene) -> bool:
    return any(shape.recolour is not None for shape in scene.shapes)


def _differ(one: Shape, other: Shape) -> bool:
    small, large = sorted((one.size, other.size))
    return large / small >= _SIZE_RATIO


def _lies_before(scene: Scene, one: Shape, other: Shape, axis: int) -> bool:
    """Whether `one` is clearly left of (axis 0) or above (1) `other` in all frames that show both, half or more."""
    both = [frame for frame in range(scene.num_frames) if one.visible(frame) and other.visible(frame)]
    if 2 * len(both) < scene.num_frames:
        return False
    return all(other.position(frame)[axis] - one.position(frame)[axis] >= _APART for frame in both)
