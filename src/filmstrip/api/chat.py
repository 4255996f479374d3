"""A conversation about media. What the model has read once, it does not read again."""

from collections.abc import Generator, Iterator, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from filmstrip.api.answer import Answer
from filmstrip.api.request import conversation
from filmstrip.api.reuse import ModelState
from filmstrip.api.stream import AnswerStream, cache_memory
from filmstrip.cache import KVCache
from filmstrip.errors import FilmstripError
from filmstrip.generation.step import new_cache
from filmstrip.inputs.processor import Prompt
from filmstrip.media.clip import Clip
from filmstrip.media.sample import FrameSelection
from filmstrip.text.prompt import Turn, user_turn

if TYPE_CHECKING:
    from filmstrip.api.assistant import Assistant


class Chat:
    """Turns of one conversation, and the cache of everything the model has read so far.

    Each turn's prompt is planned whole. The part of it that the cache holds, token for token, is kept; the rest is
    read. So the result is that of the whole prompt, whatever the tokenizer makes of the previous answer's text.
    """

    def __init__(
        self, assistant: "Assistant", clips: Sequence[Clip], system: str | None, selection: FrameSelection
    ) -> None:
        self.assistant, self.clips, self.selection = assistant, tuple(clips), selection
        self.turns: list[Turn] = conversation(system, [])
        self._cache: KVCache | None = None
        self._cached_ids: tuple[int, ...] = ()
        self._read_by: ModelState | None = None
        self._last: Answer | None = None
        self._open: Generator[str, None, None] | None = None

    def say(self, text: str, **sampling: Any) -> Answer:
        """Say something and get the whole answer; both become part of the conversation."""
        for _ in self.stream(text, **sampling):
            pass
        return self.last

    def stream(self, text: str, **sampling: Any) -> Iterator[str]:
        """Say something and get the answer piece by piece; `last` is the answer once it has ended.

        Abandoned before the end, the turn does not become part of the conversation; starting another abandons it.
        Bad input raises at once.
        """
        if self._open is not None:
            self._open.close()
        settings = self.assistant.settings(sampling)
        started = perf_counter()
        turns = [*self.turns, user_turn(text, () if self._spoken else [clip.kind for clip in self.clips])]
        request = self.assistant.prepare(self.clips, turns, settings, self.selection)
        cache = self._reuse(request.prompt, request.sampling.max_new_tokens)
        request.timings.decode_media = perf_counter() - started
        self._open = self._follow(AnswerStream(self.assistant, request, cache), turns)
        return self._open

    @property
    def last(self) -> Answer:
        """The latest answer. Raises `FilmstripError` before the first one has ended."""
        if self._last is None:
            raise FilmstripError("nothing was answered yet in this conversation")
        return self._last

    @property
    def _spoken(self) -> bool:
        return any(turn.role == "user" for turn in self.turns)

    def _follow(self, stream: AnswerStream, turns: list[Turn]) -> Generator[str, None, None]:
        try:
            yield from stream
        finally:
            ids = (*stream.request.prompt.plan.input_ids, *stream.text.token_ids)
            self._cached_ids = ids[: stream.cache.length]
        self._last = stream.answer
        self.turns = [*turns, Turn("assistant", self._last.text)]

    def _reuse(self, prompt: Prompt, max_new_tokens: int) -> KVCache:
        """The cache, cut back to what it shares with `prompt` and with room for the rest."""
        ids = prompt.plan.input_ids
        needed = len(ids) + max_new_tokens
        shared = _common_prefix(self._cached_ids, ids[:-1])  # at least one token must be read
        if self.assistant.config.text.stretches(max(len(ids), len(self._cached_ids))):
            shared = 0  # past the trained length every key depends on how long the prompt was when it was made
        if self._read_by is None or not self._read_by.holds(self.assistant.model):
            self._read_by, shared = ModelState(self.assistant.model), 0  # somebody changed the model since
        with cache_memory(needed):
            self._cache = self._cache or new_cache(self.assistant.model, 1, needed)
            self._cache.truncate(shared if shared >= prompt.plan.media_end else 0)
            self._cache.reserve(needed)
        return self._cache


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading elements that two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
