"""Conversation files: labels read back as text, damaged records reported, order and packing that change nothing."""

import gc
import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.api import Assistant, load
from filmstrip.errors import ConfigError
from filmstrip.media.encode import write_video
from filmstrip.media.load import load_media
from filmstrip.media.sample import FrameSelection
from filmstrip.ops.masks import document_mask, document_positions
from filmstrip.testing.tiny import write_tiny_checkpoint
from filmstrip.training.batches import IGNORE, WorkerError, _deaths, numbered_batches
from filmstrip.training.dataset import RecordBatches, ValidationBatches, split_batch
from filmstrip.training.examples import ExampleReader, collate_examples, pack_rows
from filmstrip.training.language import LanguageTraining, answer_loss, positions_read
from filmstrip.training.order import SampleOrder
from filmstrip.training.parallel import Parallel
from filmstrip.training.probes import record_probe
from filmstrip.training.recipe import BatchRecipe, SampleRecipe
from filmstrip.training.records import DataError, RawRecord, parse_record, read_records
from filmstrip.training.start import start_model
from tests.training import conversation, small_recipe, sound_records, write_data, write_media


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    path = tmp_path_factory.mktemp("base") / "checkpoint"
    write_tiny_checkpoint(path)
    loaded = load(path, quiet=True)
    loaded.processor.preset = replace(loaded.processor.preset, prompt="vicuna-v1")
    return loaded


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    return folder


def reader(assistant: Assistant, max_tokens: int = 512) -> ExampleReader:
    return ExampleReader(assistant.processor, FrameSelection(num_frames=2), assistant.model.eos_token_ids, max_tokens)


def raw(values: Any, folder: Path) -> RawRecord:
    return RawRecord(values, 0, folder)


def batches(assistant: Assistant, folder: Path, records: list[Any], **recipe: Any) -> RecordBatches:
    settings = BatchRecipe(**{"size": len(records), **recipe})
    return RecordBatches([raw(values, folder) for values in records], reader(assistant), settings, seed=0)


def test_a_recipe_may_ask_for_another_image_transform(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    asked = replace(recipe, model=replace(recipe.model, preset="original", image_transform="languagebind-pad"))
    for one, transform in ((recipe, "clip-pil-bicubic"), (asked, "languagebind-pad")):
        started, _ = start_model(one, tmp_path, Parallel())
        assert started.processor.preset.image_transform == transform


@pytest.mark.parametrize("pack", [False, True])
def test_the_labels_of_a_batch_are_the_answers(assistant: Assistant, media: Path, pack: bool) -> None:
    """Decode what is learnt, row by row: the assistant's words of the records and the `</s>` after each, no more."""
    records = sound_records()
    batch = batches(assistant, media, records, pack=pack).read([raw(values, media) for values in records])
    assert not batch.skipped
    decode = assistant.processor.tokenizer.decode
    learnt = [decode([token for token in row if token != IGNORE], skip_special=False) for row in batch.labels.tolist()]
    said = sorted(
        turn["value"] + "</s>" for values in records for turn in values["conversations"] if turn["from"] == "gpt"
    )
    answers = sorted(text.strip() + "</s>" for row in learnt for text in row.split("</s>") if text)
    assert answers == said
    counted = batch.labels != IGNORE
    assert torch.equal(batch.labels[counted], batch.input_ids[counted])
    assert batch.weight == counted.sum()
    assert len(batch) == len(records)


def test_media_stand_in_front_of_the_words(assistant: Assistant, media: Path) -> None:
    """As the original's training has it, videos before images, wherever the placeholder was written."""
    example = reader(assistant).read(raw(sound_records()[3], media))
    config = assistant.config
    words = [token for token in example.ids.tolist() if token not in config.placeholder_ids.values()]
    text = assistant.processor.tokenizer.decode(words, skip_special=False)
    assert text.endswith("USER: \n\nhow many ASSISTANT: the red square moves</s>")
    places = [i for i in example.ids.tolist() if i in config.placeholder_ids.values()]
    video = 2 * config.tokens_per_frame("video")
    assert places == [config.video_token_id] * video + [config.image_token_id] * config.tokens_per_frame("image")
    assert (len(example.images), len(example.videos)) == (1, 1)
    assert example.videos[0].shape[0] == 2


BROKEN: list[tuple[Any, str]] = [
    ("text", "not an object"),
    ({"id": 1}, "no conversation"),
    ({"conversations": [{"from": "human"}]}, "a turn has no text"),
    ({"conversations": [{"from": "cat", "value": "miau"}]}, "a turn is from 'cat'"),
    ({"conversations": conversation("what")}, "no answer to learn from"),
    ({"conversations": conversation("what", "a", "b")[::2]}, "no answer to learn from"),
    ({"image": "a.png", "conversations": conversation("what", "a")}, "placeholder mismatch: 0 <image>"),
    ({"conversations": conversation("<video> what", "a")}, "placeholder mismatch: 1 <video> in the text, but 0 video"),
    ({"image": "none.png", "conversations": conversation("<image> what", "a")}, "missing file 'none.png'"),
    ({"image": "../a.png", "conversations": conversation("<image> what", "a")}, "outside the media root"),
    ({"image": "/etc/passwd", "conversations": conversation("<image> what", "a")}, "outside the media root"),
    ({"image": "link.png", "conversations": conversation("<image> what", "a")}, "outside the media root"),
    ({"image": [7], "conversations": conversation("<image> what", "a")}, "a media file is named '7'"),
    ({"image": "a\0.png", "conversations": conversation("<image> what", "a")}, "media file"),
    ({"image": "broken.png", "conversations": conversation("<image> what", "a")}, "broken.png"),
    ({"video": "a.png", "conversations": conversation("<video> what", "a")}, "placeholder"),
    ({"image": "a.png", "conversations": conversation("<image> what", "an <image>")}, "placeholder"),
    ({"conversations": conversation("what " * 600, "a")}, "too long"),
    ({"conversations": [*conversation("what", "a"), *conversation("what")[:1] * 2]}, "alternate"),
]


@pytest.mark.parametrize(("values", "reason"), BROKEN, ids=lambda value: str(value)[:30])
def test_a_broken_record_is_left_out_and_named(assistant: Assistant, media: Path, values: Any, reason: str) -> None:
    folder = media / "root"
    write_media(folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    if not (folder / "link.png").exists():
        (folder / "link.png").symlink_to(media / "a.png")
    records = [sound_records()[0], values, sound_records()[1]]
    batch = batches(assistant, folder, records).read([raw(record, folder) for record in records])
    assert len(batch) == 2
    [(_, said)] = batch.skipped
    assert reason in said
    assert "unexpected" not in said


def test_an_unforeseen_failure_is_reported_too(
    assistant: Assistant, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("deep inside a decoder")

    monkeypatch.setattr("filmstrip.training.examples.load_media", fail)
    batch = batches(assistant, media, [{}]).read([raw(sound_records()[0], media), raw(sound_records()[4], media)])
    assert batch.skipped == (("image", "unexpected ZeroDivisionError: deep inside a decoder"),)
    assert len(batch) == 1


def test_a_batch_of_nothing_has_no_weight_and_a_finite_loss(assistant: Assistant, media: Path) -> None:
    batch = batches(assistant, media, [{}]).read([raw({}, media)])
    assert (len(batch), batch.weight) == (0, 0.0)
    loss, _ = LanguageTraining(assistant.model)(batch, 0.0)
    assert loss.item() == 0.0


def test_a_leading_answer_is_dropped_as_in_llava(media: Path) -> None:
    record = parse_record(raw({"conversations": conversation("x", "hello", "what", "a")[1:]}, media))
    assert [(turn.role, turn.text) for turn in record.turns] == [("user", "what"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not valid JSON"), ("{}", "not hold a list"), ("[]", "no record"), ("\xff", "UTF-8"), ("[" * 10**5, "JSON")],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        read_records([path])
    with pytest.raises(DataError, match="cannot read"):
        read_records([tmp_path / "none.json"])


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in sound_records()) + "\n\n")
    assert [record.name for record in read_records([path])] == ["image", "video", "turns", "both", "text"]


def test_a_bad_line_is_one_bad_sample(assistant: Assistant, media: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(sound_records()[4]).encode(), b"", b'{"id": 7,', b'{"id": "\xff"}', b"[" * 10**5]
    path.write_bytes(b"\n".join(lines))
    records = read_records([path])
    batch = batches(assistant, media, [{}]).read(records)
    assert len(batch) == 1
    assert [name for name, _ in batch.skipped] == ["#1", "#2", "#3"]
    assert all(f"not valid JSON: line {number} of {path}" in batch.skipped[number - 3][1] for number in (3, 4, 5))
    path.write_bytes(b"\n".join(lines[1:]))
    with pytest.raises(DataError, match=r"no line that is valid JSON; the first is not valid JSON: line 2 of"):
        read_records([path])


def test_a_damaged_clip_is_used_and_named(assistant: Assistant, media: Path, tmp_path: Path) -> None:
    """What is left of it is trained on, which nobody would see in the losses."""
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "cut.mkv", frames)
    whole = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    record = {"id": "cut", "video": "cut.mkv", "conversations": conversation("<video> what", "a square")}
    batch = batches(assistant, tmp_path, [record]).read([raw(record, tmp_path), raw(sound_records()[4], tmp_path)])
    assert (len(batch), batch.skipped) == (2, ())
    assert {name for name, _ in batch.warnings} == {"cut"}
    assert any("cut.mkv: " in text for _, text in batch.warnings)


def test_a_sample_answer_sees_the_pictures_of_its_question(
    assistant: Assistant, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "filmstrip.training.probes._answers", lambda _, prompts, *rest: asked.extend(prompts) or ["red"] * len(prompts)
    )
    record = raw({"image": ["a.png", "b.png"], "conversations": conversation("<image><image> which", "a")}, media)
    [(question, _, truth)] = record_probe(assistant, reader(assistant), [record], SampleRecipe(count=1), "float32")
    assert (question, truth) == ("which", "a")
    expected = reader(assistant).read(record).images
    assert not torch.equal(expected[0], expected[1])
    assert all(torch.equal(one, other) for one, other in zip(asked[0].pixels_images, expected, strict=True))


def test_a_sample_answer_ends_no_run(assistant: Assistant, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("deep inside a decoder")

    monkeypatch.setattr("filmstrip.training.probes.load_media", fail)
    records = [raw(sound_records()[0], media), raw(sound_records()[4], media)]
    recipe = SampleRecipe(count=2, max_new_tokens=2)
    assert [row[0] for row in record_probe(assistant, reader(assistant), records, recipe, "float32")] == [
        "what is a video"
    ]


def test_a_prompt_without_end_of_sequence_is_refused(assistant: Assistant) -> None:
    plain = load_like(assistant, "hf-plain")
    with pytest.raises(ConfigError, match="'hf-plain' does not end answers with an end-of-sequence"):
        reader(plain)


def test_a_template_closes_its_answers_outside_of_the_words(assistant: Assistant, media: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}"
        "{% endfor %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    templated = load_like(assistant, "chat-template")
    templated.processor.chat_template = template
    example = reader(templated).read(raw({"conversations": conversation("what", "a square")}, media))
    learnt = [token for token in example.labels.tolist() if token != IGNORE]
    assert templated.processor.tokenizer.decode(learnt, skip_special=False).strip() == "a square</s>"


def load_like(assistant: Assistant, prompt: str) -> Assistant:
    """The same model with another prompt style."""
    directory = Path(assistant.origin.model)
    other = load(directory, quiet=True)
    other.processor.preset = replace(other.processor.preset, prompt=prompt)  # type: ignore[arg-type]
    return other


def test_packing_changes_no_loss_and_no_gradient(assistant: Assistant, media: Path) -> None:
    """Rows of several conversations give the sums of the conversations alone, to rounding."""
    read = reader(assistant)
    examples = [read.read(raw(values, media)) for values in sound_records()]
    task = LanguageTraining(assistant.model)
    task.requires_grad_(True)
    results = []
    for pack in (False, True):
        batch = collate_examples(examples, assistant.config.pad_token_id, pack_to=1024 if pack else None)
        assert (batch.documents is not None) == pack
        task.zero_grad()
        loss, figures = task(batch, 0.0)
        loss.backward()
        gradient = assistant.model.text_tower.blocks[0].attention.k_proj.weight.grad.clone()
        results.append((batch.input_ids.shape, loss.item(), figures["right"], gradient))
    task.requires_grad_(False)
    (rows, length), (packed_rows, packed_length) = results[0][0], results[1][0]
    assert packed_rows < rows
    assert packed_rows * packed_length == sum(map(len, examples)) < rows * length
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)  # sums of float32 in another order
    assert results[0][2] == results[1][2]
    torch.testing.assert_close(results[0][3], results[1][3], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pack_to", [None, 1024])
def test_positions_before_the_first_answer_are_left_out_of_the_last_block(
    assistant: Assistant, media: Path, pack_to: int | None
) -> None:
    """What is left out changes no loss and no gradient, to rounding."""
    examples = [reader(assistant).read(raw(values, media)) for values in sound_records()]
    batch = collate_examples(examples, assistant.config.pad_token_id, pack_to=pack_to)
    model, task = assistant.model, LanguageTraining(assistant.model)
    read, length = positions_read(batch.labels), batch.labels.shape[1]
    assert 1 < read < length
    assert (batch.labels[:, : length - read + 1] == IGNORE).all()
    assert (batch.labels[:, length - read + 1] != IGNORE).any()
    task.requires_grad_(True)
    results = []
    for last in (read, None):
        task.zero_grad()
        loss, _ = answer_loss(model, task.hidden(batch, last=last), batch.labels)
        loss.backward()
        names = ("blocks.0.attention.k_proj", "blocks.{}.attention.q_proj", "blocks.{}.mlp.down_proj")
        layers = [model.text_tower.get_submodule(name.format(len(model.text_tower.blocks) - 1)) for name in names]
        results.append((loss.item(), [layer.weight.grad.clone() for layer in layers]))
    task.requires_grad_(False)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_how_many_positions_are_read() -> None:
    labels = torch.full((2, 6), IGNORE)
    assert positions_read(labels) == 1
    labels[1, 4] = 7
    assert positions_read(labels) == 3
    labels[0, 0] = 7  # which no position tells
    assert positions_read(labels) == 6


def test_documents_do_not_see_each_other() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, -1]])
    keep = document_mask(documents).keep_BTS
    assert keep is not None
    assert keep[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0]]


@given(st.lists(st.integers(1, 50), max_size=30))
def test_packed_rows_hold_everything_once(lengths: list[int]) -> None:
    rows = pack_rows(lengths, 40)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[index] for index in row) <= 40 for row in rows)


@given(st.integers(1, 40), st.integers(1, 7), st.sampled_from(["none", "length", "modality-length"]), st.integers(0, 3))
def test_an_epoch_holds_every_sample(count: int, size: int, grouping: Any, epoch: int) -> None:
    rng = np.random.default_rng(count)
    order = SampleOrder(rng.integers(1, 99, count).tolist(), rng.integers(0, 3, count).tolist(), size, grouping, 5)
    steps = [order.step(epoch * order.steps_per_epoch + number) for number in range(order.steps_per_epoch)]
    seen = np.concatenate(steps)
    assert all(len(step) == size for step in steps)
    assert set(seen.tolist()) == set(range(count))
    assert len(seen) - count < size


def test_groups_are_alike() -> None:
    rng = np.random.default_rng(0)
    lengths, kinds = rng.integers(1, 1000, 640).tolist(), rng.integers(0, 2, 640).tolist()
    order = SampleOrder(lengths, kinds, 8, "modality-length", 0)
    steps = [order.step(number) for number in range(order.steps_per_epoch)]
    mixed = [step for step in steps if len({kinds[index] for index in step}) > 1]
    assert len(mixed) <= 1
    spread = [np.ptp([lengths[index] for index in step]) for step in steps]
    plain = SampleOrder(lengths, kinds, 8, "none", 0)
    unsorted = [np.ptp([lengths[index] for index in plain.step(number)]) for number in range(80)]
    assert np.mean(spread) < 0.3 * np.mean(unsorted)
    again = pickle.loads(pickle.dumps(order))
    assert all(np.array_equal(order.step(number), again.step(number)) for number in range(200))
    assert not np.array_equal(order.step(0), order.step(order.steps_per_epoch))  # another order in the next pass


def test_processes_share_the_samples_of_a_step(assistant: Assistant, media: Path) -> None:
    """Two processes of one pass each, or one of two passes: together the samples of the step, each once."""
    records = [raw({**sound_records()[4], "id": str(number)}, media) for number in range(12)]
    recipe = BatchRecipe(size=4, per_device=2)
    empty = collate_examples([], 0)
    seen: dict[int, list[str]] = {}
    for shares in (1, 2):
        made = [RecordBatches(records, reader(assistant), recipe, 0, share, shares) for share in range(shares)]
        read: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RecordBatches, "read", lambda self, chosen, read=read: read.extend(chosen) or empty)
            for part in made:
                for number in range(3 * part.micro_batches):
                    part(number)
        seen[shares] = sorted(record.name for record in read)
    assert seen[1] == seen[2] == sorted(str(number) for number in range(12))
    with pytest.raises(ConfigError, match="multiple of per_device times the processes"):
        split_batch(recipe, 3)


def test_workers_read_the_same_batches(assistant: Assistant, tmp_path: Path) -> None:
    path = write_data(tmp_path, sound_records() * 3)
    made = RecordBatches(read_records([path]), reader(assistant), BatchRecipe(size=3, group="length"), seed=1)
    alone = [made(number) for number in range(2, 5)]
    shared = list(numbered_batches(made, 2, 2, 5))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(alone, shared, strict=True))
    held_out = ValidationBatches(made, made.records)
    assert sum(len(held_out(number)) for number in range(len(held_out))) == 15


def collect_garbage(number: int) -> int:
    gc.collect()
    return number


@pytest.mark.timeout(60)
def test_workers_start_after_videos_were_decoded_here(media: Path) -> None:
    """A worker that freed this process's video scalers would wait for their threads for ever."""
    gc.disable()
    try:
        for _ in range(5):
            load_media(media / "clip.mp4", FrameSelection(num_frames=2))
        assert list(numbered_batches(collect_garbage, 0, 2, 4)) == [0, 1, 2, 3]
    finally:
        gc.enable()


def ignores_signals(_number: int) -> bool:
    return signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def die_at_three(number: int) -> int:
    if number == 3:
        time.sleep(1)  # until what was made before is on its way
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_workers_leave_signals_to_the_main_process() -> None:
    """Job systems send SIGTERM to all processes of a run, and the step under way still needs its samples."""
    assert list(numbered_batches(ignores_signals, 0, 1, 1)) == [True]


@pytest.mark.timeout(60)
def test_a_worker_that_dies_is_named() -> None:
    """Where its batch would come, and nowhere else: an error in the middle of a step would tear the weights."""
    before = signal.getsignal(signal.SIGCHLD)
    coming = iter(numbered_batches(die_at_three, 1, 1, 9))
    assert [next(coming), next(coming)] == [1, 2]
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(WorkerError, match=r"a data worker died: process \d+ was ended by SIGKILL .*out of memory"):
        next(coming)


def close_then_die() -> None:
    """As the system does it, only slower: the files of a process are closed before its end can be read."""
    os.closerange(3, 256)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_is_named_while_it_is_dying() -> None:
    worker = multiprocessing.get_context("fork").Process(target=close_then_die)
    worker.start()
    assert _deaths([worker]).startswith(f"process {worker.pid} was ended by SIGKILL")
