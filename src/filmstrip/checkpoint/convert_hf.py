"""From the original release's layout to Hugging Face's, and from one Hugging Face layout to another."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.convert_output import DTYPE_TITLES
from filmstrip.checkpoint.convert_vocabulary import EMBEDDING, HEAD, PAD_TOKEN, extend_vocabulary, resize_rows
from filmstrip.checkpoint.export import Companions, companion_files
from filmstrip.checkpoint.hf_processor import IMAGE_FILE, OLD_TEMPLATE_FILE, PROCESSOR_FILE, TEMPLATE_FILE, VIDEO_FILE
from filmstrip.checkpoint.json_file import read_bounded, read_json
from filmstrip.checkpoint.read import Checkpoint
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.checkpoint.write import LazyTensor, json_bytes
from filmstrip.config import ModelConfig
from filmstrip.text.tokenizer_files import FILE_NAMES, MAX_FILE_BYTES

# The family's template (reference sheet 5.2): media stand before the text of their message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
TEMPLATE_NOTE = (
    "the chat template written is the family's own: the original layout holds none, so one that the model had before "
    "is not brought back"
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")
_CARRIED = (
    *FILE_NAMES,
    "tokenizer.model",
    "generation_config.json",
    PROCESSOR_FILE,
    IMAGE_FILE,
    VIDEO_FILE,
    TEMPLATE_FILE,
    OLD_TEMPLATE_FILE,
    *LICENCE_FILES,
)


@dataclass(frozen=True)
class Converted:
    """Tensors by the names of the model, the files beside them, and the change of the vocabulary in rows."""

    tensors: Mapping[str, LazyTensor]
    files: Mapping[str, bytes]
    added_rows: int = 0
    dropped_rows: int = 0
    notes: tuple[str, ...] = ()


def original_to_hf(
    checkpoint: Checkpoint, config: ModelConfig, tensors: Mapping[str, LazyTensor], dtype: torch.dtype
) -> Converted:
    """The original release's directory as transformers' conversion makes it, with the temporal attention of `config`.

    The vocabulary gains `<image>`, `<video>` and `<pad>`. `dtype` is what the weights will be in.
    """
    rows = config.text.vocab_size
    vocabulary = extend_vocabulary(checkpoint.directory, rows, pad_token=PAD_TOKEN)
    grown = replace(
        config,
        text=replace(config.text, vocab_size=vocabulary.size),
        image_token_id=vocabulary.image_id,
        video_token_id=vocabulary.video_id,
        pad_token_id=vocabulary.pad_id,
    )
    companions = Companions(
        files={**vocabulary.files, **licences(checkpoint.directory)},
        pixels=checkpoint.processor.pixels,
        generation=replace(checkpoint.generation, pad_id=vocabulary.pad_id),
        chat_template=CHAT_TEMPLATE,
        trained_frames=checkpoint.extras.trained_frames,
        preset="original" if config.video_tower.temporal_attention else "transformers",
    )
    names = [name for name in (f"text_tower.{EMBEDDING}", f"text_tower.{HEAD}") if name in tensors]
    resized = {name: resize_rows(tensors[name], vocabulary.size) for name in names}
    return Converted(
        tensors={**tensors, **resized},
        files=companion_files(grown, dtype, companions),
        added_rows=vocabulary.size - rows,
        notes=(*vocabulary.notes, TEMPLATE_NOTE),
    )


def hf_to_hf(
    directory: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None, *, temporal: bool
) -> Converted:
    """The same checkpoint under other names, in another dtype or without temporal attention.

    Every known file is carried over as it is; of `config.json` only what changed is written anew, so the settings that
    this program does not know stay.
    """
    values = read_json(directory / CONFIG_FILE)
    if dtype is not None:
        for section in (values, *(value for value in values.values() if isinstance(value, dict))):
            for key in ("torch_dtype", "dtype"):
                if key in section:
                    section[key] = DTYPE_TITLES[dtype]
        if "dtype" not in values:
            values["torch_dtype"] = DTYPE_TITLES[dtype]
    extras: Any = values.get("filmstrip")
    if isinstance(extras, dict) and not temporal:
        extras["temporal_attention"] = False
        if extras.get("preset") == "original":  # that program has temporal attention
            extras["preset"] = "transformers"
    files = {name: read_companion(directory / name) for name in _CARRIED if (directory / name).is_file()}
    return Converted(tensors, {CONFIG_FILE: json_bytes(values)} | files)


def licences(directory: Path) -> dict[str, bytes]:
    """The licence files of a checkpoint, which go where its weights go."""
    return {name: read_companion(directory / name) for name in LICENCE_FILES if (directory / name).is_file()}


def read_companion(path: Path) -> bytes:
    """A small file that goes along with the weights. Raises `CheckpointError` for one too large or not there."""
    return read_bounded(path, MAX_FILE_BYTES)
