"""The world's batches: labels sit on the assistant's words, batches depend on their number alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from filmstrip.checkpoint.resolve import resolve
from filmstrip.config import MediaKind, get_preset
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.processor import Processor
from filmstrip.media.transform import PixelSpec, to_pixels
from filmstrip.text.prompt import Turn, render
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import IGNORE, ConversationBatch, frames_to_pixels, numbered_batches
from filmstrip.training.conversations import (
    ClipBatches,
    ConversationBatches,
    branched_tokens,
    conversation_tokens,
    dialogue_tokens,
    draw_questions,
    separate_description,
)
from filmstrip.training.drawn import ClipTraining, WorldTraining
from filmstrip.training.language import LanguageTraining
from filmstrip.training.parallel import Parallel
from filmstrip.training.recipe_file import find_recipe, read_recipe
from filmstrip.training.stages import open_stage
from filmstrip.training.tiny import STATE_LAYER, TINY, initialise, new_tiny
from filmstrip.training.tokenizer import CHAT_TEMPLATE
from filmstrip.training.tower import StillBatches
from filmstrip.world import CLIPS, GROUPS, ask_about, sample_clip, split_rng, training_rng
from tests.training import put_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(Path(resolve("tiny")))


def test_labels_are_the_assistants_words(tokenizer: Tokenizer) -> None:
    """Decode the labels of a batch and read them: answers and their `</s>`, nothing else."""
    batch = ConversationBatches(0, TINY, tokenizer, 4)(1)
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        spoken = [token for token in ids if token != TINY.video_token_id]
        text = tokenizer.decode(spoken, skip_special=False).replace("<pad>", "")
        answers = [part.split("</s>")[0] + "</s>" for part in text.split("ASSISTANT:")[1:]]
        assert tokenizer.decode([token for token in labels if token != IGNORE], skip_special=False) == "".join(answers)
        assert all(label in (IGNORE, token) for label, token in zip(labels, ids, strict=True))


@pytest.mark.parametrize("media", [("video",), ("image",), ("image", "video")])
def test_questions_that_share_a_clip_read_as_if_each_stood_alone(
    tokenizer: Tokenizer, media: tuple[MediaKind, ...]
) -> None:
    """Logits of every token of every question, in one row and in a row of its own; not so in a dialogue."""
    model = VideoLlavaForGeneration(TINY).eval()
    initialise(model)
    rng = np.random.default_rng(0)
    scene = sample_clip(rng, "train", CLIPS)
    questions = ask_about(scene, rng, 5, GROUPS["still"])
    frames = 8
    pixels = {"videos": torch.randn(1, frames, 3, 64, 64), "images": torch.randn(1, 3, 64, 64)}
    shown = {name: value for name, value in pixels.items() if name[:-1] in media}

    def hidden(ids: np.ndarray, labels: np.ndarray, branches: np.ndarray | None) -> torch.Tensor:
        ids, labels = (torch.from_numpy(np.append(part, fill))[None] for part, fill in ((ids, 0), (labels, IGNORE)))
        rows = None if branches is None else torch.from_numpy(np.append(branches, -1))[None]  # one token of padding
        batch = ConversationBatch(ids, labels, branches=rows, **shown, num_samples=1)
        with torch.inference_mode():
            return LanguageTraining(model).hidden(batch)[0, :-1]

    row = branched_tokens(questions, media, frames, TINY, tokenizer)
    together, branches = hidden(*row), torch.from_numpy(row[2])
    assert branches.max() == len(questions)
    for number, question in enumerate(questions, start=1):
        alone = hidden(*conversation_tokens([question], media, frames, TINY, tokenizer), None)
        whole = torch.cat([together[branches == 0], together[branches == number]])
        torch.testing.assert_close(whole, alone, atol=1e-4, rtol=0)
    ids, labels, branches_of_dialogue = dialogue_tokens(questions, media, frames, TINY, tokenizer)
    talk = hidden(ids, labels, branches_of_dialogue)
    torch.testing.assert_close(talk, hidden(ids, labels, None), atol=1e-4, rtol=0)


def test_some_batches_have_a_picture_and_a_clip_in_each_prompt(tokenizer: Tokenizer) -> None:
    make = ConversationBatches(0, TINY, tokenizer, 3, image_every=4, mixed_every=3)
    kinds = []
    for number in range(8):
        batch = make(number)
        kinds.append(("i" if batch.images is not None else "") + ("v" if batch.videos is not None else ""))
        for row in batch.input_ids:
            words = tokenizer.decode([int(i) for i in row if i not in TINY.placeholder_ids.values()])
            assert (int((row == TINY.image_token_id).sum()), int((row == TINY.video_token_id).sum())) == (
                TINY.tokens_per_frame("image") * (batch.images is not None),
                TINY.clip_tokens(8) * (batch.videos is not None),
            )
            assert ("In the picture:" in words or "In the video:" in words) == (kinds[-1] == "iv")
    assert kinds == ["i", "iv", "v", "v", "iv", "v", "v", "iv"]
    loss, _ = WorldTraining(VideoLlavaForGeneration(TINY), layer=2)(make(1), 0.0)
    loss.backward()


def test_training_never_draws_from_the_streams_of_the_other_splits() -> None:
    """Whatever the seed of a recipe is."""
    others = {
        split_rng(split, seed, number).random()
        for split in ("val", "test")
        for seed in range(6)
        for number in range(40)
    }
    drawn = {
        training_rng(task, number, seed).random() for task in (1, 2, 3) for number in range(40) for seed in range(6)
    }
    assert not others & drawn and len(drawn) == 3 * 40 * 6


def test_some_rows_are_dialogues(tokenizer: Tokenizer) -> None:
    for share, expected in ((0.0, {False}), (1.0, {True}), (0.5, {False, True})):
        batch = ConversationBatches(0, TINY, tokenizer, 24, dialogues=share)(1)
        assert batch.branches is not None
        asked = (batch.input_ids == tokenizer.token_to_id("</s>")).sum(1)  # one at the end of each answer
        dialogues = {int(row.max()) == 1 for row, count in zip(batch.branches, asked, strict=True) if count > 1}
        assert dialogues == expected


def test_training_prompt_is_the_prompt_of_use(tokenizer: Tokenizer) -> None:
    """The tokens that training sees before an answer are those that asking gives, chat template included."""
    processor = Processor(tokenizer, PixelSpec(size=64, crop=64), get_preset("transformers"), TINY, CHAT_TEMPLATE)
    turns = [
        Turn("user", "How many shapes?", ("video",)),
        Turn("assistant", "two"),
        Turn("user", "Describe the video."),
    ]
    plain = render(turns, "vicuna-v1-no-system").text
    template = render(
        turns, "chat-template", chat_template=CHAT_TEMPLATE, special_tokens=processor.tokenizer.special_tokens
    ).text
    assert template == plain == "USER: <video>\nHow many shapes? ASSISTANT: two</s>USER: Describe the video. ASSISTANT:"


def test_training_pixels_are_the_pixels_of_use() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    used = to_pixels(frames, "video", PixelSpec(size=64, crop=64), "clip-pil-bicubic")
    # Two orders of the same float32 operations: (x/255 - m)/s and (x - 255 m)/(255 s).
    torch.testing.assert_close(frames_to_pixels(frames), used, atol=2e-6, rtol=0)


def test_a_batch_depends_on_its_number_alone(tokenizer: Tokenizer) -> None:
    make = ConversationBatches(3, TINY, tokenizer, 2)
    first, again, other = make(7), make(7), make(8)
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.videos, again.videos)
    assert not torch.equal(first.videos, other.videos)


def test_workers_keep_the_order() -> None:
    make = StillBatches(0, 64, 16, 2, [])
    expected = [make(number).pixels for number in range(5, 9)]
    batches = iter(numbered_batches(make, start=5, num_workers=2))
    for pixels in expected:
        assert torch.equal(next(batches).pixels, pixels)


def test_a_description_comes_last_or_alone() -> None:
    """Once given, it answers every other question."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        families = [q.family for q in separate_description(ask_about(sample_clip(rng), rng, 6), rng)]
        assert "describe" not in families[:-1]


def test_the_auxiliary_heads_fade_out(tokenizer: Tokenizer) -> None:
    model = VideoLlavaForGeneration(TINY)
    initialise(model)
    stage = WorldTraining(model, layer=2, until=0.8)
    batch = ConversationBatches(0, TINY, tokenizer, 2)(1)
    early, late = stage(batch, 0.0)[1], stage(batch, 0.9)[1]
    assert "state" in early
    assert "state" not in late
    assert late["answer"] == pytest.approx(early["answer"], abs=1e-5)


def test_clips_are_learnt_from_without_words() -> None:
    """Only the blocks up to the states that the heads read get a gradient."""
    torch.manual_seed(0)
    model = VideoLlavaForGeneration(TINY)
    initialise(model)
    task, batch = ClipTraining(model, STATE_LAYER), ClipBatches(0, TINY, 2)(0)
    loss, figures = task(batch, 0.0)
    loss.backward()
    assert {"flow", "patch_shape", "patch_colour", "state", "velocity", "camera", "cut", "summary"} < figures.keys()
    assert {"happened", "latest"} < figures.keys()
    learnt = [block.mlp.up_proj.weight.grad is not None for block in model.text_tower.blocks]
    assert learnt == [True] * (STATE_LAYER + 2) + [False] * (TINY.text.num_layers - STATE_LAYER - 2)
    assert model.text_tower.token_embedding.weight.grad is None
    assert batch.tokens == 2 * 8 * TINY.tokens_per_frame("video")


def test_events_count_once_movement_is_known() -> None:
    torch.manual_seed(0)
    model = VideoLlavaForGeneration(TINY)
    initialise(model)
    task, batch = ClipTraining(model, STATE_LAYER), ClipBatches(0, TINY, 2)(0)
    with torch.no_grad():
        (before, figures), (halfway, _), (end, _) = (task(batch, progress) for progress in (0.3, 0.8, 1.0))
    events = figures["happened"] + figures["latest"]
    assert events > 1
    assert end.item() - before.item() == pytest.approx(events, rel=1e-4)
    assert halfway.item() - before.item() == pytest.approx(events / 2, rel=1e-4)


def test_conversations_go_on_with_the_heads_of_the_clips(tmp_path: Path) -> None:
    """Fresh ones would pull at what the stage before has learnt."""
    recipe = read_recipe(find_recipe("tiny"))
    assistant = new_tiny(put_tokenizer(tmp_path / "tokenizer"), 0)
    clips = ClipTraining(assistant.model, STATE_LAYER)
    opened = open_stage(assistant, recipe, recipe.stages[-1], 1, Parallel(), print, before=clips)
    assert isinstance(opened.task, WorldTraining)
    carried, learnt = opened.task.heads.state_dict(), clips.heads.state_dict()
    assert carried.keys() == learnt.keys()
    assert all(torch.equal(carried[name], learnt[name]) for name in carried)


def test_most_questions_are_about_what_takes_several_frames() -> None:
    rng = np.random.default_rng(0)
    rounds = [draw_questions(sample_clip(rng, "train", CLIPS), rng, 8) for _ in range(100)]
    still = sum(question.family in GROUPS["still"] for questions in rounds for question in questions)
    assert all(0 < len(questions) <= 9 for questions in rounds)
    assert 0.25 < still / sum(map(len, rounds)) < 0.75
