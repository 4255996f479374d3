"""Videos that are damaged, cut off, lying, too large or no videos: what is left, and what is said about it."""

import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from filmstrip.errors import MediaError
from filmstrip.media import decode
from filmstrip.media.decode import read_video
from filmstrip.media.limits import MediaLimits
from filmstrip.media.sample import FrameSelection
from tests.unit.test_media_decode import CONTAINERS, CountingContainer, plain_decode, sweep, write_video


def test_a_header_that_announces_more_frames_than_there_are(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.avi", sweep(), "mpeg4")
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32
    assert int.from_bytes(data[length : length + 4], "little") == 40
    data[length : length + 4] = (444).to_bytes(4, "little")
    path.write_bytes(data)
    clip = read_video(path, FrameSelection())
    assert (clip.total_frames, clip.indices[-1]) == (40, 35)
    assert clip.warnings == ("the header announces 444 frames, there are 40",)


def test_a_truncated_file_gives_what_decodes(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=10"}
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(40)]
    with av.open(str(tmp_path / "x.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    whole = plain_decode(tmp_path / "x.mp4")
    data = (tmp_path / "x.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    clip = read_video(tmp_path / "cut.mp4", FrameSelection())
    assert 15 <= clip.total_frames <= 25
    assert clip.warnings == (
        f"the file is damaged or cut off: {clip.total_frames} of 40 announced frames could be decoded",
    )
    for index, frame in zip(clip.indices[:6], clip.frames, strict=False):
        assert np.array_equal(frame, whole[index])


def test_a_truncated_file_with_its_index_at_the_end_is_refused(tmp_path: Path) -> None:
    data = write_video(tmp_path / "x.mp4", sweep()).read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match="not an image or video"):
        read_video(tmp_path / "cut.mp4", FrameSelection())


def test_a_truncated_matroska_file_says_what_its_header_promised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(100)]
    data = write_video(tmp_path / "x.webm", noise, "libvpx-vp9", options={"deadline": "realtime"}).read_bytes()
    (tmp_path / "cut.webm").write_bytes(data[: len(data) // 2])
    clip = read_video(tmp_path / "cut.webm", FrameSelection())
    assert 20 < clip.total_frames < 80
    assert any("4.0 s" in line or "cut off" in line for line in clip.warnings)


def test_a_truncated_gif_is_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(20)]
    data = write_video(tmp_path / "x.gif", noise, "gif", "rgb8").read_bytes()
    assert read_video(tmp_path / "x.gif", FrameSelection()).warnings == ()
    (tmp_path / "cut.gif").write_bytes(data[: len(data) // 2])
    clip = read_video(tmp_path / "cut.gif", FrameSelection(num_frames=4))
    assert 8 <= clip.total_frames <= 11
    assert clip.warnings == (f"the file is cut off: {clip.total_frames} frames are left",)


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), CONTAINERS)
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    whole = write_video(tmp_path / f"x.{suffix}", sweep(10), codec, pix_fmt).read_bytes()
    path = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    for attempt in range(8):
        damaged = bytearray(whole)
        for place in rng.integers(0, 400 if attempt % 2 else len(whole), 6):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            clip = read_video(path, FrameSelection())
        except MediaError as error:
            assert "\n" not in str(error)
        else:
            assert clip.frames.shape[0] == 8


def test_a_stream_that_changes_its_size(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{side}.h264", sweep(5, side, side)).read_bytes() for side in (64, 96)]
    (tmp_path / "x.h264").write_bytes(b"".join(parts))
    clip = read_video(tmp_path / "x.h264", FrameSelection(num_frames=10))
    assert clip.frames.shape == (10, 64, 64, 3)
    assert "the picture changes its size: 5 of the frames were scaled to 64x64" in clip.warnings


def test_python_errors_of_the_demultiplexer_count_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.ts", sweep(), options={"x264-params": "bframes=0"})
    plain_open = decode._open

    class Failing(CountingContainer):
        def demux(self, stream: Any) -> Any:
            yield from itertools.islice(self.container.demux(stream), 20)
            raise IndexError("a stream that nobody announced")

    def failing_open(path: Path, limits: MediaLimits) -> Any:
        container, stream = plain_open(path, limits)
        return Failing(container, [0]), stream

    monkeypatch.setattr(decode, "_open", failing_open)
    clip = read_video(path, FrameSelection())
    assert clip.total_frames == 20
    assert clip.warnings == ("the file is damaged or cut off: 20 frames could be decoded",)


def test_repeats_count_towards_the_memory_limit(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(2))
    with pytest.raises(MediaError, match="ask for fewer frames"):
        read_video(path, FrameSelection("indices", indices=(0,) * 9), MediaLimits(max_clip_bytes=8 * 96 * 64 * 3))


def test_damaged_pictures_are_reported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", sweep(40, 256, 256), options={"x264-params": "keyint=20", "crf": "10"})
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 1500, data.index(b"moov") if data.index(b"moov") > 100 else len(data)
    for place in np.random.default_rng(1).integers(start, end - 4, 60):
        data[place] ^= 0x55
    path.write_bytes(data)
    clip = read_video(path, FrameSelection("uniform-inclusive", num_frames=20))
    assert clip.frames.shape == (20, 256, 256, 3)
    assert any("damaged" in line for line in clip.warnings)


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_bad_files_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "empty.mp4").touch()
    # FFmpeg would open whatever this playlist names.
    write_video(tmp_path / "x.ts", sweep(3))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nx.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile x.ts\n")
    expected = {
        "text.mp4": "not an image or video",
        "empty.mp4": "empty",
        "list.m3u8": "not an image or video",
        "list.mp4": "not an image or video",
        "missing.mp4": "no such file",
        ".": "is a directory",
        write_audio(tmp_path / "audio.mp4").name: "no video stream",
    }
    for name, message in expected.items():
        with pytest.raises(MediaError, match=message) as caught:
            read_video(tmp_path / name, FrameSelection())
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_times_and_numbers_outside_the_clip_name_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", sweep())
    with pytest.raises(MediaError, match=r"x\.mp4: there is no frame at 9 s, the clip lasts 1\.600 s"):
        read_video(path, FrameSelection("times", times=(9.0,)))
    with pytest.raises(MediaError, match=r"x\.mp4: there is no frame 40, the clip has 40"):
        read_video(path, FrameSelection("indices", indices=(40,)))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MediaLimits(max_pixels=96 * 64 - 1), "96x64 pixels are above"),
        (MediaLimits(max_aspect=1.4), "long and narrow"),
        (MediaLimits(max_frames=7), "more than the limit of 7"),
        (MediaLimits(max_clip_bytes=8 * 96 * 64 * 3 - 1), "ask for fewer frames"),
        (MediaLimits(max_scanned_frames=39), "more than 39 frames"),
        (MediaLimits(max_file_bytes=100), "bytes are above"),
    ],
)
@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
def test_limits(tmp_path: Path, limits: MediaLimits, message: str, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"x.{suffix}", sweep(), codec)
    with pytest.raises(MediaError, match=message):
        read_video(path, FrameSelection(), limits)
