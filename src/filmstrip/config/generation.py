"""Configuration of generation: how the next token is chosen and when to stop."""

from dataclasses import dataclass

from filmstrip.config.checks import require


@dataclass(frozen=True)
class SamplingConfig:
    """How one token is chosen from the logits, and when generation ends.

    `temperature` 0 is greedy; filters apply in the order repetition penalty, temperature, top-k, top-p, min-p,
    as in transformers. `stop_strings` end the text before the string appears in it.
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
        require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        require(self.temperature >= 0, f"temperature must not be negative, is {self.temperature}")
        require(self.top_k >= 0, f"top_k must not be negative, is {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, is {self.top_p}")
        require(0 <= self.min_p <= 1, f"min_p must be between 0 and 1, is {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be above 0, is {self.repetition_penalty}")
        require(all(self.stop_strings), "a stop string must not be empty")
