"""Descriptions: their sentences, their facts, and scores that contradictions do not raise."""

from dataclasses import replace

import numpy as np
import pytest

from filmstrip.world import (
    CLIPS,
    COLOURS,
    STILLS,
    Background,
    Scene,
    Shape,
    agreement,
    ask_about,
    describe,
    reverse,
    reversed_question,
    sample_clip,
    sample_still,
    score,
    stated_facts,
)
from filmstrip.world.camera import Camera, Shot
from filmstrip.world.describe import scene_facts
from filmstrip.world.scene import Event, Recolour

GREY = Background("plain", (60.0, 60.0, 60.0), (60.0, 60.0, 60.0))


def shape(name, motion="still", **others):
    colour, kind = name.split()
    return Shape(kind, colour, 0.2, motion, ((0.5, 0.5),), 0, 8, COLOURS[colour], **others)


def scene(plot, *shapes, camera=None):
    return Scene(shapes, GREY, 8, plot, camera)


def shot(move, first, end):
    return Shot(move, (0.5, 0.5, -1.0), (0.5, 0.5, -1.0), first, end)


TURN = shape("blue circle", "left", recolour=Recolour(4, "green", COLOURS["green"]))
EVENTS = scene(
    "events",
    shape("red star", event=Event("changes colour", 6, 6), recolour=Recolour(6, "green", COLOURS["green"])),
    shape("blue circle", event=Event("blinks", 2, 3), gap=(2, 3)),
)
CUT = scene("camera", shape("red star"), camera=Camera((shot("left", 0, 3), shot("in", 3, 8))))


def test_sentences():
    speed = scene("speed", shape("red star", "around", laps=1), shape("blue star", "around", laps=3))
    assert describe(speed) == ("There are two shapes. A red star goes around slowly and a blue star goes around fast.")
    assert describe(scene("bounces", shape("red star", "bounce", bounces=2))) == (
        "There is one shape. A red star bounces twice."
    )
    assert describe(scene("bounces", shape("red star", "up", bounces=0))) == "There is one shape. A red star moves up."
    assert describe(scene("recolour", TURN, shape("red cross"))) == (
        "There are two shapes. A red cross stays still and a blue circle moves left and turns green."
    )
    assert describe(EVENTS) == (
        "There are two shapes: a red star and a blue circle. The circle blinks, then the star turns green."
    )
    assert describe(reverse(EVENTS)) == (
        "There are two shapes: a green star and a blue circle. The star turns red, then the circle blinks."
    )
    assert describe(CUT) == "There is one shape: a red star. The camera pans left, then after a cut it zooms in."
    assert describe(reverse(CUT)) == (
        "There is one shape: a red star. The camera zooms out, then after a cut it pans right."
    )
    assert describe(scene("camera", camera=Camera((shot("still", 0, 8),)))) == (
        "There are no shapes. The camera stays still."
    )


def test_facts():
    assert stated_facts(describe(EVENTS)) == {
        "two shapes", "red star", "blue circle", "circle blinks", "star turns green", "circle before star",
    }  # fmt: skip
    assert stated_facts(describe(CUT)) == {
        "one shapes", "red star", "camera pans left", "camera zooms in after cut", "cut",
    }  # fmt: skip
    assert stated_facts("There are no shapes.") == {"zero shapes"}


@pytest.mark.parametrize("plot", ["plain", "arrivals", "speed", "recolour", "events", "bounces", "camera"])
def test_a_description_states_exactly_the_facts_of_its_scene(plot):
    rng = np.random.default_rng(1)
    options = replace(CLIPS, plots=(plot,), num_photos=2)
    for _ in range(120):
        one = sample_clip(rng, "train", options)
        assert stated_facts(describe(one)) == scene_facts(one)
        assert 1 <= describe(one).count(". ") + 1 <= 2
        (question,) = ask_about(one, rng, 1, ["describe"])
        assert score(question, question.answer) == 1.0
        assert score(reversed_question(question), question.reversed_answer) == 1.0
    still = sample_still(rng, STILLS)
    assert stated_facts(describe(still)) == scene_facts(still)


def test_precision_and_recall():
    facts = scene_facts(scene("recolour", TURN, shape("red cross")))
    assert len(facts) == 6
    part = agreement(facts, "There are two shapes. A red cross stays still.")
    assert (part.precision, part.recall) == (1.0, 0.5) and part.f1 == pytest.approx(2 / 3)
    wrong = agreement(facts, "There are three shapes.")
    assert (wrong.precision, wrong.recall, wrong.f1) == (0.0, 0.0, 0.0)
    assert agreement(facts, "").f1 == 0.0


@pytest.mark.parametrize(
    ("guess", "other"),
    [
        ("A red cross moves left.", "A red cross moves right."),
        ("There are two shapes.", "There are three shapes."),
        ("A blue circle moves left and turns green.", "A blue circle moves left and turns red."),
        ("The camera pans left.", "The camera pans right."),
        ("The star blinks, then the circle jumps.", "The circle jumps, then the star blinks."),
        ("First comes the red star.", "First comes the blue circle."),
    ],
)
def test_stating_both_of_two_things_is_worse_than_guessing_one(guess, other):
    """Expected F1 of a guess between two that are equally likely, against that of saying both."""
    shared = "There is a red cross, a blue circle, a red star and a cyan cross."
    truths = [stated_facts(f"{shared} {one}") for one in (guess, other)]
    guessing = np.mean([agreement(truth, f"{shared} {guess}").f1 for truth in truths])
    both = np.mean([agreement(truth, f"{shared} {guess} {other}").f1 for truth in truths])
    assert both < guessing
