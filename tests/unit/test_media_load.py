"""Image or video is decided by content."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.errors import MediaError
from filmstrip.media import Clip, FrameSelection, MediaLimits, load_media, pixel_hash

COLOURS = ("red", "lime", "blue")
RGB = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def animate(path: Path, file_format: str) -> Path:
    frames = [Image.new("RGB", (32, 24), colour) for colour in COLOURS]
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 100} if file_format == "AVIF" else {}
    frames[0].save(
        path, format=file_format, save_all=True, append_images=frames[1:], duration=[100, 200, 500], **options
    )
    return path


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_animations_are_videos_whatever_they_are_called(tmp_path: Path, file_format: str) -> None:
    clip = load_media(animate(tmp_path / "x.jpg", file_format), FrameSelection(num_frames=3))
    assert clip.kind == "video"
    assert clip.total_frames == 3
    # 100, 200 and 500 ms are a variable rate: 0, 267 and 533 ms show the frames 0, 1 and 2.
    assert clip.indices == (0, 1, 2)
    assert clip.times == pytest.approx([0, 0.1, 0.3])
    assert clip.duration == pytest.approx(0.8)
    colours = clip.frames[:, 12, 16].astype(int)
    assert np.abs(colours - RGB).max() <= (6 if file_format == "AVIF" else 0)  # AVIF stores chroma coarsely


def test_animations_obey_the_selection_and_the_limits(tmp_path: Path) -> None:
    for file_format in ("GIF", "WEBP"):
        path = animate(tmp_path / f"x.{file_format.lower()}", file_format)
        clip = load_media(path, FrameSelection("indices", indices=(2, 0)))
        assert clip.frames[:, 0, 0].tolist() == [RGB[2], RGB[0]]
        assert "repeated" in load_media(path, FrameSelection()).warnings[0]
        for limits in (MediaLimits(max_clip_bytes=100), MediaLimits(max_scanned_frames=2), MediaLimits(max_frames=7)):
            with pytest.raises(MediaError, match="limit"):
                load_media(path, FrameSelection(), limits)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "JPEG", "BMP"])
def test_single_pictures_are_images_whatever_they_are_called(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "x.mp4"
    Image.new("RGB", (32, 24), "red").save(path, format=file_format)
    clip = load_media(str(path), FrameSelection())
    assert (clip.kind, clip.frames.shape, clip.frames.dtype) == ("image", (1, 24, 32, 3), np.uint8)
    assert (clip.times, clip.indices, clip.total_frames, clip.warnings) == ((0.0,), (0,), 1, ())
    assert clip.path == str(path)


def test_neither_image_nor_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("words")
    (tmp_path / "y.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("x.mp4", "y.png", "missing.png"):
        with pytest.raises(MediaError) as caught:
            load_media(tmp_path / name, FrameSelection())
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_pixel_hash_sees_every_pixel_and_the_shape() -> None:
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    changed = frames.copy()
    changed[1, 3, 5, 2] = 1
    assert pixel_hash(frames) == pixel_hash(frames[:, ::-1])
    assert len({pixel_hash(frames), pixel_hash(changed), pixel_hash(frames.reshape(2, 6, 4, 3))}) == 3
    assert len(pixel_hash(frames)) == 64


def test_clips_compare_by_identity_and_not_pixel_by_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    first, second = (load_media(tmp_path / "x.png", FrameSelection()) for _ in range(2))
    assert isinstance(first, Clip)
    assert first != second
