"""Mistakes in Python: one line of a documented class, whatever was passed."""

from pathlib import Path
from typing import Any

import jaxtyping
import pytest

import filmstrip
from filmstrip.api import Assistant
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError, MediaError, PromptError


@pytest.fixture(autouse=True)
def _inside_the_media_folder(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the examples can say `clip.mp4`."""
    monkeypatch.chdir(media)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run it: without the tests' check of every argument's type."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"preset": "origin"}, "did you mean 'original'?"),
        ({"dtype": "float23"}, "did you mean 'float32'?"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "device 'meta' is not available"),
        ({"frame_sampler": "uniform"}, "unknown frame sampler 'uniform'"),
        ({"temperature": 1.0}, "unknown choice 'temperature'"),
        ({"temporal_attention": True}, "no weights for temporal attention"),
    ],
)
def test_bad_choices_are_one_line(checkpoint: Path, choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        filmstrip.load(checkpoint, **choices)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperatur": 1.0}, "did you mean 'temperature'?"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 10**19}, "max_new_tokens must be at most 1,000,000"),
        ({"seed": -1}, "the seed must be from 0"),
        ({"seed": 2**70}, "the seed must be from 0"),
        ({"stop_strings": ("",)}, "a stop string must not be empty"),
    ],
)
def test_bad_sampling_options_are_one_line(assistant: Assistant, sampling: dict[str, Any], words: str) -> None:
    for ask in (assistant.ask, lambda media, text, **options: assistant.chat(media).say(text, **options)):
        with pytest.raises(ConfigError) as raised:
            ask("clip.mp4", "what", **sampling)
        assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("max_new_tokens", 2.5), ("top_k", 1.5), ("seed", 1.5), ("stop_strings", 5)],
)
@pytest.mark.usefixtures("unchecked")
def test_options_of_the_wrong_type_are_one_line(assistant: Assistant, name: str, value: Any) -> None:
    for ask in (assistant.ask, lambda media, text, **options: assistant.chat(media).say(text, **options)):
        with pytest.raises(ConfigError, match=rf"{name} must be .*{value}"):
            ask("clip.mp4", "what", **{name: value})


@pytest.mark.usefixtures("unchecked")
def test_media_and_questions_of_the_wrong_type_are_one_line(assistant: Assistant) -> None:
    anything: Any = None
    for media in (anything, 5, [None], ["clip.mp4", 5]):
        with pytest.raises(MediaError, match="media must be paths or clips"):
            assistant.ask(media, "what")
        with pytest.raises(MediaError, match="media must be paths or clips"):
            assistant.ask_batch([(media, "what")])
    with pytest.raises(PromptError, match="the question must be text, not None"):
        assistant.ask("clip.mp4", anything)
    with pytest.raises(PromptError, match="the question must be text, not None"):
        assistant.chat("clip.mp4").say(anything)
    with pytest.raises(PromptError, match="the system line must be text, not 5"):
        assistant.ask("clip.mp4", "what", system=5)  # type: ignore[arg-type]


def test_more_tokens_than_memory_is_one_line(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more lines")

    monkeypatch.setattr("filmstrip.api.stream.new_cache", full)
    monkeypatch.setattr("filmstrip.api.chat.new_cache", full)
    for ask in (assistant.ask, lambda media, text, **options: assistant.chat(media).say(text, **options)):
        with pytest.raises(FilmstripError, match="not enough memory for a key/value cache of 1,000,0"):
            ask("clip.mp4", "what", max_new_tokens=10**6)


def test_one_stop_string_may_be_a_plain_string(assistant: Assistant) -> None:
    assert assistant.settings({"stop_strings": "###"}).stop_strings == ("###",)
    assert assistant.settings({"stop_strings": ["a", "b"]}).stop_strings == ("a", "b")


def test_a_hub_id_that_is_not_cached_is_one_line_offline() -> None:
    with pytest.raises(CheckpointError) as raised:
        filmstrip.load("nobody/no-such-model-7b")
    assert "nobody/no-such-model-7b" in str(raised.value) and "\n" not in str(raised.value)
