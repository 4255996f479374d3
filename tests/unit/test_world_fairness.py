"""What the frames of a clip tell as an unordered set must not answer questions about their order.

Predictors here see only what no order is needed for. Between an answer and the answer backwards, or where these are
equal between the candidates, they must do no better than chance; each bound is chance plus four standard errors.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from filmstrip.world import CLIPS, COLOUR_NAMES, ask_about, sample_clip, split_rng
from filmstrip.world.tracks import scene_tracks


def world(plot, seed, count, family):
    rng = split_rng("train", seed)
    options = replace(CLIPS, plots=(plot,), num_photos=4)
    for _ in range(count):
        scene = sample_clip(rng, "train", options)
        for question in ask_about(scene, rng, 1, [family]):
            yield scene, question


def table_accuracy(cases):
    """Accuracy of the best table from a key to which of two sorted options is right, learnt on one half of the cases.

    `cases` are (key, right): the key says all that the set of frames says, `right` whether the first option is it.
    """
    half = len(cases) // 2
    table: dict = {}
    for key, right in cases[:half]:
        table.setdefault(key, Counter())[right] += 1
    known = sum(key in table for key, _ in cases[half:]) / (len(cases) - half)
    assert known > 0.6, f"the table knows {known:.0%} of the keys, too few to find a leak"
    hits = [table[key].most_common(1)[0][0] == right if key in table else 0.5 for key, right in cases[half:]]
    return float(np.mean(hits)), 0.5 + 4 * 0.5 / np.sqrt(len(hits))


def colour_cases(keep):
    cases = []
    for scene, question in world("recolour", 1, 1500, "recolour"):
        kind, asked = question.subject.split()
        tracks = scene_tracks(scene)
        row, shape = next((i, shape) for i, shape in enumerate(scene.shapes) if shape.shape == kind)
        if not keep(shape):
            continue
        options = sorted((question.answer, question.reversed_answer))
        colours = [option.split()[1] if " " in option else option for option in options]
        counts = [int((tracks.colour[row] == 1 + COLOUR_NAMES.index(colour)).sum()) for colour in colours]
        cases.append(((asked, *counts), question.answer == options[0]))
    return cases


def test_colour_changes():
    """The colour of more frames is as often the first as the last."""
    cases = colour_cases(lambda shape: True)
    accuracy, bound = table_accuracy(cases)
    assert len(cases) > 1400 and accuracy < bound


def test_the_table_finds_a_leak_where_there_is_one():
    """Were all changes late, the colour of fewer frames would be the last."""
    accuracy, bound = table_accuracy(colour_cases(lambda shape: shape.recolour.frame > 4))
    assert accuracy > 0.95 > bound


def state_counts(scene):
    """For every pair of things that happen, how many frames show which of their sides together, without order."""
    tracks = scene_tracks(scene)
    sides = {}
    for row, shape in enumerate(scene.shapes):
        if shape.event is None:
            continue
        if shape.event.kind == "blinks":
            sides[shape.shape] = [int(seen) for seen in tracks.visible[row]]
        else:
            here = tracks.centre[row] if shape.event.kind != "changes colour" else tracks.colour[row][:, None]
            spots = sorted({tuple(np.round(point, 4)) for point in here.tolist()})
            sides[shape.shape] = [spots.index(tuple(np.round(point, 4))) for point in here.tolist()]
    kinds = sorted(sides)
    return tuple(sorted(zip(*(sides[kind] for kind in kinds), strict=True)))


@pytest.mark.slow
def test_events():
    """All frames of the clip as a sorted list of states leave open which event comes first."""
    cases = []
    for scene, question in world("events", 2, 2400, "events"):
        happening = scene.events()
        if len(happening) != 2 or question.answer == question.reversed_answer:
            continue
        first, second = sorted(happening, key=lambda shape: shape.shape)
        key = (first.event.kind, second.event.kind, state_counts(scene))
        cases.append((key, happening[0] is first))
    accuracy, bound = table_accuracy(cases)
    assert len(cases) > 1000 and accuracy < bound


@pytest.mark.slow
def test_arrivals_and_departures():
    """How long a shape is there, and how many others with it, leave open whether it is the first or the last."""
    for family in ("order", "departure"):
        cases = []
        for scene, question in world("arrivals", 3, 1600, family):
            tracks = scene_tracks(scene)
            names = [f"the {shape.name}" for shape in scene.shapes]
            options = sorted((question.answer, question.reversed_answer))
            company = tracks.visible.sum(axis=0)
            key = [tuple(sorted(company[tracks.visible[names.index(option)]].tolist())) for option in options]
            cases.append(((question.subject, *key), question.answer == options[0]))
        accuracy, bound = table_accuracy(cases)
        assert len(cases) > 1200 and accuracy < bound, family


@pytest.mark.slow
def test_pans_zooms_and_cuts():
    """Where windows lie, how large they are, how many frames a shot has and over which photograph."""
    cases = []
    for scene, question in world("camera", 4, 3500, "camera"):
        assert scene.camera is not None
        if question.answer == question.reversed_answer or len(scene.camera.shots) > 1:
            continue
        (shot,) = scene.camera.shots
        spots = np.array([shot.window(frame) for frame in range(8)])
        middle = tuple(np.round(spots.mean(axis=0) * 4).tolist())
        options = sorted((question.answer, question.reversed_answer))
        asked = question.text if options == ["no", "yes"] else ""
        cases.append(((asked, *options, shot.source, middle), question.answer == options[0]))
    accuracy, bound = table_accuracy(cases)
    assert len(cases) > 1000 and accuracy < bound
    halves = Counter(question.answer for _, question in world("camera", 5, 2000, "cut") if "half" in question.answer)
    assert abs(halves["the first half"] / halves.total() - 0.5) < 4 * 0.5 / np.sqrt(halves.total())


def test_directions():
    for _, question in world("plain", 6, 200, "direction"):
        assert (question.answer == question.reversed_answer) == (question.answer == "it stays still")
    answers = Counter(question.answer for _, question in world("plain", 7, 3000, "direction"))
    for one, other in (("left", "right"), ("up", "down")):
        both = answers[one] + answers[other]
        assert abs(answers[one] / both - 0.5) < 4 * 0.5 / np.sqrt(both)


def bouncing(seed, count):
    """The sorted places of the bouncing shape along its way, and how often it bounces."""
    places, bounces = [], []
    for scene, _ in world("bounces", seed, count, "bounces"):
        (row,) = (i for i, shape in enumerate(scene.shapes) if shape.bounces is not None)
        track = scene_tracks(scene).centre[row]
        along = track[:, int(np.ptp(track[:, 1]) > np.ptp(track[:, 0]))]
        places.append(np.sort(along))
        bounces.append(scene.shapes[row].bounces)
    return np.array(places), np.array(bounces)


@pytest.mark.slow
def test_bounces():
    """The nearest neighbour by sorted places has another number of bounces as often as any clip has."""
    known, labels = bouncing(8, 1000)
    asked, truths = bouncing(9, 1000)
    distance = np.abs(asked[:, None] - known[None]).sum(axis=-1)
    right = (labels[distance.argmin(axis=1)] == truths).mean()
    assert right < 0.25 + 4 * np.sqrt(0.25 * 0.75 / len(truths))
    np.testing.assert_allclose(
        [known[labels == n].mean(axis=0) for n in range(4)], known.mean(axis=0)[None].repeat(4, 0), atol=0.01
    )


def test_the_frames_of_a_speed_clip_are_those_of_the_clip_with_roles_changed():
    """Every third frame, around the clip, is the clip in which the slow one is fast: the set of frames is the same."""
    wider = []
    for scene, question in world("speed", 10, 400, "speed"):
        tracks = scene_tracks(scene)
        rows = sorted((i for i, shape in enumerate(scene.shapes) if shape.laps), key=lambda i: scene.shapes[i].laps)
        order = np.arange(8) * 3 % 8
        assert sorted(order) == list(range(8))
        slow, fast = (np.linalg.norm(np.diff(tracks.centre[row], axis=0), axis=-1) for row in rows)
        slow_now, fast_now = (np.linalg.norm(np.diff(tracks.centre[row][order], axis=0), axis=-1) for row in rows)
        assert slow_now.min() / fast_now.max() > 1.9 and fast.min() / slow.max() > 1.9
        radii = [np.ptp(tracks.centre[row]) for row in rows]
        wider.append(radii[1] > radii[0])
        assert question.answer == question.reversed_answer
    assert abs(np.mean(wider) - 0.5) < 4 * 0.5 / np.sqrt(len(wider))  # nor does the wider circle tell
