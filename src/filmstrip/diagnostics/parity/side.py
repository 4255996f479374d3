"""One of the two things compared: `Side`, and the side that is this implementation on a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from filmstrip.api.load import OpenedModel
from filmstrip.config import MediaKind, ModelConfig
from filmstrip.errors import MediaError
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.collate import Batch, collate
from filmstrip.media.clip import Clip
from filmstrip.models.record import Activations, HookPoint, Recorder, record_hooks
from filmstrip.models.taps import Taps
from filmstrip.shapes import Float, Tensor
from filmstrip.text.prompt import user_turn

Precision = Literal["working", "double"]
HELD_BYTES = 4 * 2**30  # a model above this is let go between two runs, so that only one of the two is in memory


@runtime_checkable
class Side(Protocol):
    """What a comparison needs of the reference. Media, batches and activations have our names and shapes.

    `exact_video_pixels`: its pixels of videos are its own, not those of a processor for images.
    """

    title: str
    config: ModelConfig
    exact_video_pixels: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know about this side."""

    def read(self, path: Path, kind: MediaKind, frames: int | None) -> Clip:
        """Decode one medium; of a video `frames`, or as many as this side takes by itself."""

    def batch(self, clips: Sequence[Clip], question: str, with_text_row: bool) -> Batch:
        """The question about all media, and (`with_text_row`) the question alone, shorter and so padded."""

    def activations(self, batch: Batch, precision: Precision, inside: Sequence[HookPoint] = ()) -> Activations:
        """Every site of one forward pass, and the points `inside`, which name modules by our names."""

    def generate(self, batch: Batch, count: int) -> list[list[int]]:
        """Greedy new ids of each row, up to and with the first EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def module_name(self, name: str) -> str | None:
        """This side's own name of one of our modules that holds weights; None if it has no such module."""

    def module(self, name: str) -> nn.Module | None:
        """The module that is called `name` in our model."""

    def parameter(self, name: str) -> Tensor | None:
        """The parameter that is called `name` in our model."""


class HeldModel:
    """A model in memory, loaded when it is needed: first in its working precision, then turned to float64.

    The second is made of the first, so that both runs have the same weights.
    """

    def __init__(self, load: Callable[[], nn.Module], widen: Callable[[nn.Module], nn.Module]) -> None:
        self._load, self._widen = load, widen
        self._model: nn.Module | None = None
        self._precision: Precision = "working"

    def get(self, precision: Precision) -> Any:
        """The model, evaluating, in the precision asked for."""
        if self._model is None or (self._precision, precision) == ("double", "working"):
            self._model = None  # the old one goes before the new one comes
            self._model, self._precision = self._load().eval(), "working"
        if self._precision != precision:
            self._model, self._precision = self._widen(self._model), precision
        return self._model

    def current(self) -> Any:
        """The model in whatever precision it has."""
        return self.get(self._precision)

    def rest(self) -> None:
        """A run has ended: let a large model go."""
        if self._model is not None:
            held = sum(parameter.nbytes for parameter in self._model.parameters())
            if held > HELD_BYTES:
                self._model = None


class OurSide:
    """This implementation on one checkpoint."""

    exact_video_pixels = True

    def __init__(self, opened: OpenedModel, dtype: torch.dtype, title: str) -> None:
        self.opened, self.config, self.title = opened, opened.config, title
        self.warnings: tuple[str, ...] = ()
        self._dtype = dtype
        self._held = HeldModel(self._load, lambda model: model.double())

    @property
    def notes(self) -> tuple[str, ...]:
        """What loading had to say, and what of the preset this checkpoint cannot give."""
        return tuple(f"{self.title}: {text}" for text in self.warnings)

    def _load(self) -> VideoLlavaForGeneration:
        assistant = self.opened.load_weights(self._dtype)
        self.warnings = assistant.warnings
        return assistant.model

    def read(self, path: Path, kind: MediaKind | None, frames: int | None) -> Clip:
        """See `Side.read`. Raises `MediaError`, also when the medium is of another kind than asked for."""
        own = self.opened.selection
        (clip,) = self.opened.read([path], own if frames is None else replace(own, num_frames=frames))
        if kind is not None and clip.kind != kind:
            raise MediaError(f"{path}: read as {clip.kind} here and as {kind} there")
        return clip

    def batch(self, clips: Sequence[Clip], question: str, with_text_row: bool) -> Batch:
        """See `Side.batch`. Raises `PromptError` for media that the model does not take."""
        rows: list[Sequence[Clip]] = [clips, ()] if with_text_row and clips else [clips]
        prompts = [self.opened.processor.prepare(row, [user_turn(question)]) for row in rows]
        return collate(prompts, self.config.pad_token_id)

    def activations(self, batch: Batch, precision: Precision, inside: Sequence[HookPoint] = ()) -> Activations:
        """See `Side.activations`."""
        recorder = Recorder()
        held = self.run(batch, precision, recorder, inside)
        return recorder.activations | held

    def run(self, batch: Batch, precision: Precision, taps: Taps, inside: Sequence[HookPoint] = ()) -> Activations:
        """One forward pass through `taps`; what the modules `inside` held is returned.

        Raises `PromptError` when the placeholders of a foreign batch do not fit this model.
        """
        model = self._held.get(precision)
        weight = model.text_tower.token_embedding.weight
        moved = batch.to(weight.device, weight.dtype)
        with torch.inference_mode(), record_hooks(model, inside) as activations:
            model(
                moved.input_ids,
                moved.pixel_values_images,
                moved.pixel_values_videos,
                moved.attention_mask,
                moved.image_sizes,
                taps=taps,
            )
        self._held.rest()
        return activations

    def run_text(self, embeddings_BTD: Float[Tensor, "B T D"], batch: Batch, precision: Precision, taps: Taps) -> None:
        """The text tower alone, on embeddings from elsewhere."""
        model = self._held.get(precision)
        weight = model.text_tower.token_embedding.weight
        with torch.inference_mode():
            hidden_BTD = model.decode(embeddings_BTD.to(weight), batch.attention_mask.to(weight.device), taps=taps)
            taps("logits", model.text_tower.logits(hidden_BTD))

    def generate(self, batch: Batch, count: int) -> list[list[int]]:
        """See `Side.generate`. Raises `PromptError` for rows padded on the right."""
        model = self._held.get("working")
        weight = model.text_tower.token_embedding.weight
        moved = batch.to(weight.device, weight.dtype)
        ids = model.generate(
            moved.input_ids,
            moved.pixel_values_images,
            moved.pixel_values_videos,
            moved.attention_mask,
            moved.image_sizes,
            max_new_tokens=count,
        )
        self._held.rest()
        return [until_end(row, model.eos_token_ids) for row in ids.tolist()]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Side.decode`."""
        return self.opened.processor.tokenizer.decode(list(ids)).strip()

    def module_name(self, name: str) -> str | None:
        """See `Side.module_name`: ours are the names."""
        return None if self.module(name) is None else name

    def module(self, name: str) -> nn.Module | None:
        """See `Side.module`."""
        try:
            return self._held.current().get_submodule(name)
        except AttributeError:
            return None

    def parameter(self, name: str) -> Tensor | None:
        """See `Side.parameter`."""
        try:
            return self._held.current().get_parameter(name).detach()
        except AttributeError:
            return None


def until_end(ids: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """Ids up to and with the first EOS; what follows it is padding."""
    for place, token in enumerate(ids):
        if token in eos_ids:
            return list(ids[: place + 1])
    return list(ids)
