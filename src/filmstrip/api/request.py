"""From media and a question to a request: decoded, planned and checked. No weights are needed for it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import torch

from filmstrip.api.answer import Timings
from filmstrip.config import SamplingConfig
from filmstrip.config.checks import require_choice
from filmstrip.errors import MediaError, PromptError
from filmstrip.inputs.processor import Processor, Prompt
from filmstrip.media.clip import Clip
from filmstrip.media.load import load_media
from filmstrip.media.sample import FrameSelection
from filmstrip.text.prompt import Turn, user_turn

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


class RequestBuilder:
    """What a checkpoint and its preset say about requests.

    `selection` says which frames are taken from a video, `sampling` how tokens are chosen; both are the checkpoint's
    and preset's defaults and can be overridden per question.
    """

    def __init__(self, processor: Processor, selection: FrameSelection, sampling: SamplingConfig) -> None:
        self.processor, self.selection, self.sampling = processor, selection, sampling

    def request(
        self,
        media: Media,
        question: str,
        *,
        system: str | None = None,
        selection: FrameSelection | None = None,
        **sampling: Any,
    ) -> Request:
        """Read media and plan the prompt of one question. `sampling` are fields of `SamplingConfig`.

        Raises `MediaError`, `PromptError` or `ConfigError`, one line each.
        """
        settings = self.settings(sampling)
        started = perf_counter()
        clips = self.read(media, selection)
        request = self.prepare(clips, conversation(system, [user_turn(question)]), settings, selection)
        request.timings.decode_media = perf_counter() - started
        return request

    def read(self, media: Media, selection: FrameSelection | None = None) -> tuple[Clip, ...]:
        """Decode media: paths of images and videos, or clips already decoded.

        Raises `MediaError`, and `PromptError` for a kind of media that the model does not take.
        """
        items: Sequence[Medium] = [media] if isinstance(media, str | Path | Clip) else media
        if not isinstance(items, Sequence) or not all(isinstance(item, str | Path | Clip) for item in items):
            raise MediaError(f"media must be paths or clips that were read before, one or a list, not {media!r}")
        clips = tuple(
            item if isinstance(item, Clip) else load_media(item, selection or self.selection) for item in items
        )
        for clip in clips:
            self.processor.require_kind(clip)
        return clips

    def settings(self, sampling: dict[str, Any]) -> SamplingConfig:
        """Sampling parameters by name, the defaults for those that are missing or None. Raises `ConfigError`.

        Where tokens are drawn at random and no seed is given, one is chosen here, so that the run card has it.
        """
        for name in sampling:
            require_choice("sampling option", name, SamplingConfig.__dataclass_fields__)
        given = {name: value for name, value in sampling.items() if value is not None}
        stops = given.get("stop_strings")
        if isinstance(stops, str | list):
            given["stop_strings"] = (stops,) if isinstance(stops, str) else tuple(stops)
        settings = replace(self.sampling, **given)
        if settings.seed is None and settings.temperature > 0:
            return replace(settings, seed=secrets.randbelow(2**32))
        return settings

    def prepare(
        self,
        clips: Sequence[Clip],
        turns: Sequence[Turn],
        settings: SamplingConfig,
        selection: FrameSelection | None = None,
    ) -> Request:
        """Plan the prompt of a conversation about decoded media; nothing touches the device."""
        generator = torch.Generator().manual_seed(settings.seed or 0)
        prompt = self.processor.prepare(clips, turns, max_new_tokens=settings.max_new_tokens, generator=generator)
        return Request(prompt, tuple(clips), settings, selection or self.selection, Timings())


def conversation(system: str | None, turns: Sequence[Turn]) -> list[Turn]:
    """Turns with the system line, if any, in front. Raises `PromptError` unless that is text."""
    if not isinstance(system, str | None):
        raise PromptError(f"the system line must be text, not {system!r}")
    return [*([Turn("system", system)] if system is not None else []), *turns]
