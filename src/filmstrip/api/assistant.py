"""The assistant: media and a question in, an answer out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from filmstrip.api.answer import Answer, Origin, StopReason, Timings, make_run_card
from filmstrip.api.chat import Chat
from filmstrip.api.request import Media, Request, RequestBuilder, conversation
from filmstrip.api.reuse import ModelState, PromptReader
from filmstrip.api.stream import AnswerStream, AnswerText, cache_memory
from filmstrip.cache import ContentStore
from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.config import ModelConfig, SamplingConfig
from filmstrip.generation import TokenLoop, VideoLlavaForGeneration
from filmstrip.generation.step import new_cache
from filmstrip.inputs.collate import Batch, collate
from filmstrip.inputs.processor import Processor, Prompt
from filmstrip.kernels import HALF_DTYPES, find_kernels
from filmstrip.media.sample import FrameSelection
from filmstrip.text.prompt import user_turn


class Assistant(RequestBuilder):
    """A loaded model and everything between it and the user.

    `store` is where it remembers what it has read (`reuse`); None: it reads everything anew. A method that was replaced
    in the running model goes unseen there: set it to None then.
    """

    def __init__(
        self,
        model: VideoLlavaForGeneration,
        processor: Processor,
        origin: Origin,
        selection: FrameSelection,
        sampling: SamplingConfig,
        warnings: tuple[str, ...] = (),
        store: ContentStore | None = None,
    ) -> None:
        super().__init__(processor, selection, sampling)
        self.model, self.origin, self.warnings, self.store = model, origin, warnings, store
        self._loaded = ModelState(model)

    @property
    def reader(self) -> PromptReader:
        """Reads prompts with the model as it is now; remembers in `store`, unless the model was changed."""
        return PromptReader(self.model, self.origin, self.store if self._loaded.holds(self.model) else None)

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def summary(self) -> str:
        """One line that says what was built and which program it runs."""
        return self.summary_with(self.selection)

    def summary_with(self, selection: FrameSelection) -> str:
        """`summary` for questions that choose their frames by `selection`."""
        origin, preset = self.origin, self.origin.preset
        converted = "" if origin.dtype in origin.description else f", run in {origin.dtype}"
        if origin.compute not in ("", origin.dtype):
            converted += f", computed in {origin.compute}"
        if origin.kv:
            converted += f", keys and values in {origin.kv}"
        return (
            f"{origin.model}: {origin.description}{converted}; preset {origin.preset_name(selection.sampler)} "
            f"(frames {selection.sampler}, pixels {preset.image_transform}, prompt {preset.prompt})"
        )

    @property
    def missing_kernels(self) -> str:
        """Why decoding does without compiled kernels; empty where it has them, or has no use for them."""
        works_in = self.model.text_tower.compute_dtype
        is_used = works_in == torch.float32 or (works_in in HALF_DTYPES and self.model.wide_steps)
        on_cpu = self.model.text_tower.token_embedding.weight.device.type == "cpu"
        return find_kernels()[1] if on_cpu and is_used else ""

    def __repr__(self) -> str:
        return f"<filmstrip.Assistant {self.summary}>"

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
    ) -> AnswerStream:
        """Like `ask`, as an iterator of pieces of text; its `answer` is there once it has ended.

        Media are read and the prompt is planned before this returns, so bad input raises here.
        """
        return self.answer(self.request(media, question, system=system, selection=selection, **sampling))

    def answer(self, request: Request) -> AnswerStream:
        """Answer a request that was built before, here or from the same checkpoint without its weights."""
        return AnswerStream(self, request)

    def ask_batch(
        self,
        requests: Sequence[tuple[Media, str]],
        *,
        system: str | None = None,
        selection: FrameSelection | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Answer several questions at once; each answer equals that of the question alone.

        Where no seed is given, each row draws with one of its own, which its run card has. Timings are those of the
        whole batch. Arguments and errors as for `ask`.
        """
        if not requests:
            return []
        started = perf_counter()
        settings = [self.settings(sampling) for _ in requests]
        rows = [
            self.prepare(
                self.read(media, selection), conversation(system, [user_turn(question)]), row_settings, selection
            )
            for (media, question), row_settings in zip(requests, settings, strict=True)
        ]
        timings = Timings(decode_media=perf_counter() - started)
        prompts, reader = [row.prompt for row in rows], self.reader
        batch = collate(prompts, self.config.pad_token_id)
        input_ids, attention_mask = batch.input_ids.to(reader.device), batch.attention_mask.to(reader.device)
        with torch.inference_mode():
            x_BTD = reader.embed(prompts, input_ids)
        timings.vision = perf_counter() - started - timings.decode_media
        needed = input_ids.shape[1] + settings[0].max_new_tokens
        with cache_memory(needed):
            cache = new_cache(self.model, len(rows), needed)
        loop = TokenLoop(
            self.model,
            cache,
            x_BTD,
            input_ids,
            settings[0],  # they differ in nothing but the seed
            eos_ids=self.model.eos_token_ids,
            attention_mask=attention_mask,
            seeds=[row_settings.seed for row_settings in settings],
        )
        texts = [AnswerText(self.processor, settings[0]) for _ in rows]
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
        return [
            self.finish(text, replace(row, timings=timings), loop.decoding)
            for text, row in zip(texts, rows, strict=True)
        ]

    def chat(self, media: Media = (), *, system: str | None = None, selection: FrameSelection | None = None) -> Chat:
        """Start a conversation about media; later turns reuse what the model has already read."""
        return Chat(self, self.read(media, selection), system, selection or self.selection)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write a Hugging Face directory that this program and transformers load: weights, configuration, tokenizer.

        A model that no plain format can describe (another aggregation of frames than its family's) is written as this
        program's own variant, `model_type` `filmstrip_video_llava`, which transformers refuses.

        Raises `CheckpointError` when the directory is in the way or cannot be written.
        """
        processor, tokenizer = self.processor, self.processor.tokenizer
        generation = GenerationDefaults(
            tokenizer.bos_id, self.model.eos_token_ids, self.config.pad_token_id, self.sampling
        )
        companions = Companions(
            files=tokenizer.files,
            pixels=processor.pixel_spec,
            generation=generation,
            chat_template=processor.chat_template,
            trained_frames=processor.trained_frames,
            preset=self.origin.preset.name,
            copied_towers=self.origin.copied_towers,
        )
        return save_checkpoint(self.model, Path(directory), companions, ExportOptions(overwrite=overwrite))

    def batch(self, prompts: Sequence[Prompt]) -> Batch:
        """Collate prompts and move them to the model."""
        decoder = self.model.text_tower
        return collate(prompts, self.config.pad_token_id).to(
            decoder.token_embedding.weight.device, decoder.compute_dtype
        )

    def finish(self, text: AnswerText, request: Request, decoding: str, prefix_reused: int = 0) -> Answer:
        """Put an answer and its run card together; `decoding` is the loop's."""
        whole = text.finish()  # first of all: what was held back may hold a stop string
        stop_reason: StopReason = "length"
        if text.stopped:
            stop_reason = "stop_string"
        elif text.token_ids and text.token_ids[-1] in self.model.eos_token_ids:
            stop_reason = "eos"
        card = make_run_card(self.origin, request.prompt, request.clips, request.sampling, request.selection.sampler)
        card["decoding"] = {
            "by": decoding,
            "attention": self.model.text_tower.backend,
            "threads": torch.get_num_threads(),
        }
        return Answer(
            text=whole,
            token_ids=tuple(text.token_ids),
            stop_reason=stop_reason,
            timings=request.timings,
            prompt=request.prompt,
            media=request.clips,
            run_card=card,
            prefix_reused=prefix_reused,
        )
