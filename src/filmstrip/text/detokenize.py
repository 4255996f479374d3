"""Turning ids into text one at a time, so that the pieces joined are exactly the decoding of all ids at once."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from filmstrip.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"

# A window that ends in a broken character is kept open for at most so many tokens.
_LONGEST_WINDOW = 16


class Detokenizer(ABC):
    """Accepts tokens one by one and returns the text that has become certain."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Add a token."""

    @abstractmethod
    def finish(self) -> str:
        """What is left when no more tokens come."""

    def pending(self) -> str:
        """Text of the tokens not yet given out, if it is whole and only a later token could still spoil it.

        A stop string in it is final, because no token follows a stop string. A token adds at most one character.
        """
        return ""


def make_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """The detokeniser that fits the tokenizer's decoder."""
    spec = tokenizer.decoder_spec
    steps = [spec] if spec.get("type") != "Sequence" else list(spec.get("decoders", ()))
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelDetokenizer(tokenizer.id_to_token)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and "String" in steps[0]["pattern"]:
        strips = steps[3:]
        if not strips or (kinds[3:] == ["Strip"] and strips[0]["content"] == " " and strips[0]["stop"] == 0):
            strip = strips[0]["start"] if strips else 0
            replace = (steps[0]["pattern"]["String"], steps[0]["content"])
            return ByteFallbackDetokenizer(tokenizer.id_to_token, replace, strip)
    return WindowDetokenizer(lambda ids: tokenizer.decode(ids, skip_special=False))


class ByteLevelDetokenizer(Detokenizer):
    """Byte-level BPE (GPT-2): every character of a token stands for one byte; text is the UTF-8 of all bytes.

    Broken UTF-8 becomes U+FFFD by the Unicode standard's rule, in Python's decoder as in the Rust library.
    """

    def __init__(self, id_to_token: Callable[[int], str | None]) -> None:
        self._id_to_token = id_to_token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add a token; text comes out when a character is complete."""
        token = self._id_to_token(token_id)
        if token is None:
            return ""
        if all(character in _BYTE_OF for character in token):
            return self._utf8.decode(bytes(_BYTE_OF[character] for character in token))
        return self._utf8.decode(token.encode())

    def finish(self) -> str:
        """A character cut short becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


class ByteFallbackDetokenizer(Detokenizer):
    """SentencePiece BPE with byte fallback (LLaMA): `▁` is a space, `<0xE2>` a byte.

    A run of byte tokens is text only as a whole: one bad byte turns every byte of its run into U+FFFD. So nothing of
    a run is certain before it ends, unless nothing comes after it: `pending` is the run's text for as long as it is
    complete, valid UTF-8. `strip` spaces at the very beginning are dropped.
    """

    def __init__(self, id_to_token: Callable[[int], str | None], replace: tuple[str, str], strip: int) -> None:
        self._id_to_token = id_to_token
        self._replace = replace
        self._strip = strip
        self._run = bytearray()
        self._new_run()

    def push(self, token_id: int) -> str:
        """Add a token; a byte token gives nothing yet."""
        token = self._id_to_token(token_id)
        if token is None:
            return ""
        text = token.replace(*self._replace)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                byte = int(text[3:5], 16)
            except ValueError:
                pass
            else:
                self._add_byte(byte)
                return ""
        return self._without_leading_space(self._end_run() + text)

    def finish(self) -> str:
        """The last run of bytes."""
        return self._without_leading_space(self._end_run())

    def pending(self) -> str:
        """The run so far, empty when it ends inside a character or holds a bad byte."""
        if not self._complete:
            return ""
        spaces = self._run_text[: self._strip]
        return self._run_text[len(spaces) - len(spaces.lstrip(" ")) :]

    def _new_run(self) -> None:
        self._run.clear()
        self._run_utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._run_text, self._complete, self._valid = "", False, True

    def _add_byte(self, byte: int) -> None:
        self._run.append(byte)
        self._complete = False
        if not self._valid:
            return
        try:
            character = self._run_utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._valid = False
        else:
            self._run_text += character
            self._complete = bool(character)

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._new_run()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _without_leading_space(self, text: str) -> str:
        while text and self._strip:
            if text[0] == " ":
                text, self._strip = text[1:], self._strip - 1
            else:
                self._strip = 0
        return text


class WindowDetokenizer(Detokenizer):
    """Any other decoder: the new text is what a short window of tokens gains by one more token."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add a token; text that ends in a broken character waits for the next one."""
        self._pending.append(token_id)
        piece = self._gain()
        if not piece or (piece.endswith(REPLACEMENT) and len(self._pending) < _LONGEST_WINDOW):
            return ""
        self._before, self._pending = self._pending, []
        return piece

    def finish(self) -> str:
        """What was waiting."""
        piece = self._gain() if self._pending else ""
        self._pending = []
        return piece

    def _gain(self) -> str:
        before = self._decode(self._before) if self._before else ""
        return self._decode([*self._before, *self._pending])[len(before) :]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table: dict[str, Any] = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_of_character()
