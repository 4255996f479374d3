"""Still images: what the reader makes of every mode and every bad file."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.errors import MediaError
from filmstrip.media.image import identify_image, read_image
from filmstrip.media.limits import MediaLimits

RED, WHITE = [255, 0, 0], [255, 255, 255]


def gradient(height: int = 6, width: int = 8) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 30, columns * 25, rows * columns * 3], axis=-1).astype(np.uint8)


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b""))
    return path


def refused(path: Path, limits: MediaLimits | None = None) -> str:
    """Read a bad image; the one line that says why, with nothing else leaking out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MediaError) as caught:
            read_image(path, limits or MediaLimits())
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    return line


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(gradient()).save(path)
    frame = read_image(path)
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, gradient())


# EXIF orientation: which stored corner shows at the top left, and whether rows become columns (EXIF 2.32, table 6).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png"), UPRIGHT[orientation](gradient()))


def test_alpha_is_blended_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[0, :, 3] = (0, 128, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    frame = read_image(tmp_path / "x.png")[0]
    assert frame[0].tolist() == WHITE
    assert frame[1].tolist() == [255, 127, 127]
    assert frame[2].tolist() == RED


def test_palette_and_its_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "holes.png", transparency=1)
    assert read_image(tmp_path / "plain.png")[0].tolist() == [RED, [0, 0, 255]]
    assert read_image(tmp_path / "holes.png")[0].tolist() == [RED, WHITE]


def test_grey_modes(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], np.uint8)).save(tmp_path / "8.png")
    Image.fromarray(np.array([[0, 25_700, 65_535]], np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(np.array([[False, True, True]])).save(tmp_path / "1.png")
    Image.merge("LA", [Image.new("L", (3, 1), 0), Image.new("L", (3, 1), 0)]).save(tmp_path / "la.png")
    assert read_image(tmp_path / "8.png")[0].tolist() == [[0] * 3, [100] * 3, WHITE]
    assert read_image(tmp_path / "16.png")[0].tolist() == [[0] * 3, [100] * 3, WHITE]
    assert read_image(tmp_path / "1.png")[0].tolist() == [[0] * 3, WHITE, WHITE]
    assert read_image(tmp_path / "la.png")[0].tolist() == [WHITE] * 3


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    frame = read_image(tmp_path / "x.jpg").astype(int)
    assert np.abs(frame - RED).max() <= 3  # JPEG rounding


def test_pixels_without_a_fixed_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(np.zeros((2, 2), np.int32)).save(tmp_path / "i.tiff")
    assert "no fixed white" in refused(tmp_path / "f.tiff")
    assert "no fixed white" in refused(tmp_path / "i.tiff")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused_with_a_hint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert "pass it as a video" in refused(path)
    assert identify_image(path) == ("animation", suffix.upper())


def test_a_gif_of_one_frame_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x.gif")
    assert identify_image(tmp_path / "x.gif") == ("image", "GIF")
    assert read_image(tmp_path / "x.gif")[0, 0].tolist() == RED


def test_a_phones_second_picture_is_no_animation_and_pages_are_refused(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - RED).max() <= 3  # JPEG rounding
    Image.new("RGB", (16, 16)).save(tmp_path / "x.tiff", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert "2 pages" in refused(tmp_path / "x.tiff")


# 100 megapixels is where Pillow warns of a bomb, 400 where it raises.
@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    line = refused(png_header(tmp_path / "x.png", side, side))
    assert "64,000,000" in line


def test_extreme_shapes_are_refused_and_a_single_pixel_is_not(tmp_path: Path) -> None:
    Image.new("RGB", (1, 5000)).save(tmp_path / "x.png")
    assert "too long and narrow" in refused(tmp_path / "x.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").tolist() == [[RED]]


def test_limits_are_the_callers(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    assert "10x10" in refused(tmp_path / "x.png", MediaLimits(max_pixels=99))
    assert "bytes are above" in refused(tmp_path / "x.png", MediaLimits(max_file_bytes=10))


def test_bad_files(tmp_path: Path) -> None:
    Image.fromarray(gradient(64, 64)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    # Pillow would hand this one to Ghostscript.
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "cannot be decoded" in refused(tmp_path / "cut.png")
    assert "not an image" in refused(tmp_path / "text.png")
    assert "empty" in refused(tmp_path / "empty.png")
    assert "not an image" in refused(tmp_path / "x.eps")
    assert "no such file" in refused(tmp_path / "missing.png")
    assert "directory" in refused(tmp_path)
    assert "cannot be opened" in refused(tmp_path / ("x" * 300))


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x.bin"
    for suffix in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        Image.fromarray(gradient(32, 32)).save(tmp_path / "whole", format=suffix)
        whole = (tmp_path / "whole").read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                frame = read_image(path)
            except MediaError as error:
                assert "\n" not in str(error)
            else:
                assert frame.dtype == np.uint8
                assert frame.ndim == 3
