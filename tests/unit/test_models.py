"""Towers, fusion and their errors, without a reference."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from filmstrip.config import ModelConfig
from filmstrip.config.model import AGGREGATIONS as CONFIG_NAMES
from filmstrip.errors import ConfigError, PromptError
from filmstrip.models import VideoLlava
from filmstrip.models.aggregate import AGGREGATIONS
from filmstrip.models.fusion import fuse
from filmstrip.models.vision import VisionTower
from tests.models import GOLDEN, TEMPORAL, VISION, random_model


def count_blocks(tower: VisionTower, layers: list[int]) -> int:
    ran = []
    for block in tower.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    tower(torch.randn(1, 1, 3, 28, 28), layers)
    return len(ran)


@pytest.mark.parametrize(("layers", "expected"), [([-2], 3), ([0], 0), ([1, -3], 2), ([-1], 4), ([4], 4)])
def test_nothing_is_computed_past_the_deepest_layer_asked_for(layers: list[int], expected: int) -> None:
    assert count_blocks(VisionTower(VISION), layers) == expected


def test_positive_and_negative_layers_are_the_same_states() -> None:
    tower = random_model().video_tower
    pixels = torch.randn(2, 3, 3, 28, 28)
    assert torch.equal(tower(pixels, [-2]), tower(pixels, [3]))
    assert torch.equal(tower(pixels, [-2, 1]), torch.cat([tower(pixels, [3]), tower(pixels, [1])], dim=-1))


def test_shape_of_a_clip() -> None:
    assert VisionTower(VISION)(torch.randn(2, 3, 3, 28, 28)).shape == (2, 3, 5, 32)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes 3x28x28 pixels, not 3x28x30"):
        VisionTower(VISION)(torch.randn(1, 1, 3, 28, 30), name="video_tower")


def test_more_frames_than_temporal_attention_knows() -> None:
    with pytest.raises(ConfigError, match="knows 3 frames, the clip has 4"):
        random_model(TEMPORAL).encode_videos(torch.randn(1, 4, 3, 28, 28))


def test_one_frame_gets_no_frame_vector() -> None:
    """The original adds the learned frame vector only when a clip has more than one frame."""
    model = random_model(TEMPORAL)
    pixels = torch.randn(1, 1, 3, 28, 28)
    before = model.encode_videos(pixels)
    for block in model.video_tower.blocks:
        block.temporal.embedding.data += 100.0
    assert torch.equal(model.encode_videos(pixels), before)


def test_shared_towers_are_one_module() -> None:
    model = VideoLlava(replace(GOLDEN, shared_towers=True))
    assert model.image_tower is model.video_tower
    separate = sum(p.numel() for p in VideoLlava(GOLDEN).parameters())
    shared = sum(p.numel() for p in model.parameters())
    assert separate - shared == sum(p.numel() for p in model.image_tower.parameters())


def test_images_drop_the_class_token_unless_full() -> None:
    pixels = torch.randn(2, 3, 28, 28)
    assert random_model().encode_images(pixels).shape == (2, 4, 64)
    assert random_model(replace(GOLDEN, select_strategy="full")).encode_images(pixels).shape == (2, 5, 64)
    assert random_model().encode_videos(torch.randn(1, 3, 3, 28, 28)).shape == (1, 15, 64)


def test_fusion_overwrites_in_row_then_position_order() -> None:
    ids = torch.tensor([[9, 1, 9, 9], [9, 2, 3, 4]])
    text = torch.zeros(2, 4, 1)
    visual = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(4, 1, 1)
    fused = fuse(text, ids, visual, 9, "image")
    assert fused[..., 0].tolist() == [[10, 0, 20, 30], [40, 0, 0, 0]]


def test_mismatch_says_both_counts_and_whose() -> None:
    model, ids = random_model(), torch.tensor([[1] + [190] * 4 + [2] * 4, [1] + [190] * 3 + [2] * 5])
    with pytest.raises(PromptError) as caught:
        model(ids, torch.randn(2, 3, 28, 28))
    message = str(caught.value)
    assert message == (
        "the prompt holds 7 image placeholders (by batch row: 4, 3), but there are 2 images giving 8 visual tokens "
        "(image 0 to 1: 4 each)"
    )


@pytest.mark.parametrize("placeholder", [190, 191])
def test_placeholders_without_pixels_are_refused(placeholder: int) -> None:
    with pytest.raises(PromptError, match="placeholders, but there are 0"):
        random_model()(torch.tensor([[1, placeholder, 2]]))


def test_pixels_without_placeholders_are_refused() -> None:
    with pytest.raises(PromptError, match="holds 0 video placeholders, but there are 1 video giving 15 visual tokens"):
        random_model()(torch.tensor([[1, 2]]), None, torch.randn(1, 3, 3, 28, 28))


def test_placeholder_ids_may_lie_past_the_vocabulary() -> None:
    """They are overwritten and never looked up; any other id out there is an error."""
    inside, outside = random_model(), random_model(replace(GOLDEN, image_token_id=-200, video_token_id=5000))
    video = torch.randn(1, 3, 3, 28, 28)
    ids = torch.tensor([[1] + [191] * 15 + [2]])
    torch.testing.assert_close(inside(ids, None, video), outside(ids.where(ids != 191, 5000), None, video))
    with pytest.raises(PromptError, match="outside the vocabulary of 200"):
        inside(torch.tensor([[1, 200]]))


def test_a_medium_does_not_span_rows() -> None:
    """Totals agree, but row 0 would get a part of the second video."""
    ids = torch.tensor([[1] + [191] * 20 + [2] * 5, [1] + [191] * 10 + [2] * 15])
    with pytest.raises(PromptError, match=r"30 video placeholders \(by batch row: 20, 10\), but there are 2 videos"):
        random_model()(ids, None, torch.randn(2, 3, 3, 28, 28))


def test_an_unknown_attention_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'eager'"):
        random_model().set_attention("eagr")


def test_taps_of_a_shared_tower_are_named_by_what_it_reads() -> None:
    sites: list[str] = []

    def record(site: str, value: torch.Tensor) -> torch.Tensor:
        sites.append(site)
        return value

    ids = torch.tensor([[1] + [190] * 4 + [191] * 15])
    model = random_model(replace(GOLDEN, shared_towers=True))
    model(ids, torch.randn(1, 3, 28, 28), torch.randn(1, 3, 3, 28, 28), taps=record)
    assert len(sites) == len(set(sites))
    assert "image_tower.hidden_states.3" in sites
    assert "video_tower.hidden_states.3" in sites


def test_frame_order_survives_fusion() -> None:
    """Each frame's tokens land in its own place: with a one-hot frame, only its placeholders change."""
    model = random_model()
    ids = torch.tensor([[1] + [191] * 15 + [2]])
    video = torch.zeros(1, 3, 3, 28, 28)
    base = model.embed(ids, None, video)
    video[0, 1] = torch.randn(3, 28, 28)
    moved = (model.embed(ids, None, video) - base).abs().sum(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == list(range(6, 11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select_layers": (-6,)}, "vision feature layer -6"),
        ({"select_layers": ()}, "at least one"),
        ({"video_token_id": 190}, "share one token id"),
        ({"aggregation": "keep-al"}, "did you mean 'keep-all'"),
        ({"video_tower": replace(VISION, hidden_size=64)}, "widths are 32"),
        ({"shared_towers": True, "video_tower": replace(VISION, num_layers=3)}, "one configuration"),
    ],
)
def test_contradictory_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(GOLDEN, **change)


def test_every_aggregation_that_a_config_may_name_exists() -> None:
    """The names live in `config`, which may not import the functions in `models`."""
    assert set(CONFIG_NAMES) == set(AGGREGATIONS)


def test_default_configuration_is_the_published_7b() -> None:
    """Total of the reference sheet (1.3), counted on the meta device."""
    with torch.device("meta"):
        model = VideoLlava(ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == 7_366_279_168
    assert len(list(model.parameters())) == 1077


@pytest.mark.parametrize("last", [1, 3, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_the_last_positions_alone_are_what_they_are_among_all(padded: bool, last: int) -> None:
    """And costs less: of the last block, only keys and values are made for the others."""
    model = random_model()
    x_BTD = torch.randn(2, 9, model.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    given = mask if padded else None
    model.set_attention("eager")  # the fused kernel's operations are not counted on the CPU
    with torch.inference_mode():
        with FlopCounterMode(display=False) as everything:
            whole = model.decode(x_BTD, given)
        with FlopCounterMode(display=False) as fewer:
            alone = model.decode(x_BTD, given, last=last)
    assert alone.shape == (2, last, whole.shape[2])
    torch.testing.assert_close(alone, whole[:, -last:], atol=1e-5, rtol=0)  # products over one row or all: other sums
    text = model.config.text
    kept = 2 * 2 * 9 * text.hidden_size * 2 * text.num_kv_heads * text.head_dim
    block = everything.get_total_flops() / text.num_layers
    saved = (block - kept) * (9 - last) / 9
    assert fewer.get_total_flops() == pytest.approx(everything.get_total_flops() - saved, rel=0.02)
