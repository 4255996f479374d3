"""Labels of what moves, against scenes whose movement is known and against pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from filmstrip.training.batches import IGNORE
from filmstrip.training.motion import (
    ABSENT,
    DOWN,
    GONE,
    LEFT,
    NEW,
    NUM_COLOURS,
    PATHS,
    RIGHT,
    STILL,
    SUMMARY,
    UP,
    MotionLabels,
    balanced_l1,
    mean_l1,
    motion_labels,
)
from filmstrip.training.photos import TRAIN_PHOTOS, load_photos
from filmstrip.world import (
    CAMERA_MOVES,
    CLIPS,
    COLOUR_NAMES,
    EVENTS,
    SHAPES,
    Background,
    Camera,
    Scene,
    Shape,
    Shot,
    dense_labels,
    draw_clip,
    sample_clip,
)
from filmstrip.world.scene import Event, Recolour

GREY = Background("plain", (90.0, 90.0, 90.0), (90.0, 90.0, 90.0))
RED, BLUE = COLOUR_NAMES.index("red"), COLOUR_NAMES.index("blue")


def star(**changes: object) -> Shape:
    shape = Shape("star", "red", 0.3, "left", ((0.8, 0.5), (0.2, 0.5)), 2, 6, (222, 36, 42))
    return replace(shape, **changes)  # type: ignore[arg-type]


def labels_of(scene: Scene) -> MotionLabels:
    return motion_labels([scene], 16, 64)


def test_states_tell_what_frames_up_to_now_tell() -> None:
    twins = [star(colour="blue"), star(colour="blue", shape="cross")]
    labels = labels_of(Scene((star(), *twins), GREY, 8))
    assert labels.state[0, :, RED].tolist() == [ABSENT, ABSENT, NEW, LEFT, LEFT, LEFT, GONE, GONE]
    torch.testing.assert_close(labels.velocity[0, 3:6, RED], torch.tensor([[-2.0, 0.0]] * 3))
    assert labels.velocity_counts[0, :, RED].tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert (labels.state[0, :, BLUE] == IGNORE).all()
    assert not labels.velocity_counts[0, :, BLUE].any()


def test_states_name_all_directions_and_rest() -> None:
    paths = {UP: ((0.5, 0.8), (0.5, 0.2)), DOWN: ((0.5, 0.2), (0.5, 0.8)), STILL: ((0.5, 0.5), (0.5, 0.5))}
    paths[RIGHT] = ((0.2, 0.5), (0.8, 0.5))
    for state, path in paths.items():
        labels = labels_of(Scene((star(path=path, first_frame=0, end_frame=8),), GREY, 8))
        assert labels.state[0, :, RED].tolist() == [NEW] + [state] * 7


def test_every_patch_is_told_what_it_shows() -> None:
    """What nobody asks for is forgotten: a stage on movement alone would wear shapes away."""
    rng = np.random.default_rng(4)
    scenes = [sample_clip(rng) for _ in range(4)]
    labels = motion_labels(scenes, 16, 64)
    for index, scene in enumerate(scenes):
        dense = dense_labels([(scene, frame) for frame in range(8)], 16)
        assert np.array_equal(labels.patch_shape[index].numpy(), dense.shape)
        assert np.array_equal(labels.patch_colour[index].numpy(), dense.colour)
    assert len(labels.patch_shape.unique()) == 1 + len(SHAPES)


def test_a_jump_is_bounded() -> None:
    far = star(path=((0.2, 0.5), (0.8, 0.5)), first_frame=0, end_frame=2)
    assert labels_of(Scene((far,), GREY, 8)).velocity[0, 1, RED].tolist() == [2.0, 0.0]


def test_a_summary_tells_the_whole_clip() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        scene = sample_clip(rng, "train", CLIPS)
        summary = labels_of(scene).summary[0]
        for shape in scene.shapes:
            facts = dict(zip(SUMMARY, summary[COLOUR_NAMES.index(shape.colour)].tolist(), strict=True))
            if facts["path"] == IGNORE:
                assert [one.colour for one in scene.shapes].count(shape.colour) > 1
                continue
            assert (SHAPES[facts["partner"]], PATHS[facts["path"]]) == (shape.shape, shape.motion)
            assert (facts["laps"], facts["bounces"]) == (shape.laps, shape.bounces or 0)
            assert (facts["first"], facts["end"]) == (shape.first_frame, shape.end_frame)
            kind = "changes colour" if shape.recolour is not None else shape.event and shape.event.kind
            assert facts["event"] == (0 if kind is None else 1 + EVENTS.index(kind))
            seen.add(shape.motion)
        absent = NUM_COLOURS - len({shape.colour for shape in scene.shapes})
        assert (summary == IGNORE).all(-1).sum() >= absent
    assert seen == set(PATHS)


def test_a_summary_tells_a_shape_by_its_kind_too() -> None:
    turning = Recolour(4, "green", (0.0, 200.0, 0.0))
    shapes = (
        star(path=((0.2, 0.8),), size=0.3, recolour=turning),
        star(shape="circle", path=((0.6, 0.6),), size=0.2),
        star(shape="circle", colour="blue", path=((0.8, 0.2),), size=0.4),
    )
    summary = labels_of(Scene(shapes, GREY, 8)).summary[0]
    by_kind = {
        name: dict(zip(SUMMARY, summary[NUM_COLOURS + SHAPES.index(name)].tolist(), strict=True)) for name in SHAPES
    }
    facts = by_kind["star"]
    assert COLOUR_NAMES[facts["partner"]] == "red"
    assert COLOUR_NAMES[facts["becomes"] - 1] == "green"
    # Two circles: the kind tells neither, and of the two red ones neither is told by its colour.
    assert set(by_kind["circle"].values()) == {IGNORE} == set(summary[RED].tolist())
    blue = dict(zip(SUMMARY, summary[COLOUR_NAMES.index("blue")].tolist(), strict=True))
    assert (SHAPES[blue["partner"]], blue["becomes"]) == ("circle", 0)
    measures = labels_of(Scene(shapes, GREY, 8)).measures[0]
    expected = {NUM_COLOURS + SHAPES.index("star"): [3.0, 2.0, 8.0], COLOUR_NAMES.index("blue"): [4.0, 8.0, 2.0]}
    for name, row in enumerate(measures):
        torch.testing.assert_close(row, torch.tensor(expected.get(name, [0.0] * 3)))


def test_each_frame_tells_what_has_happened_by_then() -> None:
    blinking = star(first_frame=0, end_frame=8, gap=(1, 3), event=Event("blinks", 1, 3))
    jumping = star(shape="cross", colour="blue", first_frame=0, end_frame=8, event=Event("jumps", 5, 5))
    turning = replace(jumping, shape="circle", event=None, recolour=Recolour(6, "green", (0.0, 200.0, 0.0)))
    labels = labels_of(Scene((jumping, blinking, turning), GREY, 8))
    kinds = {kind: 1 + EVENTS.index(kind) for kind in EVENTS}
    by_kind = {shape: labels.happened[0, :, NUM_COLOURS + SHAPES.index(shape)].tolist() for shape in SHAPES}
    assert by_kind["star"] == [0] * 3 + [kinds["blinks"]] * 5 == labels.happened[0, :, RED].tolist()
    assert by_kind["cross"] == [0] * 5 + [kinds["jumps"]] * 3
    assert by_kind["circle"] == [0] * 6 + [kinds["changes colour"]] * 2
    assert set(by_kind["square"]) == {IGNORE} == set(labels.happened[0, :, BLUE].tolist())  # none, and two
    star_, cross, circle = (1 + SHAPES.index(name) for name in ("star", "cross", "circle"))
    assert labels.latest[0].tolist() == [0] * 3 + [star_] * 2 + [cross] + [circle] * 2
    at_once = replace(turning, recolour=Recolour(5, "green", (0.0, 200.0, 0.0)))
    assert (
        labels_of(Scene((jumping, blinking, at_once), GREY, 8)).latest[0].tolist()
        == [0] * 3 + [star_] * 2 + [IGNORE] * 3
    )


def test_what_has_happened_in_the_end_is_the_clips_order_of_events() -> None:
    rng = np.random.default_rng(3)
    orders = 0
    for _ in range(60):
        scene = sample_clip(rng, "train", CLIPS)
        labels, events = labels_of(scene), scene.events()
        order = [kind for kind, before in zip(labels.latest[0, 1:], labels.latest[0], strict=False) if kind != before]
        if events:
            assert [SHAPES[kind - 1] for kind in order] == [shape.shape for shape in events]
            orders += 1
        summary = labels.summary[0, :, list(SUMMARY).index("event")]
        assert torch.equal(labels.happened[0, -1], summary)
    assert orders > 5


def test_a_camera_that_pans_moves_the_ground_the_other_way() -> None:
    shot = Shot("right", (0.4, 0.5, math.log(0.5)), (0.4 + 7 * 0.05, 0.5, math.log(0.5)), 0, 8)
    labels = labels_of(Scene((), GREY, 8, "camera", Camera((shot,))))
    torch.testing.assert_close(labels.flow[0, 1:], torch.tensor([-1.0, 0.0]).expand(7, 16, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(labels.camera[0, 1:], torch.tensor([1.0, 0.0, 0.0]).expand(7, 3), atol=1e-5, rtol=0)
    assert labels.flow_counts[0].sum(-1).tolist() == [0] + [16] * 7
    assert labels.shots[0].tolist() == [CAMERA_MOVES.index("right")] * 2 + [0]


def test_flow_carries_one_frame_onto_the_next() -> None:
    """Pixels fetched from where the labels say they were are the frame's own; from where they are now, are not."""
    photos = load_photos(TRAIN_PHOTOS)
    options = replace(CLIPS, plots=("camera",), num_photos=len(photos))
    rng = np.random.default_rng(3)
    found = dict.fromkeys(CAMERA_MOVES, 0)
    while min(found.values()) < 2:
        scene = sample_clip(rng, "train", options)
        move = scene.camera.shots[0].move if scene.camera else "still"
        if scene.shapes or found[move] == 2:
            continue
        found[move] += 1
        frames = torch.from_numpy(draw_clip(scene, 64, photos)[:3]).movedim(-1, 1).float()
        flow = labels_of(scene).flow[0, 1:3].unflatten(1, (4, 4)).movedim(-1, 1) / 10
        fine = torch.nn.functional.interpolate(flow, size=64, mode="bilinear", align_corners=False)
        steps = (torch.arange(64) + 0.5) / 64
        here = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        fetched = torch.nn.functional.grid_sample(
            frames[:2], (here - fine.movedim(1, -1)) * 2 - 1, padding_mode="border", align_corners=False
        )
        inner = (..., slice(12, 52), slice(12, 52))  # what was outside of the frame before cannot be fetched
        error, moved = ((frames[1:] - other)[inner].abs().mean() for other in (fetched, frames[:2]))
        assert move == "still" or error < 0.6 * moved, (move, error, moved)


def test_a_cut_is_marked_and_no_movement() -> None:
    still = Shot("still", (0.5, 0.5, math.log(0.5)), (0.5, 0.5, math.log(0.5)), 0, 3)
    after = Shot("in", (0.5, 0.5, math.log(0.6)), (0.5, 0.5, math.log(0.4)), 3, 8, source=1)
    labels = labels_of(Scene((), GREY, 8, "camera", Camera((still, after))))
    assert labels.cut[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert labels.camera_counts[0].tolist() == [False, True, True, False, True, True, True, True]
    assert (labels.camera[0, 4:, 2] > 0.9).all()
    assert labels.shots[0].tolist() == [CAMERA_MOVES.index("still"), CAMERA_MOVES.index("in"), 3]


def test_what_rests_does_not_drown_what_moves() -> None:
    true = torch.tensor([[1.0, 0.0], *[[0.0, 0.0]] * 9])
    counts = torch.ones(10, dtype=torch.bool)
    nothing = torch.zeros(10, 2)
    assert balanced_l1(nothing, true, counts).item() == 0.5
    assert mean_l1(nothing, true, counts).item() == pytest.approx(0.05)
    assert balanced_l1(nothing, true, torch.zeros(10, dtype=torch.bool)).item() == 0
