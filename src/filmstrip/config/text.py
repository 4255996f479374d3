"""Configuration of the text tower (LLaMA)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from filmstrip.config.checks import require, require_choice, require_positive

RopeScaling = Literal["default", "linear", "dynamic", "llama3"]
ROPE_SCALINGS: tuple[str, ...] = get_args(RopeScaling)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and how it is stretched past the trained length.

    `factor` is used by every scaling but `default`; `original_max_positions` by `dynamic` and `llama3`;
    the two frequency factors by `llama3` alone.
    """

    theta: float = 10_000.0
    scaling: RopeScaling = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int | None = None

    def trained_length(self, max_positions: int) -> int:
        """Positions seen in training, from which `dynamic` scaling starts to stretch."""
        return self.original_max_positions or max_positions

    def __post_init__(self) -> None:
        require_choice("rope scaling", self.scaling, ROPE_SCALINGS)
        require_positive("rope theta", self.theta)
        require_positive("rope factor", self.factor)
        if self.scaling == "llama3":
            require(
                self.high_freq_factor > self.low_freq_factor,
                f"llama3 rope scaling: high_freq_factor {self.high_freq_factor} "
                f"is not above low_freq_factor {self.low_freq_factor}",
            )
            require(self.original_max_positions is not None, "llama3 rope scaling: original length is missing")


@dataclass(frozen=True)
class TextConfig:
    """LLaMA decoder. Defaults are the 7B text tower of `LanguageBind/Video-LLaVA-7B-hf`."""

    vocab_size: int = 32_064
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    max_positions: int = 4096
    rms_norm_eps: float = 1e-5
    activation: str = "silu"
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)

    def stretches(self, num_tokens: int) -> bool:
        """Whether rotary frequencies depend on the length of a prompt of `num_tokens`: every key does then, too."""
        return self.rope.scaling == "dynamic" and num_tokens > self.rope.trained_length(self.max_positions)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            require_positive(f"text {name}", getattr(self, name))
        require_positive("text max_positions", self.max_positions)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"text: {self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly",
        )
        require(
            self.head_dim > 0 and self.head_dim % 2 == 0,
            f"text: rotary embedding needs an even head width, not {self.head_dim}",
        )
