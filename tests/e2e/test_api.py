"""The Python front door: what `docs` and the README promise, and what must not depend on how a question is asked."""

import json
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch

import filmstrip
from filmstrip.api import Assistant, OpenedModel, open_model
from filmstrip.errors import FilmstripError, PromptError
from filmstrip.media.sample import FrameSelection
from filmstrip.shapes import Tensor


@pytest.fixture(autouse=True)
def _inside_the_media_folder(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the examples can say `clip.mp4`."""
    monkeypatch.chdir(media)


def test_the_contract_as_written(checkpoint: Path) -> None:
    assistant = filmstrip.load(checkpoint)
    answer = assistant.ask("clip.mp4", "Which way does the red square move?", max_new_tokens=5)
    assert isinstance(answer.text, str)
    assert len(answer.token_ids) == 5
    assert answer.stop_reason == "length"
    assert answer.timings.first_token > 0
    assert answer.run_card["model"] == str(checkpoint)
    pieces = []
    for piece in assistant.stream(["photo.png", "other.mp4"], "What is different?", max_new_tokens=5):
        pieces.append(piece)
    assert all(isinstance(piece, str) for piece in pieces)
    chat = assistant.chat("clip.mp4")
    first = chat.say("What is this?", max_new_tokens=5)
    second = chat.say("And now?", max_new_tokens=5)
    assert second.prefix_reused >= len(first.prompt.plan.input_ids)

    with pytest.raises(FrozenInstanceError):
        assistant.config.text.num_layers = 1  # type: ignore[misc]
    assert isinstance(assistant.model, torch.nn.Module)
    prompt = answer.prompt
    input_ids = torch.tensor([prompt.plan.input_ids])
    logits = assistant.model(
        input_ids, pixel_values_images=None, pixel_values_videos=prompt.pixels_videos[0][None], attention_mask=None
    )
    assert logits.shape == (1, len(prompt.plan.input_ids), assistant.config.text.vocab_size)
    assert int(logits[0, -1].argmax()) == answer.token_ids[0]
    new_ids = assistant.model.generate(
        input_ids, pixel_values_videos=prompt.pixels_videos[0][None], max_new_tokens=5, temperature=0.0
    )
    assert new_ids.tolist() == [list(answer.token_ids)]


def test_loading_says_in_one_line_what_was_built(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assistant = filmstrip.load(checkpoint, preset="transformers")
    captured = capsys.readouterr()
    assert captured.err == f"{assistant.summary}\n" and captured.err.count("\n") == 1
    assert captured.out == ""
    filmstrip.load(checkpoint, quiet=True)
    assert capsys.readouterr().err == ""
    assert repr(assistant) == f"<filmstrip.Assistant {assistant.summary}>"


def test_progress_counts_up_to_the_whole(checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    assistant = filmstrip.load(checkpoint, quiet=True, on_progress=lambda done, total: seen.append((done, total)))
    total = len(list(assistant.model.parameters()))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_importing_the_package_is_cheap() -> None:
    code = "import filmstrip, sys; print(filmstrip.__version__, {'torch', 'numpy', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split(maxsplit=1) == [filmstrip.__version__, "set()\n"]


def test_a_batch_equals_the_questions_alone(assistant: Assistant) -> None:
    requests: list[tuple[Any, str]] = [
        ("clip.mp4", "what is this"),
        (["photo.png", "other.mp4"], "What is the difference between these two? Be brief."),
        ([], "how many"),
        ("wide.jpg", "is the square red"),
        (["photo.png", "wide.jpg"], "left"),
    ]
    together = assistant.ask_batch(requests, max_new_tokens=10)
    alone = [assistant.ask(media, question, max_new_tokens=10) for media, question in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.run_card for answer in together] == [answer.run_card for answer in alone]


def test_a_batch_with_stop_strings_ends_each_row_where_it_would_end_alone(assistant: Assistant) -> None:
    questions = ["what is this", "how many", "is the square red", "video", "left"]
    options = {"max_new_tokens": 12, "temperature": 2.0, "seed": 4}
    texts = [assistant.ask("clip.mp4", question, **options).text for question in questions]
    letters = [letter for text in texts for letter in text[1:] if letter.isprintable() and letter not in " \ufffd"]
    stop = max(sorted(set(letters)), key=lambda letter: sum(letter in text for text in texts))
    together = assistant.ask_batch([("clip.mp4", question) for question in questions], stop_strings=(stop,), **options)
    alone = [assistant.ask("clip.mp4", question, stop_strings=(stop,), **options) for question in questions]
    assert "stop_string" in {answer.stop_reason for answer in together}
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.token_ids, one.stop_reason) == (other.text, other.token_ids, other.stop_reason)
        assert stop not in one.text


def test_a_batch_without_a_seed_records_the_one_it_drew_with(assistant: Assistant) -> None:
    requests = [("clip.mp4", "what is this"), ("photo.png", "how many")]
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 2.0}
    together = assistant.ask_batch(requests, **options)
    for (media, question), answer in zip(requests, together, strict=True):
        seed = answer.run_card["sampling"]["seed"]
        assert assistant.ask(media, question, seed=seed, **options).token_ids == answer.token_ids


def test_rows_of_a_batch_without_a_seed_draw_on_their_own(assistant: Assistant) -> None:
    answers = assistant.ask_batch([("clip.mp4", "what is this")] * 3, max_new_tokens=12, temperature=3.0)
    assert len({answer.run_card["sampling"]["seed"] for answer in answers}) == 3
    assert len({answer.token_ids for answer in answers}) == 3
    given = assistant.ask_batch([("clip.mp4", "what is this")] * 2, max_new_tokens=12, temperature=3.0, seed=5)
    alone = assistant.ask("clip.mp4", "what is this", max_new_tokens=12, temperature=3.0, seed=5)
    assert [answer.token_ids for answer in given] == [alone.token_ids] * 2


def test_a_batch_chooses_frames(assistant: Assistant) -> None:
    selection = FrameSelection("times", times=(0.0, 1.0))
    (answer,) = assistant.ask_batch([("clip.mp4", "what is this")], selection=selection, max_new_tokens=3)
    assert answer.run_card == assistant.ask("clip.mp4", "what is this", selection=selection, max_new_tokens=3).run_card
    assert answer.media[0].indices == (0, 8)
    assert answer.run_card["preset"]["frame_sampler"] == "times"


def test_an_empty_batch(assistant: Assistant) -> None:
    assert assistant.ask_batch([]) == []


def test_a_stop_string_in_what_was_held_back(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that breaks off inside a character ends in U+FFFD; found at the end, it is a stop string all the same,
    alone and in a batch."""
    tokenizer = assistant.processor.tokenizer
    ids = [tokenizer.token_to_id("▁the"), tokenizer.token_to_id("<0xE2>"), assistant.model.eos_token_ids[0]]
    options: dict[str, Any] = {"stop_strings": "\ufffd", "max_new_tokens": 9}
    found = []
    for ask in (
        lambda: assistant.ask("photo.png", "what", **options),
        lambda: assistant.ask_batch([("photo.png", "what")], **options)[0],
    ):
        monkeypatch.setattr("filmstrip.generation.loop.sample_tokens", Scripted(ids))
        answer = ask()
        found.append((answer.text, answer.stop_reason))
    assert found == [("the", "stop_string")] * 2


def test_newlines_that_are_byte_tokens_stop_generation(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = assistant.processor.tokenizer
    newline = tokenizer.token_to_id("<0x0A>")
    monkeypatch.setattr("filmstrip.generation.loop.sample_tokens", Scripted([*[newline] * 20]))
    answer = assistant.ask("photo.png", "what", stop_strings="\n", max_new_tokens=20)
    assert (answer.text, answer.token_ids, answer.stop_reason) == ("", (newline,), "stop_string")


@pytest.mark.parametrize("seed", range(6))
def test_streamed_pieces_join_to_the_text(assistant: Assistant, seed: int) -> None:
    stream = assistant.stream("clip.mp4", "what is this", max_new_tokens=40, temperature=3.0, seed=seed)
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == stream.answer.text.strip()
    assert all(pieces)


class Scripted:
    """Stands in for a model's choices: fixed ids, whatever the logits are."""

    def __init__(self, ids: list[Any]) -> None:
        self.ids = iter(ids)

    def __call__(self, logits_BW: Tensor, *_: Any) -> Tensor:
        return torch.tensor([next(self.ids)])


@pytest.mark.parametrize(
    ("text", "stop", "shown", "reason"),
    [
        ("the red square", (), "the red square", "eos"),
        ("  the   red  ", (), "the   red", "eos"),
        ("a 日本 é", (), "a 日本 é", "eos"),
        ("the red square", ("red",), "the", "stop_string"),
        ("the red square", (" square",), "the red", "stop_string"),
        ("the red squ", ("square",), "the red squ", "eos"),
        ("the red", ("the red",), "", "stop_string"),
        ("", (), "", "eos"),
    ],
)
def test_text_and_stop_reason_of_known_tokens(
    assistant: Assistant,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    stop: tuple[str, ...],
    shown: str,
    reason: str,
) -> None:
    ids = [*assistant.processor.tokenizer.encode(text).ids[1:], assistant.model.eos_token_ids[0]]
    monkeypatch.setattr("filmstrip.generation.loop.sample_tokens", Scripted(ids))
    stream = assistant.stream("photo.png", "what is this", stop_strings=stop, max_new_tokens=60)
    pieces = list(stream)
    answer = stream.answer
    assert "".join(pieces) == answer.text == shown
    assert answer.stop_reason == reason
    assert list(answer.token_ids) == ids[: len(answer.token_ids)]
    assert (len(answer.token_ids) == len(ids)) == (reason == "eos")
    assert not any("\ufffd" in piece for piece in pieces)  # no piece ends inside a character


def test_a_conversation_equals_its_prompts_asked_whole(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is a shortcut: a fresh conversation with the same turns answers the same without it."""
    monkeypatch.setattr(assistant, "store", None)
    chat = assistant.chat(["photo.png", "clip.mp4"], system="Be brief.")
    answers = [chat.say(text, max_new_tokens=6) for text in ("what is this", "how many", "left")]
    assert answers[0].prefix_reused == 0 < answers[1].prefix_reused < answers[2].prefix_reused
    for number, answer in enumerate(answers):
        fresh = assistant.chat(["photo.png", "clip.mp4"], system="Be brief.")
        fresh.turns = chat.turns[: 1 + 2 * number]
        whole = fresh.say(chat.turns[1 + 2 * number].text, max_new_tokens=6)
        assert whole.prefix_reused == 0
        assert (whole.token_ids, whole.prompt.plan) == (answer.token_ids, answer.prompt.plan)


def test_an_abandoned_turn_leaves_the_conversation_as_it_was(assistant: Assistant) -> None:
    chat = assistant.chat("clip.mp4")
    with pytest.raises(FilmstripError, match="nothing was answered yet"):
        _ = chat.last
    plain = assistant.chat("clip.mp4")
    expected = [plain.say(text, max_new_tokens=6) for text in ("what is this", "how many")]
    never_started = chat.stream("abandoned before it began", max_new_tokens=6)
    half = chat.stream("abandoned in the middle", max_new_tokens=30)
    assert list(never_started) == []  # the next turn closed it
    next(iter(half))
    first = chat.say("what is this", max_new_tokens=6)
    assert next(iter(half), None) is None
    again = chat.stream("abandoned later", max_new_tokens=30)
    next(iter(again))
    second = chat.say("how many", max_new_tokens=6)
    assert [first.token_ids, second.token_ids] == [answer.token_ids for answer in expected]
    assert [turn.text for turn in chat.turns if turn.role == "user"] == ["what is this", "how many"]
    assert second.prefix_reused > 0


def test_an_abandoned_stream_has_no_answer(assistant: Assistant) -> None:
    stream = assistant.stream("clip.mp4", "what is this", max_new_tokens=30)
    next(stream)
    iter(stream).close()  # type: ignore[attr-defined]
    with pytest.raises(FilmstripError, match="abandoned"):
        _ = stream.answer
    assert assistant.ask("clip.mp4", "what is this", max_new_tokens=3).text is not None


def test_the_answer_of_a_stream_runs_to_the_end_by_itself(assistant: Assistant) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12}
    stream = assistant.stream("clip.mp4", "what is this", **options)
    next(stream)
    assert stream.answer.token_ids == assistant.ask("clip.mp4", "what is this", **options).token_ids


def test_timings_are_those_of_this_question(assistant: Assistant) -> None:
    started = time.perf_counter()
    answers = [
        assistant.ask("clip.mp4", "what is this", max_new_tokens=6),
        *assistant.ask_batch([("clip.mp4", "what"), ("photo.png", "how")], max_new_tokens=6),
    ]
    passed = time.perf_counter() - started
    for answer in answers:
        times = answer.timings
        assert min(times.decode_media, times.vision, times.prefill, times.decode) > 0
        # Everything before the first token is in it; the sum is exact up to rounding of the clock's differences.
        assert times.first_token == pytest.approx(times.decode_media + times.vision + times.prefill, abs=1e-3)
        assert times.first_token + times.decode < passed


def test_timings_leave_out_the_readers_time(assistant: Assistant) -> None:
    stream = assistant.stream("clip.mp4", "what is this", max_new_tokens=12)
    slept, started = 0.0, time.perf_counter()
    for _ in stream:
        time.sleep(0.1)
        slept += 0.1
    passed, times = time.perf_counter() - started, stream.answer.timings
    assert slept > 0.3
    assert 0 < times.decode < passed - slept


def test_the_run_card_is_json_and_the_same_twice(assistant: Assistant, checkpoint: Path) -> None:
    again = filmstrip.load(checkpoint, quiet=True)
    cards = [
        one.ask(["clip.mp4", "photo.png"], "what is this", max_new_tokens=4, temperature=1.0, seed=3).run_card
        for one in (assistant, again)
    ]
    assert cards[0] == cards[1] == json.loads(json.dumps(cards[0]))
    other = assistant.ask(["other.mp4", "photo.png"], "what is this", max_new_tokens=4).run_card
    pairs = zip(cards[0]["media"], other["media"], strict=True)
    assert [one["pixels_sha256"] == two["pixels_sha256"] for one, two in pairs] == [False, True]


def test_media_can_be_read_once_and_asked_about_often(assistant: Assistant) -> None:
    (clip,) = assistant.read(Path("clip.mp4"))
    answer = assistant.ask(clip, "what is this", max_new_tokens=4)
    assert answer.run_card == assistant.ask("clip.mp4", "what is this", max_new_tokens=4).run_card
    assert answer.media == (clip,)


def test_frames_are_chosen_per_question(assistant: Assistant) -> None:
    selection = FrameSelection("times", times=(0.0, 1.0))
    answer = assistant.ask("clip.mp4", "what is this", selection=selection, max_new_tokens=2)
    assert answer.media[0].indices == (0, 8)
    assert answer.run_card["preset"]["frame_sampler"] == "times"


def test_requests_need_no_weights(checkpoint: Path, assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with media, prompt or options is known before a single weight is read."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    with monkeypatch.context() as patch:
        patch.setattr("filmstrip.checkpoint.files.TensorReader.read", never)
        opened = open_model(checkpoint)
        assert isinstance(opened, OpenedModel)
        request = opened.request("clip.mp4", "what is this", max_new_tokens=4)
        with pytest.raises(PromptError):
            opened.request("clip.mp4", "what is <video>")
    answer = opened.load_weights().answer(request).answer
    assert answer.token_ids == assistant.ask("clip.mp4", "what is this", max_new_tokens=4).token_ids


def test_choices_by_name(checkpoint: Path, temporal_checkpoint: Path) -> None:
    changed = filmstrip.load(checkpoint, quiet=True, frame_sampler="uniform-inclusive", prompt=None)
    assert changed.selection.sampler == "uniform-inclusive"
    assert "preset transformers, changed (frames uniform-inclusive" in changed.summary
    whole = filmstrip.load(temporal_checkpoint, quiet=True, preset="original")
    assert whole.config.video_tower.temporal_attention and "preset original (" in whole.summary
    assert whole.warnings == ()
    partly = filmstrip.load(temporal_checkpoint, quiet=True, temporal_attention=True)
    assert partly.config.video_tower.temporal_attention
    assert "preset transformers, changed" in partly.summary


def test_a_preset_that_a_checkpoint_cannot_run_whole_is_warned_about(checkpoint: Path) -> None:
    assistant = filmstrip.load(checkpoint, quiet=True, preset="original")
    assert assistant.warnings == (
        "preset 'original' has temporal attention, but this checkpoint holds no weights for it",
    )
    assert not assistant.config.video_tower.temporal_attention
    # Whoever says so himself needs no warning.
    assert filmstrip.load(checkpoint, quiet=True, preset="original", temporal_attention=False).warnings == ()


def test_changing_one_choice_of_original_keeps_its_tokenisation(temporal_checkpoint: Path) -> None:
    """The original tokenises around placeholders; that must not hang on whether temporal attention is on."""
    ids = [
        open_model(temporal_checkpoint, preset="original", temporal_attention=temporal)
        .request("clip.mp4", "what is this")
        .prompt.plan.input_ids
        for temporal in (True, False)
    ]
    assert ids[0] == ids[1]
