"""The camera's pixels: displacements below a pixel, the right way round, no aliasing; and the tracks' labels."""

import math
from dataclasses import replace

import numpy as np
import pytest

from filmstrip.errors import ConfigError
from filmstrip.world import CLIPS, draw_clip, draw_shot, sample_clip, sample_shot, scene_tracks
from filmstrip.world.camera import Shot, turn_picture
from filmstrip.world.facts import CAMERA_MOVES, COLOUR_NAMES


def waves(height=400, width=400, period=60.0):
    """A picture of smooth waves along x (red), y (green) and both (blue), whose shifts can be measured."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(2 * np.pi * part / period) for part in (x, y, x + y)]
    return (128 + 90 * np.stack(channels, axis=-1)).astype(np.uint8)


def phase(row, per_cycle):
    """Where a wave along the first axis of `row` stands, in samples."""
    count = int(len(row) // per_cycle * per_cycle)
    turn = np.exp(-2j * np.pi * np.arange(count) / per_cycle)
    return -np.angle((row[:count] * turn).sum()) * per_cycle / (2 * np.pi)


def still_shot(x, y, edge, frames=1):
    return Shot("still", (x, y, math.log(edge)), (x, y, math.log(edge)), 0, frames)


def test_windows_lie_between_pixels_as_exactly_as_floats():
    photo = waves()
    base = draw_shot(still_shot(0.5, 0.5, 0.6), [photo], 80)[0, 40, :, 0].astype(float)
    per_cycle = 60 / (400 * 0.6 / 80)  # drawn pixels per wave
    for shift in (0.1, 0.25, 0.5, 1.5, 3.0):  # in drawn pixels
        moved = draw_shot(still_shot(0.5 + shift * 0.6 / 80, 0.5, 0.6), [photo], 80)[0, 40, :, 0].astype(float)
        measured = phase(base - base.mean(), per_cycle) - phase(moved - moved.mean(), per_cycle)
        assert measured == pytest.approx(shift, abs=0.02)


@pytest.mark.parametrize("size", [16, 64, 200])
def test_nothing_aliases_and_edges_are_whole(size):
    """A fine chessboard becomes grey, a plain picture stays what it is up to its borders."""
    board = np.kron(np.indices((400, 400)).sum(axis=0) % 2, np.ones((1, 1)))[..., None] * np.full(3, 255)
    if size < 100:
        seen = draw_shot(still_shot(0.5, 0.5, 1.0), [board.astype(np.uint8)], size)
        assert np.abs(seen.astype(int) - 128).max() <= 12
    plain = np.full((300, 500, 3), (10, 120, 250), np.uint8)
    seen = draw_shot(replace(still_shot(0.5, 0.5, 1.0), place=1.0), [plain], size)
    assert (seen == plain[0, 0]).all()


@pytest.mark.parametrize("move", CAMERA_MOVES)
@pytest.mark.parametrize("turned", [False, True])
def test_the_picture_moves_against_the_camera(move, turned):
    """The best match of the second frame within the first lies where the tracks say."""
    rng = np.random.default_rng(5)
    photo = np.kron(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    for _ in range(3):
        shot = sample_shot(rng, move, (0, 8), 8, turned=turned)
        frames = draw_shot(shot, [photo], 128).astype(float).mean(axis=-1)
        first, last = shot.window(0), shot.window(7)
        if move in ("in", "out"):
            wide, narrow = (frames[0], frames[7]) if move == "in" else (frames[7], frames[0])
            share = math.exp(-abs(first[2] - last[2]))
            edge = round(128 * share)
            low = (128 - edge) // 2
            centre = wide[low : low + edge, low : low + edge]
            index = ((np.arange(edge) + 0.5) * 128 / edge).astype(int)
            assert np.corrcoef(centre.ravel(), narrow[np.ix_(index, index)].ravel())[0, 1] > 0.8
            continue
        dx = round((last[0] - first[0]) / math.exp(first[2]) * 128)
        dy = round((last[1] - first[1]) / math.exp(first[2]) * 128)
        before = frames[0][max(dy, 0) : 128 + min(dy, 0), max(dx, 0) : 128 + min(dx, 0)]
        after = frames[7][max(-dy, 0) : 128 + min(-dy, 0), max(-dx, 0) : 128 + min(-dx, 0)]
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95
        if move == "still":
            assert (frames == frames[0]).all()
        else:
            assert {"left": dx < 0, "right": dx > 0, "up": dy < 0, "down": dy > 0}[move]
            assert np.corrcoef(frames[0].ravel(), frames[7].ravel())[0, 1] < 0.8


def test_the_eight_turns_are_different_views_of_one_picture():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    seen = {(turn_picture(picture, turn).shape, turn_picture(picture, turn).tobytes()) for turn in range(8)}
    assert len(seen) == 8
    assert all(sorted(turn_picture(picture, turn).ravel()) == sorted(picture.ravel()) for turn in range(8))


def test_footage_runs_on_while_the_camera_moves():
    frames = [np.full((90, 120, 3), 20 * number, np.uint8) for number in range(8)]
    seen = draw_shot(sample_shot(np.random.default_rng(0), "left", (0, 8), 8), frames, 64)
    assert seen.mean(axis=(1, 2, 3)).tolist() == [20 * number for number in range(8)]
    with pytest.raises(ConfigError, match="3 pictures for a shot of 8 frames"):
        draw_shot(sample_shot(np.random.default_rng(0), "left", (0, 8), 8), frames[:3], 64)


def test_shapes_stand_out_and_photographs_are_dulled_behind_them():
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (200, 260, 3), dtype=np.uint8) for _ in range(2)]
    world = replace(CLIPS, plots=("camera",), num_photos=2)
    counts = {False: 0, True: 0}
    for _ in range(60):
        scene = sample_clip(rng, "train", world)
        frames = draw_clip(replace(scene, shapes=scene.shapes[:1]), 64, photos)
        counts[bool(scene.shapes)] += 1
        for shape in scene.shapes[:1]:
            x, y = (round(64 * part) for part in shape.position(0))
            assert np.abs(frames[:, y, x].astype(int) - np.array(shape.rgb)).max() <= 1
    assert min(counts.values()) > 15


def test_tracks_name_every_shape_in_every_frame():
    rng = np.random.default_rng(2)
    world = replace(CLIPS, num_photos=2)
    for _ in range(150):
        scene = sample_clip(rng, "train", world)
        tracks = scene_tracks(scene)
        assert tracks.visible.shape == (len(scene.shapes), 8) and tracks.camera.shape == (8, 3)
        assert (tracks.colour > 0).tolist() == tracks.visible.tolist()
        assert not tracks.centre[~tracks.visible].any()
        for row, shape in enumerate(scene.shapes):
            for frame in np.flatnonzero(tracks.visible[row]).tolist():
                assert COLOUR_NAMES[tracks.colour[row, frame] - 1] == shape.colour_at(frame)
                np.testing.assert_allclose(tracks.centre[row, frame], shape.position(frame), atol=1e-6)
        seen = tracks.visible[:, 1:] & tracks.visible[:, :-1]
        steps = np.diff(tracks.centre, axis=1)
        np.testing.assert_allclose(tracks.velocity[:, 1:], np.where(seen[..., None], steps, 0), atol=1e-6)
        assert not tracks.velocity[:, 0].any() and not tracks.camera[0].any()
