"""Questions about what the camera does."""

import numpy as np

from filmstrip.world.facts import CAMERA_MOVES, CAMERA_OPPOSITE, CAMERA_WORDS, CameraMove
from filmstrip.world.question import Question, ask, pick
from filmstrip.world.scene import Scene, reverse

_OFF_PLOT = 0.15  # share of the other clips that are asked, so that what moves in them is not taken for the camera
_UNCUT_ASKED = 2 / 3  # of the clips without a cut, so that `is there a cut` is answered yes as often as no
_ANSWERS = tuple(f"it {words}" for words in CAMERA_WORDS.values())
_ACTIONS: dict[CameraMove, str] = {
    move: words.replace("pans", "pan").replace("zooms", "zoom").replace("stays", "stay")
    for move, words in CAMERA_WORDS.items()
}
_HALVES = ("the first half", "the second half")


def camera(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What it does, before or after the cut if there is one; or whether it does a certain thing."""
    if scene.medium == "picture":
        return None
    if scene.camera is None:
        return None if rng.random() >= _OFF_PLOT else _what(rng, "camera", "still", "still")
    moves = [shot.move for shot in scene.camera.shots]
    if len(moves) > 1:
        when = pick(rng, ("before", "after"))
        shown = (moves[0], CAMERA_OPPOSITE[moves[1]])
        return _what(rng, f"camera-{when}", *(shown if when == "before" else (moves[1], CAMERA_OPPOSITE[moves[0]])))
    if rng.random() < 0.5:
        return _what(rng, "camera", moves[0], CAMERA_OPPOSITE[moves[0]])
    asked = moves[0]
    if rng.random() < 0.5:
        others = [move for move in CAMERA_MOVES if move != moves[0]]
        opposite = CAMERA_OPPOSITE[moves[0]]
        asked = opposite if opposite != moves[0] and rng.random() < 0.6 else pick(rng, others)
    answers = tuple("yes" if asked == move else "no" for move in (moves[0], CAMERA_OPPOSITE[moves[0]]))
    fields = {"action": _ACTIONS[asked], "medium": scene.medium}
    return ask(rng, "camera-pair", asked, (answers[0], answers[1]), ("yes", "no"), **fields)


def cut(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether there is one, and in which half of the clip."""
    if scene.camera is None:
        return None
    there = scene.camera.cut is not None
    if there and rng.random() < 0.5:
        return ask(rng, "cut-half", "half", (_half(scene), _half(reverse(scene))), _HALVES)
    if not there and rng.random() >= _UNCUT_ASKED:
        return None
    answer = "yes" if there else "no"
    return ask(rng, "cut", "there", (answer, answer), ("yes", "no"))


def _what(rng: np.random.Generator, kind: str, move: CameraMove, backwards: CameraMove) -> Question:
    answers = (f"it {CAMERA_WORDS[move]}", f"it {CAMERA_WORDS[backwards]}")
    return ask(rng, kind, kind, answers, _ANSWERS)


def _half(scene: Scene) -> str:
    frame = scene.camera.cut if scene.camera and scene.camera.cut else 0
    return _HALVES[2 * frame > scene.num_frames]
