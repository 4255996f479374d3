"""The side that is transformers, on the same checkpoint. The only module here that needs it installed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filmstrip.checkpoint.hf_config_write import require_plain
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.pku_config import is_original
from filmstrip.checkpoint.read import Checkpoint
from filmstrip.checkpoint.rules import Mapped
from filmstrip.config import MediaKind
from filmstrip.diagnostics.parity.side import HeldModel, Precision, until_end
from filmstrip.errors import CheckpointError, MediaError, PromptError
from filmstrip.inputs.collate import Batch
from filmstrip.media.clip import Clip
from filmstrip.models.record import Activations, HookPoint
from filmstrip.models.weightless import weightless
from filmstrip.oracle import processors, reference
from filmstrip.oracle.points import transformers_points
from filmstrip.shapes import Tensor

IN_MEMORY = "C"  # the layout whose names transformers 5's models have in memory


class TransformersSide:
    """transformers' implementation of the checkpoint's family."""

    def __init__(self, checkpoint: Checkpoint, frames: int, dtype: torch.dtype, device: torch.device) -> None:
        """`frames` are taken from a video unless a comparison asks for another number."""
        reference.quiet()
        self.exact_video_pixels = processors.has_video_processor()
        self._frames = frames
        self.directory, self.config = checkpoint.directory, checkpoint.config
        self.title = f"transformers {reference.VERSION}"
        require_plain(self.config, str(self.directory))
        values = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        _require_readable(values, str(self.directory))
        self._model_type = str(values["model_type"])
        self._dtype, self._device = dtype, device
        self._held = HeldModel(self._load, self._widen)
        self._widened = self._saw_video = False
        self._layout = get_layout(IN_MEMORY, self.config.family)
        try:
            self._tokenizer = processors.reference_tokenizer(self.directory)
            self._image_processor = processors.reference_image_processor(self.directory)
        except Exception as error:  # whatever its readers raise on files that we could read
            raise CheckpointError(
                f"transformers cannot read the tokenizer or processor of {self.directory}: {_line(error)}"
            ) from error
        self._template = checkpoint.processor.chat_template
        tokens = self._tokenizer.convert_ids_to_tokens
        self._image_token = tokens(self.config.image_token_id)
        self._video_token = "<video>" if self.config.video_token_id is None else tokens(self.config.video_token_id)
        self._expansion = processors.Expansion(
            self.directory, self._model_type, self._image_processor, self._image_token, self._video_token
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run of transformers differs from what it does by itself."""
        lines = []
        if self._widened:
            lines.append("for the float64 run its RMSNorm, which casts to float32, is computed in float64")
        if self._saw_video and not self.exact_video_pixels and not self.config.image_grids:
            lines.append(
                "its video processor needs torchvision, which is not installed: video pixels are compared with its "
                "image processor frame by frame (equal up to one grey level) and both models then read ours"
            )
        return tuple(f"{self.title}: {line}" for line in lines)

    def _load(self) -> nn.Module:
        try:
            model = reference.load_reference(self.directory, dtype=self._dtype)
        except (AssertionError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"transformers cannot load {self.directory}: {_line(error)}") from error
        moved: nn.Module = model.to(self._device)
        return moved

    def _widen(self, model: nn.Module) -> nn.Module:
        self._widened = True
        wide: nn.Module = reference.widen(model)
        return wide

    def read(self, path: Path, kind: MediaKind, frames: int | None) -> Clip:
        """See `Side.read`; frames of videos are chosen by the recipe of transformers' documentation."""
        try:
            if kind == "image":
                return Clip(str(path), kind, processors.reference_image(path), (0.0,), (0,), 1, 0.0)
            frames_FYXC, indices, total = processors.reference_frames(path, frames or self._frames)
        except Exception as error:  # whatever PyAV and Pillow raise on files that we could read
            raise MediaError(f"{path}: transformers' readers cannot decode it ({_line(error)})") from error
        return Clip(str(path), kind, frames_FYXC, (0.0,) * len(indices), indices, total, 0.0)

    def batch(self, clips: Sequence[Clip], question: str, with_text_row: bool) -> Batch:
        """See `Side.batch`. Videos go through the image processor, frame by frame, where torchvision is missing.

        Raises `PromptError` when transformers' own processor cannot make a prompt of it.
        """
        images = [clip.frames[0] for clip in clips if clip.kind == "image"]
        image_inputs = processors.reference_image_inputs(self._image_processor, images) if images else {}
        videos = [self._video_pixels(clip) for clip in clips if clip.kind == "video"]
        try:
            texts = [self._expanded(clips, question, image_inputs, videos)]
        except (TypeError, ValueError, AttributeError) as error:  # a setting that its processor has no default for
            raise PromptError(f"transformers' processor cannot make this prompt ({_line(error)})") from error
        if with_text_row and clips:
            texts.append(self._expanded((), question, {}, []))
        encoded = self._tokenize(texts)
        sizes = [tuple(image.shape[:2]) for image in images]
        return Batch(
            encoded["input_ids"],
            encoded["attention_mask"],
            self._tiles(image_inputs) if images else None,
            torch.stack(videos) if videos else None,
            (),
            torch.tensor(sizes) if sizes else None,
        )

    def _video_pixels(self, clip: Clip) -> Tensor:
        self._saw_video = True
        if self.exact_video_pixels:
            return processors.reference_video_pixels(self.directory, clip.frames)
        if self.config.image_grids:  # its image processor would cut every frame into tiles
            tower = self.config.video_tower
            return torch.full((len(clip.frames), tower.num_channels, tower.image_size, tower.image_size), torch.nan)
        return processors.reference_image_inputs(self._image_processor, list(clip.frames))["pixel_values"]

    def _tiles(self, image_inputs: dict[str, Tensor]) -> Tensor:
        """Tiles of all images one after another; transformers fills up images with fewer tiles, ours does not."""
        pixels = image_inputs["pixel_values"]
        if pixels.dim() == 4:
            return pixels
        counts = reference.tile_counts(image_inputs["image_sizes"], self.directory)
        return torch.cat([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])

    def _expanded(self, clips: Sequence[Clip], question: str, image_inputs: Any, videos: Sequence[Tensor]) -> str:
        """The prompt as text, every placeholder repeated by the processor's own rule."""
        text = self._text(clips, question)
        found = {"image": 0, "video": 0}
        tokens = {self._image_token: "image", self._video_token: "video"}
        pieces: list[str] = []
        while True:
            places = [(text.find(token), token) for token in tokens if token in text]
            if not places:
                return "".join(pieces) + text
            place, token = min(places)
            kind = tokens[token]
            index = found[kind]
            found[kind] += 1
            repeated = self._expansion.image(image_inputs, index) if kind == "image" else None
            pieces += [text[:place], repeated or self._expansion.video(videos[index])]
            text = text[place + len(token) :]

    def _text(self, clips: Sequence[Clip], question: str) -> str:
        if self._template is None:
            tokens = {"image": self._image_token, "video": self._video_token}
            media = "".join(f"{tokens[clip.kind]}\n" for clip in clips)
            return processors.PLAIN_PROMPT.format(media=media, question=question)
        content = [*({"type": clip.kind} for clip in clips), {"type": "text", "text": question}]
        text: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return text

    def _tokenize(self, texts: Sequence[str]) -> Any:
        tokenizer = self._tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.config.pad_token_id)
        file = self.directory / "tokenizer_config.json"
        stated = json.loads(file.read_text(encoding="utf-8")).get("padding_side") if file.is_file() else None
        bos = tokenizer.bos_token
        return tokenizer(
            list(texts),
            padding=True,
            padding_side=stated or "left",  # unstated: what its documentation tells users to set for generation
            add_special_tokens=not (bos and texts[0].startswith(bos)),  # as its processors do
            return_tensors="pt",
        )

    def activations(self, batch: Batch, precision: Precision, inside: Sequence[HookPoint] = ()) -> Activations:
        """See `Side.activations`. Raises `PromptError` when transformers refuses the inputs."""
        model = self._held.get(precision)
        kinds: list[MediaKind] = ["image"] if batch.pixel_values_images is not None else []
        kinds += ["video"] if batch.pixel_values_videos is not None else []
        named = [replace(point, module=self.module_name(point.module) or point.module) for point in inside]
        points = [*transformers_points(self.config, kinds), *named]
        try:
            found = reference.reference_activations(model, points, self._inputs(batch, model.dtype))
        except (ValueError, RuntimeError, IndexError) as error:
            raise PromptError(f"transformers refuses these inputs: {_line(error)}") from error
        self._held.rest()
        return found

    def _inputs(self, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        moved = batch.to(self._device, dtype)
        names = {
            "input_ids": moved.input_ids,
            "attention_mask": moved.attention_mask,
            "pixel_values": moved.pixel_values_images,
            "pixel_values_videos": moved.pixel_values_videos,
            "image_sizes": moved.image_sizes if self.config.image_grids else None,
        }
        return {name: value for name, value in names.items() if value is not None}

    def generate(self, batch: Batch, count: int) -> list[list[int]]:
        """See `Side.generate`."""
        model = self._held.get("working")
        eos = model.generation_config.eos_token_id
        ids = reference.reference_generate(
            model, self._inputs(batch, model.dtype), max_new_tokens=count, repetition_penalty=1.0
        )
        self._held.rest()
        return [until_end(row, eos if isinstance(eos, list) else [eos]) for row in ids.tolist()]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Side.decode`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def module_name(self, name: str) -> str | None:
        """See `Side.module_name`."""
        for suffix in (".weight", ".bias"):
            their = self._parameter_name(name + suffix)
            if their is not None:
                return their.removesuffix(suffix)
        return None

    def module(self, name: str) -> nn.Module | None:
        """See `Side.module`."""
        their = self.module_name(name)
        found: nn.Module | None = None if their is None else self._held.current().get_submodule(their)
        return found

    def parameter(self, name: str) -> Tensor | None:
        """See `Side.parameter`."""
        their = self._parameter_name(name)
        found: Tensor | None = None if their is None else self._held.current().get_parameter(their).detach()
        return found

    def _parameter_name(self, name: str) -> str | None:
        """transformers' name of one of our parameters, by the layout that its models have in memory."""
        if self.config.shared_towers and name.startswith("video_tower."):
            name = f"image_tower.{name.removeprefix('video_tower.')}"
        try:
            their = self._layout.from_canonical(name).disk
            self._held.current().get_parameter(their)
        except (CheckpointError, AttributeError):
            return None
        return their


def structure(values: dict[str, Any], family: str, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that transformers makes of a `config.json`, under our names; no weights exist.

    `name` is the model's, for errors: `CheckpointError` for a layout that transformers does not read.
    """
    _require_readable(values, name)
    with weightless():
        model = reference.build_reference(values)
    layout = get_layout(IN_MEMORY, family)
    shapes: dict[str, tuple[int, ...]] = {}
    for key, parameter in model.named_parameters():  # tied weights once
        mapped = layout.to_canonical(key)
        shapes[mapped.canonical if isinstance(mapped, Mapped) else key] = tuple(parameter.shape)
    return shapes


def _require_readable(values: dict[str, Any], name: str) -> None:
    """Of the original release's `config.json` transformers would build another model, from its defaults."""
    if values.get("model_type") not in reference.MODELS or is_original(values):
        raise CheckpointError(
            f"{name}: transformers has no implementation that reads this layout "
            "(`filmstrip convert SRC DST --to hf` writes one that it reads)"
        )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}…"
