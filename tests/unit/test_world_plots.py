"""Plots: what is drawn is what is asked, backwards too, and the splits hold out what they say."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from filmstrip.errors import ConfigError
from filmstrip.world import (
    CLIPS,
    FAMILIES,
    GROUPS,
    HELD_OUT_CHANGES,
    HELD_OUT_EVENTS,
    STILLS,
    SceneOptions,
    ask_about,
    draw_clip,
    reverse,
    sample_clip,
    sample_still,
    split_rng,
)
from filmstrip.world.camera import PAN_STEP, SHORT_STEP, ZOOM_STEP
from filmstrip.world.splits import is_held_out, is_held_out_view, split_of
from filmstrip.world.tracks import scene_tracks

PLOTS = ("plain", "arrivals", "speed", "recolour", "events", "bounces", "camera")


def photos(count=3):
    """Noise over patches: detail at every scale, as the photographs of the camera must have."""
    rng = np.random.default_rng(7)
    fine = rng.integers(0, 128, (count, 160, 200, 3), dtype=np.uint8)
    coarse = np.kron(rng.integers(0, 128, (count, 10, 10, 3), dtype=np.uint8), np.ones((1, 16, 20, 1), np.uint8))
    return list(fine + coarse)


def clips(plot, count, split="train", seed=0, **options):
    rng = split_rng(split, seed)
    world = replace(CLIPS, plots=(plot,), num_photos=3, **options)
    return [sample_clip(rng, split, world) for _ in range(count)]


def names_of(scene):
    return {name for shape in scene.shapes for name in shape.names}


@pytest.mark.parametrize("plot", PLOTS)
def test_scenes_are_seeded_named_and_inside_the_frame(plot):
    assert clips(plot, 10) == clips(plot, 10)
    for scene in clips(plot, 60) + clips(plot, 20, num_frames=32):
        assert scene.plot == plot
        assert len(names_of(scene)) == sum(len(shape.names) for shape in scene.shapes)
        for shape in scene.shapes:
            points = np.array([shape.position(f) for f in range(scene.num_frames) if shape.visible(f)])
            assert points.min() >= shape.size / 2 - 1e-9
            assert points.max() <= 1 - shape.size / 2 + 1e-9


@pytest.mark.parametrize("plot", PLOTS)
def test_reversed_scenes_draw_reversed_clips_and_have_the_reversed_answers(plot):
    rng = np.random.default_rng(3)
    compared = 0
    for scene in clips(plot, 8):
        assert reverse(reverse(scene)) == scene
        np.testing.assert_array_equal(draw_clip(reverse(scene), 64, photos()), draw_clip(scene, 64, photos())[::-1])
        backwards = [question for _ in range(8) for question in ask_about(reverse(scene), rng, 40, FAMILIES)]
        truth = {(one.family, one.subject, one.text): one for one in backwards}
        for question in ask_about(scene, rng, 40, FAMILIES):
            other = truth.get((question.family, question.subject, question.text))
            if other is not None:
                compared += 1
                assert (other.answer, other.reversed_answer) == (question.reversed_answer, question.answer)
    assert compared > 20


def test_every_family_is_asked_and_answered_within_its_candidates():
    rng = split_rng("train", 1)
    world = replace(CLIPS, num_photos=3)
    seen, answers = Counter(), {}
    for _ in range(350):
        for question in ask_about(sample_clip(rng, "train", world), rng, 8, FAMILIES):
            seen[question.family] += 1
            answers.setdefault(question.phrasing, Counter())[question.answer] += 1
            assert question.phrasing and "{" not in question.text and "the the" not in question.text
            assert question.text[0].isupper() and question.text[-1] in ".?"
            if question.family != "describe":
                assert {question.answer, question.reversed_answer} <= set(question.candidates)
    assert set(seen) == set(FAMILIES) == {family for group in GROUPS.values() for family in group}
    assert min(seen.values()) > 12
    for phrasing, counts in answers.items():  # no phrasing gives its answer away
        if counts.total() > 100 and "How many" not in phrasing:
            assert max(counts.values()) / counts.total() < 0.66, (phrasing, counts.most_common(3))


def test_stills_are_asked_about_sizes_and_places_too():
    rng = split_rng("train", 2)
    seen = Counter(q.family for _ in range(300) for q in ask_about(sample_still(rng, STILLS), rng, 9, FAMILIES))
    assert set(seen) == {*GROUPS["still"], "describe"}
    assert seen["size"] > 80 and seen["position"] > 200


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_never_shows_what_is_held_out(split):
    for plot in PLOTS:
        for scene in clips(plot, 120, split):
            assert not any(
                is_held_out(name.split()[0], shape.shape, shape.motion, split)
                for shape in scene.shapes
                for name in shape.names
                if shape.motion != "turn"
            )
            for shape in scene.shapes:
                changed = frozenset(name.split()[0] for name in shape.names)
                assert scene.plot != "recolour" or changed not in HELD_OUT_CHANGES
                assert shape.event is None or (shape.event.kind, shape.shape) not in HELD_OUT_EVENTS
            for shot in scene.camera.shots if scene.camera else ():
                assert not is_held_out_view(shot.move, shot.source)


def test_test_clips_show_what_is_held_out():
    for plot in ("plain", "arrivals", "speed", "bounces"):
        for scene in clips(plot, 150, "test"):
            assert any(split_of(shape.colour, shape.shape, shape.motion) == "test" for shape in scene.shapes)
    for scene in clips("recolour", 150, "test"):
        assert any(frozenset(n.split()[0] for n in shape.names) in HELD_OUT_CHANGES for shape in scene.shapes)
    for scene in clips("events", 150, "test"):
        assert any((s.event.kind, s.shape) in HELD_OUT_EVENTS for s in scene.shapes if s.event)
    seen = {(shot.move, shot.source) for s in clips("camera", 300, "test") if s.camera for shot in s.camera.shots}
    assert len(seen) == 7 * 3  # other photographs: every movement over each


def test_speeds_differ_clearly_between_any_two_frames():
    for scene in clips("speed", 200):
        steps = [
            [np.hypot(*np.subtract(shape.position(f), shape.position(f - 1))) for f in range(1, 8)]
            for shape in sorted((one for one in scene.shapes if one.laps), key=lambda one: one.laps)
        ]
        assert min(steps[1]) / max(steps[0]) > 1.9
        assert min(steps[0]) * 64 > 5  # and the slow one is seen to move


def test_bounces_are_turns_at_the_walls():
    seen = Counter()
    for scene in clips("bounces", 300):
        (shape,) = (one for one in scene.shapes if one.bounces is not None)
        points = np.array([shape.position(f) for f in range(8)])
        along = points[:, int(np.ptp(points[:, 1]) > np.ptp(points[:, 0]))]
        places = (along - shape.size / 2) / (1 - shape.size)
        turns = [k for k in range(1, 7) if (places[k] - places[k - 1]) * (places[k + 1] - places[k]) < 0]
        assert len(turns) == shape.bounces
        assert all(min(places[k], 1 - places[k]) < 0.05 for k in turns)
        assert all(abs(places[a] - places[b]) > 0.15 for a, b in pairwise([0, *turns, 7]))  # each leg is seen
        seen[shape.bounces] += 1
    assert set(seen) == {0, 1, 2, 3} and min(seen.values()) > 40


def test_events_are_on_the_pixels_one_after_another():
    kinds = Counter()
    for scene in clips("events", 150):
        tracks = scene_tracks(scene)
        happening = scene.events()
        assert 2 <= len(happening) <= 3
        assert all(second.event.start - first.event.end >= 1 for first, second in pairwise(happening))
        for row, shape in enumerate(scene.shapes):
            steps = np.linalg.norm(tracks.velocity[row], axis=-1)
            if shape.event is None or shape.event.kind in ("blinks", "changes colour"):
                assert not steps.any()
            if shape.event is None:
                continue
            kinds[shape.event.kind] += 1
            if shape.event.kind == "blinks":
                assert np.flatnonzero(~tracks.visible[row]).tolist() == [shape.event.start]
            elif shape.event.kind == "changes colour":
                assert (np.flatnonzero(np.diff(tracks.colour[row])) + 1).tolist() == [shape.event.start]
            elif shape.event.kind == "jumps":
                assert np.flatnonzero(steps).tolist() == [shape.event.start]
                assert steps.max() > 0.3
            else:
                moves = tracks.velocity[row, 1:].sum(axis=1)
                assert (np.flatnonzero(np.diff(np.sign(moves))) + 1).tolist() == [shape.event.start]
                assert steps[1:].min() * 64 > 5
    assert min(kinds.values()) > 30


def test_eight_frames_of_a_longer_clip_show_the_same_events():
    for scene in clips("events", 60, num_frames=32):
        tracks = scene_tracks(scene)
        sampled = [frame * 32 // 8 for frame in range(8)]
        for row, shape in enumerate(scene.shapes):
            if shape.event and shape.event.kind == "blinks":
                assert (~tracks.visible[row, sampled]).sum() == 1
    for scene in clips("bounces", 60, num_frames=32):
        (shape,) = (one for one in scene.shapes if one.bounces is not None)
        points = np.array([shape.position(4 * k) for k in range(8)])
        along = points[:, int(np.ptp(points[:, 1]) > np.ptp(points[:, 0]))]
        assert (np.diff(np.sign(np.diff(along))) != 0).sum() == shape.bounces


def test_changes_of_colour_leave_both_colours_two_frames():
    for scene in clips("recolour", 200):
        tracks = scene_tracks(scene)
        changed = [row for row, shape in enumerate(scene.shapes) if shape.recolour]
        assert 1 <= len(changed) <= 2
        for row in changed:
            _, counts = np.unique(tracks.colour[row], return_counts=True)
            assert len(counts) == 2 and counts.min() >= 2


def test_camera_steps_are_visible_and_overlap():
    moves, cuts = Counter(), 0
    for scene in clips("camera", 300):
        tracks = scene_tracks(scene)
        assert scene.camera is not None
        cuts += scene.camera.cut is not None
        assert np.flatnonzero(tracks.cut).tolist() == ([scene.camera.cut] if scene.camera.cut else [])
        for shot in scene.camera.shots:
            moves[shot.move] += 1
            steps = tracks.camera[shot.first_frame + 1 : shot.end_frame]
            least = SHORT_STEP if len(scene.camera.shots) > 1 else 0
            pan, zoom = np.abs(steps[:, :2]).max(axis=1), np.abs(steps[:, 2])
            if shot.move in ("in", "out"):
                assert zoom.min() >= max(least, ZOOM_STEP[0]) - 1e-6 and zoom.max() <= ZOOM_STEP[1] + 1e-6
                assert pan.max() < 1e-6
                assert (steps[:, 2] > 0).all() == (shot.move == "in")
            elif shot.move != "still":
                assert pan.min() >= max(least, PAN_STEP[0]) - 1e-6 and pan.max() <= PAN_STEP[1] + 1e-6
                sign = np.sign(steps[:, :2].sum(axis=1))
                assert (sign == (1 if shot.move in ("right", "down") else -1)).all()
            else:
                assert not steps.any()
            corners = [shot.window(frame) for frame in (shot.first_frame, shot.end_frame - 1)]
            assert all(v - np.exp(e) / 2 >= 0 and v + np.exp(e) / 2 <= 1 for x, y, e in corners for v in (x, y))
    assert set(moves) == {"left", "right", "up", "down", "in", "out", "still"} and min(moves.values()) > 25
    assert 0.3 < cuts / 300 < 0.5


def test_sizes_and_places_asked_about_differ_clearly():
    rng = split_rng("train", 5)
    asked = Counter()
    for _ in range(200):
        scene = sample_still(rng, STILLS)
        by_name = {f"the {shape.name}": shape for shape in scene.shapes}
        for question in ask_about(scene, rng, 4, ["size"]):
            chosen = by_name[question.answer].size
            others = [by_name[name].size for name in question.candidates if name != question.answer]
            bigger = question.subject.startswith("big")
            ratios = [chosen / other if bigger else other / chosen for other in others]
            assert min(ratios) >= 1.3
            asked["size"] += 1
        for question in ask_about(scene, rng, 6, ["position"]):
            asked[question.answer if question.answer in ("yes", "no") else "most"] += 1
            if question.answer in ("yes", "no"):
                axis = 0 if " left of" in question.text or " right of" in question.text else 1
                more = " right of" in question.text or " below " in question.text
                word = next(w for w in ("to the left of", "to the right of", "above", "below") if w in question.text)
                first, second = (f"the {part.strip()}" for part in question.subject.split(word))
                gap = by_name[first].position(0)[axis] - by_name[second].position(0)[axis]
                assert abs(gap) >= 0.12
                assert (question.answer == "yes") == ((gap > 0) == more)
    assert min(asked.values()) > 25 and 0.4 < asked["yes"] / (asked["yes"] + asked["no"]) < 0.6


def test_impossible_worlds_are_one_line_errors():
    with pytest.raises(ConfigError, match="did you mean 'camera'"):
        SceneOptions(plots=("camra",))
    with pytest.raises(ConfigError, match="needs photographs"):
        SceneOptions(plots=("camera",))
    with pytest.raises(ConfigError, match="at least one plot"):
        SceneOptions(plots=())
    with pytest.raises(ConfigError, match=r"within 0\.\.1"):
        SceneOptions(varied_size_share=2.0)
    with pytest.raises(ConfigError, match="two shapes or more"):
        clips("events", 1, max_shapes=1)
    scene = next(s for s in clips("camera", 5) if s.camera and s.camera.shots[0].source > 0)
    with pytest.raises(ConfigError, match="photographs were given"):
        draw_clip(scene, 64, photos(1))
