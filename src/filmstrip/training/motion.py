"""What moves in drawn clips, frame by frame: targets that only drawn clips have.

Answers of a word or two are a thin signal for comparing frames. These labels are dense: how the content of every patch
has moved since the frame before, what each colour is doing, how the camera has moved. Each says only what the frames
up to its own tell, because the text tower reads in one direction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from filmstrip.shapes import Bool, Float, Int, Tensor
from filmstrip.training.batches import IGNORE, TensorBatch
from filmstrip.world import (
    CAMERA_MOVES,
    COLOUR_NAMES,
    DIRECTIONS,
    EVENTS,
    SHAPES,
    TICKS,
    Scene,
    Shape,
    dense_labels,
    scene_tracks,
)
from filmstrip.world.scene import Event

NUM_COLOURS, NUM_SHAPES = len(COLOUR_NAMES), len(SHAPES)
ABSENT, GONE, NEW, STILL, LEFT, RIGHT, UP, DOWN = range(8)
NUM_STATES = 8
_UNIT = 0.1  # lengths count in tenths of the frame's edge, which is about what a thing moves from frame to frame
_MOST = 2.0  # a jump is a movement of this much, wherever it goes
_STILL_BELOW = 0.2  # in the same unit
_CELLS = 4  # along each edge of a patch, in which its content is told
NUM_CELLS = _CELLS**2
_LEAST_CONTRAST = 0.05  # in deviations of CLIP's pixels: plain grounds are not blown up to noise

PATHS: tuple[str, ...] = (*DIRECTIONS, "still", "around", "turn", "bounce")
_MOST_LAPS, _MOST_BOUNCES = 3, 3
SUMMARY: dict[str, int] = {
    "partner": max(NUM_COLOURS, NUM_SHAPES),
    "becomes": NUM_COLOURS + 1,
    "path": len(PATHS),
    "laps": _MOST_LAPS + 1,
    "bounces": _MOST_BOUNCES + 1,
    "first": TICKS,
    "end": TICKS + 1,
    "event": 1 + len(EVENTS),
    "event_frame": TICKS + 1,
}
"""What is told of every colour and kind of shape when the clip is over, and how many classes each has.

`partner` is the shape in a colour and the colour of a shape, `becomes` the colour that it changes to (0: none).
"""
NUM_NAMES = NUM_COLOURS + NUM_SHAPES
NUM_MEASURES = 3  # size, and x and y of the middle of its way


@dataclass(frozen=True)
class MotionLabels(TensorBatch):
    """Labels of B clips. Movements are since the frame before, in tenths of the frame's edge (x right, y down).

    `flow` says how the content of each patch has moved; it counts where that is one thing of one known movement.
    `state` is a class per colour (IGNORE where shapes share it), `velocity` its movement and `centre` where it is (from
    the frame's corner). `camera` is what the camera did, to the right, downwards, and the logarithm of its zoom times
    ten; `cut` is 1 for the first frame after one. `patch_shape`, `patch_colour` and `patch_extent` say what covers each
    patch (0: nothing) and how large it is, so that it is not forgotten over all this.

    The others are about the whole clip. `summary` has a class of each fact of `SUMMARY` for the one shape that began in
    each colour, and for the one shape of each kind (IGNORE without one); `measures` are its size and the mean of its
    places, in tenths of the frame's edge. `shots` are the camera's first and last movement and the frame of its cut, or
    0. `happened` tells at every frame what has happened so far to the shape of each of those names, and `latest` to
    which kind of shape the last of all that happened did (0: nothing yet; IGNORE where two were last).
    """

    flow: Float[Tensor, "B F patches 2"]
    flow_counts: Bool[Tensor, "B F patches"]
    patch_shape: Int[Tensor, "B F patches"]
    patch_colour: Int[Tensor, "B F patches"]
    patch_extent: Float[Tensor, "B F patches"]
    state: Int[Tensor, "B F colours"]
    velocity: Float[Tensor, "B F colours 2"]
    velocity_counts: Bool[Tensor, "B F colours"]
    centre: Float[Tensor, "B F colours 2"]
    centre_counts: Bool[Tensor, "B F colours"]
    camera: Float[Tensor, "B F 3"]
    camera_counts: Bool[Tensor, "B F"]
    cut: Int[Tensor, "B F"]
    summary: Int[Tensor, "B names facts"]
    measures: Float[Tensor, "B names measures"]
    shots: Int[Tensor, "B 3"]
    happened: Int[Tensor, "B F names"]
    latest: Int[Tensor, "B F"]


def motion_labels(scenes: Sequence[Scene], patch_size: int, size: int) -> MotionLabels:
    """The labels of clips of equally many frames, drawn at `size` pixels."""
    views = [(scene, frame) for scene in scenes for frame in range(scene.num_frames)]
    dense = dense_labels(views, patch_size, size)
    parts = (dense.shape, dense.colour, dense.extent / np.float32(_UNIT))
    covers = (part.reshape(len(scenes), scenes[0].num_frames, -1) for part in parts)
    clips = [_clip_labels(*labels) for labels in zip(scenes, *covers, strict=True)]
    return MotionLabels(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*clips, strict=True)))


def _clip_labels(
    scene: Scene, shape_FP: np.ndarray, covered_FP: np.ndarray, extent_FP: np.ndarray
) -> tuple[np.ndarray, ...]:
    state, velocity, moves, centre, seen = _colour_labels(scene)
    tracks = scene_tracks(scene)
    camera = tracks.camera / np.float32(_UNIT)
    cut = tracks.cut.astype(np.int64)
    uncut = ~tracks.cut
    uncut[0] = False
    ground = _ground_flow(tracks.camera, covered_FP.shape[1])
    frames = np.arange(scene.num_frames)[:, None]
    colour = np.maximum(covered_FP - 1, 0)
    on_shape = covered_FP > 0
    flow = np.where(on_shape[..., None], velocity[frames, colour], ground)
    counts = np.where(on_shape, moves[frames, colour], uncut[:, None])
    what = shape_FP, covered_FP, extent_FP
    whole = *_summary(scene), _shots(scene), *_happenings(scene)
    return flow, counts, *what, state, velocity, moves, centre, seen, camera, uncut, cut, *whole


def _ground_flow(camera_F3: np.ndarray, num_patches: int) -> np.ndarray:
    """Movement (F, P, 2) of the ground at each patch's centre under a camera that pans and zooms."""
    side = int(num_patches**0.5)
    row, column = np.divmod(np.arange(num_patches), side)
    from_middle = (np.stack([column, row], axis=-1) + 0.5) / side - 0.5
    pan, zoom = camera_F3[:, None, :2], camera_F3[:, None, 2:]
    # What is at u (from the middle) was at u exp(-zoom) + pan in the frame before.
    flow = from_middle * (1 - np.exp(-zoom)) - pan
    return (flow / _UNIT).astype(np.float32)


def _colour_labels(scene: Scene) -> tuple[np.ndarray, ...]:
    """State (F, colours), movement (F, colours, 2), whether it is known (F, colours); the same two of the centre."""
    frames = scene.num_frames
    state = np.full((frames, NUM_COLOURS), ABSENT)
    velocity = np.zeros((frames, NUM_COLOURS, 2), np.float32)
    centre = np.zeros_like(velocity)
    moves, seen = np.zeros((2, frames, NUM_COLOURS), bool)
    for shape in scene.shapes:
        for frame in range(frames):
            if shape.visible(frame):
                colour = COLOUR_NAMES.index(shape.colour_at(frame))
                before = frame > 0 and shape.visible(frame - 1) and shape.colour_at(frame - 1) == shape.colour_at(frame)
                state[frame, colour] = NEW
                centre[frame, colour] = np.array(shape.position(frame)) / _UNIT
                seen[frame, colour] = True
                if before:
                    moved = (np.array(shape.position(frame)) - shape.position(frame - 1)) / _UNIT
                    velocity[frame, colour] = moved.clip(-_MOST, _MOST)
                    moves[frame, colour] = True
                    state[frame, colour] = _direction(moved)
            else:
                for name in shape.colours:
                    gone = COLOUR_NAMES.index(name)
                    if (state[:frame, gone] > GONE).any():
                        state[frame, gone] = GONE
        if shape.recolour is not None:
            state[shape.recolour.frame : shape.end_frame, COLOUR_NAMES.index(shape.colour)] = GONE
    names = sorted(name for shape in scene.shapes for name in shape.colours)
    for first, second in pairwise(names):
        if first == second:
            shared = COLOUR_NAMES.index(first)
            state[:, shared], moves[:, shared], seen[:, shared] = IGNORE, False, False
    return state, velocity, moves, centre, seen


def _summary(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Classes (names, facts) and measures (names, 3) of each shape, under its first colour and under its kind."""
    facts = np.full((NUM_NAMES, len(SUMMARY)), IGNORE)
    measures = np.zeros((NUM_NAMES, NUM_MEASURES), np.float32)
    for shape, names in _names(scene):
        told, measured = shape_facts(shape), shape_measures(scene, shape)
        for name in names:
            partner = SHAPES.index(shape.shape) if name < NUM_COLOURS else COLOUR_NAMES.index(shape.colour)
            facts[name], measures[name] = (partner, *told), measured
    return facts, measures


def _names(scene: Scene) -> Iterator[tuple[Shape, list[int]]]:
    """Each shape with its names: its first colour and its kind, where no other shape has them."""
    colours = [COLOUR_NAMES.index(shape.colour) for shape in scene.shapes]
    kinds = [SHAPES.index(shape.shape) for shape in scene.shapes]
    for shape, colour, kind in zip(scene.shapes, colours, kinds, strict=True):
        own = [colour] if colours.count(colour) == 1 else []
        yield shape, [*own, NUM_COLOURS + kind] if kinds.count(kind) == 1 else own


def shape_event(shape: Shape) -> Event | None:
    """What happens to a shape; a change of colour is one in any clip, though only some clips ask for events."""
    if shape.event is None and shape.recolour is not None:
        return Event("changes colour", shape.recolour.frame, shape.recolour.frame)
    return shape.event


def _happenings(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """`happened` (F, names) and `latest` (F,). What is over at a frame has happened: a blink is known by its end."""
    happened = np.full((scene.num_frames, NUM_NAMES), IGNORE)
    latest = np.zeros(scene.num_frames, int)
    over = list[tuple[int, int]]()
    for shape, names in _names(scene):
        happened[:, names], event = 0, shape_event(shape)
        if event is not None:
            happened[event.end :, names] = 1 + EVENTS.index(event.kind)
            over.append((event.end, SHAPES.index(shape.shape)))
    ends = [end for end, _ in over]
    for end, kind in sorted(over):
        latest[end:] = 1 + kind if ends.count(end) == 1 else IGNORE
    return happened, latest


def shape_facts(shape: Shape) -> tuple[int, ...]:
    """Classes of what `SUMMARY` has behind `partner`."""
    event, change = shape_event(shape), shape.recolour
    return (
        0 if change is None else 1 + COLOUR_NAMES.index(change.colour),
        PATHS.index(shape.motion),
        shape.laps,
        shape.bounces or 0,
        shape.first_frame,
        shape.end_frame,
        0 if event is None else 1 + EVENTS.index(event.kind),
        0 if event is None else event.start,
    )


def shape_measures(scene: Scene, shape: Shape) -> tuple[float, float, float]:
    """Its size and the mean of its places, x and y, in tenths of the frame's edge."""
    places = [shape.position(frame) for frame in range(scene.num_frames) if shape.visible(frame)]
    x, y = np.mean(places, axis=0).tolist()
    return shape.size / _UNIT, x / _UNIT, y / _UNIT


def _shots(scene: Scene) -> np.ndarray:
    """The camera's first move, its last, and the frame of the cut between them."""
    if scene.camera is None:
        return np.array([CAMERA_MOVES.index("still"), CAMERA_MOVES.index("still"), 0])
    first, last = scene.camera.shots[0], scene.camera.shots[-1]
    return np.array([CAMERA_MOVES.index(first.move), CAMERA_MOVES.index(last.move), scene.camera.cut or 0])


def _direction(moved: np.ndarray) -> int:
    x, y = moved.tolist()
    if max(abs(x), abs(y)) < _STILL_BELOW:
        return STILL
    if abs(x) >= abs(y):
        return RIGHT if x > 0 else LEFT
    return DOWN if y > 0 else UP


def patch_content(pixels_MFCYX: Float[Tensor, "M F C Y X"], patch_size: int) -> Float[Tensor, "M F patches cells"]:
    """What is in each patch, coarsely: its grey in 4 by 4 cells, less the patch's mean, over the frame's contrast."""
    grey_NCYX = pixels_MFCYX.flatten(0, 1).mean(1, keepdim=True)
    cells = functional.avg_pool2d(grey_NCYX, patch_size // _CELLS)
    patches = functional.unfold(cells, _CELLS, stride=_CELLS).transpose(1, 2)  # (N, patches, cells)
    patches = patches - patches.mean(-1, keepdim=True)
    contrast = patches.square().mean((1, 2), keepdim=True).sqrt()
    return (patches / (contrast + _LEAST_CONTRAST)).view(*pixels_MFCYX.shape[:2], *patches.shape[1:])


def balanced_l1(said: Tensor, true: Tensor, counts: Tensor) -> Tensor:
    """Mean absolute error over what counts and moves, plus that over what counts and rests.

    In most clips the ground rests: one mean over all would hardly notice the others.
    """
    moves = true.abs().amax(-1) > _STILL_BELOW
    return mean_l1(said, true, counts & moves) + mean_l1(said, true, counts & ~moves)


def mean_l1(said: Tensor, true: Tensor, counts: Tensor) -> Tensor:
    """Mean absolute error where `counts`; 0 where nothing does."""
    error = functional.l1_loss(said, true, reduction="none").mean(-1)
    return (error * counts).sum() / counts.sum().clamp(min=1)
