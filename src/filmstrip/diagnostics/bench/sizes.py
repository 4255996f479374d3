"""The models that are timed: their configurations, and checkpoints of random weights, written once.

Weights are random, so what is measured is time and memory, never quality.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from zlib import crc32

import torch

from filmstrip.api.load import DTYPES
from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.export import Companions, companion_files
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.resolve import resolve
from filmstrip.checkpoint.write import LazyTensor, write_files, write_weights
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.config.checks import require_choice
from filmstrip.diagnostics.params import weight_bytes
from filmstrip.errors import CheckpointError
from filmstrip.models.weightless import build_meta
from filmstrip.shapes import Tensor

_SMALL_TOWER = VisionConfig(hidden_size=128, intermediate_size=512, num_layers=2, num_heads=4)
SIZES: dict[str, ModelConfig] = {
    "S": ModelConfig(
        text=TextConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=688,
            num_layers=7,
            num_heads=8,
            num_kv_heads=8,
            head_dim=32,
        ),
        image_tower=_SMALL_TOWER,
        video_tower=_SMALL_TOWER,
        image_token_id=4000,
        video_token_id=4001,
        pad_token_id=4002,
    ),
    "M": ModelConfig(
        text=TextConfig(
            hidden_size=2048, intermediate_size=5632, num_layers=16, num_heads=32, num_kv_heads=32, head_dim=64
        )
    ),
    "7B": ModelConfig(),
}
"""8.7 M, 1.57 B and 7.37 B parameters; all read 257 tokens a frame. `tiny`, the embedded model, is a size too."""

NAMES = ("tiny", *SIZES)
_DEVIATION = 0.02


def checkpoint_for(size: str, dtype: str, cache: Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """The directory of a size in a dtype below `cache`, written if it is not there yet.

    Values depend on the tensor's name alone, so every machine times the same numbers. Raises `ConfigError` for an
    unknown size or dtype, `CheckpointError` when it cannot be written.
    """
    require_choice("size", size, NAMES)
    require_choice("dtype", dtype, DTYPES)
    if size == "tiny" and dtype == "float32":
        return resolve("tiny")
    require_choice("size (the embedded model has float32 weights alone)", size, SIZES)
    directory = cache / f"{size}-{dtype}"
    if not directory.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{cache}: cannot write here ({error.strerror or error})") from error
        with atomic_directory(directory) as partial_directory:
            _write(SIZES[size], DTYPES[dtype], partial_directory, on_progress)
    return directory


def _write(
    config: ModelConfig, dtype: torch.dtype, directory: Path, on_progress: Callable[[int, int], None] | None
) -> None:
    layout = get_layout("A")
    shapes = {name: tuple(value.shape) for name, value in build_meta(config).state_dict().items()}
    tensors = {
        layout.from_canonical(name).disk: LazyTensor(shape, dtype, partial(_random, name, shape, dtype))
        for name, shape in shapes.items()
    }
    write_weights(directory, tensors, on_progress=on_progress)
    generation = GenerationDefaults(pad_id=config.pad_token_id)
    write_files(directory, companion_files(config, dtype, Companions(generation=generation)))


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Small values around 0, around 1 for the scales of norms, so that activations stay finite."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    value = torch.empty(shape).normal_(0.0, _DEVIATION, generator=generator)
    return (value + 1 if "norm" in name and name.endswith("weight") else value).to(dtype)


def text_bytes(config: ModelConfig, dtype: str) -> int:
    """What one decoding step reads of the weights: every block, the last norm and the head, not the embedding table."""
    text = replace(config.text, tie_embeddings=False)
    table = text.vocab_size * text.hidden_size * DTYPES[dtype].itemsize
    return weight_bytes(build_meta(text), dtype) - table
