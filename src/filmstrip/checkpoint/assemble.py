"""A new multimodal model from a LLaMA and a CLIP checkpoint: nothing is trained here, only put together.

The text tower computes what it computed before: its weights are copied, and the rows that its vocabulary gains are
never the most likely ones. The projector is new and random, unless a trained one is given, so answers about media mean
nothing until it is trained.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from filmstrip.checkpoint.assemble_parts import load_projector, new_projector, new_temporal_attention
from filmstrip.checkpoint.card import CARD_FILE, model_card
from filmstrip.checkpoint.convert_hf import CHAT_TEMPLATE
from filmstrip.checkpoint.convert_output import Output, require_complete, require_equal_copies, source_hash
from filmstrip.checkpoint.convert_source import Source, in_layout, read_source
from filmstrip.checkpoint.convert_vocabulary import (
    EMBEDDING,
    HEAD,
    ExtendedVocabulary,
    extend_vocabulary,
    resize_rows,
)
from filmstrip.checkpoint.defaults import GenerationDefaults, read_generation_defaults
from filmstrip.checkpoint.export import Companions, companion_files
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.towers import CONFIG_FILE, TowerCheckpoint, read_tower
from filmstrip.checkpoint.write import LazyTensor
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError
from filmstrip.models.weightless import build_meta

FRAMES = 8  # per clip, as Video-LLaVA was trained; recorded as the number to take when nothing is said
LAYOUT = "A"


@dataclass(frozen=True)
class AssembleOptions:
    """What is put together besides the text tower and the vision tower.

    `projector` None is a new one, drawn with `seed`. `video_vision` is the video tower's own checkpoint (None: a copy
    of the image tower), `shared_towers` makes both one module. `temporal_frames` above 0 gives the video tower new
    temporal attention over that many frames. `select_layer` is the hidden state that is projected. `dtype` None is the
    text tower's.
    """

    projector: Path | None = None
    video_vision: Path | None = None
    shared_towers: bool = False
    temporal_frames: int = 0
    select_layer: int = -2
    seed: int = 0
    dtype: torch.dtype | None = None


def assemble(text_directory: Path, vision_directory: Path, options: AssembleOptions) -> Output:
    """The model that a LLaMA and a CLIP checkpoint make; nothing is written yet.

    Raises `CheckpointError` or `ConfigError`, one line, for a checkpoint that is something else, incomplete, or does
    not fit the others.
    """
    require(
        not (options.shared_towers and options.video_vision is not None),
        "shared towers are one checkpoint; a video tower of its own is another choice",
    )
    text = _tower(text_directory, "text")
    image = _tower(vision_directory, "vision")
    video = image if options.video_vision is None else _tower(options.video_vision, "vision")
    dtype = options.dtype or text.source.dtype
    vocabulary = extend_vocabulary(text_directory, text.text_config.vocab_size)
    config = _model_config(text.text_config, image.vision_config, video.vision_config, vocabulary, options)
    tensors = {f"text_tower.{name}": tensor.to(dtype) for name, tensor in _grown(text, vocabulary.size).items()}
    tensors |= _vision_tensors(image, video, config, dtype)
    if options.projector is None:
        tensors |= new_projector(config, dtype, options.seed)
    else:
        tensors |= load_projector(options.projector, config, dtype)
    require_complete(tensors, build_meta(config), "the assembled model")
    towers = {"text tower": text, "image tower": image} | ({} if video is image else {"video tower": video})
    sources = {name: tower.hash for name, tower in towers.items()}
    notes = _notes(config, vocabulary, options)
    return Output(
        tensors=in_layout(_without_tied_head(tensors, config), get_layout(LAYOUT)),
        files=_files(text_directory, config, vocabulary, dtype, copied_towers=image.hash == video.hash)
        | {CARD_FILE: _card(towers, config, vocabulary, options, notes)},
        layout=get_layout(LAYOUT).title,
        sources=sources,
        left_out=dict(sum((Counter(tower.source.left_out) for tower in towers.values()), Counter())),
        added_rows=vocabulary.size - text.text_config.vocab_size,
        notes=notes,
    )


@dataclass(frozen=True)
class _Tower:
    """A tower's checkpoint, its tensors and their hash."""

    checkpoint: TowerCheckpoint
    source: Source
    hash: str

    @property
    def text_config(self) -> TextConfig:
        assert isinstance(self.checkpoint.config, TextConfig)
        return self.checkpoint.config

    @property
    def vision_config(self) -> VisionConfig:
        assert isinstance(self.checkpoint.config, VisionConfig)
        return self.checkpoint.config


def _tower(directory: Path, kind: str) -> _Tower:
    checkpoint = read_tower(directory)
    wanted = "a LLaMA" if kind == "text" else "a CLIP vision tower"
    if checkpoint.kind != kind:
        raise CheckpointError(f"{directory} is not {wanted}: {checkpoint.describe()}")
    source = read_source(checkpoint.parts, checkpoint.unused)
    model = checkpoint.build_meta()
    require_complete(source.tensors, model, str(directory))
    require_equal_copies(source.tensors, model, str(directory))
    return _Tower(checkpoint, source, source_hash(read_source(checkpoint.parts, mapped=True).tensors, model))


def _model_config(
    text: TextConfig,
    image: VisionConfig,
    video: VisionConfig,
    vocabulary: ExtendedVocabulary,
    options: AssembleOptions,
) -> ModelConfig:
    if options.temporal_frames:
        require(not video.temporal_attention, "the video tower has temporal attention already")
        video = replace(video, temporal_attention=True, temporal_frames=options.temporal_frames)
    if options.shared_towers:
        image = video
    require(
        options.shared_towers or not image.temporal_attention,
        "the image tower has temporal attention, which one image has no use for; give it as the video tower",
    )
    return ModelConfig(
        text=replace(text, vocab_size=vocabulary.size),
        image_tower=image,
        video_tower=video,
        shared_towers=options.shared_towers,
        select_layers=(options.select_layer,),
        image_token_id=vocabulary.image_id,
        video_token_id=vocabulary.video_id,
        pad_token_id=vocabulary.pad_id,
    )


def _grown(text: _Tower, rows: int) -> Mapping[str, LazyTensor]:
    """The text tower's tensors with more rows in the embedding and the head."""
    tensors = text.source.tensors
    return tensors | {name: resize_rows(tensors[name], rows) for name in (EMBEDDING, HEAD) if name in tensors}


def _vision_tensors(image: _Tower, video: _Tower, config: ModelConfig, dtype: torch.dtype) -> dict[str, LazyTensor]:
    """Both towers. A file knows no sharing: shared towers are written twice."""
    tensors: dict[str, LazyTensor] = {}
    for prefix, tower, settings in (
        ("image_tower.", image, config.image_tower),
        ("video_tower.", video, config.video_tower),
    ):
        parts = {name: tensor.to(dtype) for name, tensor in tower.source.tensors.items()}
        if settings.temporal_attention and not tower.vision_config.temporal_attention:
            parts |= new_temporal_attention(parts, settings.num_layers, settings.temporal_frames, dtype)
        tensors |= {prefix + name: tensor for name, tensor in parts.items()}
    return tensors


def _without_tied_head(tensors: dict[str, LazyTensor], config: ModelConfig) -> dict[str, LazyTensor]:
    head = f"text_tower.{HEAD}"
    return {name: tensor for name, tensor in tensors.items() if name != head or not config.text.tie_embeddings}


def _files(
    text_directory: Path,
    config: ModelConfig,
    vocabulary: ExtendedVocabulary,
    dtype: torch.dtype,
    *,
    copied_towers: bool,
) -> dict[str, bytes]:
    """Configuration, processor, tokenizer, and the prompt of LLaVA, whatever the text tower's own was.

    `copied_towers`: both towers are of one checkpoint, which is recorded unless they are one module.
    """
    own = read_generation_defaults(text_directory, Fields(read_json(text_directory / CONFIG_FILE), CONFIG_FILE))
    temporal = config.video_tower.temporal_attention
    companions = Companions(
        files=vocabulary.files,
        generation=GenerationDefaults(own.bos_id, own.eos_ids, config.pad_token_id, own.sampling),
        chat_template=CHAT_TEMPLATE,
        trained_frames=config.video_tower.temporal_frames if temporal else FRAMES,
        preset="original" if temporal else None,  # the one preset that runs temporal attention
        copied_towers=True if copied_towers and not config.shared_towers else None,
    )
    return companion_files(config, dtype, companions)


def _notes(config: ModelConfig, vocabulary: ExtendedVocabulary, options: AssembleOptions) -> tuple[str, ...]:
    """What a user must know: what is untrained, what has changed, what will not fit."""
    notes = []
    if options.projector is None:
        notes.append(f"the projector is untrained (random, seed {options.seed}): answers about media mean nothing yet")
    if options.temporal_frames:
        notes.append(
            f"temporal attention over {options.temporal_frames} frames is untrained; it changes nothing yet (its "
            "output projection and frame vectors are zero)"
        )
    notes += vocabulary.notes
    needed = config.clip_tokens(FRAMES)
    if needed > config.text.max_positions:
        notes.append(
            f"a clip of {FRAMES} frames takes {needed:,} tokens; the text tower was trained on "
            f"{config.text.max_positions:,}"
        )
    return (*notes, "the licences of the towers apply to the result; check them before you share it")


def _card(
    towers: Mapping[str, _Tower],
    config: ModelConfig,
    vocabulary: ExtendedVocabulary,
    options: AssembleOptions,
    notes: tuple[str, ...],
) -> bytes:
    rows = []
    for name, tower in towers.items():
        rows += [(name, f"{tower.checkpoint.directory.name}: {tower.checkpoint.describe()}"), ("", tower.hash)]
    projector = f"new, seed {options.seed}" if options.projector is None else options.projector.name
    rows += [
        ("projector", f"{projector}; {config.projector_input_size} to {config.text.hidden_size}, 2 layers, gelu"),
        ("towers", "shared: one module for images and videos" if config.shared_towers else "one each"),
        ("hidden state projected", str(options.select_layer)),
        ("vocabulary", f"{config.text.vocab_size:,} rows"),
        ("<image>, <video>, padding", f"{vocabulary.image_id}, {vocabulary.video_id}, {vocabulary.pad_id}"),
    ]
    return model_card("Video-LLaVA, assembled", "A multimodal model put together from its parts.", rows, notes)
