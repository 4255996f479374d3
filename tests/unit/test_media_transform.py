"""Each step of the transforms against its written equation; the references' processors are in tests/parity."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from filmstrip.errors import ConfigError, MediaError
from filmstrip.media.transform import CLIP_MEAN, CLIP_STD, PixelSpec, centre_crop, resized_size, to_pixels

SPEC = PixelSpec(size=32, crop=32)
MEAN, STD = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)


def noise(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def planes(frames_FYXC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames_FYXC).permute(0, 3, 1, 2)


def test_languagebind_video_normalises_and_then_resizes() -> None:
    frames = noise(45, 70)
    expected = (planes(frames).float() / 255 - MEAN) / STD
    expected = functional.interpolate(expected, size=(32, 49), mode="bilinear", align_corners=False)
    # (49 - 32) / 2 = 8.5 rounds to 8, half to even.
    assert torch.equal(to_pixels(frames, "video", SPEC, "languagebind"), expected[..., 8:40])


def test_languagebind_image_keeps_the_overshoot_of_bicubic() -> None:
    frames = np.zeros((1, 40, 60, 3), np.uint8)
    frames[:, :, 30:] = 255
    resized = functional.interpolate(planes(frames).float() / 255, size=(32, 48), mode="bicubic")
    assert resized.max() > 1
    assert torch.equal(to_pixels(frames, "image", SPEC, "languagebind"), (resized[..., 8:40] - MEAN) / STD)


def test_clip_video_resizes_bytes_with_antialias() -> None:
    frames = noise(90, 133)
    resized = functional.interpolate(planes(frames), size=(32, 47), mode="bicubic", antialias=True)
    # (47 - 32) / 2 = 7.5 is cut to 7.
    expected = (resized[..., 7:39].float() / 255 - MEAN) / STD
    found = to_pixels(frames, "video", SPEC, "clip-pil-bicubic")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)  # the fused form differs in the last bits


@pytest.mark.parametrize("transform", ["clip-pil-bicubic", "languagebind"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_frame_is_treated_alone_and_in_order(transform: str, kind: str) -> None:
    frames = noise(50, 40, 3)
    together = to_pixels(frames, kind, SPEC, transform)
    assert together.shape == (3, 3, 32, 32)
    for number in range(3):
        assert torch.equal(to_pixels(frames[number : number + 1], kind, SPEC, transform)[0], together[number])


@pytest.mark.parametrize("transform", ["clip-pil-bicubic", "languagebind"])
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (224, 224), (3, 2)])
def test_constant_pictures_of_any_size_stay_constant(transform: str, kind: str, size: tuple[int, int]) -> None:
    frames = np.full((1, *size, 3), 200, np.uint8)
    expected = ((200 / 255 - MEAN) / STD).expand(3, 224, 224)
    found = to_pixels(frames, kind, PixelSpec(), transform)[0]
    # Bicubic weights in float32 sum to one only up to rounding.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_random_flip_mirrors_whole_clips_half_of_the_time() -> None:
    frames = noise(32, 32)
    plain = to_pixels(frames, "video", SPEC, "languagebind")
    generator = torch.Generator().manual_seed(0)
    flips = 0
    for _ in range(200):
        pixels = to_pixels(frames, "video", SPEC, "languagebind-random-flip", generator)
        flipped = torch.equal(pixels, plain.flip(-1))
        assert flipped or torch.equal(pixels, plain)
        flips += flipped
    assert 70 < flips < 130  # four deviations of a fair coin
    again = [torch.Generator().manual_seed(seed) for seed in (5, 5)]
    one, other = (to_pixels(frames, "video", SPEC, "languagebind-random-flip", generator) for generator in again)
    assert torch.equal(one, other)


def test_the_random_flip_needs_a_generator_for_a_video_and_leaves_images_alone() -> None:
    frames = noise(32, 32)
    with pytest.raises(MediaError, match="seeded generator"):
        to_pixels(frames, "video", SPEC, "languagebind-random-flip")
    plain = to_pixels(frames[:1], "image", SPEC, "languagebind")
    assert torch.equal(to_pixels(frames[:1], "image", SPEC, "languagebind-random-flip"), plain)


def test_languagebind_pad_puts_images_on_a_square_of_the_mean_colour_and_leaves_videos_alone() -> None:
    frames = noise(20, 33)
    square = np.empty((2, 33, 33, 3), np.uint8)
    square[:] = [int(255 * value) for value in CLIP_MEAN]
    square[:, 6:26] = frames  # (33 - 20) // 2 above
    expected = to_pixels(square, "image", SPEC, "languagebind")
    assert torch.equal(to_pixels(frames, "image", SPEC, "languagebind-pad"), expected)
    plain = to_pixels(frames, "video", SPEC, "languagebind")
    assert torch.equal(to_pixels(frames, "video", SPEC, "languagebind-pad"), plain)


@pytest.mark.parametrize("transform", ["clip-pil-bicubic", "languagebind"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_frames_that_would_become_huge_are_refused_before_they_do(transform: str, kind: str) -> None:
    frames = np.zeros((1, 1, 100_000, 3), np.uint8)
    with pytest.raises(MediaError, match="224 by 22400000"):
        to_pixels(frames, kind, PixelSpec(), transform)


def test_resized_sizes() -> None:
    assert resized_size(480, 640, 224) == (224, 298)  # 298.67
    assert resized_size(640, 480, 224) == (298, 224)
    assert resized_size(224, 224, 224) == (224, 224)
    # Where the two ways of rounding part: 224 * 45 / 35 is 288, 45 / 35 * 224 is 287.999...
    pairs = [(short, long) for short in range(1, 120) for long in range(short, 240)]
    different = [pair for pair in pairs if resized_size(*pair, 224) != resized_size(*pair, 224, floor_of_ratio=True)]
    assert 0 < len(different) < 0.05 * len(pairs)


def test_a_crop_larger_than_the_frame_is_padded_or_refused() -> None:
    frames, spec = noise(20, 20), PixelSpec(size=20, crop=25)
    black = (-MEAN / STD)[:, 0, 0]
    # Five missing pixels: three before in Pillow's path, two in torch's.
    for kind, before in (("image", 3), ("video", 2)):
        pixels = to_pixels(frames, kind, spec, "clip-pil-bicubic")
        assert pixels.shape == (2, 3, 25, 25)
        torch.testing.assert_close(pixels[0, :, before - 1, 12], black, atol=1e-6, rtol=0)  # rounding
        inside = pixels[0, :, before : before + 20, before : before + 20] * STD + MEAN
        torch.testing.assert_close(inside, planes(frames)[0] / 255, atol=1e-6, rtol=0)
    assert to_pixels(frames, "image", spec, "languagebind").shape == (2, 3, 25, 25)
    with pytest.raises(ConfigError, match="crop of 25 does not fit a frame of 20x20"):
        to_pixels(frames, "video", spec, "languagebind")


def test_centre_crop_pads_one_side_and_cuts_the_other() -> None:
    pixels = torch.arange(1, 7.0).view(1, 1, 6)
    cropped = centre_crop(pixels, 3, lambda spare: spare // 2)
    assert cropped.tolist() == [[[0, 0, 0], [2, 3, 4], [0, 0, 0]]]


@pytest.mark.parametrize("transform", ["clip-pil-bicubic", "languagebind"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_steps_can_be_switched_off(transform: str, kind: str) -> None:
    frames = noise(32, 40)
    nothing = PixelSpec(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    assert torch.equal(to_pixels(frames, kind, nothing, transform), planes(frames).float())
    scaled = PixelSpec(do_resize=False, do_center_crop=False, do_normalize=False)
    torch.testing.assert_close(to_pixels(frames, kind, scaled, transform), planes(frames) / 255, atol=1e-7, rtol=0)


def test_bad_numbers() -> None:
    for bad in ({"size": 0}, {"crop": -1}, {"rescale": 0.0}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ConfigError):
            PixelSpec(**bad)
