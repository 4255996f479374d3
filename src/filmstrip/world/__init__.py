"""A small procedural world: moving coloured shapes, drawn with NumPy, with questions whose answers are known.

`sample_clip` or `sample_still` makes a `Scene`, `draw_clip` its frames, `ask_about` questions about it.
"""

from filmstrip.world.augment import augment_clip, augment_stills
from filmstrip.world.camera import Camera, Shot, draw_shot, sample_shot
from filmstrip.world.describe import describe
from filmstrip.world.draw import draw_clip, draw_stills
from filmstrip.world.facts import CAMERA_MOVES, COLOUR_NAMES, COLOURS, DIRECTIONS, EVENTS, MOTIONS, SHAPES, TICKS
from filmstrip.world.labels import DenseLabels, dense_labels
from filmstrip.world.options import CLIPS, STILLS, SceneOptions
from filmstrip.world.question import Question
from filmstrip.world.questions import FAMILIES, GROUPS, OVER_TIME, ask_about, corpus
from filmstrip.world.sample import sample_clip, sample_still
from filmstrip.world.scene import Background, Scene, Shape, reverse
from filmstrip.world.scoring import Agreement, agreement, reversed_question, score, stated_facts
from filmstrip.world.splits import (
    HELD_OUT,
    HELD_OUT_CHANGES,
    HELD_OUT_EVENTS,
    HELD_OUT_VAL,
    SPLITS,
    split_rng,
    training_rng,
)
from filmstrip.world.tracks import SceneTracks, scene_tracks

__all__ = [
    "CAMERA_MOVES",
    "CLIPS",
    "COLOURS",
    "COLOUR_NAMES",
    "DIRECTIONS",
    "EVENTS",
    "FAMILIES",
    "GROUPS",
    "HELD_OUT",
    "HELD_OUT_CHANGES",
    "HELD_OUT_EVENTS",
    "HELD_OUT_VAL",
    "MOTIONS",
    "OVER_TIME",
    "SHAPES",
    "SPLITS",
    "STILLS",
    "TICKS",
    "Agreement",
    "Background",
    "Camera",
    "DenseLabels",
    "Question",
    "Scene",
    "SceneOptions",
    "SceneTracks",
    "Shape",
    "Shot",
    "agreement",
    "ask_about",
    "augment_clip",
    "augment_stills",
    "corpus",
    "dense_labels",
    "describe",
    "draw_clip",
    "draw_shot",
    "draw_stills",
    "reverse",
    "reversed_question",
    "sample_clip",
    "sample_shot",
    "sample_still",
    "scene_tracks",
    "score",
    "split_rng",
    "stated_facts",
    "training_rng",
]
