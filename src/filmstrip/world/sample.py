"""Random scenes. Every distribution is the same forwards and backwards in time (see `filmstrip.world.splits`).

Frame sets must not give answers about order away. A shape that comes late is in fewer frames, so the timed clips are
staggered: shapes leave in the order they came, and the clip run backwards, which has the same frames as a set, is
equally likely and has the other answer. Shapes of the other clips come late or leave early with equal chance.
"""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np

from filmstrip.config.checks import require, require_choice
from filmstrip.world.facts import MOTIONS, TICKS, Motion
from filmstrip.world.options import CLIPS, STILLS, SceneOptions
from filmstrip.world.placing import place
from filmstrip.world.plots import PLOTS, sample_names, sample_plot
from filmstrip.world.scene import Scene
from filmstrip.world.splits import HELD_OUT, HELD_OUT_VAL, SPLITS, is_held_out

# Edges of shapes that are clearly larger and smaller than each other: a third at the least.
_LARGE, _SMALL = (0.34, 0.38), (0.20, 0.24)
_MEDIUM, _SMALLEST = (0.28, 0.32), (0.18, 0.20)
_SHORTEST_STAY = 3  # ticks; two steps are the least that shows a motion


def sample_clip(rng: np.random.Generator, split: str = "train", options: SceneOptions = CLIPS) -> Scene:
    """A clip of `options.num_frames` frames (at least 8) of `split`; equal generators give equal scenes.

    Raises `ConfigError` for fewer frames or a split not in `SPLITS`.
    """
    require_choice("split", split, SPLITS)
    require(options.num_frames >= TICKS, f"a clip has at least {TICKS} frames, not {options.num_frames}")
    plot = sample_plot(rng, options)
    if plot not in ("plain", "arrivals"):
        return PLOTS[plot](rng, split, options)
    if plot == "arrivals":
        require(options.max_shapes > 1, "the plot 'arrivals' needs scenes of two shapes or more")
        kinds = _sample_kinds(rng, options, split, at_least=2)
        spans = _sample_spans(rng, len(kinds), replace(options, staggered_share=1.0))
        sizes = _varied_sizes(rng, len(kinds), options)
        return replace(place(rng, kinds, spans, options, sizes=sizes), plot="arrivals")
    kinds = _sample_kinds(rng, options, split)
    spans = _sample_spans(rng, len(kinds), options)
    return place(rng, kinds, spans, options, sizes=_varied_sizes(rng, len(kinds), options))


def sample_still(rng: np.random.Generator, options: SceneOptions = STILLS) -> Scene:
    """A scene of one frame. `options.num_frames` is not used: it is one."""
    count = 1 + int(rng.random() * options.max_shapes)
    names = sample_names(rng, count, options.same_colour_share)
    kinds: list[tuple[str, str, Motion]] = [(colour, shape, "still") for colour, shape in names]
    sizes = _varied_sizes(rng, count, options)
    return place(rng, kinds, [(0, 1)] * count, options, num_frames=1, sizes=sizes)


def _varied_sizes(rng: np.random.Generator, count: int, options: SceneOptions) -> list[float] | None:
    """Sizes of which one clearly stands out, the largest or the smallest, or None for the usual ones."""
    if options.varied_size_share == 0 or count < 2 or rng.random() >= options.varied_size_share:
        return None
    odd, others = (_LARGE, _SMALL) if rng.random() < 0.5 else (_SMALLEST, _MEDIUM)
    sizes = [low + rng.random() * (high - low) for low, high in [odd] + [others] * (count - 1)]
    return [sizes[i] for i in rng.permutation(count)]


def _sample_kinds(
    rng: np.random.Generator, options: SceneOptions, split: str, at_least: int = 1
) -> list[tuple[str, str, Motion]]:
    """(colour, shape, motion) of every shape, as the split allows."""
    count = at_least + int(rng.random() * (options.max_shapes - at_least + 1))
    while True:
        names = sample_names(rng, count, options.same_colour_share)
        motions = [MOTIONS[int(draw * len(MOTIONS))] for draw in rng.random(count)]
        kinds = [(*name, motion) for name, motion in zip(names, motions, strict=True)]
        if split != "train":
            held_out = HELD_OUT if split == "test" else HELD_OUT_VAL
            kinds[int(rng.random() * count)] = held_out[int(rng.random() * len(held_out))]
        if len({kind[:2] for kind in kinds}) == count and not any(is_held_out(*kind, split) for kind in kinds):
            return kinds


@cache
def _staggered(count: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All ways for `count` shapes to come one after another and leave in the same order, with no empty tick."""
    ticks = range(TICKS + 1)
    found = []
    for starts in itertools.combinations(ticks, count):
        for ends in itertools.combinations(ticks, count):
            spans = tuple(zip(starts, ends, strict=True))
            stays = all(end - start >= _SHORTEST_STAY for start, end in spans)
            covered = {tick for start, end in spans for tick in range(start, end)}
            if stays and len(covered) == TICKS:
                found.append(spans)
    return tuple(found)


def _sample_spans(rng: np.random.Generator, count: int, options: SceneOptions) -> list[tuple[int, int]]:
    """First frame and end frame of every shape, in random order."""
    if count > 1 and rng.random() < options.staggered_share:
        choices = _staggered(count)
        chosen = choices[int(rng.random() * len(choices))]
        ticks = [chosen[i] for i in rng.permutation(count)]
    else:
        ticks = [_sample_stay(rng, options.timed_share) for _ in range(count)]
    frames = options.num_frames
    return [(round(start * frames / TICKS), round(end * frames / TICKS)) for start, end in ticks]


def _sample_stay(rng: np.random.Generator, timed_share: float) -> tuple[int, int]:
    """Ticks of a shape that stays for the whole clip, comes late or leaves early (the last two equally often)."""
    kind, draw = rng.random(2)
    if kind >= timed_share:
        return 0, TICKS
    away = 1 + int(draw * (TICKS - _SHORTEST_STAY))
    return (away, TICKS) if kind < timed_share / 2 else (0, TICKS - away)
