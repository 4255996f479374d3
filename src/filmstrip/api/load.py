"""From a name to an assistant: find the checkpoint, choose the program, build the model, fill it."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from filmstrip.api.answer import Origin
from filmstrip.api.assistant import Assistant
from filmstrip.api.request import RequestBuilder
from filmstrip.api.reuse import DISK_BYTES, MEMORY_BYTES, memory_limit
from filmstrip.cache import ContentStore
from filmstrip.checkpoint.digest import SAMPLED
from filmstrip.checkpoint.header import dtype_name
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.pku_towers import TowerSources
from filmstrip.checkpoint.quantization import expect_quantised
from filmstrip.checkpoint.read import Checkpoint, read_checkpoint
from filmstrip.checkpoint.resolve import resolve
from filmstrip.config import PRESETS, ModelConfig, Preset, get_preset
from filmstrip.config.checks import require_choice
from filmstrip.config.preset import FRAME_SAMPLERS, IMAGE_TRANSFORMS, PROMPT_STYLES
from filmstrip.errors import ConfigError
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.processor import Processor
from filmstrip.media.sample import FrameSelection
from filmstrip.models.weightless import weightless
from filmstrip.models.wide import set_compute
from filmstrip.text.tokenizer import Tokenizer

NAMED_CHOICES = {
    "frame_sampler": FRAME_SAMPLERS,
    "image_transform": IMAGE_TRANSFORMS,
    "prompt": PROMPT_STYLES,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV = ("auto", "float16", "bfloat16")


class OpenedModel(RequestBuilder):
    """A checkpoint whose weights have not been read: enough to check and plan requests, which takes no time."""

    def __init__(self, name: str, checkpoint: Checkpoint, program: "Program", device: torch.device) -> None:
        tokenizer = Tokenizer.from_directory(checkpoint.directory)
        program = with_known_placeholders(program, tokenizer, checkpoint.config)
        preset = program.preset
        self.name, self.checkpoint, self.program, self.device = name, checkpoint, program, device
        self.config = checkpoint.model_config(temporal_attention=preset.temporal_attention)
        super().__init__(
            Processor(
                tokenizer,
                checkpoint.processor.pixels,
                preset,
                self.config,
                checkpoint.processor.chat_template,
                checkpoint.extras.trained_frames,
            ),
            FrameSelection(sampler=preset.frame_sampler, num_frames=checkpoint.extras.trained_frames),
            checkpoint.generation.sampling,
        )

    def load_weights(
        self,
        dtype: torch.dtype | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        store: ContentStore | None = None,
        compute: str = "stored",
        compiled: bool = False,
        kv: str = "auto",
    ) -> Assistant:
        """Build the model and fill it. `on_progress` is called with tensors done and in all; the others as for `load`.

        What is read is remembered in `store`; without one, in memory, up to `reuse.memory_limit`.
        """
        with weightless():
            model = VideoLlavaForGeneration(self.config)
        manifest = self.checkpoint.quantization
        if manifest is not None:
            expect_quantised(model, manifest, str(self.checkpoint.directory))
        report = load_weights(model, self.checkpoint, dtype=dtype, device=self.device, on_progress=on_progress)
        model.eval().requires_grad_(False)
        if compiled:
            model.compile_towers()
        works_in = set_compute(model, compute, getattr(torch, report.dtype), self.device)
        kept_in = _as_kept(kv, works_in)
        model.kv_dtype = kept_in
        model.wide_steps = compute == "auto"
        model.eos_token_ids = self.checkpoint.generation.eos_ids
        preset = self.program.preset
        warnings = (*report.warnings, *self.processor.tokenizer.warnings, *self.program.notes)
        if report.dropped_temporal_parameters:
            warnings += (
                f"left out: {report.dropped_temporal_parameters:,} parameters of temporal attention "
                "(the preset 'original' uses them)",
            )
        origin = Origin(
            model=self.name,
            description=report.description,
            layout=report.layout,
            weights_hash=report.weights_hash,
            preset=preset,
            temporal_attention=self.config.video_tower.temporal_attention,
            dtype=report.dtype,
            device=str(self.device),
            compute=dtype_name(works_in),
            kv="" if kept_in is None else dtype_name(kept_in),
            compiled=model.compiled,
            quantization=None if manifest is None else {"weights": manifest.title, "source_hash": manifest.source_hash},
            weights_files=_identities(self.checkpoint, report.weights_hash),
            changed=self.program.changed,
            copied_towers=self.checkpoint.extras.copied_towers,
        )
        if store is None:
            store = ContentStore(memory_limit(model, self.selection.num_frames))
        return Assistant(model, self.processor, origin, self.selection, self.sampling, warnings, store)


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    preset: str | Preset | None = None,
    image_tower: str | Path | None = None,
    video_tower: str | Path | None = None,
    cache: str | Path | None = None,
    compute: str = "auto",
    kv: str = "auto",
    compiled: bool = False,
    quiet: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    **choices: Any,
) -> Assistant:
    """Load a checkpoint and what belongs to it.

    `name` is `tiny` (bundled), a checkpoint directory, or a hub id (downloaded). `device`: the first GPU if there is
    one, else the CPU. `dtype` of the weights: as stored. `compute`: the precision of the arithmetic with 16-bit
    weights, `stored` (theirs), `float32` (they stay 16-bit in memory), or `auto`: float32 on a CPU that is slower at
    theirs, which is measured once. `kv`: the precision of the keys and values that are kept, `auto` (the arithmetic's),
    `float16` or `bfloat16`: half the memory, and answers that may differ. `compiled`: through `torch.compile`, whose
    first use takes from seconds to a minute.
    `preset` decides frames, pixels, prompt and temporal attention together (`original`
    or `transformers`, default: what the checkpoint says); `choices` are single fields of `Preset` that differ from it
    (`frame_sampler=`, `image_transform=`, `prompt=`, `temporal_attention=`). `image_tower` and `video_tower` are for
    checkpoints in the original release's layout whose vision towers are elsewhere: a LanguageBind (or CLIP) directory
    or hub id, for what the checkpoint itself does not hold. What was read of media is remembered in memory and, with
    `cache`, in that directory too (`reuse.DISK_BYTES` at most). One line on standard error says what was built, and
    another one why there are no compiled kernels if there are none, unless `quiet`. `on_progress` is called with
    tensors done and in all.

    Raises `CheckpointError` or `ConfigError`, one line each.
    """
    target = as_dtype(dtype)
    opened = open_model(name, device=device, preset=preset, image_tower=image_tower, video_tower=video_tower, **choices)
    store = None if cache is None else ContentStore(MEMORY_BYTES, Path(cache), DISK_BYTES, warnings.warn)
    assistant = opened.load_weights(target, on_progress, store, compute, compiled, kv)
    if store is not None:
        store.max_bytes = memory_limit(assistant.model, assistant.selection.num_frames)
    if not quiet:
        for line in filter(None, (assistant.summary, assistant.missing_kernels)):
            sys.stderr.write(f"{line}\n")
    return assistant


def open_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    preset: str | Preset | None = None,
    image_tower: str | Path | None = None,
    video_tower: str | Path | None = None,
    **choices: Any,
) -> OpenedModel:
    """The first half of `load`: find and check everything, read no weights. Arguments and errors as there."""
    place = default_device() if device is None else as_device(str(device))
    if isinstance(preset, str):
        preset = get_preset(preset)
    checkpoint = read_checkpoint(resolve(name), TowerSources(image_tower, video_tower))
    return OpenedModel(str(name), checkpoint, choose_program(checkpoint, preset, choices), place)


@dataclass(frozen=True)
class Program:
    """Which program runs: a preset, the fields of it that the user changed, and what of it could not be had."""

    preset: Preset
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_program(checkpoint: Checkpoint, preset: Preset | None, choices: dict[str, Any]) -> Program:
    """The program to run, and what of it this checkpoint cannot give.

    Without a preset it is the checkpoint's own (`original` for the original release's layout), or `transformers`. The
    `transformers` preset prefers the checkpoint's chat template over its plain prompt. `choices` change single fields
    of it; temporal attention asked for that way is an error, not a note, when there are no weights for it.
    """
    for name, value in choices.items():
        require_choice("choice", name, [field.name for field in fields(Preset) if field.name != "name"])
        if name in NAMED_CHOICES and value is not None:
            require_choice(name.replace("_", " "), value, NAMED_CHOICES[name])
    chosen = preset or get_preset(checkpoint.extras.preset or "transformers")
    notes: tuple[str, ...] = ()
    if chosen == PRESETS["transformers"] and checkpoint.processor.chat_template:
        chosen = replace(chosen, prompt="chat-template")
    if chosen.temporal_attention and checkpoint.temporal_frames is None and not choices.get("temporal_attention"):
        chosen = replace(chosen, temporal_attention=False)
        if choices.get("temporal_attention") is None:
            notes = (f"preset {chosen.name!r} has temporal attention, but this checkpoint holds no weights for it",)
    changes = {key: value for key, value in choices.items() if value is not None and value != getattr(chosen, key)}
    return Program(replace(chosen, **changes), tuple(changes), notes)


def with_known_placeholders(program: Program, tokenizer: Tokenizer, config: ModelConfig) -> Program:
    """A program that can be run with this tokenizer.

    In the original release media have neither tokens nor embeddings; text is then cut where they stand, as its own
    program does.
    """
    behind = [token_id for token_id in config.placeholder_ids.values() if token_id >= config.text.vocab_size]
    if program.preset.split_at_media or all(tokenizer.id_to_token(token_id) for token_id in behind):
        return program
    note = "the tokenizer has no tokens for media, so text is tokenised in pieces around them, as the original does"
    return replace(program, preset=replace(program.preset, split_at_media=True), notes=(*program.notes, note))


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point dtype by name. Raises `ConfigError` naming the known ones."""
    if dtype is None or dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    require_choice("dtype", str(dtype), DTYPES)
    return DTYPES[str(dtype)]


def _as_kept(kv: str, works_in: torch.dtype) -> torch.dtype | None:
    """The precision of keys and values, None for that of the arithmetic. Raises `ConfigError` for another name."""
    require_choice("kv", kv, KV)
    kept = None if kv == "auto" else DTYPES[kv]
    return None if kept == works_in else kept


def _identities(checkpoint: Checkpoint, weights_hash: str) -> tuple[str, ...]:
    """Path, size and time of the files of weights whose hash is of samples."""
    if not weights_hash.startswith(SAMPLED):
        return ()
    paths = sorted({info.path.resolve() for files, _ in checkpoint.parts for info in files.tensors.values()})
    return tuple(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_device(device: str) -> torch.device:
    """A device by name. Raises `ConfigError` for one that this machine or PyTorch does not have."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r} (for example cpu, cuda, cuda:1, mps)") from error
    try:
        torch.ones(1, device=place).item()  # also refuses `meta`, which holds no values
    except Exception as error:  # backends that are missing raise whatever they like
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ConfigError(f"device {device!r} is not available: {reason}") from error
    return place
