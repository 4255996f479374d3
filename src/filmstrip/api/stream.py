"""An answer as it is made: ids become text, piece by piece, and at the end an `Answer`."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from filmstrip.api.answer import Answer
from filmstrip.api.request import Request
from filmstrip.api.reuse import Reading
from filmstrip.cache import KVCache
from filmstrip.config import SamplingConfig
from filmstrip.errors import FilmstripError
from filmstrip.generation import TokenLoop
from filmstrip.generation.step import new_cache
from filmstrip.inputs.processor import Processor
from filmstrip.text.stream import TextStream

if TYPE_CHECKING:
    from filmstrip.api.assistant import Assistant


@contextmanager
def cache_memory(num_tokens: int) -> Iterator[None]:
    """Turn a failed allocation of the key/value cache into one line for the user."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise FilmstripError(
            f"there is not enough memory for a key/value cache of {num_tokens:,} tokens; ask for fewer new tokens"
        ) from error


class AnswerText:
    """Token ids of one answer as they come, and their text without surrounding blanks.

    The pieces that `push` and `flush` return join to `text`: a blank is held back until a word follows it.
    """

    def __init__(self, processor: Processor, sampling: SamplingConfig) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self._blanks = ""
        self._stream = TextStream(processor.tokenizer, sampling.stop_strings)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._stream.stopped

    def push(self, token_id: int) -> str:
        """Add an id; return the text that is now certain."""
        self.token_ids.append(token_id)
        return self._add(self._stream.push(token_id))

    def flush(self) -> str:
        """Return the text that was held back; no more ids come."""
        return self._add(self._stream.finish())

    def finish(self) -> str:
        """The whole text."""
        self.flush()
        return self.text

    def _add(self, piece: str) -> str:
        held = self._blanks + piece
        piece = held.rstrip()
        self._blanks = held[len(piece) :]
        if not self.text:
            piece = piece.lstrip()
        self.text += piece
        return piece


class AnswerStream:
    """An iterator of pieces of text. `answer` runs to the end if need be and returns the whole.

    With a `cache` that already holds the first `cache.length` tokens of the prompt, only the others are read.
    """

    def __init__(self, assistant: "Assistant", request: Request, cache: KVCache | None = None) -> None:
        self.assistant, self.request = assistant, request
        needed = len(request.prompt.plan.input_ids) + request.sampling.max_new_tokens
        if cache is None:
            with cache_memory(needed):
                cache = new_cache(assistant.model, 1, needed)
        self.cache = cache
        self.prefix_reused = self.cache.length
        self.text = AnswerText(assistant.processor, request.sampling)
        self._answer: Answer | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The finished answer; generates the rest of it first."""
        for _ in self._pieces:
            pass
        if self._answer is None:
            raise FilmstripError("the answer was abandoned before its end")
        return self._answer

    def _read(self) -> TokenLoop:
        """Look at the media, or remember them; what is left is the text tower's work."""
        model, prompt = self.assistant.model, self.request.prompt
        ids_1T = torch.tensor([prompt.plan.input_ids], device=self.cache.keys.device)
        with torch.inference_mode():
            if self.prefix_reused:
                reading = Reading(self.prefix_reused, model.fuse(ids_1T[:, self.prefix_reused :]))
            else:
                reading = self.assistant.reader.recall(prompt, self.cache)
        self.prefix_reused = reading.remembered
        return TokenLoop(
            model,
            self.cache,
            reading.x_1TD,
            ids_1T,
            self.request.sampling,
            eos_ids=model.eos_token_ids,
            on_chunk=reading.on_chunk,
            beginning=reading.beginning,
        )

    def _run(self) -> Iterator[str]:
        started = perf_counter()
        timings = self.request.timings
        loop = self._read()
        timings.vision = perf_counter() - started
        first: float | None = None
        away = 0.0  # seconds that whoever reads the pieces took
        for ids_B in loop:
            if first is None:
                first = perf_counter()
                timings.prefill = first - started - timings.vision
                timings.first_token = first - started + timings.decode_media
            piece = self.text.push(int(ids_B[0]))
            if self.text.stopped:
                loop.end(0)
            if piece:
                left = perf_counter()
                yield piece
                away += perf_counter() - left
        timings.decode = perf_counter() - (first or started) - away
        rest = self.text.flush()
        self._answer = self.assistant.finish(self.text, self.request, loop.decoding, self.prefix_reused)
        if rest:
            yield rest
