"""Pixels against transformers' processors for Video-LLaVA."""

import importlib.util

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from filmstrip.media.transform import CLIP_STD, PixelSpec, to_pixels

# One grey level of each channel after normalisation.
LEVEL = (1 / 255 / torch.tensor(CLIP_STD)).view(1, 3, 1, 1)
ROUNDING = 1e-5  # float32 after normalisation, values up to 2.7

PHOTOS = {
    "astronaut 512x512": skimage.data.astronaut,
    "coffee 400x600": skimage.data.coffee,
    "cat 300x451": skimage.data.chelsea,
    "rocket 427x640": skimage.data.rocket,
    "strip 100x512": lambda: skimage.data.astronaut()[100:200],
    "portrait 600x400": lambda: skimage.data.coffee().transpose(1, 0, 2),
    "small 61x43": lambda: skimage.data.chelsea()[100:161, 200:243],
    "already 224x224": lambda: skimage.data.astronaut()[:224, :224],
    # A single pixel is missing here: transformers takes its 1x1x3 array for one channel and fails.
    "four pixels": lambda: skimage.data.astronaut()[:2, :2],
}


def reference_image(photo: np.ndarray, **settings: object) -> torch.Tensor:
    processor = VideoLlavaImageProcessor(**settings)
    return processor(Image.fromarray(photo), return_tensors="pt", return_legacy_image_output=False)["pixel_values"]


def levels_apart(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).abs() / LEVEL


@pytest.mark.parametrize("name", PHOTOS)
def test_image_pixels_equal_transformers_bit_for_bit(name: str) -> None:
    photo = np.ascontiguousarray(PHOTOS[name]())
    found = to_pixels(photo[None], "image", PixelSpec(), "clip-pil-bicubic")
    # The same Pillow resize and the same order of float operations: nothing is left to differ.
    assert torch.equal(found, reference_image(photo))


@pytest.mark.parametrize(
    ("size", "crop"),
    [(64, 64), (336, 336), (256, 224), (60, 101), (100, 61)],
)
def test_image_pixels_equal_transformers_at_other_sizes(size: int, crop: int) -> None:
    photo = skimage.data.chelsea()
    settings = {"size": {"shortest_edge": size}, "crop_size": {"height": crop, "width": crop}}
    found = to_pixels(photo[None], "image", PixelSpec(size=size, crop=crop), "clip-pil-bicubic")
    assert torch.equal(found, reference_image(photo, **settings))


@pytest.mark.parametrize(
    ("flags", "spec"),
    [
        ({"do_resize": False}, PixelSpec(do_resize=False)),
        ({"do_rescale": False}, PixelSpec(do_rescale=False)),
        ({"do_normalize": False}, PixelSpec(do_normalize=False)),
        ({"do_center_crop": False}, PixelSpec(do_center_crop=False)),
    ],
)
def test_switched_off_steps_equal_transformers(flags: dict, spec: PixelSpec) -> None:
    photo = skimage.data.coffee()
    found = to_pixels(photo[None], "image", spec, "clip-pil-bicubic")
    assert torch.equal(found, reference_image(photo, **flags))


# Enlarged a hundred times, the weights' rounding adds up to two levels; real media stay within one.
@pytest.mark.parametrize("name", [name for name in PHOTOS if name != "four pixels"])
def test_video_pixels_stay_within_a_grey_level_of_the_image_path(name: str) -> None:
    photo = np.ascontiguousarray(PHOTOS[name]())
    found = to_pixels(photo[None], "video", PixelSpec(), "clip-pil-bicubic")
    apart = levels_apart(found, reference_image(photo))
    # torch and Pillow round their fixed-point bicubic weights differently: measured at most 0.56 % of the values.
    assert apart.max() <= 1 + 1e-3
    assert (apart < 1e-3).float().mean() >= 0.99


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="the reference needs torchvision")
@pytest.mark.parametrize("name", PHOTOS)
def test_video_pixels_equal_transformers_video_processor(name: str) -> None:
    from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

    photo = np.ascontiguousarray(PHOTOS[name]())
    clip = np.stack([photo, photo[::-1], photo[:, ::-1]])
    expected = VideoLlavaVideoProcessor()(torch.from_numpy(clip).permute(0, 3, 1, 2), return_tensors="pt")
    found = to_pixels(clip, "video", PixelSpec(), "clip-pil-bicubic")
    torch.testing.assert_close(found, expected["pixel_values_videos"][0], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("name", PHOTOS)
def test_video_pixels_equal_the_documented_equations(name: str) -> None:
    photo = np.ascontiguousarray(PHOTOS[name]())
    height, width = photo.shape[:2]
    short = min(height, width)
    size = (224 * height // short, 224 * width // short)
    planes = torch.from_numpy(photo).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
    assert resized.dtype == torch.uint8
    top, left = int((size[0] - 224) / 2.0), int((size[1] - 224) / 2.0)
    cropped = resized[..., top : top + 224, left : left + 224].double()
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073), dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711), dtype=torch.float64).view(1, 3, 1, 1)
    expected = (cropped - 255 * mean) / (255 * std)
    found = to_pixels(photo[None], "video", PixelSpec(), "clip-pil-bicubic")
    torch.testing.assert_close(found.double(), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_colour_modes_equal_transformers(mode: str, tmp_path) -> None:
    from filmstrip.media.image import read_image

    photo = Image.fromarray(skimage.data.chelsea())
    if mode in ("RGBA", "LA"):
        photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    photo.convert(mode).save(path)
    found = to_pixels(read_image(path)[None], "image", PixelSpec(), "clip-pil-bicubic")
    with Image.open(path) as image:
        processor = VideoLlavaImageProcessor()
        expected = processor(image, return_tensors="pt", return_legacy_image_output=False)["pixel_values"]
    assert torch.equal(found, expected)
