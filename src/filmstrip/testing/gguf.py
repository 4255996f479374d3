"""GGUF files for the tests: a tiny random LLaMA as llama.cpp's converter would write it, and real ones in packages."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from filmstrip.config import TextConfig
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
_OUTER = {
    "token_embedding.weight": "token_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "attention_norm": "attn_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


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
    config = decoder.config
    metadata: dict[str, Any] = {
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope.theta,
        **(tokenizer or byte_level_tokenizer(config.vocab_size)),
        **(extra or {}),
    }
    writer = GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor in decoder.state_dict().items():
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        stored = _neighbours(name, tensor, config).numpy()
        of_kind = kind if stored.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(_name(name), quantize(stored, of_kind), raw_dtype=of_kind)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
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
    return f"blk.{layer}.{_INNER[part]}.{suffix}"


def _neighbours(name: str, tensor: Tensor, config: TextConfig) -> Tensor:
    """Query and key rows in llama.cpp's order, written as its converter does it (`LlamaModel.permute`)."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


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
