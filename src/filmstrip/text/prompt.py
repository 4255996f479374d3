"""From turns of a conversation to the text of a prompt, keeping where each character came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from filmstrip.config import MediaKind
from filmstrip.config.preset import PromptStyle
from filmstrip.errors import PromptError
from filmstrip.text.template import render_template

Role = Literal["system", "user", "assistant"]

# PKU-YuanGroup/Video-LLaVA, conversation "v1" (the one it was trained with).
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Turn:
    """One utterance. `media` names what stands in front of a user's text, in order within each kind."""

    role: Role
    text: str
    media: tuple[MediaKind, ...] = ()


@dataclass(frozen=True)
class Placeholders:
    """The text that stands for one medium until its visual tokens take the place."""

    image: str = "<image>"
    video: str = "<video>"

    def of(self, kind: MediaKind) -> str:
        """The placeholder of `kind`."""
        return self.image if kind == "image" else self.video


@dataclass(frozen=True)
class Source:
    """Characters `start` to `end` (exclusive) of a prompt come from `label`.

    Labels: `template`, `system`, `media`, `user 1`, `assistant 1`, ... (turns are counted from 1).
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Rendered:
    """A prompt's text. `sources` cover all of it, in order and without overlap."""

    text: str
    sources: tuple[Source, ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(source.start for source in self.sources))

    def label_at(self, position: int) -> str:
        """The label of the character at `position`."""
        index = bisect_right(self._starts, position) - 1
        return self.sources[index].label if 0 <= index < len(self.sources) else "template"


def user_turn(text: str, media: Sequence[MediaKind] = ()) -> Turn:
    """A user's question about `media`. Raises `PromptError` unless `text` is text."""
    if not isinstance(text, str):
        raise PromptError(f"the question must be text, not {text!r}")
    return Turn("user", text, tuple(media))


def render(
    turns: Sequence[Turn],
    style: PromptStyle,
    *,
    placeholders: Placeholders | None = None,
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Write a conversation in one of the prompt styles.

    ======================  ==================================================================================
    `vicuna-v1`             `{system} USER: {q} ASSISTANT: {a}</s>USER: {q2} ASSISTANT:`; the original's
                            training prompt. A system turn replaces the default system line. Media lines
                            stand before the question, videos before images (as in the original's training)
    `vicuna-v1-no-system`   the same without a default system line (a system turn is still written)
    `hf-plain`              `USER: {q} ASSISTANT: {a} USER: {q2} ASSISTANT:`; transformers' documentation.
                            Media lines before the question, images before videos; a system turn stands in
                            front, followed by a space
    `chat-template`         the checkpoint's own template, called as transformers' `apply_chat_template` does
    ======================  ==================================================================================

    A media line is the placeholder and a newline. The original writes a video as eight `<image>` slots with nothing
    between them; one `<video>` that expands to 8 * 257 tokens gives the same token stream.

    With `add_generation_prompt` the last turn must be the user's and the text ends where the answer begins; without,
    the text ends after the last turn (for training). In the Vicuna styles the `</s>` that closes an answer counts as
    part of it. Raises `PromptError` for turns out of order or a template that fails.
    """
    places = placeholders or Placeholders()
    tokens = dict(special_tokens or {})
    check_turns(turns, add_generation_prompt)
    if style == "chat-template":
        if not chat_template:
            raise PromptError("prompt style 'chat-template' was asked for, but the checkpoint has no chat template")
        return _render_chat_template(turns, chat_template, places, tokens, add_generation_prompt)
    return _render_roles(turns, _LAYOUTS[style], tokens.get("eos_token", "</s>"), places)


def check_turns(turns: Sequence[Turn], add_generation_prompt: bool = True) -> None:
    """Raise `PromptError` unless turns alternate: (system), user, assistant, user, ..."""
    spoken = [turn for turn in turns if turn.role != "system"]
    if len(turns) - len(spoken) > 1 or (len(turns) > len(spoken) and turns[0].role != "system"):
        raise PromptError("a conversation has at most one system line, and it comes first")
    if not spoken:
        raise PromptError("a conversation needs a question")
    for index, turn in enumerate(spoken):
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            raise PromptError(f"turn {index + 1} is the {turn.role}'s, but user and assistant alternate (user first)")
    if add_generation_prompt and spoken[-1].role != "user":
        raise PromptError("the last turn must be the user's, so that the assistant can answer")
    for turn in turns:
        if turn.media and turn.role != "user":
            raise PromptError(f"media belong to a user's turn, not to the {turn.role}'s")


class _Builder:
    """Collects labelled pieces of text."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._sources: list[Source] = []
        self._length = 0

    def add(self, text: str, label: str) -> None:
        if not text:
            return
        start, self._length = self._length, self._length + len(text)
        self._parts.append(text)
        if self._sources and self._sources[-1].label == label:
            start = self._sources.pop().start
        self._sources.append(Source(start, self._length, label))

    def build(self) -> Rendered:
        return Rendered("".join(self._parts), tuple(self._sources))


@dataclass(frozen=True)
class _RoleLayout:
    """What differs between the styles that write `USER:` and `ASSISTANT:`."""

    system: str
    between_rounds: str
    closes_answers: bool
    media_order: tuple[MediaKind, ...]


_LAYOUTS: dict[PromptStyle, _RoleLayout] = {
    "vicuna-v1": _RoleLayout(VICUNA_SYSTEM, "", True, ("video", "image")),
    "vicuna-v1-no-system": _RoleLayout("", "", True, ("video", "image")),
    "hf-plain": _RoleLayout("", " ", False, ("image", "video")),
}


def _render_roles(turns: Sequence[Turn], layout: _RoleLayout, eos: str, places: Placeholders) -> Rendered:
    out = _Builder()
    spoken = [turn for turn in turns if turn.role != "system"]
    system = turns[0].text if len(spoken) < len(turns) else layout.system
    if system:
        out.add(system, "system")
        out.add(" ", "template")
    for index, turn in enumerate(spoken):
        number = index // 2 + 1
        if turn.role == "user":
            out.add((layout.between_rounds if index else "") + "USER: ", "template")
            for kind in layout.media_order:
                out.add(f"{places.of(kind)}\n" * turn.media.count(kind), "media")
            out.add(turn.text, f"user {number}")
            out.add(" ASSISTANT:", "template")
        else:
            out.add(" ", "template")
            out.add(turn.text + (eos if layout.closes_answers else ""), f"assistant {number}")
    return out.build()


def _render_chat_template(
    turns: Sequence[Turn],
    template: str,
    places: Placeholders,
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
) -> Rendered:
    labels = _turn_labels(turns)

    def fill(texts: Sequence[str]) -> str:
        messages = [_message(turn, text) for turn, text in zip(turns, texts, strict=True)]
        return render_template(template, messages, special_tokens, add_generation_prompt)

    plain = [turn.text for turn in turns]
    text = fill(plain)
    ranges = _marked_ranges(text, plain, fill)
    out = _Builder()
    position = 0
    for start, end, index in ranges:
        _add_template_text(out, text[position:start], places)
        out.add(text[start:end], labels[index])
        position = end
    _add_template_text(out, text[position:], places)
    return out.build()


def _turn_labels(turns: Sequence[Turn]) -> list[str]:
    labels, counts = [], {"user": 0, "assistant": 0}
    for turn in turns:
        if turn.role == "system":
            labels.append("system")
        else:
            counts[turn.role] += 1
            labels.append(f"{turn.role} {counts[turn.role]}")
    return labels


def _message(turn: Turn, text: str) -> dict[str, object]:
    parts: list[dict[str, str]] = [{"type": kind} for kind in turn.media]
    return {"role": turn.role, "content": [*parts, {"type": "text", "text": text}]}


def _marked_ranges(text: str, plain: Sequence[str], fill: Callable[[Sequence[str]], str]) -> list[tuple[int, int, int]]:
    """Where each turn's words ended up in a template's output: (start, end, turn), in order.

    The template is run again with the words between two characters that occur nowhere else. If taking these out gives
    the same text, they tell the places exactly; a template that treats the marked words differently (it measures or
    rewrites them) leaves everything labelled `template`.
    """
    used = set(text).union(*plain)
    free = [chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in used]
    if len(free) < 2:
        return []
    opening, closing = free[:2]
    marked = fill([_between(words, opening, closing) for words in plain])
    if marked.replace(opening, "").replace(closing, "") != text:
        return []
    ranges, position, start, order = [], 0, None, 0
    shown = [index for index, words in enumerate(plain) if words.strip()]
    for character in marked:
        if character == opening:
            start = position
        elif character == closing:
            while order < len(shown) and text[start:position] != plain[shown[order]].strip():
                order += 1  # a turn the template left out
            if start is None or order == len(shown):
                return []
            ranges.append((start, position, shown[order]))
            start, order = None, order + 1
        else:
            position += 1
    return ranges


def _between(words: str, opening: str, closing: str) -> str:
    """Put marks around the words inside their surrounding blanks, so that a template may still trim them."""
    core = words.strip()
    if not core:
        return words
    head = words[: words.index(core)]
    return f"{head}{opening}{core}{closing}{words[len(head) + len(core) :]}"


def _add_template_text(out: _Builder, text: str, places: Placeholders) -> None:
    while text:
        found = [(text.find(place), place) for place in (places.image, places.video) if place in text]
        if not found:
            out.add(text, "template")
            return
        at, place = min(found)
        out.add(text[:at], "template")
        out.add(place, "media")
        text = text[at + len(place) :]
