"""The processor and batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filmstrip.config import ModelConfig, TextConfig, VisionConfig, get_preset
from filmstrip.errors import CheckpointError, PromptError
from filmstrip.inputs import Processor, collate, place_media
from filmstrip.media import Clip
from filmstrip.media.transform import PixelSpec
from filmstrip.testing.tiny import CHAT_TEMPLATE, tiny_vocabulary_size, write_tiny_tokenizer
from filmstrip.text import Tokenizer, Turn, user_turn

FIRST = tiny_vocabulary_size()
VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, image_size=28, patch_size=14, temporal_frames=3
)
CONFIG = ModelConfig(
    text=TextConfig(max_positions=64),
    image_tower=VISION,
    video_tower=VISION,
    image_token_id=FIRST,
    video_token_id=FIRST + 1,
    pad_token_id=FIRST + 2,
)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory)
    tokenizer = Tokenizer.from_directory(directory)
    return Processor(tokenizer, PixelSpec(size=28, crop=28), get_preset("transformers"), CONFIG)


def clip(kind: Any, frames: int = 1, value: int = 0, warnings: tuple[str, ...] = ()) -> Clip:
    pixels = np.full((frames, 28, 28, 3), value, dtype=np.uint8)
    times = tuple(float(index) for index in range(frames))
    return Clip(f"{kind}{value}", kind, pixels, times, tuple(range(frames)), frames, float(frames), warnings)


def test_prepare(processor: Processor) -> None:
    media = [clip("video", 3, 10), clip("image", 1, 20), clip("video", 3, 30)]
    prompt = processor.prepare(media, [user_turn("what is this")])
    assert prompt.rendered.text == "USER: <image>\n<video>\n<video>\nwhat is this ASSISTANT:"
    assert prompt.plan.visual_tokens == 4 + 15 + 15
    assert [tuple(pixels.shape) for pixels in prompt.pixels_images] == [(1, 3, 28, 28)]
    assert [tuple(pixels.shape) for pixels in prompt.pixels_videos] == [(3, 3, 28, 28)] * 2
    # Brighter frames give larger pixels: the two videos kept their order.
    assert prompt.pixels_videos[0].mean() < prompt.pixels_videos[1].mean()
    assert [medium.name for medium in prompt.plan.media] == ["video10", "image20", "video30"]


def test_plan_equals_prepare_without_pixels(processor: Processor) -> None:
    media, turns = [clip("video", 3)], [user_turn("what")]
    plan, rendered = processor.plan([processor.medium_tokens(medium) for medium in media], turns)
    prompt = processor.prepare(media, turns)
    assert (plan, rendered) == (prompt.plan, prompt.rendered)


def test_media_of_later_turns(processor: Processor) -> None:
    turns = [user_turn("what"), Turn("assistant", "a"), user_turn("is this", ["image"])]
    prompt = processor.prepare([clip("image")], turns)
    assert prompt.rendered.text == "USER: what ASSISTANT: a USER: <image>\nis this ASSISTANT:"


def test_typed_placeholder_is_one_too_many(processor: Processor) -> None:
    with pytest.raises(
        PromptError, match=r"2 video placeholders for 1 video .*placeholder 2 \(in user 1\) has no video"
    ):
        processor.prepare([clip("video", 3)], [user_turn("what is <video> this")])
    with pytest.raises(PromptError, match="1 image placeholder for 0 images"):
        processor.prepare([], [user_turn("what is <image>")])


def test_template_that_ignores_media(processor: Processor) -> None:
    preset = replace(processor.preset, prompt="chat-template")
    template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    deaf = Processor(processor.tokenizer, processor.pixel_spec, preset, CONFIG, template)
    with pytest.raises(PromptError, match=r"0 video placeholders for 1 video \(15 visual tokens\)"):
        deaf.prepare([clip("video", 3)], [user_turn("what")])
    good = Processor(processor.tokenizer, processor.pixel_spec, preset, CONFIG, CHAT_TEMPLATE)
    assert good.prepare([clip("video", 3)], [user_turn("what")]).plan.visual_tokens == 15


def test_warnings_come_with_the_prompt(processor: Processor) -> None:
    media = [clip("video", 4, 1, ("2 frames were lost",))]
    lost, length, frames = processor.prepare(media, [user_turn("what")], max_new_tokens=50).warnings
    assert lost == "video1: 2 frames were lost"
    assert "64 positions" in length
    assert frames == "video 0 (video1) has 4 frames, but the model was trained with 3"


def test_tokenizer_without_the_placeholder(processor: Processor) -> None:
    config = replace(CONFIG, video_token_id=FIRST + 40)
    broken = Processor(processor.tokenizer, processor.pixel_spec, processor.preset, config)
    with pytest.raises(CheckpointError, match=f"should be token {FIRST + 40}"):
        broken.prepare([clip("video", 3)], [user_turn("what")])


def test_place_media() -> None:
    turns = [Turn("system", "s"), user_turn("a"), Turn("assistant", "b"), user_turn("c")]
    assert [turn.media for turn in place_media(turns, ["image", "video"])] == [(), ("image", "video"), (), ()]
    assert turns[1].media == ()
    named = [user_turn("a", ["video"])]
    assert place_media(named, ["image"]) == named
    with pytest.raises(PromptError, match="no question"):
        place_media([], ["image"])


def test_collate_pads_left_and_keeps_the_order_of_features(processor: Processor) -> None:
    rows = [
        processor.prepare([clip("image", 1, 10), clip("image", 1, 20)], [user_turn("what")]),
        processor.prepare([], [user_turn("what is this")]),
        processor.prepare([clip("video", 3, 5), clip("image", 1, 30)], [user_turn("how many")]),
        processor.prepare([clip("video", 3, 7)], [user_turn("a")]),
    ]
    batch = collate(rows, pad_id=FIRST + 2)
    longest = max(len(row.plan.input_ids) for row in rows)
    assert batch.input_ids.shape == batch.attention_mask.shape == (4, longest)
    for row, ids, mask in zip(rows, batch.input_ids, batch.attention_mask, strict=True):
        length = len(row.plan.input_ids)
        assert ids[longest - length :].tolist() == list(row.plan.input_ids)
        assert set(ids[: longest - length].tolist()) <= {FIRST + 2}
        assert mask.tolist() == [0] * (longest - length) + [1] * length
    assert batch.pixel_values_images is not None
    assert batch.pixel_values_videos is not None
    assert batch.pixel_values_images.shape == (3, 3, 28, 28)
    assert batch.pixel_values_videos.shape == (2, 3, 3, 28, 28)
    brightness = batch.pixel_values_images.mean(dim=(1, 2, 3))
    assert torch.equal(brightness.argsort(), torch.arange(3))
    assert torch.equal(batch.pixel_values_videos[1], rows[3].pixels_videos[0])
    assert batch.plans == tuple(row.plan for row in rows)


def test_collate_of_text_alone_has_no_pixels(processor: Processor) -> None:
    batch = collate([processor.prepare([], [user_turn("what")])], pad_id=0)
    assert batch.pixel_values_images is None
    assert batch.pixel_values_videos is None


def test_collate_refuses_unequal_frame_counts(processor: Processor) -> None:
    rows = [processor.prepare([clip("video", frames)], [user_turn("what")]) for frames in (3, 2)]
    with pytest.raises(PromptError, match="video 0 of prompt 0 has 3 frames, video 0 of prompt 1 has 2"):
        collate(rows, pad_id=0)
    both = processor.prepare([clip("video", 3), clip("video", 1)], [user_turn("what")])
    with pytest.raises(PromptError, match="video 0 of prompt 0 has 3 frames, video 1 of prompt 0 has 1"):
        collate([both], pad_id=0)
    with pytest.raises(PromptError, match="at least one prompt"):
        collate([], pad_id=0)


def test_batch_moves_ids_and_casts_only_pixels(processor: Processor) -> None:
    batch = collate([processor.prepare([clip("image")], [user_turn("what")])], pad_id=0).to("cpu", torch.bfloat16)
    assert batch.input_ids.dtype == torch.long
    assert batch.pixel_values_images is not None
    assert batch.pixel_values_images.dtype == torch.bfloat16
