"""The models that are timed: their configurations, and checkpoints of random weights, written once.

Weights are random, so what is measured is time and memory, never quality.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from zlib import crc32

import torch

from filmstrip.api.load import DTYPES
from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.export import Companions, companion_files
from filmstrip.checkpoint.files import WEIGHTS_FILE
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.quantize import QuantizeOptions, quantized_output
from filmstrip.checkpoint.resolve import resolve
from filmstrip.checkpoint.write import LazyTensor, write_files, write_weights
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.config.checks import require_choice
from filmstrip.diagnostics.bench.workloads import WORDS
from filmstrip.diagnostics.memory_inference import inference_weights
from filmstrip.diagnostics.memory_workload import Workload
from filmstrip.diagnostics.params import QUANTISED_BITS
from filmstrip.errors import CheckpointError
from filmstrip.models.weightless import build_meta
from filmstrip.shapes import Tensor
from filmstrip.text.tokenizer_files import TOKENIZER_FILE

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
PRECISIONS = (*DTYPES, *QUANTISED_BITS)
_QUANTISED_FROM = "bfloat16"  # what released weights are
_DEVIATION = 0.02


def plain_dtype(dtype: str) -> str:
    """The dtype of everything that is not quantised; of the checkpoint that a quantised one is made from."""
    return _QUANTISED_FROM if dtype in QUANTISED_BITS else dtype


def checkpoint_for(size: str, dtype: str, cache: Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """The directory of a size in a dtype (`PRECISIONS`) below `cache`, written if it is not there yet.

    Random values depend on the tensor's name alone, so every machine times the same numbers. A quantised checkpoint is
    made from the one in bfloat16, `tiny` from the embedded model. Raises `ConfigError` for an unknown size or dtype,
    `CheckpointError` when it cannot be written.
    """
    require_choice("size", size, NAMES)
    require_choice("dtype", dtype, PRECISIONS)
    directory = cache / f"{_stem(size)}-{dtype}"
    if (directory / TOKENIZER_FILE).is_file():
        return directory
    writing = WriteOptions(overwrite=True)
    if dtype in QUANTISED_BITS:
        source = checkpoint_for(size, plain_dtype(dtype), cache, on_progress)
        output = quantized_output(source, QuantizeOptions(bits=QUANTISED_BITS[dtype]))
        write_output(output, directory, writing, on_progress)
    elif size == "tiny":
        write_output(convert(resolve("tiny"), ConvertOptions(dtype=DTYPES[dtype])), directory, writing, on_progress)
    else:
        with atomic_directory(directory, overwrite=True) as partial_directory:
            _write(SIZES[size], DTYPES[dtype], partial_directory, on_progress)
    return directory


def _stem(size: str) -> str:
    """The embedded model's weights may change from one version of this program to the next."""
    if size != "tiny":
        return size
    return f"tiny-{hashlib.sha256((resolve('tiny') / WEIGHTS_FILE).read_bytes()).hexdigest()[:8]}"


def require_directory(cache: Path) -> None:
    """Make the directory that everything is written to. Raises `CheckpointError` where that cannot be done."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        probe = cache / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{cache}: cannot write here ({error.strerror or error})") from error


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
    companions = Companions(_tokenizer_files(config), generation=GenerationDefaults(pad_id=config.pad_token_id))
    write_files(directory, companion_files(config, dtype, companions))


def _tokenizer_files(config: ModelConfig) -> dict[str, bytes]:
    """A tokenizer of whole words: those that questions are made of; all other ids have names that nobody says."""
    special = {0: "<unk>", 1: "<s>", 2: "</s>", config.pad_token_id: "<pad>"}
    special |= {token_id: f"<{kind}>" for kind, token_id in config.placeholder_ids.items()}
    words = iter((*WORDS, "USER:", "ASSISTANT:"))
    names = [special.get(index) or next(words, f"<unused_{index}>") for index in range(config.text.vocab_size)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": id_, "content": special[id_], **flags, "special": True} for id_ in sorted(special)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "WordLevel",
            "vocab": {name: index for index, name in enumerate(names)},
            "unk_token": "<unk>",
        },
    }
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    return {TOKENIZER_FILE: json.dumps(content).encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Small values around 0, around 1 for the scales of norms, so that activations stay finite."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    value = torch.empty(shape).normal_(0.0, _DEVIATION, generator=generator)
    return (value + 1 if "norm" in name and name.endswith("weight") else value).to(dtype)


def text_bytes(config: ModelConfig, dtype: str, compute: str) -> int:
    """What one decoding step reads of the weights: every block, the last norm and the head, not the embedding table."""
    stored, quantised = plain_dtype(dtype), dtype if dtype in QUANTISED_BITS else None
    text = replace(config.text, tie_embeddings=False)
    table = text.vocab_size * text.hidden_size * DTYPES[stored].itemsize
    return inference_weights(text, _work(stored, quantised, compute)) - table


def model_bytes(config: ModelConfig, dtype: str) -> int:
    """What all weights take on the disk, and mapped in memory."""
    stored = plain_dtype(dtype)
    return inference_weights(config, _work(stored, dtype if dtype in QUANTISED_BITS else None, stored))


def tower_bytes(config: ModelConfig, dtype: str) -> int:
    """About what a file of the text tower alone takes, as llama.cpp reads it."""
    stored = plain_dtype(dtype)
    return inference_weights(config.text, _work(stored, dtype if dtype in QUANTISED_BITS else None, stored))


def _work(stored: str, quantised: str | None, arithmetic: str) -> Workload:
    return Workload(dtype=stored, quantize=quantised, compute="stored" if arithmetic == stored else arithmetic)
