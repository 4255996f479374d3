"""From one way of writing a checkpoint to another, tensor by tensor: no more than one tensor is in memory."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from filmstrip.checkpoint.card import CARD_FILE, SOURCE_CARD_FILE, model_card
from filmstrip.checkpoint.convert_gguf import gguf_output
from filmstrip.checkpoint.convert_hf import Converted, hf_to_hf, original_to_hf
from filmstrip.checkpoint.convert_output import Output, require_complete, require_equal_copies, source_hash
from filmstrip.checkpoint.convert_pku import hf_to_original, tower_files
from filmstrip.checkpoint.convert_source import Source, in_layout, read_source
from filmstrip.checkpoint.hf_config_write import require_plain
from filmstrip.checkpoint.json_file import read_bounded
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.pku_towers import TowerSources
from filmstrip.checkpoint.read import Checkpoint, read_any
from filmstrip.checkpoint.rules import TEMPORAL, Layout
from filmstrip.checkpoint.towers import TowerCheckpoint
from filmstrip.config.checks import require, require_choice
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.models.weightless import build_meta
from filmstrip.text.tokenizer_files import MAX_FILE_BYTES

FORMATS = ("hf", "pku")
ORIGINAL = "P"  # the layout of the original release
TEMPORAL_ATTENTION, TOKENIZER = "temporal-attention", "tokenizer"
PARTS = (TEMPORAL_ATTENTION, TOKENIZER)  # what can be left out by name


@dataclass(frozen=True)
class ConvertOptions:
    """What to write: the format, the key layout within `hf` (None: the source's, from the original A), the dtype
    (None: as stored), and the parts to leave out by name (`PARTS`).
    """

    to: str = "hf"
    layout: str | None = None
    dtype: torch.dtype | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("format", self.to, FORMATS)
        for part in self.without:
            require_choice("part to leave out", part, PARTS)
        require(self.layout is None or self.to == "hf", "the original format has one layout; leave --layout out")


def convert(source: Path, options: ConvertOptions, towers: TowerSources | None = None) -> Output:
    """What the checkpoint directory or GGUF file `source` becomes; nothing is written yet (`write_output` does).

    `towers` say where the vision towers of the original's layout are, if the user knows better than the directory.
    Raises `CheckpointError` or `ConfigError`, one line, for a source that is damaged or incomplete, and for a
    conversion that its family does not have.
    """
    if source.is_file():
        require(
            options.to == "hf", "a GGUF file becomes a plain Hugging Face LLaMA; filmstrip assemble goes on from there"
        )
        require(options.layout is None, "a GGUF file is converted to one layout; leave --layout out")
        return gguf_output(source, dtype=options.dtype, tokenizer=TOKENIZER not in options.without)
    require(TOKENIZER not in options.without, "the tokenizer can be left out of a GGUF file only")
    checkpoint = read_any(source, towers)
    if isinstance(checkpoint, TowerCheckpoint):
        return _convert_tower(checkpoint, options)
    return _convert_multimodal(checkpoint, options)


def _convert_tower(checkpoint: TowerCheckpoint, options: ConvertOptions) -> Output:
    if options.to == "pku":
        raise ConfigError(
            f"{checkpoint.directory} is {checkpoint.describe()}; the original format is Video-LLaVA's, which "
            "`filmstrip assemble` builds"
        )
    if TEMPORAL_ATTENTION in options.without:
        raise ConfigError(f"--without {TEMPORAL_ATTENTION} is for whole models; {checkpoint.directory} is a tower")
    source = read_source(checkpoint.parts, checkpoint.unused)
    model = checkpoint.build_meta()
    require_complete(source.tensors, model, str(checkpoint.directory))
    require_equal_copies(source.tensors, model, str(checkpoint.directory))
    digest = source_hash(read_source(checkpoint.parts, mapped=True).tensors, model)
    converted = hf_to_hf(checkpoint.directory, source.tensors, options.dtype, temporal=True)
    family = "llama" if checkpoint.kind == "text" else "clip"
    return _output(checkpoint, source, converted, _layout(checkpoint, family, options), digest, options)


def _convert_multimodal(checkpoint: Checkpoint, options: ConvertOptions) -> Output:
    if checkpoint.quantization is not None:
        raise CheckpointError(f"{checkpoint.directory} is quantised; convert the checkpoint that it was made from")
    require_plain(checkpoint.config, str(checkpoint.directory))
    has_temporal = checkpoint.temporal_frames is not None or checkpoint.config.video_tower.temporal_attention
    temporal = has_temporal and TEMPORAL_ATTENTION not in options.without
    config = checkpoint.model_config(temporal_attention=temporal)
    source = _with_or_without(temporal, read_source(checkpoint.parts, checkpoint.unused))
    model = build_meta(config)
    require_complete(source.tensors, model, str(checkpoint.directory))
    require_equal_copies(source.tensors, model, str(checkpoint.directory))
    digest = source_hash(_with_or_without(temporal, read_source(checkpoint.parts, mapped=True)).tensors, model)
    is_original = checkpoint.layout.name == ORIGINAL
    if options.to == "pku":
        if config.family != "video-llava":
            raise ConfigError(f"{checkpoint.directory} is {config.title}; the original format is Video-LLaVA's alone")
        layout = layouts_of(config.family)[ORIGINAL]
    else:
        layout = _layout(checkpoint, config.family, options)
    dtype = options.dtype or source.dtype
    if is_original == (options.to == "pku"):
        converted = hf_to_hf(checkpoint.directory, source.tensors, options.dtype, temporal=temporal)
        if is_original:
            converted = replace(converted, files={**converted.files, **tower_files(config)})
    elif is_original:
        converted = original_to_hf(checkpoint, config, source.tensors, dtype)
    else:
        converted = hf_to_original(checkpoint, config, source.tensors, dtype)
    return _output(checkpoint, source, converted, layout, digest, options)


def _layout(checkpoint: Checkpoint | TowerCheckpoint, family: str, options: ConvertOptions) -> Layout:
    """The layout to write: the one asked for, else the source's own, else (from the original) the hub's."""
    layouts = {name: layout for name, layout in layouts_of(family).items() if name != ORIGINAL}
    own = checkpoint.layout.name
    name = options.layout or (own if own in layouts else "A")
    require_choice("checkpoint layout", name, layouts)
    return layouts[name]


def _with_or_without(temporal: bool, source: Source) -> Source:
    if temporal:
        return source
    kept = {name: tensor for name, tensor in source.tensors.items() if TEMPORAL not in name}
    left = sum(tensor.numel for name, tensor in source.tensors.items() if TEMPORAL in name)
    return Source(kept, source.left_out | ({TEMPORAL_ATTENTION: left} if left else {}))


def _output(
    checkpoint: Checkpoint | TowerCheckpoint,
    source: Source,
    converted: Converted,
    layout: Layout,
    digest: str,
    options: ConvertOptions,
) -> Output:
    tensors = {name: tensor.to(options.dtype) for name, tensor in converted.tensors.items()}
    directory = checkpoint.directory
    output = Output(
        tensors=in_layout(tensors, layout),
        files=converted.files,
        layout=layout.title,
        sources={str(directory): digest},
        left_out=source.left_out,
        added_rows=converted.added_rows,
        dropped_rows=converted.dropped_rows,
        notes=converted.notes,
    )
    rows = [
        ("source", f"{directory.resolve().name}: {checkpoint.describe()}"),
        ("weights of the source", digest),
        ("written in", f"{layout.title}, {'/'.join(output.dtypes)}"),
        ("rows of the vocabulary", f"{output.added_rows} added, {output.dropped_rows} dropped"),
        *((f"left out: {reason}", f"{count:,} parameters") for reason, count in output.left_out.items()),
    ]
    files = dict(converted.files)
    files[CARD_FILE] = model_card(directory.resolve().name, "A converted checkpoint.", rows, converted.notes)
    own_card = directory / CARD_FILE
    if own_card.is_file():
        files[SOURCE_CARD_FILE] = read_bounded(own_card, MAX_FILE_BYTES)
    return replace(output, files=files)
