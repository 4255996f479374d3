"""A LLaMA in a GGUF file as this package's decoder: its configuration, and its tensors by their names here.

llama.cpp pairs neighbouring channels in its rotary embedding, so its converter reorders the rows of every query and
key projection; `half_rotation` puts them back in the order of this package (and of transformers).
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.gguf_file import GgufFile
from filmstrip.checkpoint.hf_config import MAX_LAYERS
from filmstrip.checkpoint.write import LazyTensor
from filmstrip.config import RopeConfig, TextConfig
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.ops.rope import inverse_frequencies
from filmstrip.shapes import Float, Tensor

ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp's names of tensors and their names in `Decoder`: outside of blocks, and of the parts of a block.
OUTER_NAMES = {
    "token_embd.weight": "token_embedding.weight",
    "output_norm.weight": "final_norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
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
# The scaling of every Llama 3.1, 3.2 and 3.3 but for its factor, which a GGUF file leaves to be read off its tensor.
_LLAMA3 = RopeConfig(scaling="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)


def gguf_text_config(file: GgufFile) -> TextConfig:
    """The configuration in a file's metadata. Embeddings are tied when the file holds no output matrix.

    Raises `ConfigError` naming the key for another architecture, a value that is missing or out of range, and a
    rotary embedding that this package does not compute.
    """
    fields = gguf_fields(file)
    fields.choice("general.architecture", "(absent)", ("llama",))
    fields.refuse({"llama.expert_count": "only a dense MLP is supported"})
    width = fields.integer("llama.embedding_length", 0)
    num_heads = fields.integer("llama.attention.head_count", 0)
    head_dim = fields.integer("llama.attention.key_length", max(1, width // num_heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        fields.integer(key, head_dim, low=head_dim, high=head_dim)
    tokens = fields.get("tokenizer.ggml.tokens")
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0
    config = TextConfig(
        vocab_size=fields.integer("llama.vocab_size", rows or len(tokens or ())),
        hidden_size=width,
        intermediate_size=fields.integer("llama.feed_forward_length", 0),
        num_layers=fields.integer("llama.block_count", 0, high=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_positions=fields.integer("llama.context_length", 0),
        rms_norm_eps=fields.required_number("llama.attention.layer_norm_rms_epsilon", "RMSNorm"),
        tie_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
    )
    return replace(config, rope=_rope(file, fields, config))


def gguf_fields(file: GgufFile) -> Fields:
    """The metadata with typed access."""
    return Fields(file.metadata, str(file.path))


def gguf_generation(file: GgufFile) -> GenerationDefaults:
    """The special ids of a file: the end of text, and the end of a turn or message where there is one."""
    fields = gguf_fields(file)
    ends = ("eos", "eot", "eom")
    ids = [fields.optional_integer(f"tokenizer.ggml.{name}_token_id") for name in ends]
    eos = tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))
    return GenerationDefaults(
        bos_id=fields.optional_integer("tokenizer.ggml.bos_token_id"),
        eos_ids=eos or (2,),
        pad_id=fields.optional_integer("tokenizer.ggml.padding_token_id"),
    )


def gguf_dtype(file: GgufFile) -> torch.dtype:
    """The dtype that a file's matrices are stored in; float16 for quantised ones.

    Of the 16-bit types float16 is the nearer one to a dequantised value: the scales of ggml's blocks are themselves
    float16, and their values far from its limits. bfloat16 would round away three more bits.
    """
    kinds = [tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1]
    for kind, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16)):
        if kinds.count(kind) * 2 > len(kinds):
            return dtype
    return torch.float16


def gguf_tensors(file: GgufFile, config: TextConfig, dtype: torch.dtype) -> dict[str, LazyTensor]:
    """Every tensor under its name in `Decoder`, dequantised to `dtype` when read.

    Raises `CheckpointError` for a tensor whose name has no place in a LLaMA. (Whether all are there, in the right
    shapes, is for the caller to hold against the model.)
    """
    tensors: dict[str, LazyTensor] = {}
    for name in file.tensors:
        if name == ROPE_FACTORS:
            continue  # it is part of the configuration here
        lazy = file.lazy(name, dtype)
        canonical = OUTER_NAMES.get(name) or _block_name(name)
        if canonical is None:
            raise CheckpointError(f"{file.path}: tensor {name[:80]!r} has no place in a LLaMA")
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
        if heads is not None:
            if lazy.shape[0] % (2 * heads):
                raise CheckpointError(
                    f"{file.path}: {name[:80]!r} of shape {lazy.shape} does not divide by {heads} heads"
                )
            lazy = replace(lazy, read=_reordered(lazy, heads))
        tensors[canonical] = lazy
    return tensors


def half_rotation(weight: Float[Tensor, "rows *D"], num_heads: int) -> Float[Tensor, "rows *D"]:
    """Rows of each head from (0, H/2, 1, H/2+1, ...), llama.cpp's order, to (0, 1, 2, ...)."""
    return weight.reshape(num_heads, -1, 2, *weight.shape[1:]).transpose(1, 2).flatten(0, 2)


def _reordered(lazy: LazyTensor, num_heads: int) -> Callable[[], Tensor]:
    return lambda: half_rotation(lazy.read(), num_heads)


def _block_name(name: str) -> str | None:
    """`blk.7.attn_q.weight` under this package's name."""
    parts = name.split(".")
    known = len(parts) == 4 and parts[0] == "blk" and parts[2] in BLOCK_NAMES and parts[3] in ("weight", "bias")
    return f"blocks.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{parts[3]}" if known else None


def _rope(file: GgufFile, fields: Fields, config: TextConfig) -> RopeConfig:
    theta = fields.number("llama.rope.freq_base", 10_000.0)
    named = "llama.rope.scaling.type" in fields
    scaling = fields.choice("llama.rope.scaling.type", "none", ("none", "linear"))
    if ROPE_FACTORS in file.tensors:
        if scaling != "none":
            raise ConfigError(f"{file.path}: the rotary embedding is scaled twice, by metadata and by {ROPE_FACTORS}")
        return _llama3(file, replace(_LLAMA3, theta=theta), config)
    old_factor = fields.number("llama.rope.scale_linear", 1.0)  # the key before `scaling`
    factor = fields.number("llama.rope.scaling.factor", old_factor)
    if scaling == "linear" or (factor != 1.0 and not named):  # a factor without a type means linear
        return RopeConfig(theta=theta, scaling="linear", factor=factor)
    return RopeConfig(theta=theta)


def _llama3(file: GgufFile, rope: RopeConfig, config: TextConfig) -> RopeConfig:
    """The scaling whose divisors are those of the file; the largest of them is its factor."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.shape == (config.head_dim // 2,):
        stored = file.lazy(ROPE_FACTORS, torch.float32).read()
        found = replace(rope, factor=max(1.0, round(float(stored.max()), 4)))
        plain = inverse_frequencies(RopeConfig(theta=rope.theta), config.head_dim, config.max_positions)
        expected = (plain / inverse_frequencies(found, config.head_dim, config.max_positions))[0]
        if bool(stored.isfinite().all()) and torch.allclose(stored, expected, rtol=1e-4):
            return found
    raise ConfigError(f"{file.path}: {ROPE_FACTORS} is not the rotary scaling of Llama 3, the only one known here")
