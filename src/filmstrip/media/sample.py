"""Which frames of a clip the model sees: pure functions of the frames' presentation times.

The named rules are those of the programs called Video-LLaVA (reference implementations in brackets):

- `uniform-inclusive`: `linspace(0, N - 1, n)` cut to integers, so the last frame is taken (the original release).
- `uniform-exclusive`: `i * N // n` (transformers' built-in sampler and documentation).
- `fps`: the frames on display at 0, 1/fps, 2/fps ... seconds, up to the end of the clip.
- `times`: the frame on display at each given second, that is the latest one that started by then.
- `indices`: the given frames in presentation order; negative numbers count from the end.

Constant and variable rate. The two uniform rules are written in frame numbers, which stand for time only when
frames are evenly spaced. Read as times they are "n points from the first to the last frame" and "n points from the
first frame to the end, the end left out"; the frame on display at these times is the frame of the index rule
whenever the rate is constant. So the index rule is used when every frame starts within half a frame period of its
place on the straight line from the first to the last frame (rounded timestamps pass), and otherwise the frame on
display at those times.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from filmstrip.config.checks import require, require_choice
from filmstrip.config.preset import FRAME_SAMPLERS, FrameSampler
from filmstrip.errors import MediaError
from filmstrip.media.limits import DEFAULT_LIMITS


@dataclass(frozen=True)
class FrameSelection:
    """A sampler and its argument: `num_frames` for the uniform ones, else the field named like the sampler."""

    sampler: FrameSampler = "uniform-exclusive"
    num_frames: int = 8
    fps: float | None = None
    times: tuple[float, ...] = ()
    indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_choice("frame sampler", self.sampler, FRAME_SAMPLERS)
        require(self.num_frames >= 1, f"the number of frames must be at least 1, not {self.num_frames}")
        for name, given in (("fps", self.fps is not None), ("times", self.times), ("indices", self.indices)):
            require(not given or self.sampler == name, f"{name} needs the frame sampler {name!r}, not {self.sampler!r}")
            require(bool(given) or self.sampler != name, f"the frame sampler {name!r} needs {name}")
        require(self.fps is None or 0 < self.fps < math.inf, f"fps must be a number above zero, not {self.fps}")
        for time in self.times:
            require(0 <= time < math.inf, f"a frame time must be a number of seconds from 0 on, not {time}")


def uniform_inclusive(total: int, count: int) -> list[int]:
    """`count` frame numbers of `total`, first and last included (the original release's decord reader)."""
    return [int(index) for index in np.linspace(0, total - 1, count).astype(np.int64)]


def uniform_exclusive(total: int, count: int) -> list[int]:
    """`count` frame numbers of `total`, the start of each of `count` equal parts (transformers 5)."""
    return [place * total // count for place in range(count)]


def frame_gap(times: Sequence[float]) -> float:
    """Median seconds between neighbouring frames that differ in time; 0 when there are none."""
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if gaps.size else 0.0


def is_constant_rate(times: Sequence[float]) -> bool:
    """Whether every frame starts within half a period of its place on the line from first to last frame."""
    if len(times) <= 2:
        return True
    starts = np.asarray(times, dtype=np.float64)
    period = (starts[-1] - starts[0]) / (len(times) - 1)
    line = starts[0] + period * np.arange(len(times))
    return bool(np.abs(starts - line).max() <= period / 2)


def frames_on_display(times: Sequence[float], seconds: Sequence[float]) -> list[int]:
    """For each of `seconds`, the number of the latest frame that has started by then (the first frame before that).

    Containers round timestamps (Matroska to milliseconds), so a frame that starts up to a millisecond, and never
    more than a quarter of a frame, later counts as started.
    """
    slack = min(1e-3, frame_gap(times) / 4)
    points = np.asarray(seconds, dtype=np.float64) + slack
    started = np.searchsorted(np.asarray(times, dtype=np.float64), points, side="right")
    return [max(0, int(number) - 1) for number in started]


def select_frames(
    selection: FrameSelection,
    times: Sequence[float],
    duration: float | None = None,
    max_frames: int = DEFAULT_LIMITS.max_frames,
) -> list[int]:
    """Choose frames: numbers in presentation order, repeated where the clip is shorter than the choice.

    `times` are the presentation times of all frames in ascending order, seconds; `duration` the end of the last one
    (default: its start plus the median gap). Raises `MediaError` for a time or number outside the clip, and for
    more than `max_frames` frames.
    """
    total = len(times)
    if total == 0:
        raise MediaError("there are no frames to choose from")
    if duration is None:
        duration = times[-1] - times[0] + frame_gap(times)
    if selection.sampler == "indices":
        chosen = [_checked_index(index, total) for index in selection.indices]
    else:
        chosen = _select_by_time(selection, [time - times[0] for time in times], duration, max_frames)
    if len(chosen) > max_frames:
        raise MediaError(f"{len(chosen)} frames are more than the limit of {max_frames}")
    return chosen


def _select_by_time(selection: FrameSelection, starts: list[float], duration: float, max_frames: int) -> list[int]:
    if selection.sampler == "times":
        for time in selection.times:
            if time > max(duration, starts[-1]):
                raise MediaError(f"there is no frame at {time:g} s, the clip lasts {duration:.3f} s")
        return frames_on_display(starts, selection.times)
    if selection.sampler == "fps":
        fps = float(selection.fps or 0)
        # The last point must lie clearly before the end: 1.0 s at 4 fps is 4 frames, however the end was rounded.
        count = max(1, math.ceil(duration * fps - 1e-3))
        if count > max_frames:
            raise MediaError(f"{fps:g} fps of {duration:.1f} s are {count} frames, more than the limit of {max_frames}")
        return frames_on_display(starts, [place / fps for place in range(count)])
    count = selection.num_frames
    if count > max_frames:
        raise MediaError(f"{count} frames are more than the limit of {max_frames}")
    inclusive = selection.sampler == "uniform-inclusive"
    if is_constant_rate(starts):
        return uniform_inclusive(len(starts), count) if inclusive else uniform_exclusive(len(starts), count)
    if inclusive:
        return frames_on_display(starts, [float(point) for point in np.linspace(0, starts[-1], count)])
    return frames_on_display(starts, [place * duration / count for place in range(count)])


def _checked_index(index: int, total: int) -> int:
    if not -total <= index < total:
        raise MediaError(
            f"there is no frame {index}, the clip has {total} (0 to {total - 1}, or negative from the end)"
        )
    return index % total
