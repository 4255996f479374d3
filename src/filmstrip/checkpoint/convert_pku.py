"""From Hugging Face's layout to that of the original release (`LlavaLlamaForCausalLM`, reference sheet 1.4)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from filmstrip.checkpoint.convert_hf import Converted, licences, read_companion
from filmstrip.checkpoint.convert_output import DTYPE_TITLES
from filmstrip.checkpoint.convert_vocabulary import EMBEDDING, HEAD, resize_rows, rounded_up, without_tokens
from filmstrip.checkpoint.defaults import GENERATION_FILE, GenerationDefaults, generation_values
from filmstrip.checkpoint.hf_config_write import text_values, vision_values
from filmstrip.checkpoint.read import Checkpoint
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.checkpoint.write import LazyTensor, json_bytes
from filmstrip.config import MediaKind, ModelConfig, VisionConfig
from filmstrip.config.checks import require
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.text.tokenizer_files import SENTENCEPIECE_FILE

# The original program chooses the class of a tower by these names; with others it would build a plain CLIP.
_TOWER_NAMES = {"image": "LanguageBind/LanguageBind_Image", "video": "LanguageBind/LanguageBind_Video_merge"}
_TOWER_TYPES = {"image": "LanguageBindImage", "video": "LanguageBindVideo"}


def hf_to_original(
    checkpoint: Checkpoint, config: ModelConfig, tensors: Mapping[str, LazyTensor], dtype: torch.dtype
) -> Converted:
    """The checkpoint as the original release would have saved it, towers inside; `dtype` is what weights will be in.

    Rows of the tokens that stand behind the vocabulary for media and padding are dropped: the original has none.
    Raises `ConfigError` for a model that the original's program cannot describe.
    """
    _require_describable(config)
    tokenizer = Tokenizer.from_directory(checkpoint.directory)
    rows = config.text.vocab_size
    kept = _kept_rows(tokenizer, config)
    own = checkpoint.generation
    pad_id = config.pad_token_id if config.pad_token_id < kept else tokenizer.unk_id or 0
    generation = GenerationDefaults(own.bos_id, own.eos_ids, pad_id, own.sampling)
    contents = {
        CONFIG_FILE: _config_values(config, kept, generation, DTYPE_TITLES[dtype]),
        GENERATION_FILE: generation_values(generation),
    }
    files = {name: json_bytes(content) for name, content in contents.items()} | tower_files(config)
    files |= without_tokens(tokenizer.files, kept, tokenizer.id_to_token(pad_id))
    names = [name for name in (f"text_tower.{EMBEDDING}", f"text_tower.{HEAD}") if name in tensors]
    notes = []
    if kept == rows:
        notes.append("the placeholders lie within the old vocabulary and stay there; no rows are dropped")
    if checkpoint.processor.chat_template is not None:
        notes.append("the chat template is left out: the original's prompt is part of its program (vicuna-v1)")
    if config.shared_towers:
        notes.append("the original has two towers: the shared one is written twice, and they are no longer one")
    sentencepiece = checkpoint.directory / SENTENCEPIECE_FILE
    if sentencepiece.is_file():  # its pieces are the rows before the placeholders
        files[SENTENCEPIECE_FILE] = read_companion(sentencepiece)
    else:
        notes.append(f"the original program reads its tokenizer from {SENTENCEPIECE_FILE}, which is not here")
    if not config.video_tower.temporal_attention:
        notes.append("without temporal attention, which the original program's video tower has")
    return Converted(
        tensors={**tensors, **{name: resize_rows(tensors[name], kept) for name in names}},
        files=files | licences(checkpoint.directory),
        dropped_rows=rows - kept,
        notes=tuple(notes),
    )


def _require_describable(config: ModelConfig) -> None:
    projector = config.projector
    require(
        projector.bias and projector.activation == "gelu",
        "the original layout has one kind of projector: two layers with biases and gelu between",
    )
    require(
        len(config.select_layers) == 1, "the original layout projects one hidden state; this model projects several"
    )


def _kept_rows(tokenizer: Tokenizer, config: ModelConfig) -> int:
    """Rows before the first placeholder, where a conversion has added it; all of them otherwise.

    That is so when only placeholders and padding come after it, and the rows are as many as a conversion makes of that:
    else the rows were there before, and free.
    """
    media = [token_id for token_id in (config.image_token_id, config.video_token_id) if token_id is not None]
    first, ours = min(media), {*media, config.pad_token_id}
    behind = [
        token_id for token_id in range(first, tokenizer.vocab_size) if tokenizer.id_to_token(token_id) is not None
    ]
    added = set(behind) <= ours and config.text.vocab_size == rounded_up(max(behind, default=first) + 1)
    return first if added else config.text.vocab_size


def _config_values(config: ModelConfig, rows: int, generation: GenerationDefaults, dtype: str) -> dict[str, Any]:
    text = replace(config.text, vocab_size=rows)
    return text_values(text, generation) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "torch_dtype": dtype,
        "pad_token_id": generation.pad_id,
        "use_cache": True,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": config.image_tower.hidden_size,
        "mm_image_tower": _TOWER_NAMES["image"],
        "mm_video_tower": _TOWER_NAMES["video"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.select_layers[0],
        "mm_vision_select_feature": "patch" if config.select_strategy == "default" else "cls_patch",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
    }


def tower_files(config: ModelConfig) -> dict[str, bytes]:
    """The towers' own `config.json`, in sub-directories of the checkpoint, where reading looks for them first."""
    kinds: tuple[MediaKind, ...] = ("image", "video")
    return {f"{kind}_tower/config.json": json_bytes(_tower_values(kind, config.tower(kind))) for kind in kinds}


def _tower_values(kind: MediaKind, tower: VisionConfig) -> dict[str, Any]:
    """A LanguageBind repository's `config.json`, as far as its vision tower goes."""
    vision = vision_values(tower) | {
        "add_time_attn": tower.temporal_attention,
        "num_frames": tower.temporal_frames if kind == "video" else 1,
    }
    return {"model_type": _TOWER_TYPES[kind], "vision_config": vision}
