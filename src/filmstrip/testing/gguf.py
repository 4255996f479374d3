"""The text tower from a LLaMA GGUF file, dequantised to float32: real weights for the tests.

llama.cpp pairs neighbouring channels in its rotary embedding, so its converter reorders the rows of every query and
key projection; `half_rotation` puts them back in the order of this package (and of transformers).
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize

from filmstrip.config import RopeConfig, TextConfig
from filmstrip.models.decoder import Decoder
from filmstrip.shapes import Tensor

_OUTER = {
    "token_embd.weight": "token_embedding.weight",
    "output_norm.weight": "final_norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.q_proj",
    "attn_k": "attention.k_proj",
    "attn_v": "attention.v_proj",
    "attn_output": "attention.o_proj",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_gguf(package: str) -> Path | None:
    """The GGUF file inside an installed package, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def load_decoder(file: Path) -> Decoder:
    """Build the decoder that the file's metadata describes and fill it, strictly: every tensor has its place.

    Raises `ValueError` for another architecture than `llama` or for rotary scaling, `KeyError` for a missing
    metadata key or an unknown tensor.
    """
    reader = GGUFReader(file)
    config = text_config(reader)
    with torch.device("meta"):
        decoder = Decoder(config)
    state = dict(_tensors(reader, config))
    if config.tie_embeddings:
        state["lm_head.weight"] = state["token_embedding.weight"]
    decoder.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        decoder.lm_head.weight = decoder.token_embedding.weight
    return decoder.eval().requires_grad_(False)


def text_config(reader: GGUFReader) -> TextConfig:
    """The configuration in a file's metadata. Embeddings are tied when the file holds no output matrix."""

    def read(key: str) -> Any:
        return reader.fields[key].contents()

    if read("general.architecture") != "llama":
        raise ValueError(f"this GGUF file holds a {read('general.architecture')!r} model, not a LLaMA")
    if "llama.rope.scaling.type" in reader.fields or any(
        tensor.name == "rope_freqs.weight" for tensor in reader.tensors
    ):
        raise ValueError("this GGUF file scales its rotary embedding, which is not read here")
    return TextConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=read("llama.embedding_length"),
        intermediate_size=read("llama.feed_forward_length"),
        num_layers=read("llama.block_count"),
        num_heads=read("llama.attention.head_count"),
        num_kv_heads=read("llama.attention.head_count_kv"),
        head_dim=read("llama.rope.dimension_count"),
        max_positions=read("llama.context_length"),
        rms_norm_eps=read("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        rope=RopeConfig(theta=read("llama.rope.freq_base")),
    )


def _tensors(reader: GGUFReader, config: TextConfig) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 value of every tensor, under this package's names."""
    for tensor in reader.tensors:
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if tensor.name in _OUTER:
            yield _OUTER[tensor.name], value
            continue
        _, index, part, suffix = tensor.name.split(".")
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(part)
        if heads is not None:
            value = half_rotation(value, heads)
        yield f"blocks.{index}.{_BLOCK[part]}.{suffix}", value


def half_rotation(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from (0, H/2, 1, H/2+1, ...), llama.cpp's order, to (0, 1, 2, ...)."""
    return weight.reshape(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).flatten(0, 2)
