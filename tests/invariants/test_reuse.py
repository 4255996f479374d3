"""A question about media that were read before gets, bit for bit, the logits it would have got from scratch."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from filmstrip.api import Answer, Assistant
from filmstrip.api.load import load
from filmstrip.api.reuse import MEMORY_BYTES, ModelState, memory_limit
from filmstrip.cache import ContentStore
from filmstrip.checkpoint.digest import FULL_BYTES, WeightsDigest
from filmstrip.config import ModelConfig
from filmstrip.generation import VideoLlavaForGeneration, step
from filmstrip.kernels import find_kernels
from filmstrip.media.clip import Clip
from filmstrip.models.weightless import weightless
from filmstrip.shapes import Tensor
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint


def clip(seed: int = 0, frames: int = 4) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 28, 28, 3), dtype=np.uint8)
    return Clip(
        path=f"clip {seed}",
        kind="video" if frames > 1 else "image",
        frames=pixels,
        times=tuple(map(float, range(frames))),
        indices=tuple(range(frames)),
        total_frames=frames,
        duration=1.0,
        warnings=(),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reuse")
    write_tiny_checkpoint(directory, tiny_hf_config(), seed=1)
    return directory


@pytest.fixture
def assistant(checkpoint: Path) -> Assistant:
    return load(checkpoint, device="cpu", quiet=True)


@contextmanager
def first_logits() -> Iterator[list[Tensor]]:
    """The logits that every prefill in the block ends with."""
    seen: list[Tensor] = []
    whole = step.prefill

    def watch(*arguments: object) -> Tensor:
        logits = whole(*arguments)  # type: ignore[arg-type]
        seen.append(logits.clone())
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filmstrip.generation.loop.prefill", watch)
        yield seen


def media_end(answer: Answer) -> int:
    return max(span.end for span in answer.prompt.plan.spans if span.kind is not None)


@pytest.mark.parametrize(
    "media", [[clip()], [clip(1, 1)], [clip(), clip(1, 1), clip(2)]], ids=["video", "image", "three media"]
)
def test_a_second_question_gives_the_logits_of_a_first(
    assistant: Assistant, checkpoint: Path, media: list[Clip]
) -> None:
    other = load(checkpoint, device="cpu", quiet=True)
    other.store = None
    assert assistant.ask(media, "what is this", max_new_tokens=4).prefix_reused == 0
    with first_logits() as seen:
        second = assistant.ask(media, "how many squares is it", max_new_tokens=6)
        scratch = other.ask(media, "how many squares is it", max_new_tokens=6)
    assert second.prefix_reused == media_end(second) > 0 and scratch.prefix_reused == 0
    assert torch.equal(*seen)
    assert second.token_ids == scratch.token_ids


def test_the_beginning_is_read_on_its_own_in_chunks_too(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CHUNK", 5)
    first = assistant.ask(clip(), "what is this", max_new_tokens=3)
    with first_logits() as seen:
        second = assistant.ask(clip(), "how many", max_new_tokens=3)
        assistant.store = None
        scratch = assistant.ask(clip(), "how many", max_new_tokens=3)
    assert (first.prefix_reused, second.prefix_reused, scratch.prefix_reused) == (0, media_end(second), 0)
    assert torch.equal(*seen)


def test_on_disk_it_outlives_the_process(checkpoint: Path, tmp_path: Path) -> None:
    first = load(checkpoint, device="cpu", quiet=True, cache=tmp_path).ask(clip(), "what is this", max_new_tokens=4)
    again = load(checkpoint, device="cpu", quiet=True, cache=tmp_path)
    with first_logits() as seen:
        second = again.ask(clip(), "how many squares", max_new_tokens=4)
        again.store = None
        again.ask(clip(), "how many squares", max_new_tokens=4)
    assert first.prefix_reused == 0 and second.prefix_reused == media_end(second)
    assert torch.equal(*seen)


@pytest.mark.parametrize(("dtype", "is_found"), [("float32", True), ("bfloat16", False)])
def test_kernels_matter_where_they_read_prompts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, is_found: bool
) -> None:
    """The first run goes without them, since they are being compiled; the second has them."""
    if find_kernels()[0] is None:
        pytest.skip("no compiler")
    seen: list[Answer] = []
    with first_logits() as logits:
        for mode in ("off", "wait"):
            monkeypatch.setenv("FILMSTRIP_KERNELS", mode)
            assistant = load(checkpoint, device="cpu", quiet=True, cache=tmp_path, dtype=dtype, compute="float32")
            seen.append(assistant.ask(clip(), "how many squares", max_new_tokens=3))
        assistant.store = None
        assistant.ask(clip(), "how many squares", max_new_tokens=3)
    assert [answer.prefix_reused > 0 for answer in seen] == [False, is_found]
    assert torch.equal(*logits[1:])


@pytest.mark.parametrize("difference", ["weights", "pixels", "order of media", "words before", "dtype", "attention"])
def test_what_differs_is_not_taken_for_the_same(checkpoint: Path, tmp_path: Path, difference: str) -> None:
    """Every ingredient of an entry, changed alone: nothing of the old one is used."""
    media, cache = [clip(), clip(1)], tmp_path / "cache"
    first = load(checkpoint, device="cpu", quiet=True, cache=cache)
    assert first.ask(media, "what", max_new_tokens=2).prefix_reused == 0
    assert first.ask(media, "what else", max_new_tokens=2).prefix_reused > 0
    directory = checkpoint
    if difference == "weights":
        directory = tmp_path / "other"
        directory.mkdir()
        write_tiny_checkpoint(directory, tiny_hf_config(), seed=2)
    dtype = "bfloat16" if difference == "dtype" else None
    other = load(directory, device="cpu", quiet=True, cache=cache, dtype=dtype)
    if difference == "attention":
        other.model.set_attention("eager")
    if difference == "pixels":
        media = [clip(), clip(2)]
    if difference == "order of media":
        media = media[::-1]
    system = "what is this" if difference == "words before" else None
    assert other.ask(media, "what", system=system, max_new_tokens=2).prefix_reused == 0


@pytest.mark.parametrize(
    "change",
    [
        "weights in place",
        "data in place",
        "new weights",
        "hook",
        "hook of all modules",
        "activation",
        "eps",
        "forward",
        "training",
    ],
)
def test_a_model_that_was_changed_remembers_nothing(
    assistant: Assistant, change: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whoever changes a model sees the changed model's answers."""
    assistant.ask(clip(), "what", max_new_tokens=2)
    block = assistant.model.text_tower.blocks[0]
    if change == "weights in place":
        with torch.no_grad():
            block.mlp.up_proj.weight.mul_(2)
    elif change == "data in place":
        block.mlp.up_proj.weight.data *= 2  # not counted as writing
    elif change == "new weights":
        block.mlp.up_proj.weight = torch.nn.Parameter(block.mlp.up_proj.weight * 2, requires_grad=False)
    elif change == "hook":
        block.register_forward_hook(lambda module, inputs, output: output * 2)
    elif change == "hook of all modules":
        request.addfinalizer(register_module_forward_hook(lambda module, inputs, output: None).remove)
    elif change == "activation":
        block.mlp.activation = torch.nn.functional.relu
    elif change == "eps":
        block.mlp_norm.eps *= 2
    elif change == "forward":
        forward = type(block.mlp).forward
        monkeypatch.setattr(type(block.mlp), "forward", lambda self, x: 2 * forward(self, x))
    else:
        assistant.model.train()
    with first_logits() as seen:
        answer = assistant.ask(clip(), "what", max_new_tokens=2)
        assistant.store = None
        assistant.ask(clip(), "what", max_new_tokens=2)
    assert answer.prefix_reused == 0
    assert torch.equal(*seen)


def test_switches_of_torch_are_part_of_what_was_read(assistant: Assistant) -> None:
    """Autocast and a lower precision of products change what is remembered: neither is taken for the other."""
    with torch.autocast("cpu", torch.bfloat16):
        assistant.ask(clip(), "what", max_new_tokens=2)
        assert assistant.ask(clip(), "what", max_new_tokens=2).prefix_reused > 0
    with first_logits() as seen:
        second = assistant.ask(clip(), "what", max_new_tokens=2)
        torch.set_float32_matmul_precision("medium")
        try:
            third = assistant.ask(clip(), "what", max_new_tokens=2)
        finally:
            torch.set_float32_matmul_precision("highest")
        assistant.store = None
        assistant.ask(clip(), "what", max_new_tokens=2)
    assert second.prefix_reused == third.prefix_reused == 0
    assert torch.equal(seen[0], seen[2])


def test_a_hook_that_was_taken_away_changes_nothing(assistant: Assistant) -> None:
    assistant.ask(clip(), "what", max_new_tokens=2)
    hook = assistant.model.text_tower.blocks[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert assistant.ask(clip(), "what", max_new_tokens=2).prefix_reused == 0
    hook.remove()
    assert assistant.ask(clip(), "what", max_new_tokens=2).prefix_reused > 0


def test_a_conversation_about_a_changed_model_is_read_anew(assistant: Assistant) -> None:
    chat = assistant.chat(clip())
    chat.say("what is this", max_new_tokens=2)
    assert chat.say("how many", max_new_tokens=2).prefix_reused > 0
    assistant.model.text_tower.blocks[0].mlp.up_proj.weight.data *= 2
    assert chat.say("is it red", max_new_tokens=2).prefix_reused == 0


@pytest.mark.parametrize("difference", ["file", "program", "threads"])
def test_what_a_hash_of_samples_may_miss(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    """Large weights are hashed in part: then another file of the same hash counts as another model."""
    monkeypatch.setattr("filmstrip.checkpoint.digest.FULL_BYTES", 0)
    directory, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(checkpoint, directory)
    for _ in range(2):
        first = load(directory, device="cpu", quiet=True, cache=cache)
        reused = first.ask(clip(), "what", max_new_tokens=2).prefix_reused
    assert reused > 0 and first.origin.weights_hash.startswith("sha256-sampled:")
    if difference == "file":
        os.utime(directory / "model.safetensors", (1, 1))
    elif difference == "program":
        monkeypatch.setattr("filmstrip.api.reuse.program_hash", lambda: "another")
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    again = load(directory, device="cpu", quiet=True, cache=cache)
    assert again.ask(clip(), "what", max_new_tokens=2).prefix_reused == 0


def test_changes_are_looked_for_where_the_hash_has_read() -> None:
    """Any other place of a large checkpoint would be read from the disk for it, with megabytes around it."""
    shapes = [(64, 4096), (128, 11008), (4096,), (1000, 64), (1024, 3, 14, 14)]
    model = torch.nn.ParameterList(torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    digest = WeightsDigest(2 * FULL_BYTES)
    (views,) = ModelState(model)._samples
    for parameter, view in zip(model, views, strict=True):
        first = view.data_ptr() - parameter.data_ptr()
        last = first + (len(view) - 1) * view.stride(0) * view.element_size()
        blocks = digest.blocks(parameter.nbytes)
        assert any(begin <= first and last < end for begin, end in blocks), (parameter.shape, first, last, blocks)


def test_one_clip_always_finds_room_in_memory() -> None:
    with weightless():
        model = VideoLlavaForGeneration(ModelConfig())
    kept = ModelConfig().clip_tokens(8) * 2 * 32 * 4096 * 4  # keys and values of the 7B, float32
    assert MEMORY_BYTES < kept < memory_limit(model, 8) < 1.2 * kept
    assert memory_limit(model.bfloat16(), 8) == MEMORY_BYTES


def test_a_model_loaded_in_inference_mode_answers(checkpoint: Path) -> None:
    with torch.inference_mode():
        assistant = load(checkpoint, device="cpu", quiet=True)
        assistant.ask(clip(), "what", max_new_tokens=2)
        assert assistant.ask(clip(), "how many", max_new_tokens=2).prefix_reused > 0


def test_a_batch_looks_at_each_medium_once(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    whole = assistant.model.encode_videos

    def watch(pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return whole(pixels)

    monkeypatch.setattr(type(assistant.model), "encode_videos", staticmethod(watch))
    questions = ["what is this", "how many", "is the red square left"]
    answers = assistant.ask_batch([(clip(), question) for question in questions], max_new_tokens=4)
    assert encoded == [1]
    singles = [assistant.ask(clip(), question, max_new_tokens=4) for question in questions]
    assert [answer.token_ids for answer in answers] == [single.token_ids for single in singles]
    assert encoded == [1]


def test_more_than_there_is_room_for_is_simply_read_again(assistant: Assistant) -> None:
    assistant.store = ContentStore(100)
    for _ in range(2):
        assert assistant.ask(clip(), "what", max_new_tokens=2).prefix_reused == 0
    assert assistant.store.nbytes <= 100
