"""Memory formulas of single blocks: what is alive at the worst moment of one, and what training keeps of it.

Read beside `models/vision.py`, `models/decoder.py` and `ops`: every term is a tensor that is alive there at that line,
Python's temporaries included. A tensor stays alive while a local variable or an argument of a running call names it.
All results are bytes. n tokens, E or D the width, I the inner width of the MLP, b bytes a number.
"""

from dataclasses import dataclass

from filmstrip.config import TextConfig, VisionConfig

FLOAT32 = 4


@dataclass(frozen=True)
class AttentionPath:
    """How `ops.attention` runs: `eager`, PyTorch's fused kernel, or its written-out fallback `math`.

    `masked` says that a boolean mask is given, which the fused kernels want as numbers.
    """

    name: str
    masked: bool = False


def choose_attention(config: TextConfig, backend: str, device: str, *, masked: bool) -> AttentionPath:
    """The kernel that PyTorch's `scaled_dot_product_attention` takes for the text tower.

    On CUDA a mask rules out FlashAttention, and the memory-efficient kernel knows no grouped heads, so both together
    fall back to `math`. On the CPU the fused kernel serves both.
    """
    if backend == "eager":
        return AttentionPath("eager", masked)
    grouped = config.num_kv_heads != config.num_heads
    if device == "cuda" and masked and grouped:
        return AttentionPath("math", masked)
    return AttentionPath("fused", masked)


def score_bytes(rows: int, queries: int, keys: int, heads: int, b: int, path: AttentionPath) -> int:
    """What attention holds beside queries, keys, values and its result.

    fused: log-sum-exp per query (float32), and the mask as numbers. eager: two copies of the scores in float32 (scaled,
    softmax), in 16 bit also the rounded weights, in prompts without padding the causal triangle. math: as eager.
    """
    if path.name == "fused":
        return rows * heads * queries * FLOAT32 + (rows * queries * keys * b if path.masked else 0)
    scores = rows * heads * queries * keys
    return scores * (2 * FLOAT32 + (b if b < FLOAT32 else 0)) + queries * keys


def activation_copies(name: str) -> int:
    """Tensors of the inner width alive at once: input and output; quick GELU writes its sigmoid out as well."""
    return 3 if name == "quick_gelu" else 2


def vision_block_peak(
    config: VisionConfig, clips: int, frames: int, held: int, b: int, backend: str, norm_bytes: int | None = None
) -> int:
    """The worst moment of one vision block, with `held` hidden states alive in the tower (the block's input included).

    attention: norm, q, k, v, result, projected. Over time: also the sum with the frame vectors and its transpose, while
    the input stays. MLP: the attention's norm (still named), new residual, norm, and the activation's copies.
    `norm_bytes` is a number's size after a layer norm, which autocast leaves in float32.
    """
    n = clips * frames * config.num_positions
    wide = n * config.hidden_size * b
    norm = n * config.hidden_size * (norm_bytes or b)
    inner = n * config.intermediate_size * b
    path = AttentionPath(backend if backend == "eager" else "fused")
    space = score_bytes(clips * frames, config.num_positions, config.num_positions, config.num_heads, b, path)
    copies = 1 if backend == "eager" else 0  # `_repeat_heads` copies
    steps = [
        (held + 5 + copies + int(config.temporal_attention)) * wide + norm + space,
        (held + 1) * wide + 2 * norm + activation_copies(config.activation) * inner,
    ]
    if config.temporal_attention:
        time = score_bytes(clips * config.num_positions, frames, frames, config.num_heads, b, path)
        steps.append((held + 6 + copies + int(frames > 1)) * wide + norm + time)
    return max(steps)


def rms_norm_peak(values: int, b: int) -> int:
    """`ops.norm.rms_norm`: float32 keeps the product and the result, 16 bit two float32 copies and the rounded one."""
    return 2 * values * b if b == FLOAT32 else values * (2 * FLOAT32 + b)


def text_block_peak(
    config: TextConfig, rows: int, queries: int, keys: int, b: int, path: AttentionPath, stream: int | None = None
) -> int:
    """The worst moment of one decoder block with a cache, its input included, the cache not.

    rotary: norm, q, k, v and four tensors of q's size (rotated half, two products, their sum). attention: norm, q,
    result, projected. MLP: new residual, norm, and gate, up and their product at the inner width. Grouped heads are
    repeated for the written-out backends. `stream` is a number's size in the residual stream and what is multiplied
    with the rotary tables, where autocast makes that wider than `b`.
    """
    n, wide = rows * queries, stream or b
    x = n * config.hidden_size * wide
    q = n * config.num_heads * config.head_dim
    kv = n * config.num_kv_heads * config.head_dim
    inner = n * config.intermediate_size * b
    repeated = 0 if path.name == "fused" else rows * keys * config.num_heads * config.head_dim * b
    scores = score_bytes(rows, queries, keys, config.num_heads, b, path)
    return max(
        x + rms_norm_peak(n * config.hidden_size, wide),
        2 * x + q * (2 * b + 3 * wide) + 2 * kv * b,
        2 * x + q * (b + wide) + kv * (3 * b + 3 * wide),
        3 * x + q * (b + wide) + scores + repeated,
        3 * x + 3 * inner,
    )


def text_block_saved(config: TextConfig, n: int, compute: int, stream: int, *, learns: bool) -> int:
    """What the backward pass of one decoder block needs.

    Both norms keep their input in float32; attention keeps q, k, v, its result and the log-sum-exp; the MLP keeps gate,
    its activation and up. Where weights learn, the norms also keep what the weight multiplied, and every linear layer
    its input: under autocast (`stream` wider than `compute`) each layer of q, k, v and of gate, up keeps a rounded copy
    of its own.
    """
    d, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    each = 2 * d * FLOAT32 + (2 * q + 2 * kv + 3 * inner) * compute + config.num_heads * FLOAT32
    if learns:
        inputs = 5 if stream != compute else 2
        each += 2 * d * stream + (inputs * d + inner) * compute
    return n * each


def adapters_saved(config: TextConfig, n: int, compute: int, rank: int, device: str) -> int:
    """What the adapters of one block keep: copies of their layers' inputs after dropout, its mask, low-rank values.

    The mask is boolean on CUDA; the CPU's dropout keeps it as float32 numbers.
    """
    inputs = 5 * config.hidden_size + config.num_heads * config.head_dim + config.intermediate_size
    mask = 1 if device == "cuda" else FLOAT32
    return n * (inputs * (compute + mask) + 7 * rank * compute)


def text_block_backward(config: TextConfig, n: int, compute: int, stream: int) -> int:
    """What the backward pass of one decoder block makes for itself: gradients of the MLP's inner values and of the
    residual stream, at the moment when the block's saved values are still whole."""
    return n * (3 * config.intermediate_size * compute + 3 * config.hidden_size * stream)


def vision_block_saved(config: VisionConfig, clips: int, frames: int, compute: int, stream: int) -> int:
    """What the backward pass of one vision block needs when the towers learn: as for text, with layer norms.

    Attention over time has the same terms as attention over space (its norm's input is the transposed copy).
    """
    n = clips * frames * config.num_positions
    casts = stream != compute
    wide = stream + (3 if casts else 1) * compute + 4 * compute  # input, its normed copies, q, k, v, result
    attentions = 2 if config.temporal_attention else 1
    inner = activation_copies(config.activation) * config.intermediate_size * compute
    mlp = (stream + compute) * config.hidden_size + inner
    return n * (attentions * (wide * config.hidden_size + config.num_heads * FLOAT32) + mlp)
