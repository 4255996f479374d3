"""A LLaMA as a GGUF file, for llama.cpp to run: the text tower of a checkpoint that is timed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.convert_source import read_source
from filmstrip.checkpoint.gguf import BLOCK_NAMES, OUTER_NAMES
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import TextConfig
from filmstrip.shapes import Float, Tensor

GGUF_FILE = "model.gguf"
# The kind of matrices that stands beside each precision here. llama.cpp's 16 bits on a CPU are float16.
KINDS = {"float32": "F32", "bfloat16": "F16", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
_TOWER = "text_tower."
_NO_VOCABULARY = {"tokenizer.ggml.model": "none"}  # ids go in and come out
_OUTER = {ours: theirs for theirs, ours in OUTER_NAMES.items()}
_BLOCK = {ours: theirs for theirs, ours in BLOCK_NAMES.items()}


def write_text_tower(checkpoint: Path, directory: Path, dtype: str) -> Path:
    """The text tower of a checkpoint in `directory`, its matrices in the kind for `dtype` (`KINDS`); written once.

    Raises `CheckpointError` when the checkpoint cannot be read or `directory` not be written.
    """
    if (directory / GGUF_FILE).is_file():
        return directory
    read = read_checkpoint(checkpoint)
    tensors = read_source(read.parts, mapped=True).tensors
    tower = ((name.removeprefix(_TOWER), lazy.read()) for name, lazy in tensors.items() if name.startswith(_TOWER))
    with atomic_directory(directory, overwrite=True) as partial_directory:
        write_gguf(
            partial_directory / GGUF_FILE, read.config.text, tower, GGMLQuantizationType[KINDS[dtype]], _NO_VOCABULARY
        )
    return directory


def write_gguf(
    path: Path,
    config: TextConfig,
    tensors: Iterable[tuple[str, Tensor]],
    kind: GGMLQuantizationType,
    extra: Mapping[str, Any],
    others: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `tensors`, by their names in `Decoder`, as llama.cpp's converter would, matrices as `kind`.

    `extra` is metadata by key (None leaves a key out), `others` are tensors by the names that they have in the file.
    """
    metadata: dict[str, Any] = {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope.theta,
        **extra,
    }
    writer = GGUFWriter(path, metadata.pop("general.architecture", "llama"), use_temp_file=True)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in tensors:
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        of_kind = kind if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(_name(name), quantize(_stored(name, tensor, config), of_kind), raw_dtype=of_kind)
    for name, tensor in (others or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _name(canonical: str) -> str:
    if canonical in _OUTER:
        return _OUTER[canonical]
    _, layer, rest = canonical.split(".", 2)
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[part]}.{suffix}"


def _stored(name: str, tensor: Float[Tensor, "rows *D"], config: TextConfig) -> np.ndarray:
    """Query and key rows in llama.cpp's order, channels that rotate together as neighbours: of each head (0, H/2, 1,
    H/2+1, ...). As its converter writes them (`LlamaModel.permute`)."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is not None:
        tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)
    return tensor.float().numpy()
