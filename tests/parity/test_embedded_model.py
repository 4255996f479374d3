"""The embedded model: trained weights answer alike in transformers, and the answers are about the clip."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import filmstrip
from filmstrip.api import Assistant
from filmstrip.checkpoint.resolve import resolve
from filmstrip.inputs.collate import collate
from filmstrip.oracle.processors import reference_image_processor, reference_tokenizer
from filmstrip.oracle.reference import load_reference, reference_generate
from filmstrip.text.prompt import user_turn
from filmstrip.training.evaluate import Example, as_clip, by_group, evaluate, make_examples
from filmstrip.training.photos import TEST_PHOTOS, load_photos

MAX_NEW_TOKENS = 40
SIZE_LIMIT = 16_000_000


@cache
def assistant() -> Assistant:
    return filmstrip.load("tiny", quiet=True)


@cache
def held_out_photos() -> list[np.ndarray]:
    return load_photos(TEST_PHOTOS)


def examples(kind: str, clips: int) -> list[Example]:
    return make_examples(kind, clips, seed=11, size=64, photos=held_out_photos())


@pytest.mark.parametrize("kind", ["video", "image"])
def test_greedy_answers_equal_transformers(kind: str) -> None:
    """Token for token, 32 questions of each kind; both in float32."""
    reference = load_reference(resolve("tiny"))
    ours = assistant()
    for example in examples(kind, 8)[:32]:
        prompt = ours.processor.prepare([as_clip(example)], [user_turn(example.question.text)])
        batch = collate([prompt], ours.config.pad_token_id)
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values_images": batch.pixel_values_images,
            "pixel_values_videos": batch.pixel_values_videos,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        new = reference_generate(reference, given, max_new_tokens=MAX_NEW_TOKENS)[0].tolist()
        mine = ours.model.generate(
            batch.input_ids,
            batch.pixel_values_images,
            batch.pixel_values_videos,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        assert mine[0].tolist() == new, example.question.text


def test_transformers_reads_the_same_prompt_and_pixels() -> None:
    """Its tokenizer and image processor, loaded from the bundled directory, give what ours give."""
    ours = assistant()
    example = examples("image", 1)[0]
    prompt = ours.processor.prepare([as_clip(example)], [user_turn(example.question.text)])
    text = f"USER: <image>\n{example.question.text} ASSISTANT:"
    assert prompt.rendered.text == text
    per_image = ours.config.tokens_per_frame("image")
    theirs = reference_tokenizer(resolve("tiny"))(text.replace("<image>", "<image>" * per_image))["input_ids"]
    assert list(prompt.plan.input_ids) == theirs
    pixels = reference_image_processor(resolve("tiny"))(images=example.frames[0], return_tensors="pt")
    torch.testing.assert_close(prompt.pixels_images[0], next(iter(pixels.values())), atol=1e-6, rtol=0)


def test_the_package_stays_small() -> None:
    assert sum(path.stat().st_size for path in Path(resolve("tiny")).iterdir()) <= SIZE_LIMIT


def test_answers_are_about_the_clip() -> None:
    """Far above the best constant answer in every group; what takes several frames follows their order.

    The full tables are in docs/embedded-model.md; this is a sample of 30 clips, so the bounds are loose.
    """
    results = by_group(evaluate(assistant().model, assistant().processor, examples("video", 30)))
    for group, result in results.items():
        assert result.accuracy["ordered"] > result.constant + 0.25, (group, result)
    for group in ("time", "camera", "describe"):
        result = results[group]
        assert result.reversed_truth is not None
        assert result.accuracy["ordered"] > result.accuracy["shuffled"] + 0.15, (group, result)
        assert result.reversed_truth > result.accuracy["reversed"] + 0.1, (group, result)


def test_answers_are_about_the_picture() -> None:
    results = by_group(evaluate(assistant().model, assistant().processor, examples("image", 40)))
    for group, result in results.items():
        assert result.accuracy["ordered"] > result.constant + 0.25, (group, result)


def test_answers_survive_video_compression(tmp_path: Path) -> None:
    """The same clip drawn at four times the size, encoded as mp4 and read back, gets the same answers mostly."""
    from filmstrip.media.encode import write_video
    from filmstrip.world import CLIPS, draw_clip, sample_clip, split_rng

    rng = split_rng("test", 5)
    same, total = 0, 12
    for index in range(total):
        scene = sample_clip(rng, "test", CLIPS)
        path = tmp_path / f"{index}.mp4"
        write_video(path, draw_clip(scene, 256))
        drawn = Example(draw_clip(scene, 64), examples("video", 1)[0].question, "video")
        question = "How many shapes are there?"
        same += assistant().ask(path, question).text == assistant().ask(as_clip(drawn), question).text
    assert same >= total - 2


def test_every_frame_is_read() -> None:
    """Replacing any single frame of a clip changes the logits."""
    model = assistant().model
    example = examples("video", 1)[0]
    prompt = assistant().processor.prepare([as_clip(example)], [user_turn(example.question.text)])
    batch = collate([prompt], assistant().config.pad_token_id)
    base = model(batch.input_ids, None, batch.pixel_values_videos)[0, -1]
    for frame in range(8):
        pixels = batch.pixel_values_videos.clone()
        pixels[0, frame] = torch.from_numpy(np.random.default_rng(0).standard_normal(pixels[0, frame].shape)).float()
        assert (model(batch.input_ids, None, pixels)[0, -1] - base).abs().max() > 1e-3
