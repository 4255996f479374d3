"""LLaVA-1.5 and LLaVA-NeXT-Video: configuration, tiles, pooling, prompts and what is refused; no reference needed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.hf_config import HfConfig, parse_config
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.checkpoint.hf_processor import processor_values, read_processor_files
from filmstrip.config import ModelConfig, get_preset
from filmstrip.config.tiles import Tiling, best_grid, tile_image
from filmstrip.errors import ConfigError, FilmstripError, MediaError, PromptError
from filmstrip.inputs import Processor, collate, explain
from filmstrip.media import Clip
from filmstrip.media.tiles import tile_pixels
from filmstrip.media.transform import PixelSpec, to_pixels
from filmstrip.models import VideoLlava
from filmstrip.models.aggregate import strided_pool
from filmstrip.models.fusion import fuse
from filmstrip.models.tiles import join_tiles
from filmstrip.testing.tiny import tiny_sister_config, write_json, write_tiny_processor, write_tiny_tokenizer
from filmstrip.text import Tokenizer, user_turn
from tests.models import GOLDEN, random_model

GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
LLAVA: ModelConfig = parse_config(tiny_sister_config("llava"), "config.json").model
NEXT: ModelConfig = parse_config(tiny_sister_config("llava_next_video"), "config.json").model
SMALL_GRIDS = ((28, 56), (56, 28), (56, 56))
# The sisters' computation on the small model of the unit tests: 2 by 2 patches a tile, one token a pooled frame.
TILED = replace(
    GOLDEN,
    family="llava-next-video",
    shared_towers=True,
    video_class_token=False,
    aggregation="strided-pool",
    image_grids=SMALL_GRIDS,
)
IMAGES_ONLY = replace(GOLDEN, family="llava", shared_towers=True, video_class_token=False, video_token_id=None)


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "grid"),
    [
        ((480, 640), (672, 672)),
        ((300, 451), (336, 672)),
        ((451, 300), (672, 336)),
        ((200, 900), (336, 1008)),
        ((2000, 2000), (672, 672)),
        ((10, 10), (336, 672)),  # every grid keeps all of it: the least padded, and of these the first
    ],
)
def test_the_grid_that_keeps_most_of_the_image(image: tuple[int, int], grid: tuple[int, int]) -> None:
    assert best_grid(image, GRIDS) == grid


def test_an_image_lies_centred_on_its_grid() -> None:
    tiling = tile_image((300, 451), GRIDS, 336)
    assert tiling == Tiling(image=(300, 451), rows=1, columns=2, tile=336, scaled=(336, 506))
    assert (tiling.num_tiles, tiling.grid, tiling.offset) == (3, (336, 672), (0, 83))
    rows, columns = tiling.picture_patches(24)
    # 48 columns of patches, of which int(451 * 24 / 300) = 36 are picture, in the middle.
    assert (rows, columns) == (slice(0, 24), slice(6, 42))
    assert tiling.num_patches(24) == (24, 36)


def test_published_token_counts() -> None:
    config = parse_config({"model_type": "llava_next_video"}, "config.json").model
    # 480 by 640: base tile, then 36 rows of 48 patches (6 rows of padding above and below) with a newline each.
    assert config.tokens_per_image((480, 640)) == 576 + 36 * 49
    assert config.tokens_per_image((672, 672)) == 576 + 48 * 49
    assert config.tokens_per_frame("video") == 144
    assert (config.image_token_id, config.video_token_id) == (32_001, 32_000)
    plain = parse_config({"model_type": "llava"}, "config.json").model
    assert plain.tokens_per_image((480, 640)) == plain.tokens_per_frame("image") == 576
    assert plain.tiling((480, 640)) is None


def test_tiles_are_joined_in_reading_order() -> None:
    """Two tiles side by side, 2 by 2 patches each, numbered; the image covers columns 1 and 2 of 4."""
    tiling = tile_image((28, 28), ((28, 56),), 28)
    assert tiling.picture_patches(2) == (slice(0, 2), slice(1, 3))
    tiles = torch.arange(12.0).view(3, 4, 1)
    joined = join_tiles(tiles, tiling, torch.tensor([-1.0]))
    assert joined[:, 0].tolist() == [0, 1, 2, 3, 5, 8, -1, 7, 10, -1]


def test_a_needle_keeps_no_patch_of_its_tiles() -> None:
    """Its height rounds to no patch at all: only the base tile is left, in planning and in the model."""
    tiling = NEXT.tiling((1, 200))
    assert tiling is not None and tiling.num_patches(4) == (0, 8)
    assert NEXT.tokens_per_image((1, 200)) == 16
    tiles = torch.randn(tiling.num_tiles, 16, 3)
    assert torch.equal(join_tiles(tiles, tiling, torch.zeros(3)), tiles[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900))
def test_the_plan_counts_what_the_model_makes(height: int, width: int) -> None:
    tiling = NEXT.tiling((height, width))
    assert tiling is not None
    tokens = join_tiles(torch.zeros(tiling.num_tiles, 16, 1), tiling, torch.zeros(1))
    assert len(tokens) == NEXT.tokens_per_image((height, width))


def test_pixels_of_tiles_show_the_image_on_black() -> None:
    frame = np.full((20, 40, 3), 255, dtype=np.uint8)
    tiling = tile_image((20, 40), ((56, 56),), 28)
    tiles = tile_pixels(frame, PixelSpec(28, 28, do_normalize=False), tiling)
    assert tiles.shape == (5, 3, 28, 28)
    grid = tiles[1:].view(2, 2, 3, 28, 28).permute(2, 0, 3, 1, 4).reshape(3, 56, 56)
    assert bool((tiles[0] == 1).all() and (grid[:, 14:42] == 1).all())
    assert not bool(grid[:, :14].any() or grid[:, 42:].any())


def test_tiles_of_another_size_than_the_processor_makes_are_refused() -> None:
    frame = np.zeros((20, 40, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="tiles of 28 pixels, but the image processor resizes to 56"):
        tile_pixels(frame, PixelSpec(56, 28), tile_image((20, 40), ((56, 56),), 28))
    with pytest.raises(MediaError, match="grid of 8192x8192 pixels is too large"):
        tile_pixels(frame, PixelSpec(4096, 4096), tile_image((20, 40), ((8192, 8192),), 4096))


def test_padding_to_a_square() -> None:
    frame = np.zeros((10, 30, 3), dtype=np.uint8)
    spec = PixelSpec(30, 30, do_normalize=False, do_rescale=False, pad_to_square=True)
    pixels = to_pixels(frame[None], "image", spec, "clip-pil-bicubic")[0]
    assert not pixels[:, 10:20].any()
    assert pixels[:, 0, 0].tolist() == [122, 116, 104]  # the mean colour, cut to whole bytes
    with pytest.raises(MediaError, match="20000x1 pixels is too long and narrow for a square"):
        to_pixels(np.zeros((1, 1, 20_000, 3), dtype=np.uint8), "image", spec, "clip-pil-bicubic")


# --- the model ------------------------------------------------------------------------------------------------------


def test_pooling_takes_the_mean_of_squares_of_patches() -> None:
    clip = torch.arange(2 * 16.0).view(1, 2, 16, 1)
    assert strided_pool(clip)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]
    odd = torch.arange(9.0).view(1, 1, 9, 1)
    assert strided_pool(odd)[0, :, 0].tolist() == [2.0]


def test_media_of_unequal_length_fill_whole_rows() -> None:
    ids = torch.tensor([[9, 1, 9, 9], [9, 2, 3, 4]])
    visual = [torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([[40.0]])]
    fused = fuse(torch.zeros(2, 4, 1), ids, visual, 9, "image")
    assert fused[..., 0].tolist() == [[10, 0, 20, 30], [40, 0, 0, 0]]
    with pytest.raises(PromptError) as caught:  # the total agrees, but row 0 would get a part of the second image
        fuse(torch.zeros(2, 4, 1), ids, visual[::-1], 9, "image")
    assert str(caught.value) == (
        "the prompt holds 4 image placeholders (by batch row: 3, 1), but there are 2 images giving 4 visual tokens "
        "(image 0: 1, image 1: 3)"
    )


def test_tiled_images_of_several_sizes() -> None:
    model = random_model(TILED)
    sizes = [(20, 40), (28, 28)]
    counts = [TILED.tokens_per_image(size) for size in sizes]
    tilings = [tile_image(size, SMALL_GRIDS, 28) for size in sizes]
    pixels = [torch.randn(tiling.num_tiles, 3, 28, 28) for tiling in tilings]
    ids = [torch.tensor([[1] + [190] * count + [2, 3]]) for count in counts]
    alone = [model(ids[index], pixels[index], image_sizes=torch.tensor([sizes[index]]))[0, -1] for index in range(2)]
    together = torch.tensor([[1] + [190] * counts[0] + [2] + [190] * counts[1] + [2, 3]])
    both = model(together, torch.cat(pixels), image_sizes=torch.tensor(sizes))
    first = model(together[:, : counts[0] + 2], pixels[0], image_sizes=torch.tensor(sizes[:1]))
    torch.testing.assert_close(both[:, : counts[0] + 2], first)  # causal: what follows changes nothing
    assert not torch.allclose(alone[0], alone[1])


def test_the_newline_ends_every_row_of_patches() -> None:
    model = random_model(TILED)
    size = (56, 56)
    ids = torch.tensor([[1] + [190] * TILED.tokens_per_image(size) + [2]])
    pixels = torch.randn(5, 3, 28, 28)
    before = model.embed(ids, pixels, None, torch.tensor([size]))
    assert model.image_newline is not None
    with torch.no_grad():
        model.image_newline += 1.0
    moved = (model.embed(ids, pixels, None, torch.tensor([size])) - before).abs().sum(-1)[0] > 0
    base, row = 4, 5
    assert moved.nonzero()[:, 0].tolist() == [1 + base + row * index + 4 for index in range(4)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (None, "LLaVA-NeXT-Video cuts images into tiles and needs their sizes"),
        ([[0, 4]], "below one pixel"),
        ([[28, 56]], "images of these sizes have 3 tiles, but there are 5"),
        ([[28, 56], [56, 28]], "images of these sizes have 3 [+] 3 tiles, but there are 5"),
    ],
)
def test_sizes_that_do_not_fit_the_tiles_are_refused(sizes: Any, message: str) -> None:
    model = random_model(TILED)
    with pytest.raises(PromptError, match=message):
        model(torch.tensor([[1, 190]]), torch.randn(5, 3, 28, 28), image_sizes=sizes and torch.tensor(sizes))


def test_a_model_of_images_only() -> None:
    model = random_model(IMAGES_ONLY)
    assert IMAGES_ONLY.placeholder_ids == {"image": 190}
    assert model(torch.tensor([[1, *[190] * 4, 191]]), torch.randn(1, 3, 28, 28)).shape == (1, 6, 200)
    with pytest.raises(PromptError, match=r"LLaVA-1\.5 takes images only, but pixels of videos were given"):
        model(torch.tensor([[1, 191]]), None, torch.randn(1, 2, 3, 28, 28))


def test_shared_towers_have_one_set_of_weights() -> None:
    with torch.device("meta"):
        model = VideoLlava(TILED)
    assert model.image_tower is model.video_tower
    names = [name for name, _ in model.named_parameters()]
    assert "image_newline" in names and not any(name.startswith("video_tower.") for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_class_token": True}, "'strided-pool' pools squares of patches"),
        ({"select_strategy": "full", "aggregation": "keep-all"}, "tiles are joined along their patches"),
        ({"image_grids": ((28, 50),)}, "grid 28x50 .* whole tiles of 28 pixels"),
        ({"image_grids": ((0, 28),)}, "grid 0x28"),
        ({"image_grids": ((28 * 9, 28 * 9),)}, "1 to 64 whole tiles"),
        ({"image_grids": ((28, 28),) * 65}, "at most 64 image grids"),
    ],
)
def test_contradictory_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TILED, **change)


def test_pooling_needs_two_patches_along_an_edge() -> None:
    coarse = replace(GOLDEN.video_tower, patch_size=28)
    with pytest.raises(ConfigError, match="leaves nothing of a frame"):
        replace(TILED, image_tower=coarse, video_tower=coarse)


# --- config.json and the processor's files --------------------------------------------------------------------------


def parse(sister: Any, **overrides: Any) -> HfConfig:
    return parse_config(tiny_sister_config(sister, **overrides), "config.json")


def test_what_a_sister_is_made_of() -> None:
    assert (LLAVA.family, LLAVA.shared_towers, LLAVA.video_token_id) == ("llava", True, None)
    assert (LLAVA.image_grids, LLAVA.aggregation, LLAVA.title) == ((), "keep-all", "LLaVA-1.5")
    assert (NEXT.family, NEXT.shared_towers, NEXT.aggregation) == ("llava-next-video", True, "strided-pool")
    assert NEXT.image_grids == ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
    assert parse("llava_next_video").extras.trained_frames == 32
    assert NEXT.tokens_per_frame("video") == 4


def test_an_early_revision_calls_itself_llava_next() -> None:
    values = tiny_sister_config("llava_next_video") | {"model_type": "llava_next"}
    assert parse_config(values, "config.json").model == NEXT
    with pytest.raises(ConfigError, match="model_type is 'llava_next'"):  # LLaVA-NeXT itself
        parse_config(values | {"architectures": ["LlavaNextForConditionalGeneration"]}, "config.json")


@pytest.mark.parametrize(
    ("sister", "overrides", "message"),
    [
        ("llava_next_video", {"spatial_pool_mode": "max"}, "spatial_pool_mode is 'max'; supported: average"),
        ("llava_next_video", {"spatial_pool_stride": 4}, "spatial_pool_stride is 4"),
        ("llava_next_video", {"use_image_newline_parameter": False}, "only models with the newline vector"),
        ("llava_next_video", {"vision_feature_select_strategy": "full"}, "class tokens must be dropped"),
        ("llava_next_video", {"image_grid_pinpoints": []}, "expected a list of 1 to 64 pairs"),
        ("llava_next_video", {"image_grid_pinpoints": [[56]]}, "expected pairs of height and width"),
        ("llava_next_video", {"image_grid_pinpoints": [[56, "112"]]}, "expected pairs of height and width"),
        ("llava_next_video", {"image_grid_pinpoints": [[56, 2**40]]}, "each from 1 to 65536 pixels"),
        ("llava_next_video", {"image_grid_pinpoints": [[56, 60]]}, "not made of 1 to 64 whole tiles of 56 pixels"),
        ("llava_next_video", {"image_token_index": 408}, "share one token id"),
        ("llava", {"architectures": ["LlavaQwen2ForCausalLM"]}, "supported: LlavaForConditionalGeneration"),
        ("llava", {"text_model_type": "mistral"}, "model_type is 'mistral'; supported: llama"),
        ("llava", {"vision_model_type": "siglip_vision_model"}, "supported: clip_vision_model"),
    ],
)
def test_what_is_not_supported_is_named(sister: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(sister, **overrides)
    line = str(caught.value)
    assert message in line and line.startswith("config.json") and "\n" not in line and len(line) < 400


def test_an_inner_tie_counts_for_sisters() -> None:
    assert parse("llava", tie_word_embeddings=False, text_tie_word_embeddings=True).model.text.tie_embeddings
    assert not parse("llava").model.text.tie_embeddings


@pytest.mark.parametrize("model", [LLAVA, NEXT], ids=["llava", "next"])
def test_config_json_round_trips(model: ModelConfig) -> None:
    values = config_values(model, generation=GenerationDefaults(), dtype="float32", trained_frames=20)
    parsed = parse_config(values, "config.json")
    assert parsed.model == model
    assert parsed.extras.trained_frames == 20
    assert ("video_token_index" in values) == (model is NEXT)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(LLAVA, image_grids=((56, 112),)), "cannot describe a model whose image_grids"),
        (replace(LLAVA, video_token_id=409), "this choice of towers and media"),
        (replace(LLAVA, shared_towers=False), "this choice of towers and media"),
        (replace(GOLDEN, video_token_id=None), "config.json of Video-LLaVA cannot describe this choice"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(model: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_values(model, generation=GenerationDefaults(), dtype="float32")


def write_processor(directory: Path, sister: Any, **changes: Any) -> None:
    write_tiny_processor(directory, tiny_sister_config(sister))
    path = directory / "preprocessor_config.json"
    write_json(path, json.loads(path.read_text()) | changes)


def test_processor_files_of_sisters(tmp_path: Path) -> None:
    write_processor(tmp_path / "llava", "llava", image_processor_type="LlavaImageProcessor", do_pad=True)
    assert read_processor_files(tmp_path / "llava", LLAVA).pixels == PixelSpec(56, 56, pad_to_square=True)
    write_processor(tmp_path / "next", "llava_next_video", size={"height": 56, "width": 56})
    files = read_processor_files(tmp_path / "next", NEXT)
    assert (files.pixels, files.warnings) == (PixelSpec(56, 56), ())
    for model, pixels in ((LLAVA, PixelSpec(56, 56, pad_to_square=True)), (NEXT, PixelSpec(56, 56))):
        for name, values in processor_values(pixels, model).items():
            write_json(tmp_path / name, values)
        assert read_processor_files(tmp_path, model).pixels == pixels
        (tmp_path / "video_preprocessor_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("sister", "changes", "message"),
    [
        ("llava", {"image_processor_type": "SiglipImageProcessor"}, "image_processor_type is 'SiglipImageProcessor'"),
        ("llava", {"image_processor_type": "LlavaNextImageProcessor"}, "image_processor_type"),
        ("llava", {"do_pad": True}, "do_pad is True; padding is not supported"),
        ("llava_next_video", {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ("llava_next_video", {"size": {"shortest_edge": 64}}, "makes tiles of 64 .crop 56. pixels"),
        ("llava_next_video", {"size": {"height": 56, "width": 60}}, "supported: one size under"),
        ("llava_next_video", {"image_grid_pinpoints": 7}, "expected a list of 1 to 64 pairs"),
    ],
)
def test_processors_that_are_not_supported(tmp_path: Path, sister: Any, changes: dict[str, Any], message: str) -> None:
    write_processor(tmp_path, sister, **changes)
    with pytest.raises(ConfigError, match=message):
        read_processor_files(tmp_path, LLAVA if sister == "llava" else NEXT)


def test_other_grids_in_the_processor_are_a_warning(tmp_path: Path) -> None:
    write_processor(tmp_path, "llava_next_video", image_grid_pinpoints=[[56, 112]])
    (warning,) = read_processor_files(tmp_path, NEXT).warnings
    assert "image_grid_pinpoints are not those of config.json; config.json is used" in warning


def test_padding_is_written_only_where_a_processor_knows_it() -> None:
    with pytest.raises(ConfigError, match="no image processor of LLaVA-NeXT-Video puts images on squares"):
        processor_values(PixelSpec(56, 56, pad_to_square=True), NEXT)


# --- prompts --------------------------------------------------------------------------------------------------------


def processor_of(directory: Path, model: ModelConfig, model_type: str, **preset: Any) -> Processor:
    write_tiny_tokenizer(directory, model_type=model_type)
    chosen = replace(get_preset("transformers"), **preset)
    return Processor(Tokenizer.from_directory(directory), PixelSpec(56, 56), chosen, model, trained_frames=2)


def clip(kind: Any, height: int, width: int, frames: int = 1) -> Clip:
    pixels = np.random.default_rng(height).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    times = tuple(index / 2 for index in range(frames))
    return Clip(f"{kind}.bin", kind, pixels, times, tuple(range(frames)), frames, frames / 2)


def test_the_token_map_tells_base_tile_tiles_and_frames_apart(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, NEXT, "llava_next_video")
    media = [clip("image", 100, 50), clip("video", 56, 56, 2)]
    prompt = processor.prepare(media, [user_turn("what is this")])
    rows = explain(prompt.plan, processor.tokenizer)
    visual = [(row.label, row.tokens, row.excerpt) for row in rows if row.source == "media" and row.tokens > 1]
    assert visual == [
        ("image 0 base", 16, "image.bin whole on one tile"),
        ("image 0 tiles", 40, "image.bin on 2x1 tiles, 8 rows of 4 and a newline"),
        ("video 0 frame 0", 4, "video.bin at 0.00 s"),
        ("video 0 frame 1", 4, "video.bin at 0.50 s"),
    ]
    assert prompt.plan.visual_tokens == 64 == sum(tokens for _, tokens, _ in visual)
    assert [span.start for span in prompt.plan.spans[1:]] == [span.end for span in prompt.plan.spans[:-1]]
    assert prompt.plan.spans[-1].end == len(prompt.plan.input_ids)
    assert prompt.warnings == ()


def test_a_batch_of_unequal_tiles(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, NEXT, "llava_next_video")
    shapes = ([(100, 50), (56, 112)], [], [(200, 200)])
    prompts = [processor.prepare([clip("image", *size) for size in sizes], [user_turn("what")]) for sizes in shapes]
    batch = collate(prompts, NEXT.pad_token_id)
    assert batch.image_sizes is not None and batch.image_sizes.tolist() == [[100, 50], [56, 112], [200, 200]]
    assert batch.pixel_values_images is not None and batch.pixel_values_images.shape == (3 + 3 + 5, 3, 56, 56)
    assert batch.media[2] is batch.image_sizes
    moved = batch.to("cpu", torch.bfloat16)
    assert moved.image_sizes is not None and moved.image_sizes.dtype == torch.int64
    assert collate(prompts[1:2], 0).image_sizes is None


def test_videos_are_refused_by_a_model_of_images(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, LLAVA, "llava")
    with pytest.raises(PromptError, match=r"^video.bin is a video, and LLaVA-1\.5 takes images only$"):
        processor.prepare([clip("video", 56, 56, 2)], [user_turn("what")])
    # Without a token for it, the other placeholder is a word like any other.
    prompt = processor.prepare([clip("image", 56, 56)], [user_turn("<video> what")])
    assert prompt.plan.visual_tokens == 16


def test_tiles_need_the_transform_that_makes_them(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, NEXT, "llava_next_video", image_transform="languagebind")
    assert processor.prepare([clip("video", 56, 56, 2)], [user_turn("what")]).plan.visual_tokens == 8
    with pytest.raises(FilmstripError, match="which the transform 'languagebind' does not know"):
        processor.prepare([clip("image", 56, 56)], [user_turn("what")])
