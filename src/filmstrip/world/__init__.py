"""A small procedural world: moving coloured shapes, drawn with NumPy, with questions whose answers are known.

`sample_clip` or `sample_still` makes a `Scene`, `draw_clip` its frames, `ask_about` questions about it.
"""

from filmstrip.world.augment import augment_clip, augment_stills
from filmstrip.world.draw import draw_clip, draw_stills
from filmstrip.world.facts import COLOUR_NAMES, COLOURS, DIRECTIONS, MOTIONS, SHAPES
from filmstrip.world.labels import DenseLabels, dense_labels
from filmstrip.world.questions import FAMILIES, Question, ask_about, corpus, describe
from filmstrip.world.sample import SceneOptions, sample_clip, sample_still
from filmstrip.world.scene import Background, Scene, Shape, reverse
from filmstrip.world.scoring import reversed_question, score, stated_facts
from filmstrip.world.splits import HELD_OUT, SPLITS, split_rng

__all__ = [
    "COLOURS",
    "COLOUR_NAMES",
    "DIRECTIONS",
    "FAMILIES",
    "HELD_OUT",
    "MOTIONS",
    "SHAPES",
    "SPLITS",
    "Background",
    "DenseLabels",
    "Question",
    "Scene",
    "SceneOptions",
    "Shape",
    "ask_about",
    "augment_clip",
    "augment_stills",
    "corpus",
    "dense_labels",
    "describe",
    "draw_clip",
    "draw_stills",
    "reverse",
    "reversed_question",
    "sample_clip",
    "sample_still",
    "score",
    "split_rng",
    "stated_facts",
]
