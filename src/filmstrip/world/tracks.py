"""Where everything is in every frame of a scene, as arrays: targets for auxiliary losses on motion and camera."""

from dataclasses import dataclass

import numpy as np

from filmstrip.world.facts import COLOUR_NAMES, SHAPES
from filmstrip.world.scene import Scene


@dataclass(frozen=True)
class SceneTracks:
    """Labels of the F frames of one scene with S shapes, in the order of `scene.shapes`.

    Classes count from 1 in the order of `SHAPES` and `COLOUR_NAMES`; 0 stands for a shape that is not visible.
    Lengths are fractions of the frame's edge, x to the right, y downwards. Differences between a frame and the one
    before are 0 where there is no such frame, or nothing to compare in it.
    """

    shape: np.ndarray  # (S,) int64
    size: np.ndarray  # (S,) float32
    visible: np.ndarray  # (S, F) bool
    colour: np.ndarray  # (S, F) int64
    centre: np.ndarray  # (S, F, 2) float32; 0 where not visible
    velocity: np.ndarray  # (S, F, 2) float32: from the frame before; 0 unless visible in both
    camera: np.ndarray  # (F, 3) float32: dx, dy in edges of the frame before, and log zoom (above 0: zooms in)
    cut: np.ndarray  # (F,) bool: the first frame after a cut


def scene_tracks(scene: Scene) -> SceneTracks:
    """The labels of `scene`; a jump is a velocity like any other, a cut is not a displacement of the camera."""
    frames = range(scene.num_frames)
    count = len(scene.shapes)
    visible = np.array([[one.visible(frame) for frame in frames] for one in scene.shapes], bool)
    visible = visible.reshape(count, scene.num_frames)
    colour = np.zeros(visible.shape, np.int64)
    centre = np.zeros((*visible.shape, 2), np.float32)
    for row, frame in np.argwhere(visible).tolist():
        one = scene.shapes[row]
        colour[row, frame] = 1 + COLOUR_NAMES.index(one.colour_at(frame))
        centre[row, frame] = one.position(frame)
    velocity = np.zeros_like(centre)
    both = visible[:, 1:] & visible[:, :-1]
    velocity[:, 1:][both] = np.diff(centre, axis=1)[both]
    kinds = np.array([1 + SHAPES.index(one.shape) for one in scene.shapes], np.int64)
    sizes = np.array([one.size for one in scene.shapes], np.float32)
    return SceneTracks(kinds, sizes, visible, colour, centre, velocity, *_camera(scene))


def _camera(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    moves = np.zeros((scene.num_frames, 3), np.float32)
    cuts = np.zeros(scene.num_frames, bool)
    if scene.camera is None:
        return moves, cuts
    for number, shot in enumerate(scene.camera.shots):
        cuts[shot.first_frame] = number > 0
        for frame in range(shot.first_frame + 1, shot.end_frame):
            (x0, y0, log0), (x1, y1, log1) = shot.window(frame - 1), shot.window(frame)
            edge = np.exp(log0)
            moves[frame] = (x1 - x0) / edge, (y1 - y0) / edge, log0 - log1
    return moves, cuts
