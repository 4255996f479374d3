"""Configuration of generation: how the next token is chosen and when to stop."""

import sys
from dataclasses import dataclass

from filmstrip.config.checks import require

MAX_NEW_TOKENS = 1_000_000
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingConfig:
    """How one token is chosen from the logits, and when generation ends.

    `temperature` 0 is greedy; filters apply in the order repetition penalty, temperature, top-k, top-p, min-p,
    as in transformers. `stop_strings` end the text before the string appears in it. Raises `ConfigError` for a value
    of the wrong type or out of range; at most `MAX_NEW_TOKENS` tokens can be asked for.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            _require_integer(name, getattr(self, name))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _require_finite(name, getattr(self, name))
        if self.seed is not None:
            _require_integer("seed", self.seed)
            require(0 <= self.seed <= MAX_SEED, f"the seed must be from 0 to {MAX_SEED}, is {self.seed}")
        texts = isinstance(self.stop_strings, tuple) and all(isinstance(stop, str) for stop in self.stop_strings)
        require(texts, f"stop_strings must be a tuple of texts, not {self.stop_strings!r}")
        self._require_ranges()

    def _require_ranges(self) -> None:
        require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        require(
            self.max_new_tokens <= MAX_NEW_TOKENS,
            f"max_new_tokens must be at most {MAX_NEW_TOKENS:,}, and more was asked for",
        )
        require(self.temperature >= 0, f"temperature must not be negative, is {self.temperature}")
        require(self.top_k >= 0, f"top_k must not be negative, is {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, is {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must be between 0 and 1, is {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, is {self.repetition_penalty}")
        require(all(self.stop_strings), "a stop string must not be empty")


def _require_integer(name: str, value: object) -> None:
    require(isinstance(value, int) and not isinstance(value, bool), f"{name} must be a whole number, not {value!r}")


def _require_finite(name: str, value: float) -> None:
    require(isinstance(value, int | float) and not isinstance(value, bool), f"{name} must be a number, not {value!r}")
    shown = value if isinstance(value, float) else "an integer too large for one"
    require(abs(value) <= sys.float_info.max, f"{name} must be a finite number, not {shown}")
