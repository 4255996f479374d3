"""Drawing, checked on the pixels: truth, antialiasing, sizes, backgrounds, damage and dense labels."""

from dataclasses import replace

import numpy as np
import pytest

from filmstrip.errors import ConfigError
from filmstrip.world import (
    COLOUR_NAMES,
    COLOURS,
    SHAPES,
    Background,
    Scene,
    SceneOptions,
    Shape,
    augment_clip,
    augment_stills,
    dense_labels,
    draw_clip,
    draw_stills,
    reverse,
    sample_clip,
    sample_still,
)

GREY = Background("plain", (60.0, 60.0, 60.0), (60.0, 60.0, 60.0))


def photos():
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (200, 150, 3), dtype=np.uint8), rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)]


def still(*shapes):
    """A picture of (shape, colour, size, x, y), later ones on top."""
    drawn = [
        Shape(shape, colour, size, "still", ((x, y),), 0, 1, COLOURS[colour]) for shape, colour, size, x, y in shapes
    ]
    return Scene(tuple(drawn), GREY, 1)


def near(frame, rgb, tolerance=24):
    return np.abs(frame.astype(int) - np.array(rgb)).max(axis=-1) <= tolerance


def plain_clips(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = sample_clip(rng, "train", SceneOptions(plots=("plain",)))
        if len({shape.colour for shape in scene.shapes}) == len(scene.shapes):
            yield replace(scene, background=GREY)


def test_equal_seeds_give_equal_bytes():
    def render():
        rng = np.random.default_rng(3)
        options = SceneOptions(num_photos=2)
        frames = [augment_clip(draw_clip(sample_clip(rng, "train", options), 64, photos()), rng) for _ in range(12)]
        return np.stack(frames)

    first = render()
    assert first.dtype == np.uint8
    assert first.shape == (12, 8, 64, 64, 3)
    assert first.tobytes() == render().tobytes()


def test_reversed_scene_draws_the_reversed_clip():
    rng = np.random.default_rng(4)
    for _ in range(40):
        scene = sample_clip(rng)
        np.testing.assert_array_equal(draw_clip(reverse(scene)), draw_clip(scene)[::-1])


def test_the_drawn_colour_moves_the_way_the_scene_says():
    steps = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
    checked = set()
    for scene in plain_clips(120):
        frames = draw_clip(scene)
        for shape in scene.shapes:
            centres = []
            for frame in frames:
                rows, columns = np.nonzero(near(frame, shape.rgb))
                if len(rows) > 20:
                    centres.append((columns.mean(), rows.mean()))
            moved = np.subtract(centres[-1], centres[0])
            # The main part of the way is at least 22 of 64 pixels; an occluded corner shifts a centroid by a few.
            expected = np.array(steps[shape.motion])
            assert moved @ expected >= 18 or shape.motion == "still"
            assert np.abs(moved[expected == 0]).max() < 6
            checked.add(shape.motion)
    assert len(checked) == 5


def test_the_drawn_colour_is_there_in_the_frames_the_scene_says():
    for scene in plain_clips(80, seed=1):
        frames = draw_clip(scene)
        for shape in scene.shapes:
            seen = [f for f, frame in enumerate(frames) if near(frame, shape.rgb).sum() > 20]
            assert seen == list(range(shape.first_frame, shape.end_frame))
        first_seen = {s: min(f for f in range(8) if near(frames[f], s.rgb).sum() > 20) for s in scene.shapes}
        last = scene.appears_last()
        if last is not None:
            assert all(first_seen[last] > frame for shape, frame in first_seen.items() if shape is not last)


def count_blobs(mask):
    """Connected components of a boolean picture; pixels that share a corner are connected, as at a star's tip."""
    left = {tuple(point) for point in np.argwhere(mask)}
    blobs = 0
    while left:
        blobs += 1
        front = [left.pop()]
        while front:
            row, column = front.pop()
            around = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= around
            front.extend(around)
    return blobs


def test_the_number_of_shapes_is_the_number_of_blobs():
    rng = np.random.default_rng(5)
    options = SceneOptions(num_frames=1, max_shapes=4, size=(0.1, 0.14), varied_size_share=0.0)
    counts = []
    for _ in range(40):
        scene = replace(sample_still(rng, options), background=GREY)
        points = np.array([shape.position(0) for shape in scene.shapes])
        gaps = np.hypot(*(points[:, None] - points).transpose(2, 0, 1)) + np.eye(len(points))
        if gaps.min() > 0.14 * 1.3:  # corners reach 1.28 half sizes out
            counts.append(len(points))
            assert count_blobs(~near(draw_clip(scene)[0], (60, 60, 60), 4)) == len(points)
    assert set(counts) == {1, 2, 3, 4}


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_antialiased(shape):
    picture = draw_clip(still((shape, "yellow", 0.3, 0.503, 0.497)))[0].astype(float)
    cover = (picture[..., 0] - 60) / (COLOURS["yellow"][0] - 60)
    edge = (cover > 0.02) & (cover < 0.98)
    inside = cover >= 0.98
    assert inside.sum() > 40
    assert edge.sum() >= 12
    # The drawn area agrees with a drawing eight times as fine: coverage is the covered part of a pixel.
    fine = draw_clip(still((shape, "yellow", 0.3, 0.503, 0.497)), 512)[0].astype(float)
    area = ((fine[..., 0] - 60) / (COLOURS["yellow"][0] - 60)).sum() / 64
    assert cover.sum() == pytest.approx(area, rel=0.02)


def test_a_scene_is_the_same_at_any_size():
    rng = np.random.default_rng(6)
    for _ in range(12):
        scene = sample_clip(rng)
        large = draw_clip(scene, 256).astype(float)
        small = large.reshape(8, 64, 4, 64, 4, 3).mean(axis=(2, 4))
        # Pixels differ at outlines only, where coverage is linear in the distance instead of exact.
        assert np.abs(small - draw_clip(scene)).mean() < 1.0


def test_later_shapes_hide_earlier_ones():
    scene = still(("square", "red", 0.3, 0.5, 0.5), ("circle", "blue", 0.3, 0.5, 0.5))
    picture = draw_clip(scene)[0]
    np.testing.assert_array_equal(picture[32, 32], COLOURS["blue"])
    assert near(picture, COLOURS["red"]).any()


def test_stills_drawn_together_are_stills_drawn_alone():
    rng = np.random.default_rng(8)
    scenes = [sample_still(rng, SceneOptions(max_shapes=4, num_photos=2)) for _ in range(30)]
    alone = np.concatenate([draw_clip(scene, 64, photos()) for scene in scenes])
    np.testing.assert_array_equal(draw_stills(scenes, 64, photos()), alone)


def test_backgrounds_are_dull_and_of_all_kinds():
    rng = np.random.default_rng(9)
    pictures = {}
    for _ in range(80):
        scene = sample_still(rng, SceneOptions(num_photos=2))
        ground = draw_clip(replace(scene, shapes=()), 64, photos())[0].astype(int)
        pictures.setdefault(scene.background.kind, []).append(ground)
        chroma = np.median(ground.max(axis=-1) - ground.min(axis=-1))
        assert chroma <= 45  # shape colours are at least 130 apart between their channels
    assert set(pictures) == {"plain", "gradient", "texture", "photo"}
    assert all(ground.std(axis=(0, 1)).max() == 0 for ground in pictures["plain"])
    assert all(ground.std() > 3 for ground in pictures["photo"])


def test_missing_or_odd_photographs_and_bad_sizes_are_one_line_errors():
    scene = replace(still(), background=Background("photo", (90.0, 90.0, 90.0), (90.0, 90.0, 90.0), 1, 1))
    with pytest.raises(ConfigError, match="photograph 1, but 1 photographs were given"):
        draw_clip(scene, 64, photos()[:1])
    with pytest.raises(ConfigError, match=r"uint8 \(height, width, 3\)"):
        draw_clip(replace(scene, background=replace(scene.background, photo=0)), 64, [np.zeros((40, 40))])
    with pytest.raises(ConfigError, match="not 4096"):
        draw_clip(scene, 4096, photos())


def test_augmentation_is_mild_and_nothing_at_strength_zero():
    rng = np.random.default_rng(10)
    frames = draw_clip(sample_clip(rng))
    assert augment_clip(frames, rng, 0.0) is frames
    for _ in range(20):
        damaged = augment_clip(frames, rng)
        assert damaged.dtype == np.uint8
        assert damaged.shape == frames.shape
        assert not np.array_equal(damaged, frames)
        assert np.abs(damaged.astype(int) - frames).mean() < 30
    many = augment_stills(np.repeat(frames[:1], 64, axis=0), rng)
    assert many.mean(axis=(1, 2, 3)).std() > 3  # each picture has its own brightness


def test_dense_labels_say_what_which_colour_and_where():
    # On a grid of 4 x 4 patches of 16 pixels, the circle fills patch (row 1, column 1) around its centre (26, 24).
    scene = still(("circle", "green", 0.3, 26 / 64, 24 / 64), ("star", "red", 0.25, 56 / 64, 56 / 64))
    labels = dense_labels([(scene, 0)], 16)
    assert labels.shape.shape == (1, 16)
    assert labels.shape[0, 5] == 1 + SHAPES.index("circle")
    assert labels.colour[0, 5] == 1 + COLOUR_NAMES.index("green")
    np.testing.assert_allclose(labels.offset[0, 5], (2 / 16, 0), atol=1e-6)
    assert labels.shape[0, 15] == 1 + SHAPES.index("star")
    assert labels.colour[0, 15] == 1 + COLOUR_NAMES.index("red")
    assert labels.shape[0, 12] == labels.colour[0, 12] == 0
    assert not labels.offset[0, 12].any()
    assert labels.colour_present[0].nonzero()[0].tolist() == [COLOUR_NAMES.index("red"), COLOUR_NAMES.index("green")]
    np.testing.assert_allclose(labels.colour_centre[0, COLOUR_NAMES.index("green")], (26 / 64, 24 / 64), atol=1e-6)
    np.testing.assert_allclose(labels.shape_centre[0, SHAPES.index("star")], (56 / 64, 56 / 64), atol=1e-6)


def test_a_class_with_two_shapes_is_present_but_has_no_one_centre():
    scene = still(("circle", "green", 0.3, 0.25, 0.25), ("star", "green", 0.3, 0.75, 0.75))
    labels = dense_labels([(scene, 0)], 8)
    green = COLOUR_NAMES.index("green")
    assert labels.colour_present[0, green]
    assert not labels.colour_located[0, green]
    assert not labels.colour_centre[0, green].any()
    assert labels.shape_located[0].sum() == 2


def test_dense_labels_agree_with_the_pixels():
    rng = np.random.default_rng(11)
    scenes = [replace(sample_still(rng), background=GREY) for _ in range(40)]
    labels = dense_labels([(scene, 0) for scene in scenes], 16)
    frames = draw_stills(scenes)
    for number, scene in enumerate(scenes):
        for patch in range(16):
            row, column = divmod(patch, 4)
            pixels = frames[number, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            covered = {s.colour: near(pixels, s.rgb, 30).mean() for s in scene.shapes}
            colour = labels.colour[number, patch]
            if colour == 0:
                assert max(covered.values()) < 0.06
            else:
                assert covered[COLOUR_NAMES[colour - 1]] >= max(covered.values()) - 0.04
    visible = dense_labels([(scenes[0], 0), (scenes[1], 0)], 16)
    np.testing.assert_array_equal(visible.offset, labels.offset[:2])  # a batch is its pictures


def test_labels_follow_the_frame():
    scene = next(s for s in plain_clips(200, seed=2) if any(x.first_frame > 0 for x in s.shapes))
    late = next(shape for shape in scene.shapes if shape.first_frame > 0)
    labels = dense_labels([(scene, frame) for frame in range(8)], 16)
    seen = labels.colour_present[:, COLOUR_NAMES.index(late.colour)]
    assert seen.tolist() == [late.visible(frame) for frame in range(8)]
    with pytest.raises(ConfigError, match="do not tile"):
        dense_labels([(scene, 0)], 15)
