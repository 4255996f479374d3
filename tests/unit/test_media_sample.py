"""Frame samplers: the reference's numbers, and the same rules read as times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.errors import ConfigError, MediaError
from filmstrip.media.sample import (
    FrameSelection,
    frames_on_display,
    is_constant_rate,
    select_frames,
    uniform_exclusive,
    uniform_inclusive,
)


def constant(total: int, fps: float = 25.0) -> list[float]:
    return [number / fps for number in range(total)]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (30, [0, 4, 8, 12, 16, 20, 24, 29]),
        (100, [0, 14, 28, 42, 56, 70, 84, 99]),
        (7, [0, 0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_inclusive_is_the_original_releases_rule(total: int, expected: list[int]) -> None:
    assert uniform_inclusive(total, 8) == expected
    assert select_frames(FrameSelection("uniform-inclusive"), constant(total)) == expected


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (30, [0, 3, 7, 11, 15, 18, 22, 26]),
        (100, [0, 12, 25, 37, 50, 62, 75, 87]),
        (7, [0, 0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_exclusive_is_transformers_rule(total: int, expected: list[int]) -> None:
    assert uniform_exclusive(total, 8) == expected
    assert select_frames(FrameSelection("uniform-exclusive"), constant(total)) == expected


def test_exclusive_agrees_with_transformers_documented_recipe() -> None:
    for total in range(8, 400):
        assert uniform_exclusive(total, 8) == np.arange(0, total, total / 8).astype(int).tolist()


def test_one_frame() -> None:
    assert select_frames(FrameSelection(num_frames=1), constant(9)) == [0]
    assert select_frames(FrameSelection("uniform-inclusive", num_frames=1), constant(9)) == [0]
    assert select_frames(FrameSelection(num_frames=3), [0.0]) == [0, 0, 0]


@given(
    total=st.integers(1, 3000),
    count=st.integers(1, 40),
    fps=st.sampled_from([1.0, 10.0, 23.976, 25.0, 29.97, 59.94, 120.0]),
)
def test_timestamps_rounded_to_milliseconds_still_give_the_index_rule(total: int, count: int, fps: float) -> None:
    times = [round(number / fps, 3) for number in range(total)]
    assert select_frames(FrameSelection(num_frames=count), times) == uniform_exclusive(total, count)
    chosen = select_frames(FrameSelection("uniform-inclusive", num_frames=count), times)
    assert chosen == uniform_inclusive(total, count)


@given(total=st.integers(3, 500), count=st.integers(1, 16))
def test_index_rule_and_time_rule_are_one_rule_at_a_constant_rate(total: int, count: int) -> None:
    # Times in whole seconds, so that floating point decides nothing.
    times = [float(number) for number in range(total)]
    by_time = frames_on_display(times, [place * total / count for place in range(count)])
    by_index = uniform_exclusive(total, count)
    # The slack of frames_on_display (1 ms) lets a point just before a frame's start count as that frame.
    near = [abs(place * total / count - round(place * total / count)) < 2e-3 for place in range(count)]
    assert all(a == b or close for a, b, close in zip(by_time, by_index, near, strict=True))


def test_variable_rate_is_sampled_by_time() -> None:
    # One second at 10 fps, then nine seconds at 1 fps: half of the frames are in the first tenth of the clip.
    times = [number / 10 for number in range(10)] + [1.0 + number for number in range(9)]
    assert not is_constant_rate(times)
    assert select_frames(FrameSelection(num_frames=5), times, duration=10.0) == [0, 11, 13, 15, 17]
    assert select_frames(FrameSelection("uniform-inclusive", num_frames=5), times) == [0, 11, 13, 15, 18]


def test_one_dropped_frame_in_the_middle_is_still_a_constant_rate() -> None:
    times = [number / 25 for number in range(251) if number != 125]
    assert is_constant_rate(times)


def test_a_long_last_frame_counts_by_its_duration() -> None:
    # A slide show: pictures shown 1, 1 and 8 seconds.
    assert select_frames(FrameSelection("fps", fps=0.5), [0.0, 1.0, 2.0], duration=10.0) == [0, 2, 2, 2, 2]


def test_fps() -> None:
    assert select_frames(FrameSelection("fps", fps=5.0), constant(50)) == list(range(0, 50, 5))
    assert select_frames(FrameSelection("fps", fps=50.0), constant(3)) == [0, 0, 1, 1, 2, 2]
    assert select_frames(FrameSelection("fps", fps=0.001), constant(3)) == [0]


def test_times_take_the_frame_on_display() -> None:
    selection = FrameSelection("times", times=(0.0, 0.038, 0.04, 0.99, 1.0))
    assert select_frames(selection, constant(25)) == [0, 0, 1, 24, 24]
    with pytest.raises(MediaError, match=r"no frame at 1\.2 s, the clip lasts 1\.000 s"):
        select_frames(FrameSelection("times", times=(1.2,)), constant(25))


def test_times_are_counted_from_the_first_frame() -> None:
    shifted = [time + 100 for time in constant(25)]
    assert select_frames(FrameSelection("times", times=(0.4,)), shifted) == [10]
    assert select_frames(FrameSelection("fps", fps=5.0), shifted) == [0, 5, 10, 15, 20]


def test_indices_keep_their_order_and_count_from_the_end() -> None:
    assert select_frames(FrameSelection("indices", indices=(5, 1, -1, 5)), constant(10)) == [5, 1, 9, 5]
    for index in (10, -11):
        with pytest.raises(MediaError, match=f"no frame {index}, the clip has 10"):
            select_frames(FrameSelection("indices", indices=(index,)), constant(10))


@pytest.mark.parametrize(
    "selection",
    [
        FrameSelection(num_frames=2000),
        FrameSelection("uniform-inclusive", num_frames=2000),
        FrameSelection("fps", fps=1e12),
        FrameSelection("indices", indices=(0,) * 2000),
        FrameSelection("times", times=(0.0,) * 2000),
    ],
)
def test_more_frames_than_the_limit_are_refused(selection: FrameSelection) -> None:
    with pytest.raises(MediaError, match="limit of 1024"):
        select_frames(selection, constant(100))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "at least 1"),
        ({"sampler": "fps"}, "needs fps"),
        ({"sampler": "fps", "fps": 0.0}, "above zero"),
        ({"sampler": "fps", "fps": float("nan")}, "above zero"),
        ({"sampler": "times"}, "needs times"),
        ({"sampler": "times", "times": (-1.0,)}, "from 0 on"),
        ({"sampler": "indices"}, "needs indices"),
        ({"fps": 2.0}, "fps needs the frame sampler 'fps'"),
        ({"indices": (1,)}, "indices needs the frame sampler 'indices'"),
    ],
)
def test_bad_selections_say_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FrameSelection(**arguments)


def test_no_frames_at_all() -> None:
    with pytest.raises(MediaError, match="no frames"):
        select_frames(FrameSelection(), [])
