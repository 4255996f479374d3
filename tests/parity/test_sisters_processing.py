"""Pixels, tiles and placeholder expansion of LLaVA-1.5 and LLaVA-NeXT-Video against transformers' processors."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, LlavaNextVideoProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next_video.modeling_llava_next_video import image_size_to_num_patches, unpad_image

from filmstrip.api.load import open_model
from filmstrip.config.tiles import best_grid, scaled_size, tile_image
from filmstrip.inputs import Processor
from filmstrip.media import Clip
from filmstrip.media.tiles import tile_pixels
from filmstrip.media.transform import PixelSpec, to_pixels
from filmstrip.testing.tiny import tiny_sister_config, write_tiny_checkpoint
from filmstrip.text import user_turn

GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

PHOTOS = {
    "square 512x512": skimage.data.astronaut,
    "landscape 400x600": skimage.data.coffee,
    "portrait 600x400": lambda: skimage.data.coffee().transpose(1, 0, 2),
    "odd 427x639": lambda: skimage.data.rocket()[:, :639],
    "strip 60x512": lambda: skimage.data.astronaut()[100:160],
    "column 427x37": lambda: skimage.data.rocket()[:, :37],
    "needle 300x3": lambda: skimage.data.chelsea()[:, :3],
    "small 43x61": lambda: skimage.data.chelsea()[100:143, 200:261],
    "one grid exactly 336x672": lambda: np.tile(skimage.data.coffee(), (1, 2, 1))[:336, :672],
}


def crops(side: int, **others: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, **others}


@pytest.mark.parametrize("flags", [{}, {"do_rescale": False}, {"do_normalize": False}], ids=str)
@pytest.mark.parametrize("name", PHOTOS)
def test_tiles_equal_transformers_bit_for_bit(name: str, flags: dict[str, bool]) -> None:
    photo = np.ascontiguousarray(PHOTOS[name]())
    theirs = LlavaNextImageProcessorPil(**crops(336), **flags)(Image.fromarray(photo), return_tensors="pt")
    tiling = tile_image(photo.shape[:2], GRIDS, 336)
    found = tile_pixels(photo, PixelSpec(336, 336, **flags), tiling)
    assert theirs["image_sizes"].tolist() == [list(tiling.image)]
    assert torch.equal(found, theirs["pixel_values"][0])


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("name", PHOTOS)
def test_square_images_equal_transformers_bit_for_bit(name: str, pad: bool) -> None:
    photo = np.ascontiguousarray(PHOTOS[name]())
    theirs = LlavaImageProcessorPil(**crops(336, do_pad=pad))(Image.fromarray(photo), return_tensors="pt")
    found = to_pixels(photo[None], "image", PixelSpec(336, 336, pad_to_square=pad), "clip-pil-bicubic")
    assert torch.equal(found, theirs["pixel_values"])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="the reference needs torchvision")
@pytest.mark.parametrize("name", PHOTOS)
def test_video_pixels_equal_transformers_video_processor(name: str) -> None:
    from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor

    photo = np.ascontiguousarray(PHOTOS[name]())
    clip = np.stack([photo, photo[::-1]])
    processor = LlavaNextVideoVideoProcessor(**crops(336))
    expected = processor(torch.from_numpy(clip).permute(0, 3, 1, 2), return_tensors="pt")
    found = to_pixels(clip, "video", PixelSpec(336, 336), "clip-pil-bicubic")
    torch.testing.assert_close(found, expected["pixel_values_videos"][0], atol=1e-5, rtol=0)


SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
GRID_SETS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6, unique=True)


@settings(max_examples=400, deadline=None)
@given(SIZES, GRID_SETS, st.sampled_from([(336, 24), (56, 4), (70, 5), (384, 27)]))
@example((1, 4000), [(1, 2), (2, 1)], (336, 24))
@example((4000, 1), [(1, 2), (2, 1)], (336, 24))
@example((672, 336), [(1, 2), (2, 1), (2, 2)], (336, 24))
def test_geometry_equals_transformers_for_any_size(
    size: tuple[int, int], shapes: list[tuple[int, int]], tower: tuple[int, int]
) -> None:
    """Which grid, how large on it, how many tiles, and which patches are left after unpadding."""
    side, per_side = tower
    grids = [(rows * side, columns * side) for rows, columns in shapes]
    tiling = tile_image(size, grids, side)
    assert tiling.grid == best_grid(size, grids) == select_best_resolution(size, grids)
    blank = np.broadcast_to(np.uint8(0), (3, *size))
    assert scaled_size(size, tiling.grid) == get_patch_output_size(blank, tiling.grid, ChannelDimension.FIRST)
    assert tiling.num_tiles == image_size_to_num_patches(size, grids, side)
    rows, columns = tiling.rows * per_side, tiling.columns * per_side
    numbered = torch.arange(rows * columns).view(1, rows, columns)
    ours = tiling.picture_patches(per_side)
    assert torch.equal(numbered[0][ours], unpad_image(numbered, size)[0])
    above, left = tiling.offset
    paddings = LlavaNextImageProcessorPil()._get_padding_size(tiling.scaled, tiling.grid)
    assert (above, left) == (paddings[0][0], paddings[1][0])


# --- whole processors -----------------------------------------------------------------------------------------------


class ReferenceProcessor(LlavaNextVideoProcessor):
    """transformers' processor where its video half (which needs torchvision) is replaced by given pixels."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return None

    def _process_videos(self, videos: Any, **kwargs: Any) -> Any:
        flat = [video for row in videos for video in (row if isinstance(row, list) else [row])]
        data = {"pixel_values_videos": flat}
        return data, [self.replace_video_token(data, index) for index in range(len(flat))]


IMAGES = ((90, 60), (60, 130), (200, 210), (8, 300), (112, 56))


def clip(kind: Any, size: tuple[int, int], frames: int = 1) -> Clip:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    times = tuple(index / 2 for index in range(frames))
    return Clip(f"{kind} {size}", kind, pixels, times, tuple(range(frames)), frames, frames / 2, ())


def ours_from(directory: Path) -> Processor:
    return open_model(directory, device="cpu", prompt="hf-plain").processor


def test_prompts_about_tiles_and_videos_equal_the_processor(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tiny_sister_config("llava_next_video"), processor="nested")
    ours = ours_from(tmp_path)
    reference = ReferenceProcessor(
        image_processor=AutoImageProcessor.from_pretrained(tmp_path),
        video_processor=object(),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    images = [clip("image", size) for size in IMAGES]
    videos = [clip("video", (56, 56), frames) for frames in (3, 5)]
    prompt = ours.prepare([*images, *videos], [user_turn("what is this")])
    text = "USER: " + "<image>\n" * len(images) + "<video>\n" * len(videos) + "what is this ASSISTANT:"
    assert prompt.rendered.text == text
    expected = reference(
        text=[text],
        images=[medium.frames[0] for medium in images],
        videos=[np.moveaxis(medium.frames, -1, 1) for medium in videos],
        return_tensors=None,
    )
    assert list(prompt.plan.input_ids) == list(expected["input_ids"][0])
    assert [list(size) for size in prompt.image_sizes] == np.asarray(expected["image_sizes"]).tolist()
    for found, theirs in zip(prompt.pixels_images, expected["pixel_values"], strict=True):
        tiles = torch.as_tensor(np.asarray(theirs))
        assert torch.equal(found, tiles[: len(found)])
        assert not tiles[len(found) :].any()  # padding of the batch


@pytest.mark.parametrize("processor", ["flat", "nested"])
def test_prompts_about_images_equal_the_processor(tmp_path: Path, processor: Any) -> None:
    """LLaVA-1.5 has no video half, so the whole processor runs."""
    write_tiny_checkpoint(tmp_path, tiny_sister_config("llava"), processor=processor)
    ours, reference = ours_from(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    if processor == "flat":  # files from before transformers 4.45 do not say how to count
        reference.patch_size, reference.vision_feature_select_strategy = 14, "default"
        reference.num_additional_image_tokens = 1
    images = [clip("image", size) for size in IMAGES]
    prompt = ours.prepare(images, [user_turn("what is this")])
    text = "USER: " + "<image>\n" * len(images) + "what is this ASSISTANT:"
    assert prompt.rendered.text == text
    expected = reference(text=[text], images=[medium.frames[0] for medium in images], return_tensors="pt")
    assert list(prompt.plan.input_ids) == expected["input_ids"][0].tolist()
    assert torch.equal(torch.cat(prompt.pixels_images), expected["pixel_values"])
    assert prompt.plan.visual_tokens == 16 * len(images)
