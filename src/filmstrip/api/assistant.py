"""The assistant: media and a question in, an answer out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from filmstrip.api.answer import Answer, Origin, StopReason, Timings, make_run_card
from filmstrip.cache import KVCache
from filmstrip.config import ModelConfig, SamplingConfig
from filmstrip.errors import ConfigError, FilmstripError
from filmstrip.generation import TokenLoop, VideoLlavaForGeneration
from filmstrip.generation.step import new_cache
from filmstrip.inputs.collate import Batch, collate
from filmstrip.inputs.processor import Processor, Prompt
from filmstrip.media.clip import Clip
from filmstrip.media.load import load_media
from filmstrip.media.sample import FrameSelection
from filmstrip.text.prompt import Turn, user_turn
from filmstrip.text.stream import TextStream

if TYPE_CHECKING:
    from filmstrip.api.chat import Chat

Medium: TypeAlias = str | Path | Clip
Media: TypeAlias = Medium | Sequence[Medium]


@dataclass(frozen=True)
class Request:
    """A question ready for the model: planned, decoded, with everything that decides its answer.

    `timings` are filled in while it is answered.
    """

    prompt: Prompt
    clips: tuple[Clip, ...]
    sampling: SamplingConfig
    selection: FrameSelection
    timings: Timings


class Assistant:
    """A loaded model and everything between it and the user.

    `selection` says which frames are taken from a video, `sampling` how tokens are chosen; both are the checkpoint's
    and preset's defaults and can be overridden per question.
    """

    def __init__(
        self,
        model: VideoLlavaForGeneration,
        processor: Processor,
        origin: Origin,
        selection: FrameSelection,
        sampling: SamplingConfig,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.model, self.processor, self.origin = model, processor, origin
        self.selection, self.sampling, self.warnings = selection, sampling, warnings

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def summary(self) -> str:
        """One line that says what was built and which program it runs."""
        preset = self.origin.preset
        temporal = "on" if self.origin.temporal_attention else "off"
        return (
            f"{self.origin.model}: {self.origin.description}; preset {preset.name} (frames {preset.frame_sampler}, "
            f"pixels {preset.image_transform}, prompt {preset.prompt}, temporal attention {temporal})"
        )

    def __repr__(self) -> str:
        return f"<filmstrip.Assistant {self.summary}>"

    def read(self, media: Media, selection: FrameSelection | None = None) -> tuple[Clip, ...]:
        """Decode media: paths of images and videos, or clips already decoded. Raises `MediaError`."""
        items: Sequence[Medium] = [media] if isinstance(media, str | Path | Clip) else media
        return tuple(
            item if isinstance(item, Clip) else load_media(item, selection or self.selection) for item in items
        )

    def ask(
        self,
        media: Media,
        question: str,
        *,
        system: str | None = None,
        selection: FrameSelection | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer one question. `media` may be empty, one path or several; `sampling` are fields of `SamplingConfig`.

        Raises `MediaError`, `PromptError` or `ConfigError`, one line each.
        """
        return self.stream(media, question, system=system, selection=selection, **sampling).answer

    def stream(
        self,
        media: Media,
        question: str,
        *,
        system: str | None = None,
        selection: FrameSelection | None = None,
        **sampling: Any,
    ) -> "AnswerStream":
        """Like `ask`, as an iterator of pieces of text; its `answer` is there once it has ended.

        Media are read and the prompt is planned before this returns, so bad input raises here.
        """
        started = perf_counter()
        clips = self.read(media, selection)
        turns = conversation(system, [user_turn(question)])
        request = self.prepare(clips, turns, sampling, selection)
        request.timings.decode_media = perf_counter() - started
        return AnswerStream(self, request)

    def ask_batch(
        self, requests: Sequence[tuple[Media, str]], *, system: str | None = None, **sampling: Any
    ) -> list[Answer]:
        """Answer several questions at once; each answer equals that of the question alone.

        Timings are those of the whole batch.
        """
        started = perf_counter()
        rows = [
            self.prepare(self.read(media), conversation(system, [user_turn(question)]), sampling)
            for media, question in requests
        ]
        timings = Timings(decode_media=perf_counter() - started)
        batch = self.batch([row.prompt for row in rows])
        with torch.inference_mode():
            x_BTD = self.model.embed(batch.input_ids, batch.pixel_values_images, batch.pixel_values_videos)
        timings.vision = perf_counter() - started - timings.decode_media
        settings = rows[0].sampling
        cache = new_cache(self.model, len(rows), batch.input_ids.shape[1] + settings.max_new_tokens)
        ids, mask, eos = batch.input_ids, batch.attention_mask, self.model.eos_token_ids
        loop = TokenLoop(self.model, cache, x_BTD, ids, settings, eos_ids=eos, attention_mask=mask)
        texts = [AnswerText(self.processor, settings) for _ in rows]
        for ids_B in loop:
            if not timings.first_token:
                timings.first_token = perf_counter() - started
                timings.prefill = timings.first_token - timings.vision - timings.decode_media
            for index, token_id in enumerate(ids_B.tolist()):
                if not loop.ended[index]:
                    texts[index].push(token_id)
                    if texts[index].stopped:
                        loop.end(index)
        timings.decode = perf_counter() - started - timings.first_token
        return [self.finish(text, replace(row, timings=timings)) for text, row in zip(texts, rows, strict=True)]

    def chat(self, media: Media = (), *, system: str | None = None, selection: FrameSelection | None = None) -> "Chat":
        """Start a conversation about media; later turns reuse what the model has already read."""
        from filmstrip.api.chat import Chat

        return Chat(self, self.read(media, selection), system, selection or self.selection)

    def prepare(
        self,
        clips: Sequence[Clip],
        turns: Sequence[Turn],
        sampling: dict[str, Any],
        selection: FrameSelection | None = None,
    ) -> Request:
        """Plan a prompt and check the sampling parameters (None: the default); nothing touches the device."""
        unknown = set(sampling) - set(SamplingConfig.__dataclass_fields__)
        if unknown:
            known = ", ".join(SamplingConfig.__dataclass_fields__)
            raise ConfigError(f"unknown sampling option {sorted(unknown)[0]!r} (known: {known})")
        settings = replace(self.sampling, **{key: value for key, value in sampling.items() if value is not None})
        generator = torch.Generator().manual_seed(settings.seed or 0)
        prompt = self.processor.prepare(clips, turns, max_new_tokens=settings.max_new_tokens, generator=generator)
        return Request(prompt, tuple(clips), settings, selection or self.selection, Timings())

    def batch(self, prompts: Sequence[Prompt]) -> Batch:
        """Collate prompts and move them to the model."""
        weight = self.model.text_tower.token_embedding.weight
        return collate(prompts, self.config.pad_token_id).to(weight.device, weight.dtype)

    def finish(self, text: "AnswerText", request: Request, prefix_reused: int = 0) -> Answer:
        """Put an answer and its run card together."""
        stop_reason: StopReason = "length"
        if text.stopped:
            stop_reason = "stop_string"
        elif text.token_ids and text.token_ids[-1] in self.model.eos_token_ids:
            stop_reason = "eos"
        card = make_run_card(self.origin, request.prompt, request.clips, request.sampling, request.selection.sampler)
        return Answer(
            text=text.finish(),
            token_ids=tuple(text.token_ids),
            stop_reason=stop_reason,
            timings=request.timings,
            prompt=request.prompt,
            media=request.clips,
            run_card=card,
            prefix_reused=prefix_reused,
        )


class AnswerText:
    """Token ids of one answer as they come, and their text without surrounding blanks."""

    def __init__(self, processor: Processor, sampling: SamplingConfig) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self._stream = TextStream(processor.tokenizer, sampling.stop_strings)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared."""
        return self._stream.stopped

    def push(self, token_id: int) -> str:
        """Add an id; return the text that is now certain. Blanks before the first word are dropped."""
        self.token_ids.append(token_id)
        return self._add(self._stream.push(token_id))

    def flush(self) -> str:
        """Return the text that was held back; no more ids come."""
        return self._add(self._stream.finish())

    def finish(self) -> str:
        """The whole text."""
        self.flush()
        return self.text.strip()

    def _add(self, piece: str) -> str:
        if not self.text:
            piece = piece.lstrip()
        self.text += piece
        return piece


class AnswerStream:
    """An iterator of pieces of text. `answer` runs to the end if need be and returns the whole.

    With a `cache` that already holds the first `cache.length` tokens of the prompt, only the others are read.
    """

    def __init__(self, assistant: Assistant, request: Request, cache: KVCache | None = None) -> None:
        self.assistant, self.request = assistant, request
        needed = len(request.prompt.plan.input_ids) + request.sampling.max_new_tokens
        self.cache = cache or new_cache(assistant.model, 1, needed)
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

    def _run(self) -> Iterator[str]:
        started = perf_counter()
        model, timings = self.assistant.model, self.request.timings
        batch = self.assistant.batch([self.request.prompt])
        rest_ids = batch.input_ids[:, self.prefix_reused :]
        media = () if self.prefix_reused else (batch.pixel_values_images, batch.pixel_values_videos)
        with torch.inference_mode():
            x_BTD = model.embed(rest_ids, *media)
        timings.vision = perf_counter() - started
        loop = TokenLoop(model, self.cache, x_BTD, batch.input_ids, self.request.sampling, eos_ids=model.eos_token_ids)
        first: float | None = None
        for ids_B in loop:
            if first is None:
                first = perf_counter()
                timings.prefill = first - started - timings.vision
                timings.first_token = first - started + timings.decode_media
            piece = self.text.push(int(ids_B[0]))
            if self.text.stopped:
                loop.end(0)
            if piece:
                yield piece
        timings.decode = perf_counter() - (first or started)
        rest = self.text.flush()
        self._answer = self.assistant.finish(self.text, self.request, self.prefix_reused)
        if rest:
            yield rest


def conversation(system: str | None, turns: Sequence[Turn]) -> list[Turn]:
    """Turns with the system line, if any, in front."""
    return [*([Turn("system", system)] if system is not None else []), *turns]
