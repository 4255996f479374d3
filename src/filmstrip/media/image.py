"""Read still images (Pillow): upright, without alpha, eight bits a channel."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from filmstrip.errors import MediaError
from filmstrip.media.limits import DEFAULT_LIMITS, MediaLimits, check_file, check_size

# Formats a photo may have. Pillow knows more, and some of those run other programs (EPS calls Ghostscript).
IMAGE_FORMATS: tuple[str, ...] = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ANIMATED_FORMATS: tuple[str, ...] = ("GIF", "PNG", "WEBP", "AVIF")

ImageContent = Literal["image", "animation"]


@contextmanager
def open_image(path: Path, limits: MediaLimits) -> Iterator[Image.Image | None]:
    """Open the header of an image; None when the content is none of `IMAGE_FORMATS`.

    Raises `MediaError` for a header whose size is above the limits, and turns whatever Pillow raises on a damaged
    file into one. Pillow's own warnings stay inside.
    """
    check_file(path, limits)
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    with warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(path, formats=formats)
        except UnidentifiedImageError:
            yield None
            return
        except Image.DecompressionBombError as error:
            raise MediaError(
                f"{path}: the image is far above the limit of {limits.max_pixels:,} pixels; make it smaller first"
            ) from error
        except Exception as error:  # a plugin may raise anything on a hostile file
            raise MediaError(f"{path}: the image cannot be read ({_one_line(error)})") from error
        with image:
            check_size(path, image.width, image.height, limits)
            try:
                yield image
            except MediaError:
                raise
            except Exception as error:
                raise MediaError(f"{path}: the image cannot be decoded ({_one_line(error)})") from error


def identify_image(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[ImageContent, str] | None:
    """Tell a still image from an animation by content: (which, Pillow's format name), None for anything else."""
    with open_image(path, limits) as image:
        if image is None:
            return None
        return ("animation" if _is_animation(image) else "image"), str(image.format)


def read_image(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read a still image as uint8 RGB (Y, X, 3).

    The EXIF orientation is applied and alpha is blended over white, as transformers 5.23 does (older releases
    dropped it). Sixteen-bit grey is scaled to eight bits. Raises `MediaError` for an animation, several pages, a
    size above the limits (known from the header, before decoding), or a file that is damaged or no image.
    """
    with open_image(path, limits) as image:
        if image is None:
            raise MediaError(f"{path}: is not an image in a known format ({', '.join(IMAGE_FORMATS)})")
        if _is_animation(image):
            raise MediaError(f"{path}: is an animated {image.format}; pass it as a video")
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise MediaError(f"{path}: has {getattr(image, 'n_frames', 1)} pages; save the one you mean on its own")
        ImageOps.exif_transpose(image, in_place=True)
        return image_to_rgb(image)


def image_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert any Pillow mode to uint8 RGB (Y, X, 3). Raises `ValueError` for modes without a fixed white."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide * 255 + 32_767) // 65_535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit pixels have no fixed white; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        if image.mode == "La":
            image = image.convert("LA")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _is_animation(image: Image.Image) -> bool:
    # A phone's MPO holds a preview as a second frame and TIFF holds pages: neither moves.
    return image.format in ANIMATED_FORMATS and bool(getattr(image, "is_animated", False))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
