"""Streaming: certain text as tokens arrive, ending before a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from filmstrip.text.detokenize import make_detokenizer
from filmstrip.text.tokenizer import Tokenizer


class TextStream:
    """Turns generated ids into text piece by piece.

    The pieces joined equal `tokenizer.decode(ids)`, cut before the first stop string that is completed; `ids` are those
    up to the one that completed it, or all. A piece never ends inside a character, and text that may be the beginning
    of a stop string is held back until it is not. The work per token does not depend on how much text came before.

    In a run of byte tokens a stop string counts as soon as the run up to there is valid UTF-8. Later bytes could have
    spoilt the run (a tokenizer's byte fallback turns all of it into U+FFFD), but after a stop string there are none.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = (), *, skip_special: bool = True) -> None:
        self._detokenizer = make_detokenizer(tokenizer)
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._stop_strings = tuple(stop for stop in stop_strings if stop)
        self._held = ""
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared; later tokens give no text."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """Add one id and return the text that is now certain (often empty)."""
        if self.stopped or token_id in self._skipped:
            return ""
        text = self._release(self._detokenizer.push(int(token_id)))
        return text if self.stopped or not self._stop_strings else text + self._stop_in_pending()

    def finish(self) -> str:
        """Return what was held back; call it when no more ids come."""
        if self.stopped:
            return ""
        text = self._release(self._detokenizer.finish()) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        found = first_stop(self._held, self._stop_strings)
        if found is not None:
            start, self.stop_string = found
            text, self._held = self._held[:start], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _stop_in_pending(self) -> str:
        """What stands before a stop string that the newest token completed in text not yet certain, if it did."""
        pending = self._detokenizer.pending()
        longest = max(map(len, self._stop_strings))
        end = self._held + pending if len(pending) < longest else pending[-longest:]
        ending = [stop for stop in self._stop_strings if end.endswith(stop)]
        if not pending or not ending:
            return ""
        self.stop_string = max(ending, key=len)
        text, self._held = (self._held + pending)[: -len(self.stop_string)], ""
        return text


def first_stop(text: str, stop_strings: Iterable[str]) -> tuple[int, str] | None:
    """Start and spelling of the stop string that is completed first in `text` (of two, the longer), or None."""
    found = [(at + len(stop), at, stop) for stop in stop_strings if (at := text.find(stop)) >= 0]
    if not found:
        return None
    _, start, stop = min(found)
    return start, stop


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
