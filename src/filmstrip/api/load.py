"""From a name to an assistant: find the checkpoint, choose the program, build the model, fill it."""

import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from filmstrip.api.answer import Origin
from filmstrip.api.assistant import Assistant
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import Checkpoint, read_checkpoint
from filmstrip.checkpoint.resolve import resolve
from filmstrip.config import Preset, get_preset
from filmstrip.config.checks import require_choice
from filmstrip.errors import ConfigError
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.processor import Processor
from filmstrip.media.sample import FrameSelection
from filmstrip.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    preset: str | Preset | None = None,
    quiet: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    **choices: Any,
) -> Assistant:
    """Load a checkpoint and what belongs to it.

    `name` is `tiny` (bundled), a Hugging Face directory, or a hub id (downloaded, safetensors only). `device`: the
    first GPU if there is one, else the CPU. `dtype`: as stored. `preset` decides frames, pixels, prompt and temporal
    attention together (`original` or `transformers`, default: what the checkpoint says); `choices` are single fields
    of `Preset` that differ from it (`frame_sampler=`, `image_transform=`, `prompt=`, `temporal_attention=`). One line
    on standard error says what was built, unless `quiet`. `on_progress` is called with tensors done and in all.

    Raises `CheckpointError` or `ConfigError`, one line each.
    """
    directory = resolve(name)
    checkpoint = read_checkpoint(directory)
    chosen, warnings = choose_preset(checkpoint, preset, choices)
    config = checkpoint.model_config(temporal_attention=chosen.temporal_attention)
    with torch.device("meta"):
        model = VideoLlavaForGeneration(config)
    place = default_device() if device is None else as_device(str(device))
    report = load_weights(model, checkpoint, dtype=as_dtype(dtype), device=place)
    if report.dropped_temporal_parameters:
        warnings.append(
            f"left out: {report.dropped_temporal_parameters:,} parameters of temporal attention "
            f"(preset {chosen.name!r} runs without; preset 'original' uses them)"
        )
    model.eval().requires_grad_(False)
    model.eos_token_ids = checkpoint.generation.eos_ids
    tokenizer = Tokenizer.from_directory(directory)
    template = checkpoint.processor.chat_template
    origin = Origin(
        model=str(name),
        description=report.description,
        layout=report.layout,
        weights_hash=report.weights_hash,
        preset=chosen,
        temporal_attention=config.video_tower.temporal_attention,
        dtype=report.dtype,
        device=str(place),
    )
    assistant = Assistant(
        model=model,
        processor=Processor(tokenizer, checkpoint.processor.pixels, chosen, config, template),
        origin=origin,
        selection=FrameSelection(sampler=chosen.frame_sampler, num_frames=checkpoint.extras.trained_frames),
        sampling=checkpoint.generation.sampling,
        warnings=(*report.warnings, *tokenizer.warnings, *warnings),
    )
    if not quiet:
        sys.stderr.write(f"{assistant.summary}\n")
    return assistant


def choose_preset(
    checkpoint: Checkpoint, preset: str | Preset | None, choices: dict[str, Any]
) -> tuple[Preset, list[str]]:
    """The program to run, and what of it this checkpoint cannot give.

    Without a preset it is the checkpoint's own, or `transformers` (every layout read here is that port's). The
    `transformers` preset prefers the checkpoint's chat template over its plain prompt. `choices` change single fields
    of it; temporal attention asked for that way is an error, not a note, when there are no weights for it.
    """
    chosen = preset if isinstance(preset, Preset) else get_preset(preset or checkpoint.extras.preset or "transformers")
    notes = []
    if chosen.name == "transformers" and checkpoint.processor.chat_template:
        chosen = replace(chosen, prompt="chat-template")
    if chosen.temporal_attention and checkpoint.temporal_frames is None:
        notes.append(f"preset {chosen.name!r} has temporal attention, but this checkpoint holds no weights for it")
        chosen = replace(chosen, temporal_attention=False)
    unknown = set(choices) - {field.name for field in fields(Preset)}
    if unknown:
        raise ConfigError(f"unknown choice {sorted(unknown)[0]!r}; a preset has {', '.join(sorted(asdict(chosen)))}")
    changes = {key: value for key, value in choices.items() if value is not None and value != getattr(chosen, key)}
    if changes:
        chosen = replace(chosen, name=f"{chosen.name}, changed", **changes)
    return chosen, notes


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point dtype by name. Raises `ConfigError` naming the known ones."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    require_choice("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_device(device: str) -> torch.device:
    """A device by name. Raises `ConfigError` for one that this machine or PyTorch does not have."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device!r} is not available: {str(error).splitlines()[0]}") from error
    return place
