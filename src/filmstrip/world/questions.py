"""Questions about a scene, with their answers. Wording is in `filmstrip.world.phrases`, scoring in `scoring`.

Families: count, colour, shape, presence and describe for pictures and videos, direction and order for videos. A
question is asked only where it has one right answer: the colour of the star if there is one star, the shape that
appears last if no two appear together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from filmstrip.config.checks import require_choice
from filmstrip.world.facts import COLOUR_NAMES, MOTIONS, NUMBERS, OPPOSITE, PLURALS, SHAPES, Motion, with_article
from filmstrip.world.phrases import HAPPENS, PHRASES
from filmstrip.world.sample import sample_clip, sample_still
from filmstrip.world.scene import Scene, Shape, reverse

STILL_ANSWER = "it stays still"
_TRIES = 6  # draws of a family before its turn is skipped


@dataclass(frozen=True)
class Question:
    """A question and the truth.

    `subject` says what is asked about within the family. `candidates` are the answers the family allows (for `order`,
    the shapes of the clip), empty for `describe`. `reversed_answer` is the right answer when the frames run backwards.
    `facts` are the statements a description must make (see `scene_facts`), empty for the other families.
    """

    family: str
    subject: str
    text: str
    answer: str
    candidates: tuple[str, ...]
    reversed_answer: str
    facts: frozenset[str] = frozenset()


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


def describe(scene: Scene) -> str:
    """What a scene shows, in one or two sentences. Shapes come in the order of `COLOURS`, then of `SHAPES`.

    `There are two shapes. A red star moves left and a blue circle stays still.`
    """
    shapes = sorted(scene.shapes, key=lambda one: (COLOUR_NAMES.index(one.colour), SHAPES.index(one.shape)))
    many = len(shapes) > 1
    number = NUMBERS[len(shapes)]
    opening = f"There {'are' if many else 'is'} {number} {'shapes' if many else 'shape'}"
    parts = [with_article(shape.name) for shape in shapes]
    if scene.medium == "picture":
        return f"{opening}: {_listed(parts)}."
    listed = _listed([f"{part} {_doing(shape.motion)}" for part, shape in zip(parts, shapes, strict=True)])
    return f"{opening}. {listed[0].upper()}{listed[1:]}."


def scene_facts(scene: Scene) -> frozenset[str]:
    """What `describe` states: the number of shapes, each shape and, in a video, each motion."""
    facts = {f"{NUMBERS[len(scene.shapes)]} shapes", *(shape.name for shape in scene.shapes)}
    if scene.medium == "video":
        facts |= {f"{shape.name} {_doing(shape.motion)}" for shape in scene.shapes}
    return frozenset(facts)


def corpus(rng: np.random.Generator, count: int) -> Iterator[tuple[str, str]]:
    """`count` pairs of question and answer text about videos and pictures, for training a tokenizer."""
    left = count
    while left > 0:
        scene = sample_clip(rng, "train") if rng.random() < 0.7 else sample_still(rng)
        for question in ask_about(scene, rng, min(left, 6)):
            left -= 1
            yield question.text, question.answer


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _doing(motion: Motion) -> str:
    return "stays still" if motion == "still" else f"moves {motion}"


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.random() * len(choices))]


def _pick_shape(rng: np.random.Generator, shapes: Sequence[Shape]) -> Shape | None:
    return shapes[int(rng.random() * len(shapes))] if shapes else None


def _phrase(rng: np.random.Generator, family: str, **fields: str) -> str:
    return _pick(rng, PHRASES[family]).format(**fields)


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    """Of all shapes, of one colour or of one kind; a third of the last two ask for what is not there."""
    draw, absent = rng.random(2)
    plural, number = "shapes", len(scene.shapes)
    if draw >= 0.5:
        colours = [shape.colour for shape in scene.shapes]
        kinds = [shape.shape for shape in scene.shapes]
        of, known = (colours, COLOUR_NAMES) if draw < 0.75 else (kinds, SHAPES)
        name = _pick(rng, [one for one in known if one not in of]) if absent < 1 / 3 else _pick(rng, sorted(set(of)))
        plural = f"{name} shapes" if draw < 0.75 else PLURALS[name]
        number = of.count(name)
    text = _phrase(rng, "count", plural=plural, medium=scene.medium)
    return Question("count", plural, text, NUMBERS[number], NUMBERS, NUMBERS[number])


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    kinds = [shape.shape for shape in scene.shapes]
    shape = _pick_shape(rng, [one for one in scene.shapes if kinds.count(one.shape) == 1])
    if shape is None:
        return None
    text = _phrase(rng, "colour", subject=shape.shape)
    return Question("colour", shape.shape, text, shape.colour, COLOUR_NAMES, shape.colour)


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    colours = [shape.colour for shape in scene.shapes]
    shape = _pick_shape(rng, [one for one in scene.shapes if colours.count(one.colour) == 1])
    if shape is None:
        return None
    text = _phrase(rng, "shape", subject=shape.colour)
    return Question("shape", shape.colour, text, shape.shape, SHAPES, shape.shape)


def _presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Yes and no equally often. A wrong name mostly joins the colour of one thing seen to the shape of another."""
    kind = rng.random()
    names = {shape.name for shape in scene.shapes}
    subject = _pick(rng, sorted(names))
    if kind >= 0.5:
        colours = sorted({shape.colour for shape in scene.shapes}) if kind < 0.9 else COLOUR_NAMES
        kinds = sorted({shape.shape for shape in scene.shapes}) if kind < 0.8 or kind >= 0.9 else SHAPES
        wrong = [name for name in (f"{colour} {one}" for colour in colours for one in kinds) if name not in names]
        wrong = wrong or [name for name in (f"{colour} {kinds[0]}" for colour in COLOUR_NAMES) if name not in names]
        subject = _pick(rng, wrong)
    answer = "yes" if subject in names else "no"
    text = _phrase(rng, "presence", subject=with_article(subject), medium=scene.medium)
    return Question("presence", subject, text, answer, ("yes", "no"), answer)


def _describe(scene: Scene, rng: np.random.Generator) -> Question:
    phrases = PHRASES["describe"] + (HAPPENS if scene.medium == "video" else ())
    text = _pick(rng, phrases).format(medium=scene.medium)
    return Question("describe", "scene", text, describe(scene), (), describe(reverse(scene)), scene_facts(scene))


def _direction(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Mostly about `the red star`, sometimes `the star` or `the red shape` where that is enough."""
    if scene.medium == "picture":
        return None
    shape = scene.shapes[int(rng.random() * len(scene.shapes))]
    names = [shape.name, shape.name]
    if [one.shape for one in scene.shapes].count(shape.shape) == 1:
        names.append(shape.shape)
    if [one.colour for one in scene.shapes].count(shape.colour) == 1:
        names.append(f"{shape.colour} shape")
    text = _phrase(rng, "direction", subject=_pick(rng, names))
    answers = tuple(_direction_answer(motion) for motion in MOTIONS)
    answer, backwards = _direction_answer(shape.motion), _direction_answer(OPPOSITE[shape.motion])
    return Question("direction", shape.name, text, answer, answers, backwards)


def _direction_answer(motion: Motion) -> str:
    return STILL_ANSWER if motion == "still" else motion


def _order(scene: Scene, rng: np.random.Generator) -> Question | None:
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
    if truth is None or untruth is None or truth.name == untruth.name:
        return None
    candidates = tuple(f"the {shape.name}" for shape in scene.shapes)
    return Question("order", end, _phrase(rng, f"order-{end}"), f"the {truth.name}", candidates, f"the {untruth.name}")


_ASKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "presence": _presence,
    "describe": _describe,
    "direction": _direction,
    "order": _order,
}

FAMILIES: tuple[str, ...] = tuple(_ASKERS)
"""Question families in the order of reports; the last two, and motions in `describe`, depend on the frames' order."""
