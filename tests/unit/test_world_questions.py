"""Questions: right answers, balance, scoring."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from filmstrip.errors import ConfigError
from filmstrip.world import (
    COLOURS,
    GROUPS,
    Background,
    Scene,
    SceneOptions,
    Shape,
    ask_about,
    corpus,
    describe,
    reverse,
    reversed_question,
    sample_clip,
    sample_still,
    score,
    stated_facts,
)
from filmstrip.world.describe import scene_facts
from filmstrip.world.facts import NUMBERS

PLAIN = SceneOptions(plots=("plain",), staggered_share=0.6, varied_size_share=0.0)
GREY = Background("plain", (60.0, 60.0, 60.0), (60.0, 60.0, 60.0))


def moving(name, motion, first=0, end=8):
    colour, shape = name.split()
    path = ((0.2, 0.5),) if motion == "still" else ((0.2, 0.5), (0.8, 0.5))
    return Shape(shape, colour, 0.3, motion, path, first, end, COLOURS[colour])


STAGGERED = Scene((moving("blue circle", "still", 3, 8), moving("red star", "left", 0, 5)), GREY, 8)
TWO_STARS = Scene((moving("blue star", "up"), moving("blue circle", "down"), moving("red star", "left")), GREY, 8)


def every_question(scene, family, draws=60):
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(draws):
        for question in ask_about(scene, rng, 9, [family]):
            found[question.subject, question.text] = question
    return list(found.values())


def answers(scene, family):
    return {question.subject: question.answer for question in every_question(scene, family)}


def test_counts_are_of_all_of_a_colour_and_of_a_kind():
    found = answers(TWO_STARS, "count")
    assert found["shapes"] == "three"
    assert found["blue shapes"] == "two"
    assert found["red shapes"] == "one"
    assert found["green shapes"] == "zero"
    assert found["stars"] == "two"
    assert found["circles"] == "one"
    assert found["crosses"] == "zero"


def test_colour_and_shape_are_asked_only_where_there_is_one_answer():
    assert answers(TWO_STARS, "colour") == {"circle": "blue"}
    assert answers(TWO_STARS, "shape") == {"red": "star"}
    both_stars = Scene(TWO_STARS.shapes[::2], GREY, 8)
    assert ask_about(both_stars, np.random.default_rng(0), 3, ["colour"]) == []


def test_direction_names_a_shape_by_what_singles_it_out():
    found = every_question(TWO_STARS, "direction")
    assert {q.subject: q.answer for q in found} == {"blue star": "up", "blue circle": "down", "red star": "left"}
    assert {q.subject: q.reversed_answer for q in found} == {
        "blue star": "down",
        "blue circle": "up",
        "red star": "right",
    }
    assert not any(" the star " in q.text or "blue shape" in q.text for q in found)
    assert any("the circle" in q.text for q in found)
    assert any("the red shape" in q.text for q in found)
    assert answers(STAGGERED, "direction")["blue circle"] == "it stays still"


def test_order_and_its_answer_for_reversed_frames():
    found = every_question(STAGGERED, "order")
    assert {q.subject: q.answer for q in found} == {"last": "the blue circle", "first": "the red star"}
    assert {q.subject: q.reversed_answer for q in found} == {"last": "the red star", "first": "the blue circle"}
    assert set(found[0].candidates) == {"the blue circle", "the red star"}
    assert answers(TWO_STARS, "order") == {}  # all appear together
    nested = Scene((moving("blue circle", "still", 2, 6), moving("red star", "left", 0, 8)), GREY, 8)
    assert answers(nested, "order") == {}  # fewer frames would give the late one away


def test_descriptions():
    assert describe(STAGGERED) == "There are two shapes. A red star moves left and a blue circle stays still."
    assert describe(reverse(STAGGERED)) == "There are two shapes. A red star moves right and a blue circle stays still."
    assert describe(TWO_STARS) == (
        "There are three shapes. A red star moves left, a blue circle moves down and a blue star moves up."
    )
    picture = Scene((moving("orange star", "still", 0, 1),), GREY, 1)
    assert describe(picture) == "There is one shape: an orange star."
    assert stated_facts(describe(picture)) == {"one shapes", "orange star"}


def test_a_description_states_exactly_the_facts_of_its_scene():
    rng = np.random.default_rng(1)
    for scene in [sample_clip(rng) for _ in range(200)] + [sample_still(rng) for _ in range(100)]:
        assert stated_facts(describe(scene)) == scene_facts(scene)


def test_reversed_answers_are_the_answers_about_the_reversed_scene():
    rng = np.random.default_rng(2)
    compared = Counter()
    for _ in range(120):
        scene = sample_clip(rng, "train", PLAIN)
        for family in ("count", "direction", "order", "describe"):
            truth = answers_now(reverse(scene), family)
            for question in ask_about(scene, rng, 3, [family]):
                if question.subject in truth:
                    compared[family] += 1
                    assert truth[question.subject] == question.reversed_answer
                backwards = reversed_question(question)
                assert score(backwards, question.reversed_answer) == 1.0
                assert reversed_question(backwards) == question
    assert min(compared[family] for family in ("count", "direction", "order", "describe")) > 30


def answers_now(scene, family):
    rng = np.random.default_rng(3)
    return {q.subject: q.answer for _ in range(4) for q in ask_about(scene, rng, 5, [family])}


def test_questions_mix_families_without_repeats():
    rng = np.random.default_rng(4)
    for _ in range(100):
        scene = sample_clip(rng)
        questions = ask_about(scene, rng, 5)
        assert len(questions) == 5
        assert len({(q.family, q.subject) for q in questions}) == 5
        assert len({q.family for q in questions}) >= 4
    stills = [q for _ in range(100) for q in ask_about(sample_still(rng), rng, 4)]
    assert {q.family for q in stills} == {*GROUPS["still"], "describe"}
    assert not any("video" in q.text or "move" in q.text for q in stills)
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        ask_about(scene, rng, 1, ["color"])


def test_no_constant_answer_does_well():
    rng = np.random.default_rng(5)
    most = {"presence": 0.55, "direction": 0.24, "shape": 0.24, "colour": 0.18, "order": 0.08, "count": 0.55}
    seen = {family: Counter() for family in most}
    for _ in range(1200):
        for question in ask_about(sample_clip(rng, "train", PLAIN), rng, 4, [*most]):
            seen[question.family][question.answer] += 1
            assert not question.candidates or question.answer in question.candidates
    best = {family: max(counts.values()) / counts.total() for family, counts in seen.items()}
    assert best["presence"] >= 0.5
    assert all(best[family] < bound for family, bound in most.items()), best


def test_presence_needs_colour_and_shape_together():
    wrong = [q.subject for q in every_question(TWO_STARS, "presence", 400) if q.answer == "no"]
    assert "red circle" in wrong  # both words are in the scene, but not of one thing
    assert all(subject not in {"blue star", "blue circle", "red star"} for subject in wrong)


def test_scoring():
    rng = np.random.default_rng(6)
    question = ask_about(STAGGERED, rng, 1, ["order"])[0]
    question = replace(question, answer="the red star")
    assert score(question, "The red star.") == 1.0
    assert score(question, " red  star") == 1.0
    assert score(question, "the red square") == 0.0
    assert score(question, "") == 0.0
    description = ask_about(STAGGERED, rng, 1, ["describe"])[0]
    assert score(description, describe(STAGGERED)) == 1.0
    assert score(description, describe(reverse(STAGGERED))) == pytest.approx(4 / 5)  # one of five facts is wrong
    assert score(description, "There are two shapes.") == pytest.approx(2 / 6)
    assert score(description, "There are three shapes.") == 0.0
    assert score(description, "") == 0.0
    both = "There are two shapes. A red star moves left and a red star moves right and a blue circle stays still."
    assert score(description, both) < 1.0


def test_corpus_names_everything():
    pairs = list(corpus(np.random.default_rng(7), 1500))
    assert len(pairs) == 1500
    words = set(" ".join(f"{question} {answer}" for question, answer in pairs).lower().replace(".", " ").split())
    assert words >= {*COLOURS, *NUMBERS, "left", "right", "up", "down", "still", "yes", "no", "picture?", "video?"}
    assert pairs == list(corpus(np.random.default_rng(7), 1500))
