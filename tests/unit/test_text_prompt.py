"""Prompt styles: exact texts, sources that cover them, and turns out of order."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.config.preset import PROMPT_STYLES
from filmstrip.errors import CheckpointError, PromptError
from filmstrip.testing.tiny import CHAT_TEMPLATE, tiny_vocabulary_size, write_tiny_tokenizer
from filmstrip.text import Placeholders, Tokenizer, Turn, render, tokenize, user_turn
from filmstrip.text.prompt import VICUNA_SYSTEM

CHAT = [user_turn("Q1?", ["image", "video"]), Turn("assistant", "A1."), user_turn("Q2?")]


@pytest.mark.parametrize(
    ("style", "turns", "text"),
    [
        ("hf-plain", [user_turn("Why?", ["video"])], "USER: <video>\nWhy? ASSISTANT:"),
        ("hf-plain", CHAT, "USER: <image>\n<video>\nQ1? ASSISTANT: A1. USER: Q2? ASSISTANT:"),
        ("hf-plain", [Turn("system", "Sys."), user_turn("Q?")], "Sys. USER: Q? ASSISTANT:"),
        ("vicuna-v1", CHAT, f"{VICUNA_SYSTEM} USER: <video>\n<image>\nQ1? ASSISTANT: A1.</s>USER: Q2? ASSISTANT:"),
        ("vicuna-v1", [Turn("system", "Sys."), user_turn("Q?")], "Sys. USER: Q? ASSISTANT:"),
        ("vicuna-v1-no-system", CHAT[:1], "USER: <video>\n<image>\nQ1? ASSISTANT:"),
        ("chat-template", CHAT, "USER: <image>\n<video>\nQ1? ASSISTANT: A1. USER: Q2? ASSISTANT:"),
    ],
)
def test_texts(style: Any, turns: list[Turn], text: str) -> None:
    assert render(turns, style, chat_template=CHAT_TEMPLATE).text == text


def test_system_line_is_the_original_releases() -> None:
    assert VICUNA_SYSTEM == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )


def test_whole_conversation_for_training() -> None:
    turns = CHAT[:2]
    assert render(turns, "hf-plain", add_generation_prompt=False).text.endswith("Q1? ASSISTANT: A1.")
    rendered = render(turns, "vicuna-v1", add_generation_prompt=False)
    assert rendered.text.endswith(" ASSISTANT: A1.</s>")
    last = rendered.sources[-1]
    assert (rendered.text[last.start : last.end], last.label) == ("A1.</s>", "assistant 1")


def test_placeholders_and_end_of_answer_of_the_checkpoint() -> None:
    rendered = render(
        CHAT, "vicuna-v1-no-system", placeholders=Placeholders("[I]", "[V]"), special_tokens={"eos_token": "<end>"}
    )
    assert rendered.text == "USER: [V]\n[I]\nQ1? ASSISTANT: A1.<end>USER: Q2? ASSISTANT:"


words = st.text(st.sampled_from("ab <>/sUSER:\n日\ufdd0"), max_size=12)


@given(texts=st.lists(words, min_size=1, max_size=4), system=st.none() | words, style=st.sampled_from(PROMPT_STYLES))
@settings(max_examples=150, deadline=None)
def test_sources_cover_the_text_and_find_every_turn(texts: list[str], system: str | None, style: Any) -> None:
    if len(texts) % 2 == 0:
        texts = texts[:-1]
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    turns = ([] if system is None else [Turn("system", system)]) + turns
    rendered = render(turns, style, chat_template=CHAT_TEMPLATE)
    ends = [0, *(source.end for source in rendered.sources)]
    assert [source.start for source in rendered.sources] == ends[:-1]
    assert ends[-1] == len(rendered.text)
    for number in range(1, len(texts) // 2 + 2):
        found = "".join(rendered.text[s.start : s.end] for s in rendered.sources if s.label == f"user {number}")
        assert found.strip() == texts[2 * number - 2].strip()


def test_chat_template_sources_when_the_question_imitates_the_template() -> None:
    rendered = render([user_turn("USER: USER: <video>", ["video"])], "chat-template", chat_template=CHAT_TEMPLATE)
    parts = [(rendered.text[s.start : s.end], s.label) for s in rendered.sources]
    assert parts == [
        ("USER: ", "template"),
        ("<video>", "media"),
        ("\n", "template"),
        ("USER: USER: <video>", "user 1"),
        (" ASSISTANT:", "template"),
    ]


def test_chat_template_that_rewrites_the_words_is_labelled_template() -> None:
    template = "{% for m in messages %}{{ m.content[-1].text | length }}{% endfor %}"
    rendered = render([user_turn("four")], "chat-template", chat_template=template)
    assert rendered.text == "4"
    assert [source.label for source in rendered.sources] == ["template"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "needs a question"),
        ([Turn("system", "s")], "needs a question"),
        ([Turn("assistant", "a")], "turn 1 is the assistant's"),
        ([user_turn("a"), user_turn("b")], "turn 2 is the user's"),
        (CHAT[:2], "last turn must be the user's"),
        ([user_turn("a"), Turn("assistant", "b"), Turn("system", "s"), user_turn("c")], "it comes first"),
        ([Turn("system", "a"), Turn("system", "b"), user_turn("c")], "at most one system line"),
        ([user_turn("a"), Turn("assistant", "b", ("image",)), user_turn("c")], "not to the assistant's"),
    ],
)
def test_turns_out_of_order(turns: list[Turn], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        render(turns, "hf-plain")


def test_style_without_its_template() -> None:
    with pytest.raises(PromptError, match="has no chat template"):
        render(CHAT, "chat-template")


def test_labels_of_tokens(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    tokenizer, first = Tokenizer.from_directory(tmp_path), tiny_vocabulary_size()
    ids: Any = {"image": first, "video": first + 1}
    rendered = render([user_turn("what is this", ["video"])], "hf-plain")
    labelled = tokenize(rendered, tokenizer, ids)
    named = [(tokenizer.id_to_token(i), label) for i, label in zip(labelled.ids, labelled.labels, strict=True)]
    # "▁what" holds no blank of the template here; "▁ASSISTANT" starts with one and belongs to its first letter.
    assert named[0] == ("<s>", "template")
    assert named[1] == ("▁USER", "template")
    assert ("<video>", "media") in named
    assert ("<0x0A>", "media") in named
    assert [token for token, label in named if label == "user 1"][-1] == "▁this"
    assert named[-2:] == [("▁ASSISTANT", "template"), (":", "template")]


def test_placeholder_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    rendered = render([user_turn("what", ["video"])], "hf-plain", placeholders=Placeholders(video="<clip>"))
    with pytest.raises(CheckpointError, match=r"'<clip>' should be token 7 .*does not know it"):
        tokenize(rendered, tokenizer, {"video": 7}, placeholders=Placeholders(video="<clip>"))
