"""GGUF files for the tests: a tiny random LLaMA as llama.cpp's converter would write it, and real ones in packages."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType

from filmstrip.config import TextConfig
from filmstrip.diagnostics.bench.llama_file import write_gguf as write_tensors
from filmstrip.models.decoder import Decoder
from filmstrip.shapes import Tensor
from filmstrip.testing.tiny import random_tensor

TINY = TextConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=256,
)


def find_gguf(package: str) -> Path | None:
    """The GGUF file inside an installed package, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def random_decoder(config: TextConfig = TINY, seed: int = 0) -> Decoder:
    """A decoder whose every weight is random."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in sorted(decoder.named_parameters()):
        parameter.copy_(random_tensor(name, tuple(parameter.shape), generator))
    return decoder


def write_gguf(
    path: Path,
    decoder: Decoder,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    tokenizer: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    rope_factors: Tensor | None = None,
) -> Path:
    """Write `decoder`, its matrices as `kind`. `tokenizer` and `extra` are metadata by key; None leaves a key out."""
    size = decoder.config.vocab_size
    metadata = {"llama.vocab_size": None, **(tokenizer or byte_level_tokenizer(size)), **(extra or {})}
    others = {} if rope_factors is None else {"rope_freqs.weight": rope_factors}
    return write_tensors(path, decoder.config, decoder.state_dict().items(), kind, metadata, others)


def byte_level_tokenizer(size: int, pre: str = "smollm") -> dict[str, Any]:
    """A `gpt2` tokenizer: three control tokens, the 256 bytes, a few merges, and fillers up to `size`."""
    letters = _byte_letters()
    tokens = ["<|end|>", "<|begin|>", "<|unk|>", *letters]
    merges = []
    for left, right in (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "9"), ("i", "n"), ("'", "s")):
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    control = len(letters) + 3
    types = [3, 3, 3] + [1] * (len(tokens) - 3)
    fillers = [f"[PAD{index}]" for index in range(size - len(tokens))]
    assert control < size
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + fillers,
        "tokenizer.ggml.token_type": types + [5] * len(fillers),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def sentencepiece_tokenizer(
    size: int, words: tuple[str, ...] = ("the", "then", "hello", "in", "inn")
) -> dict[str, Any]:
    """A `llama` tokenizer: special tokens, 256 bytes, letters, and every prefix and suffix of a few words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256
    pieces = ["▁", *dict.fromkeys("".join(words)), "é"]
    for word in words:
        pieces += [f"▁{word}"[:end] for end in range(2, len(word) + 2)] + [
            word[start:] for start in range(len(word) - 1)
        ]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in tokens]
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(pieces))]
    tokens += pieces
    types += [1] * len(pieces)
    fillers = [f"[PAD{index}]" for index in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + fillers,
        "tokenizer.ggml.token_type": types + [5] * len(fillers),
        "tokenizer.ggml.scores": scores + [-1e9] * len(fillers),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in order of the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def random_blocks(kind: GGMLQuantizationType, rows: int, row_bytes: int, seed: int = 0) -> np.ndarray:
    """Bytes that a block type could hold (every pattern is a value; scales may come out infinite)."""
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), dtype=np.uint8)
