"""Frames to the pixels a vision tower reads: resize, crop, rescale, normalise, in the order of each program.

- `clip-pil-bicubic` (transformers): resize the short side with antialiased bicubic on bytes, centre crop, normalise.
  An image goes through Pillow, a video through torch, as in transformers; the two differ by at most one grey level.
- `languagebind` (the original release): an image is resized in floats (bicubic, no antialias, overshoot kept), then
  cropped and normalised; a video is normalised first, then resized (bilinear, no antialias) and cropped.
- `languagebind-pad`: the same, but an image that is not square is first put on a square of the mean colour. The
  original release was fine-tuned so (`--image_aspect_ratio pad`), and its scripts for image benchmarks ask so.
- `languagebind-random-flip`: as `languagebind`, and a video is mirrored with probability 1/2, which the original
  release did at inference too. Only for reproducing it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from filmstrip.config import MediaKind
from filmstrip.config.checks import require, require_choice, require_positive
from filmstrip.config.preset import IMAGE_TRANSFORMS, ImageTransform
from filmstrip.errors import MediaError
from filmstrip.shapes import Float, Tensor, UInt8

CLIP_MEAN: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
# One resized frame: 224 pixels by 74,898. More is a mistake or an attack, and floats of it fill the memory.
MAX_RESIZED_PIXELS = 2**24
# One image on a square of its longer side, bytes. The largest accepted photo of 4 to 3 is two thirds of it.
MAX_SQUARE_PIXELS = 2**27


@dataclass(frozen=True)
class PixelSpec:
    """The numbers of a preprocessor configuration. Defaults are OpenAI CLIP's at 224 pixels.

    `size` is the length of the shortest edge after resizing, `crop` the side of the square cut out of it, `rescale`
    the factor that takes a byte to 0..1; each step can be switched off. `pad_to_square` first puts an image (not a
    video) in the middle of a square of the mean colour, so that the crop loses nothing (LLaVA-1.5's `pad`).
    """

    size: int = 224
    crop: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    pad_to_square: bool = False

    def __post_init__(self) -> None:
        require_positive("resize shortest edge", self.size)
        require_positive("crop size", self.crop)
        require_positive("rescale factor", self.rescale)
        require(len(self.mean) == 3 and len(self.std) == 3, "pixel mean and std need one number for each of R, G, B")
        require(all(value > 0 for value in self.std), f"pixel std must be above zero, is {self.std}")


def to_pixels(
    frames_FYXC: UInt8[np.ndarray, "F Yin Xin C"],
    kind: MediaKind,
    spec: PixelSpec,
    transform: ImageTransform,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "F C Y X"]:
    """Turn uint8 RGB frames into a tower's float32 input.

    `generator` decides the flip of `languagebind-random-flip`, which needs one for a video; nothing else is random.
    Raises `MediaError` for frames that would become too large, `ConfigError` for an unknown transform or a crop that
    does not fit where the reference does not pad.
    """
    require_choice("image transform", transform, IMAGE_TRANSFORMS)
    steps: Callable[[UInt8[np.ndarray, "Yin Xin C"], PixelSpec], Float[Tensor, "C Y X"]]
    if transform == "clip-pil-bicubic":
        steps = clip_image if kind == "image" else clip_video_frame
    else:
        steps = languagebind_image if kind == "image" else languagebind_video_frame
    if transform == "languagebind-pad":
        spec = replace(spec, pad_to_square=True)
    frames = [on_square(frame_YXC, spec) for frame_YXC in frames_FYXC] if kind == "image" else frames_FYXC
    pixels_FCYX = torch.stack([steps(frame_YXC, spec) for frame_YXC in frames])
    if transform == "languagebind-random-flip" and kind == "video":
        return random_flip(pixels_FCYX, generator)
    return pixels_FCYX


def clip_image(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec) -> Float[Tensor, "C Y X"]:
    """One image as transformers' `VideoLlavaImageProcessor` does it: Pillow on bytes, then float32."""
    if spec.do_resize:
        frame_YXC = resize_bytes(frame_YXC, resized_size(frame_YXC.shape[0], frame_YXC.shape[1], spec.size))
    pixels_CYX = torch.tensor(frame_YXC).permute(2, 0, 1)
    if spec.do_center_crop:
        pixels_CYX = centre_crop(pixels_CYX, spec.crop, offset=lambda spare: spare // 2)
    return clip_values(pixels_CYX, spec)


def clip_values(bytes_CYX: UInt8[Tensor, "*tiles C Y X"], spec: PixelSpec) -> Float[Tensor, "*tiles C Y X"]:
    """Bytes to a tower's values as transformers' image processors make them: a product in float64, then float32."""
    pixels_CYX = bytes_CYX.double() * spec.rescale if spec.do_rescale else bytes_CYX
    pixels_CYX = pixels_CYX.float()
    return normalise(pixels_CYX, spec.mean, spec.std) if spec.do_normalize else pixels_CYX


def resize_bytes(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], size: tuple[int, int]) -> UInt8[np.ndarray, "Y X C"]:
    """Resize to (height, width) with Pillow's antialiased bicubic, on bytes."""
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(frame_YXC)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def on_square(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec) -> UInt8[np.ndarray, "Y X C"]:
    """The image in the middle of a square of the mean colour (transformers' `LlavaImageProcessor.pad_to_square`)."""
    height, width = frame_YXC.shape[:2]
    side = max(height, width)
    if not spec.pad_to_square or height == width:
        return frame_YXC
    if side * side > MAX_SQUARE_PIXELS:
        raise MediaError(f"an image of {width}x{height} pixels is too long and narrow for a square; crop it first")
    square_YXC = np.empty((side, side, 3), dtype=np.uint8)
    square_YXC[:] = [int(255 * value) for value in spec.mean]
    top, left = (side - height) // 2, (side - width) // 2
    square_YXC[top : top + height, left : left + width] = frame_YXC
    return square_YXC


def clip_video_frame(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec) -> Float[Tensor, "C Y X"]:
    """One video frame as transformers' `VideoLlavaVideoProcessor` does it: torch on bytes, then fused float32."""
    pixels_CYX = torch.tensor(frame_YXC).permute(2, 0, 1)
    if spec.do_resize:
        size = resized_size(frame_YXC.shape[0], frame_YXC.shape[1], spec.size)
        pixels_CYX = functional.interpolate(pixels_CYX[None], size=size, mode="bicubic", antialias=True)[0]
    if spec.do_center_crop:
        pixels_CYX = centre_crop(pixels_CYX, spec.crop, offset=lambda spare: int(spare / 2.0))
    pixels_CYX = pixels_CYX.float()
    if spec.do_normalize:
        # Rescaling is folded into mean and std, in float32, so that the last bits agree with transformers.
        scale = 1.0 / spec.rescale if spec.do_rescale else 1.0
        return normalise(pixels_CYX, torch.tensor(spec.mean) * scale, torch.tensor(spec.std) * scale)
    return pixels_CYX * spec.rescale if spec.do_rescale else pixels_CYX


def languagebind_image(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec) -> Float[Tensor, "C Y X"]:
    """One image as the original's `LanguageBindImageProcessor` does it (torchvision 0.15 on a float tensor)."""
    pixels_CYX = rescale(frame_YXC, spec)
    if spec.do_resize:
        size = resized_size(frame_YXC.shape[0], frame_YXC.shape[1], spec.size)
        pixels_CYX = functional.interpolate(pixels_CYX[None], size=size, mode="bicubic", align_corners=False)[0]
    if spec.do_center_crop:
        pixels_CYX = centre_crop(pixels_CYX, spec.crop, offset=torchvision_offset)
    return normalise(pixels_CYX, spec.mean, spec.std) if spec.do_normalize else pixels_CYX


def languagebind_video_frame(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec) -> Float[Tensor, "C Y X"]:
    """One video frame as the original's `LanguageBindVideoProcessor` does it (pytorchvideo), without its flip."""
    pixels_CYX = rescale(frame_YXC, spec)
    if spec.do_normalize:
        pixels_CYX = normalise(pixels_CYX, spec.mean, spec.std)
    if spec.do_resize:
        size = resized_size(frame_YXC.shape[0], frame_YXC.shape[1], spec.size, floor_of_ratio=True)
        pixels_CYX = functional.interpolate(pixels_CYX[None], size=size, mode="bilinear", align_corners=False)[0]
    if spec.do_center_crop:
        height, width = pixels_CYX.shape[1:]
        require(min(height, width) >= spec.crop, f"a crop of {spec.crop} does not fit a frame of {width}x{height}")
        pixels_CYX = centre_crop(pixels_CYX, spec.crop, offset=torchvision_offset)
    return pixels_CYX


def random_flip(pixels_FCYX: Float[Tensor, "F C Y X"], generator: torch.Generator | None) -> Float[Tensor, "F C Y X"]:
    """Mirror the whole clip left to right with probability 1/2 (torchvision `RandomHorizontalFlipVideo`)."""
    if generator is None:
        raise MediaError("the transform 'languagebind-random-flip' is random: give it a seeded generator")
    return pixels_FCYX.flip(-1) if torch.rand(1, generator=generator).item() < 0.5 else pixels_FCYX


def resized_size(height: int, width: int, shortest_edge: int, floor_of_ratio: bool = False) -> tuple[int, int]:
    """(height, width) after the shorter side is brought to `shortest_edge`; the longer one is cut to an integer.

    transformers and torchvision multiply before they divide, pytorchvideo (`floor_of_ratio`) after, which rounds
    differently for some sizes. Raises `MediaError` when the result is above `MAX_RESIZED_PIXELS`.
    """
    short, long = sorted((height, width))
    new_long = math.floor(long / short * shortest_edge) if floor_of_ratio else int(shortest_edge * long / short)
    if shortest_edge * new_long > MAX_RESIZED_PIXELS:
        raise MediaError(
            f"a frame of {width}x{height} pixels is too long and narrow: resized it would be {shortest_edge} by "
            f"{new_long}; crop it first"
        )
    return (new_long, shortest_edge) if width <= height else (shortest_edge, new_long)


def centre_crop(pixels_CYX: Tensor, crop: int, offset: Callable[[int], int]) -> Tensor:
    """Cut the central `crop` x `crop` square; `offset` says how spare pixels are split before and after it.

    A side shorter than the crop is padded with zeros, as transformers and torchvision do: the missing pixels are a
    negative spare, and the same rule says how many of them go before.
    """
    height, width = pixels_CYX.shape[1:]
    top, left = offset(height - crop), offset(width - crop)
    pads = (-min(left, 0), max(0, left + crop - width), -min(top, 0), max(0, top + crop - height))
    top, left = max(top, 0), max(left, 0)
    return functional.pad(pixels_CYX, pads)[:, top : top + crop, left : left + crop]


def torchvision_offset(spare: int) -> int:
    """torchvision's split of spare pixels: rounded half to even when cropping, cut when padding."""
    return round(spare / 2.0) if spare >= 0 else int(spare / 2.0)


def rescale(frame_YXC: UInt8[np.ndarray, "Y X C"], spec: PixelSpec) -> Float[Tensor, "C Y X"]:
    """Bytes to float32, divided by 255 as torchvision's `ToTensor` divides (a product differs in the last bit)."""
    pixels_CYX = torch.tensor(frame_YXC).permute(2, 0, 1).float()
    return pixels_CYX / (1.0 / spec.rescale) if spec.do_rescale else pixels_CYX


def normalise(
    pixels_CYX: Float[Tensor, "*frames C Y X"], mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]
) -> Float[Tensor, "*frames C Y X"]:
    """Subtract the channel means and divide by the channel deviations, float32."""
    mean_C11 = torch.as_tensor(mean, dtype=torch.float32)[:, None, None]
    std_C11 = torch.as_tensor(std, dtype=torch.float32)[:, None, None]
    return (pixels_CYX - mean_C11) / std_C11
