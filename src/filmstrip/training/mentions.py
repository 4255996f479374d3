"""Which tokens of a question name a shape, whether it is there, and what is true of it.

To compare two things is to look both up first. An answer of a word teaches both at once, and hardly begins: looking up
one shape's place alone makes no answer more likely. These labels teach the looking up, at the tokens that name a shape,
the comparing of two, at the second that a question names, and that of all, at the last token of the picture or clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from filmstrip.shapes import Float, Int, Tensor
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import IGNORE, TensorBatch
from filmstrip.training.motion import NUM_MEASURES, SUMMARY, shape_facts, shape_measures
from filmstrip.world import COLOUR_NAMES, SHAPES, Scene, Shape

FACTS: dict[str, int] = {name: size for name, size in SUMMARY.items() if name != "partner"}
"""What is told of a shape at the token that names it, and how many classes each has (see `motion.SUMMARY`)."""
NEIGHBOURS = ("event before", "event after")
"""What else is told of a shape to which something happens: the kind of shape of the event before it and after it."""
NUM_NEIGHBOURS = 1 + len(SHAPES)  # class 0: there is no such event
EXTREMES: tuple[str, ...] = (
    "smallest",
    "biggest",
    "leftmost",
    "rightmost",
    "highest",
    "lowest",
    "first event",
    "last event",
)
"""What is told of all shapes together: the colour of the one that is most so."""
_CLEARLY = 0.3  # tenths of the frame's edge by which the first leads the second, where one is asked for
_ANY_SHAPE = "shape"  # as in `the red shape`


@dataclass(frozen=True)
class MentionLabels(TensorBatch):
    """Labels of B rows of T tokens, for the tokens that end a name and for whole rows.

    `there` says whether anything is called so (IGNORE where no name ends); the others are of names that one shape has
    (`named`).
    `facts` are the shape's classes of `FACTS`, `neighbours` of `NEIGHBOURS` (IGNORE outside of `Scene.events`), and
    `measures` its size and the x and y of the middle of its way, in tenths of the frame's edge. A question that names
    two shapes compares them: at the second (`compared`) `differences` are its measures less those of the first, and
    `later` says whether what happens to it does so after what happens to the first (IGNORE without two events).

    `extremes` has for each row and each of `EXTREMES` the first colour of the shape that is most so (IGNORE without a
    clear one).
    """

    there: Int[Tensor, "B T"]
    named: Int[Tensor, "B T"]
    facts: Int[Tensor, "B T facts"]
    neighbours: Int[Tensor, "B T 2"]
    measures: Float[Tensor, "B T measures"]
    compared: Int[Tensor, "B T"]
    differences: Float[Tensor, "B T measures"]
    later: Int[Tensor, "B T"]
    extremes: Int[Tensor, "B extremes"]


def naming_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that are a name: of a kind of shape, of a colour, or `shape`. Names of several tokens are left out."""
    words = {
        word: tokenizer.encode(f"the {word}", add_special=False).ids for word in (*SHAPES, *COLOUR_NAMES, _ANY_SHAPE)
    }
    the = len(tokenizer.encode("the", add_special=False).ids)
    return {ids[-1]: word for word, ids in words.items() if len(ids) == the + 1}


def mention_labels(
    scenes: Sequence[Scene], input_ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"], words: Mapping[int, str]
) -> MentionLabels:
    """Labels of rows that are about one scene each; `words` are `naming_tokens`. Only questions are looked at."""
    rows = []
    for scene, ids, answers in zip(scenes, input_ids.numpy(), labels.numpy(), strict=True):
        rows.append(_row_labels(scene, np.where(answers == IGNORE, ids, -1), words))
    return MentionLabels(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)))


def _row_labels(scene: Scene, ids: np.ndarray, words: Mapping[int, str]) -> tuple[np.ndarray, ...]:
    named, compared = np.zeros((2, len(ids)), int)
    facts = np.full((len(ids), len(FACTS)), IGNORE)
    neighbours = np.full((len(ids), len(NEIGHBOURS)), IGNORE)
    there, later = np.full((2, len(ids)), IGNORE)
    measures, differences = np.zeros((2, len(ids), NUM_MEASURES), np.float32)
    events = scene.events()
    measured = scene_measures(scene)
    known = dict(zip(scene.shapes, measured, strict=True))
    answered = np.cumsum(ids < 0)
    first: tuple[int, Shape] | None = None
    for token, meant in find_names(ids.tolist(), scene, words):
        there[token] = len(meant) > 0
        if len(meant) != 1:
            continue
        shape = meant[0]
        named[token], facts[token], measures[token] = 1, shape_facts(shape), known[shape]
        if shape in events:
            neighbours[token] = _neighbours(events, events.index(shape))
        if first is not None and answered[first[0]] == answered[token]:
            compared[token], differences[token] = 1, known[shape] - known[first[1]]
            if shape in events and first[1] in events:
                later[token] = events.index(shape) > events.index(first[1])
        first = token, shape
    extremes = np.array(scene_extremes(scene, measured))
    return there, named, facts, neighbours, measures, compared, differences, later, extremes


def _neighbours(events: Sequence[Shape], place: int) -> list[int]:
    """Classes of the kinds of the shapes whose events are next to the one at `place`."""
    kinds = [0, *(1 + SHAPES.index(shape.shape) for shape in events), 0]
    return [kinds[place], kinds[place + 2]]


def find_names(ids: Sequence[int], scene: Scene, words: Mapping[int, str]) -> list[tuple[int, list[Shape]]]:
    """The tokens that end a name, each with the shapes of the scene that are called so: none, one or several."""
    found = []
    for token, (before, here) in enumerate(pairwise(ids), start=1):
        noun, word = words.get(here), words.get(before)
        colour = word if word in COLOUR_NAMES else None
        if noun in SHAPES or (noun == _ANY_SHAPE and colour is not None):
            found.append((token, [one for one in scene.shapes if _is_called(one, noun, colour)]))
    return found


def _is_called(shape: Shape, noun: str, colour: str | None) -> bool:
    return noun in (shape.shape, _ANY_SHAPE) and (colour is None or colour in shape.colours)


def scene_measures(scene: Scene) -> np.ndarray:
    """The measures (shapes, 3) of all shapes."""
    return np.array([shape_measures(scene, shape) for shape in scene.shapes]).reshape(-1, NUM_MEASURES)


def scene_extremes(scene: Scene, measures: np.ndarray) -> list[int]:
    """The class of each of `EXTREMES`; `measures` are `scene_measures`."""
    told = []
    for column in measures.T:
        told += [_first(scene.shapes, column), _first(scene.shapes, -column)]
    events = scene.events()
    told += [_colour(scene.shapes, shape) for shape in (events[0], events[-1])] if len(events) > 1 else [IGNORE, IGNORE]
    return told


def _first(shapes: Sequence[Shape], values: np.ndarray) -> int:
    """The colour of the shape whose value is clearly the smallest."""
    order = np.argsort(values)
    if len(order) < 2 or values[order[1]] - values[order[0]] < _CLEARLY:
        return IGNORE
    return _colour(shapes, shapes[int(order[0])])


def _colour(shapes: Sequence[Shape], shape: Shape) -> int:
    """A colour that several began in tells nothing."""
    alike = [one for one in shapes if one.colour == shape.colour]
    return COLOUR_NAMES.index(shape.colour) if len(alike) == 1 else IGNORE
