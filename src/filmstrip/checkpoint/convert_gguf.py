"""A LLaMA in a GGUF file as a plain Hugging Face directory."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.card import CARD_FILE, model_card
from filmstrip.checkpoint.convert_output import DTYPE_TITLES, Output, require_complete
from filmstrip.checkpoint.convert_source import in_layout
from filmstrip.checkpoint.defaults import GENERATION_FILE, generation_values
from filmstrip.checkpoint.gguf import gguf_dtype, gguf_fields, gguf_generation, gguf_tensors, gguf_text_config
from filmstrip.checkpoint.gguf_file import GgufFile, read_gguf
from filmstrip.checkpoint.gguf_tokenizer import gguf_tokenizer_files
from filmstrip.checkpoint.hf_config_write import text_values
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.checkpoint.write import json_bytes
from filmstrip.models.weightless import build_meta

LAYOUT = "causal"


def gguf_output(path: Path, *, dtype: torch.dtype | None = None, tokenizer: bool = True) -> Output:
    """What `path` becomes: weights in `dtype` (None: see `gguf_dtype`), configuration, tokenizer, chat template.

    `tokenizer` False leaves the tokenizer out, for files whose kind is not known here. Raises `CheckpointError` or
    `ConfigError`, one line, for a file that is damaged, is no LLaMA, or lacks a tensor.
    """
    file = read_gguf(path)
    config = gguf_text_config(file)
    target = dtype or gguf_dtype(file)
    tensors = gguf_tensors(file, config, target)
    require_complete(tensors, build_meta(config), str(path))
    layout = layouts_of("llama")[LAYOUT]
    generation = gguf_generation(file)
    values: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "torch_dtype": DTYPE_TITLES[target]}
    values |= text_values(config, generation) | {"pad_token_id": generation.pad_id}
    files = {CONFIG_FILE: json_bytes(values), GENERATION_FILE: json_bytes(generation_values(generation))}
    if tokenizer:
        files |= gguf_tokenizer_files(file, config.vocab_size)
    notes = _notes(file, tokenizer)
    digest = _file_hash(path)
    files[CARD_FILE] = _card(file, digest, DTYPE_TITLES[target], notes)
    return Output(in_layout(tensors, layout), files, layout.title, {str(path): digest}, notes=notes)


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _card(file: GgufFile, digest: str, dtype: str, notes: tuple[str, ...]) -> bytes:
    fields = gguf_fields(file)
    stated = {name: fields.get(f"general.{name}") for name in ("name", "organization", "license")}
    rows = [("source", file.path.name), ("hash of the source file", digest), ("dtype", dtype)]
    rows += [(f"{name} (stated by the file)", value) for name, value in stated.items() if isinstance(value, str)]
    title = stated["name"] if isinstance(stated["name"], str) else file.path.stem
    return model_card(title, "A LLaMA, converted from GGUF.", rows, notes)


def _notes(file: GgufFile, tokenizer: bool) -> tuple[str, ...]:
    kinds = [tensor.kind for tensor in file.tensors.values()]
    stored = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    notes = [f"dequantised from {stored}"] if set(kinds) - {"F32", "F16", "BF16"} else []
    return (*notes, *(() if tokenizer else ("the tokenizer is left out",)))
