"""Clips made for one kind of question each: speed, changes of colour, events, bounces, the camera.

What the set of frames tells without their order must not give the answer away. Two ways lead there:

- *Reversal*: the clip run backwards is as likely and has another answer (changes of colour, order of events, pans and
  zooms, when a cut comes).
- *One set, several orders*, where the answer is the same backwards. A bouncing shape visits the same eight places
  whether it bounces not at all or three times. Of two shapes that go around, the slow one passes eight places of its
  circle one after another and the fast one every third: as 3 * 3 is 1 modulo 8, each frame of such a clip is also a
  frame of the clip in which the two have changed roles.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from filmstrip.config.checks import require
from filmstrip.world.camera import Camera, sample_shot
from filmstrip.world.facts import (
    CAMERA_MOVES,
    COLOUR_NAMES,
    COLOURS,
    DIRECTIONS,
    EVENTS,
    MOTIONS,
    SHAPES,
    TICKS,
    CameraMove,
    EventKind,
    Motion,
)
from filmstrip.world.motions import bounce, jump, orbit, stay, straight, turn_around
from filmstrip.world.options import SceneOptions
from filmstrip.world.placing import Propose, path_of, place_tracks, sample_background, tint
from filmstrip.world.scene import Event, Plot, Recolour, Scene, Shape
from filmstrip.world.splits import (
    HELD_OUT_CHANGES,
    HELD_OUT_EVENTS,
    held_out_names,
    is_held_out,
    is_held_out_view,
)

_CUT_SHARE = 0.4
_CUT_TICKS = (3, 5)
_FAST, _SLOW = 3, 1  # laps per clip
_EVENT_LENGTH: dict[EventKind, int] = {"changes colour": 0, "jumps": 0, "blinks": 1, "turns around": 1}  # ticks
_EVENT_TICKS = {"changes colour": (1, 7), "jumps": (1, 7), "blinks": (1, 6), "turns around": (2, 5)}

_MOST_TURNS = 2  # in a clip: between three there is no room for a tick each

Names = list[tuple[str, str]]


def sample_plot(rng: np.random.Generator, options: SceneOptions) -> str:
    """What the next clip is about; no draw where there is no choice."""
    plots = [plot for plot in options.plots if plot != "camera" or options.num_photos]
    return plots[0] if len(plots) == 1 else plots[int(rng.random() * len(plots))]


def sample_names(rng: np.random.Generator, count: int, same_colour_share: float) -> list[tuple[str, str]]:
    """Distinct (colour, shape) pairs; most scenes have no colour twice."""
    shapes = [SHAPES[int(draw * len(SHAPES))] for draw in rng.random(count)]
    if rng.random() >= same_colour_share:
        return list(zip([COLOUR_NAMES[i] for i in rng.permutation(len(COLOURS))], shapes, strict=False))
    while True:
        palette = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOURS))[:2]]
        names = [(palette[int(draw * 2)], shape) for draw, shape in zip(rng.random(count), shapes, strict=True)]
        if len(set(names)) == count:
            return names
        shapes = [SHAPES[int(draw * len(SHAPES))] for draw in rng.random(count)]


def _other_names(rng: np.random.Generator, count: int) -> Names:
    """(colour, shape) pairs of which no two share a colour or a shape."""
    colours, shapes = rng.permutation(len(COLOUR_NAMES))[:count], rng.permutation(len(SHAPES))[:count]
    return [(COLOUR_NAMES[c], SHAPES[s]) for c, s in zip(colours, shapes, strict=True)]


def _names_for(rng: np.random.Generator, motions: Sequence[Motion], split: str, draw: Callable[[int], Names]) -> Names:
    """A name from `draw` for each motion, as the split allows."""
    while True:
        names = draw(len(motions))
        if split == "test":
            chosen = int(rng.random() * len(motions))
            held_out = held_out_names(motions[chosen])
            names[chosen] = held_out[int(rng.random() * len(held_out))]
            if len(set(names)) == len(names):
                return names
        elif not any(is_held_out(*name, motion, split) for name, motion in zip(names, motions, strict=True)):
            return names


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + rng.random() * (bounds[1] - bounds[0])


def _frame(tick: int, options: SceneOptions) -> int:
    return round(tick * options.num_frames / TICKS)


def _scene(
    rng: np.random.Generator, plot: Plot, options: SceneOptions, shapes: Sequence[Shape], camera: Camera | None = None
) -> Scene:
    """The shapes in random order of drawing, on a ground."""
    order = [shapes[i] for i in rng.permutation(len(shapes))]
    return Scene(tuple(order), sample_background(rng, options.num_photos), options.num_frames, plot, camera)


def _speed(rng: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """Two shapes go around on circles, one three times as fast; sometimes a third stays still between them."""
    motions: list[Motion] = ["around", "around"]
    motions += ["still"] if options.max_shapes > 2 and rng.random() < 0.4 else []
    while True:
        names = _names_for(rng, motions, split, lambda count: sample_names(rng, count, options.same_colour_share))
        laps = [_SLOW, _FAST, 0] if rng.random() < 0.5 else [_FAST, _SLOW, 0]
        sizes = [_between(rng, (0.18, 0.22)) for _ in motions]
        frames = options.num_frames
        proposals: list[Propose] = [
            orbit(size, lap, frames) if lap else stay(size, frames) for size, lap in zip(sizes, laps, strict=False)
        ]
        tracks = place_tracks(rng, proposals, sizes)
        if tracks is None:
            continue
        shapes = [
            Shape(shape, colour, size, motion, path_of(track), 0, frames, tint(rng, colour), laps=lap)
            for (colour, shape), size, motion, track, lap in zip(names, sizes, motions, tracks, laps, strict=False)
        ]
        return _scene(rng, "speed", options, shapes)


def _bounces(rng: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """A shape goes from wall to wall and turns there 0 to 3 times; the others, if any, stay still."""
    count = 1 + int(rng.random() * min(options.max_shapes, 3))
    number = int(rng.random() * 4)
    way = tuple(DIRECTIONS)[int(rng.random() * len(DIRECTIONS))]
    motions: list[Motion] = ["bounce" if number else way] + ["still"] * (count - 1)
    while True:
        names = _names_for(rng, motions, split, lambda count: sample_names(rng, count, options.same_colour_share))
        sizes = [_between(rng, (0.18, 0.26)) for _ in motions]
        frames = options.num_frames
        proposals = [bounce(sizes[0], number, way, frames), *(stay(size, frames) for size in sizes[1:])]
        tracks = place_tracks(rng, proposals, sizes)
        if tracks is None:
            continue
        shapes = [
            Shape(shape, colour, size, motion, path_of(track), 0, frames, tint(rng, colour), bounces=bounces)
            for (colour, shape), size, motion, track, bounces in zip(
                names, sizes, motions, tracks, [number, *[None] * (count - 1)], strict=True
            )
        ]
        return _scene(rng, "bounces", options, shapes)


def _recolour(rng: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """One or two of up to three shapes change colour, each once; all colours and shapes of the clip are different."""
    count = 1 + int(rng.random() * min(options.max_shapes, 3))
    changing = 1 + int(rng.random() * min(count, 2))
    while True:
        motions = [MOTIONS[int(draw * len(MOTIONS))] for draw in rng.random(count)]
        names = _other_names(rng, count)
        left = [colour for colour in COLOUR_NAMES if colour not in {colour for colour, _ in names}]
        targets = [left[i] for i in rng.permutation(len(left))[:changing]]
        pairs = [{colour, target} for (colour, _), target in zip(names, targets, strict=False)]
        kinds = [(*name, motion) for name, motion in zip(names, motions, strict=True)]
        kinds += [(target, kind[1], kind[2]) for target, kind in zip(targets, kinds, strict=False)]
        held_out = any(frozenset(pair) in HELD_OUT_CHANGES for pair in pairs)
        if held_out != (split == "test") or any(is_held_out(*kind, split) for kind in kinds):
            continue
        sizes = [_between(rng, options.size) for _ in names]
        proposals = [straight(size, motion, options) for size, motion in zip(sizes, motions, strict=True)]
        tracks = place_tracks(rng, proposals, sizes)
        if tracks is None:
            continue
        ticks = [2 + int(rng.random() * (TICKS - 3)) for _ in targets]
        changes = [
            Recolour(_frame(tick, options), target, tint(rng, target))
            for tick, target in zip(ticks, targets, strict=True)
        ]
        shapes = [
            Shape(shape, colour, size, motion, path_of(track), 0, options.num_frames, tint(rng, colour), change)
            for (colour, shape), size, motion, track, change in zip(
                names, sizes, motions, tracks, [*changes, *[None] * (count - changing)], strict=True
            )
        ]
        return _scene(rng, "recolour", options, shapes)


def _event_ticks(rng: np.random.Generator, kinds: Sequence[EventKind]) -> list[int]:
    """When each event begins, such that at least a whole tick lies between one and the next."""
    while True:
        starts = []
        for kind in kinds:
            low, high = _EVENT_TICKS[kind]
            starts.append(low + int(rng.random() * (high - low + 1)))
        spans = sorted((start, start + _EVENT_LENGTH[kind]) for start, kind in zip(starts, kinds, strict=True))
        if all(second[0] - first[1] >= 1 for first, second in pairwise(spans)):
            return starts


def _events(rng: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """Something happens to each of two or three shapes, one after another; sometimes a further shape stays still."""
    require(options.max_shapes > 1, "the plot 'events' needs scenes of two shapes or more")
    count = 2 + int(rng.random() * (min(options.max_shapes, 3) - 1))
    happening = 2 + int(rng.random() * (count - 1))
    while True:
        names = _other_names(rng, count)
        kinds = [EVENTS[int(draw * len(EVENTS))] for draw in rng.random(happening)]
        held_out = any((kind, shape) in HELD_OUT_EVENTS for kind, (_, shape) in zip(kinds, names, strict=False))
        moving = {place for place, kind in enumerate(kinds) if kind == "turns around"}
        left = [colour for colour in COLOUR_NAMES if colour not in {colour for colour, _ in names}]
        targets = [left[i] for i in rng.permutation(len(left))]
        resting = [name for place, name in enumerate(names) if place not in moving]
        resting += [
            (target, shape)
            for (_, shape), target, kind in zip(names, targets, kinds, strict=False)
            if kind == "changes colour"
        ]
        seen = any(is_held_out(*name, "still", split) for name in resting)
        if held_out != (split == "test") or seen or len(moving) > _MOST_TURNS:
            continue
        sizes = [_between(rng, (0.20, 0.26)) for _ in names]
        starts = _event_ticks(rng, kinds)
        proposals = [
            _event_track(kind, size, start, options.num_frames)
            for kind, size, start in zip(kinds, sizes, starts, strict=False)
        ]
        proposals += [stay(size, options.num_frames) for size in sizes[happening:]]
        tracks = place_tracks(rng, proposals, sizes)
        if tracks is None:
            continue
        shapes = []
        for number, ((colour, shape), size, track) in enumerate(zip(names, sizes, tracks, strict=True)):
            still = Shape(shape, colour, size, "still", path_of(track), 0, options.num_frames, tint(rng, colour))
            if number < happening:
                still = _with_event(rng, still, kinds[number], starts[number], targets[number], options)
            shapes.append(still)
        return _scene(rng, "events", options, shapes)


def _event_track(kind: EventKind, size: float, start: int, num_frames: int) -> Propose:
    if kind == "jumps":
        return jump(size, start, num_frames)
    return turn_around(size, start, num_frames) if kind == "turns around" else stay(size, num_frames)


def _with_event(
    rng: np.random.Generator, shape: Shape, kind: EventKind, start: int, target: str, options: SceneOptions
) -> Shape:
    first = _frame(start, options)
    if kind == "turns around":
        return replace(shape, motion="turn", event=Event(kind, first, first + 1))
    end = _frame(start + _EVENT_LENGTH[kind], options)
    shape = replace(shape, event=Event(kind, first, end))
    if kind == "changes colour":
        return replace(shape, recolour=Recolour(first, target, tint(rng, target)))
    return replace(shape, gap=(first, end)) if kind == "blinks" else shape


def _camera(rng: np.random.Generator, split: str, options: SceneOptions) -> Scene:
    """The camera moves over a photograph, in some clips cut to another one; up to two shapes lie on the picture."""
    count = min((0, 0, 1, 2)[int(rng.random() * 4)], options.max_shapes)
    frames = options.num_frames
    if options.num_photos > 1 and rng.random() < _CUT_SHARE:
        cut = _frame(_CUT_TICKS[int(rng.random() * 2)], options)
        spans = [(0, cut), (cut, frames)]
    else:
        spans = [(0, frames)]
    photos = rng.permutation(options.num_photos)[: len(spans)].tolist()
    shots = []
    for span, photo in zip(spans, photos, strict=True):
        shots.append(sample_shot(rng, _sample_move(rng, split, photo), span, frames, photo))
    shapes: list[Shape] = []
    while count and not shapes:
        names = _names_for(rng, ["still"] * count, "train", lambda n: sample_names(rng, n, options.same_colour_share))
        sizes = [_between(rng, options.size) for _ in names]
        tracks = place_tracks(rng, [stay(size, frames) for size in sizes], sizes)
        shapes = [
            Shape(shape, colour, size, "still", path_of(track), 0, frames, tint(rng, colour))
            for (colour, shape), size, track in zip(names, sizes, tracks or [], strict=False)
        ]
    return _scene(rng, "camera", options, shapes, Camera(tuple(shots)))


def _sample_move(rng: np.random.Generator, split: str, photo: int) -> CameraMove:
    while True:
        move = CAMERA_MOVES[int(rng.random() * len(CAMERA_MOVES))]
        if split == "test" or not is_held_out_view(move, photo):
            return move


PLOTS: dict[str, Callable[[np.random.Generator, str, SceneOptions], Scene]] = {
    "speed": _speed,
    "recolour": _recolour,
    "events": _events,
    "bounces": _bounces,
    "camera": _camera,
}
"""Samplers of (generator, split, options)."""
