"""Scenes: seeds, splits, and distributions that run the same forwards and backwards in time."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from filmstrip.errors import ConfigError
from filmstrip.world import (
    HELD_OUT,
    HELD_OUT_VAL,
    MOTIONS,
    SHAPES,
    SPLITS,
    Scene,
    SceneOptions,
    ask_about,
    reverse,
    sample_clip,
    sample_still,
    split_rng,
)
from filmstrip.world.facts import AXIS, COLOUR_NAMES, OPPOSITE
from filmstrip.world.sample import TICKS, _staggered

PLAIN = SceneOptions(plots=("plain",), staggered_share=0.6, varied_size_share=0.0)


def clips(count, split="train", seed=0, **options):
    rng = split_rng(split, seed)
    return [sample_clip(rng, split, replace(PLAIN, **options)) for _ in range(count)]


def kinds(scene: Scene):
    return {(shape.colour, shape.shape, shape.motion) for shape in scene.shapes}


def test_equal_seeds_give_equal_scenes_and_splits_differ():
    assert clips(20) == clips(20)
    assert clips(5, "train") != clips(5, "val")
    first = [sample_still(split_rng(split, 0)) for split in SPLITS]
    assert len(set(first)) == len(SPLITS)


def test_training_never_shows_a_held_out_combination():
    seen = set().union(*(kinds(scene) for scene in clips(1500, "train")))
    everything = {(colour, shape, motion) for colour in COLOUR_NAMES for shape in SHAPES for motion in MOTIONS}
    assert seen == everything - set(HELD_OUT) - set(HELD_OUT_VAL)


@pytest.mark.parametrize(("split", "own", "others"), [("test", HELD_OUT, ()), ("val", HELD_OUT_VAL, HELD_OUT)])
def test_every_clip_of_the_other_splits_shows_what_is_held_out_for_it(split, own, others):
    for scene in clips(500, split):
        assert kinds(scene) & set(own) and not kinds(scene) & set(others)


@pytest.mark.parametrize(("held_out", "low", "high"), [(HELD_OUT, 0.08, 0.13), (HELD_OUT_VAL, 0.05, 0.08)])
def test_held_out_combinations_are_closed_under_reversal_and_leave_every_name_in_training(held_out, low, high):
    assert low <= len(held_out) / (len(COLOUR_NAMES) * len(SHAPES) * len(MOTIONS)) <= high
    assert {(colour, shape, OPPOSITE[motion]) for colour, shape, motion in held_out} == set(held_out)
    for position, known in enumerate((COLOUR_NAMES, SHAPES, MOTIONS)):
        assert {combination[position] for combination in held_out} == set(known)


def test_every_colour_shape_pair_keeps_two_of_its_three_axes_in_training():
    groups = Counter((c, s) for c, s, _ in {(c, s, AXIS[m]) for c, s, m in HELD_OUT + HELD_OUT_VAL})
    assert max(groups.values()) == 1


def test_unknown_split_and_impossible_options_are_one_line_errors():
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        split_rng("trian", 0)
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        sample_clip(np.random.default_rng(0), "dev")
    with pytest.raises(ConfigError, match="at least 8 frames, not 4"):
        clips(1, num_frames=4)
    with pytest.raises(ConfigError, match="1 to 4 shapes"):
        SceneOptions(max_shapes=9)
    with pytest.raises(ConfigError, match="does not fit"):
        SceneOptions(travel=(0.5, 0.9))


@pytest.mark.parametrize("num_frames", [8, 13, 32])
def test_shapes_stay_inside_move_far_enough_and_hardly_overlap(num_frames):
    overlapping = pairs = 0
    for scene in clips(300, num_frames=num_frames):
        for shape in scene.shapes:
            points = np.array([shape.position(f) for f in range(num_frames) if shape.visible(f)])
            assert points.min() >= shape.size / 2 - 1e-9
            assert points.max() <= 1 - shape.size / 2 + 1e-9
            moved = points[-1] - points[0]
            if shape.motion == "still":
                assert not moved.any()
            else:
                along, across = (0, 1) if shape.motion in ("left", "right") else (1, 0)
                assert 0.36 <= abs(moved[along]) <= 0.60 + 1e-9
                assert abs(moved[across]) <= 0.03
        for frame in range(num_frames):
            seen = [shape for shape in scene.shapes if shape.visible(frame)]
            for i, one in enumerate(seen):
                for other in seen[:i]:
                    gap = np.hypot(*np.subtract(one.position(frame), other.position(frame)))
                    pairs += 1
                    overlapping += gap < (one.size + other.size) / 2
    assert overlapping / pairs < 0.06  # 3 % measured


def test_no_two_shapes_of_a_scene_have_one_name():
    rng = np.random.default_rng(0)
    scenes = clips(500) + clips(200, "test") + [sample_still(rng) for _ in range(500)]
    for scene in scenes:
        assert len({shape.name for shape in scene.shapes}) == len(scene.shapes)
    twice = sum(len({shape.colour for shape in scene.shapes}) < len(scene.shapes) for scene in scenes)
    assert 0.05 < twice / len(scenes) < 0.3


def test_reversing_twice_is_the_same_scene():
    for scene in clips(100):
        assert reverse(reverse(scene)) == scene


def test_staggered_timings_are_closed_under_reversal():
    for count in (2, 3, 4):
        spans = set(_staggered(count))
        backwards = {tuple((TICKS - end, TICKS - start) for start, end in reversed(one)) for one in spans}
        assert len(spans) > 1
        assert spans == backwards


def frame_set(scene: Scene):
    """Per shape, what the frames say about its timing when their order is lost: how often, alone, with which."""
    frames = [{s.name for s in scene.shapes if s.visible(f)} for f in range(scene.num_frames)]
    features = {}
    for shape in scene.shapes:
        together = sorted(len(seen) for seen in frames if shape.name in seen)
        features[f"the {shape.name}"] = (*together,)
    return features


def order_questions(seed, count):
    rng = split_rng("train", seed)
    for _ in range(count):
        scene = sample_clip(rng, "train", PLAIN)
        for question in ask_about(scene, rng, 1, ["order"]):
            yield scene, question


def test_the_set_of_frames_does_not_tell_the_order():
    table: dict = {}
    for scene, question in order_questions(1, 2000):
        features = frame_set(scene)
        key = (question.subject, tuple(sorted(features.values())))
        table.setdefault(key, Counter())[features[question.answer]] += 1
    right, total = 0.0, 0
    for scene, question in order_questions(2, 2000):
        features = frame_set(scene)
        key = (question.subject, tuple(sorted(features.values())))
        if key in table:
            best = table[key].most_common(1)[0][0]
            guesses = [name for name, feature in features.items() if feature == best]
            right += (question.answer in guesses) / len(guesses)
        total += 1
    assert total > 700
    assert right / total < 0.57  # 0.5 by construction; four standard errors of 850 answers are 0.07


def test_order_is_asked_only_where_the_reversed_clip_has_another_answer():
    for scene, question in order_questions(3, 500):
        assert question.reversed_answer != question.answer
        again = {q.subject: q for q in ask_about(reverse(scene), np.random.default_rng(0), 2, ["order"] * 6)}
        if question.subject in again:
            assert again[question.subject].answer == question.reversed_answer


def test_eight_frames_of_a_longer_clip_keep_its_order():
    for scene in clips(200, num_frames=32):
        eighths = [(s.first_frame / 4, s.end_frame / 4) for s in scene.shapes]
        assert all(start.is_integer() and end.is_integer() for start, end in eighths)


def test_path_of_several_legs_passes_its_points_at_even_intervals():
    shape = clips(1)[0].shapes[0]
    bent = replace(shape, path=((0.2, 0.2), (0.8, 0.2), (0.8, 0.6)), first_frame=1, end_frame=6)
    np.testing.assert_allclose(bent.position(1), (0.2, 0.2))
    np.testing.assert_allclose(bent.position(2), (0.5, 0.2))
    np.testing.assert_allclose(bent.position(3), (0.8, 0.2))
    np.testing.assert_allclose(bent.position(5), (0.8, 0.6))
