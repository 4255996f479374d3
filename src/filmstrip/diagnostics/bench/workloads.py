"""What is timed. A workload is one unit of work on one model; the peers' own code does it (`ours`, `theirs`)."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from filmstrip.config import ModelConfig
from filmstrip.shapes import Float, Int, Tensor

Kind = Literal["load", "vision", "prefill", "decode", "second", "train"]
FRAMES, QUESTION_TOKENS = 8, 40
TRAINING_ROWS = 2
PROMPT_HEAD = 4  # tokens before the video
STEPS = 16  # tokens in one run of decoding


@dataclass(frozen=True)
class Workload:
    """Decoding has `context` tokens in the cache and `batch` rows; `cold` first drops the files from memory."""

    kind: Kind
    context: int = 0
    batch: int = 1
    cold: bool = False

    @property
    def name(self) -> str:
        """How tables call it."""
        names = {
            "load": "load, " + ("cold" if self.cold else "warm"),
            "vision": f"vision, {FRAMES} frames",
            "prefill": f"prefill, {FRAMES} frames and {QUESTION_TOKENS} tokens",
            "decode": f"decode at {self.context}" + (f", batch {self.batch}" if self.batch > 1 else ""),
            "second": "second question, same video",
            "train": f"training step, batch {TRAINING_ROWS}",
        }
        return names[self.kind]


WORKLOADS: dict[str, Workload] = {
    "load-cold": Workload("load", cold=True),
    "load-warm": Workload("load"),
    "vision": Workload("vision"),
    "prefill": Workload("prefill"),
    "decode-64": Workload("decode", context=64),
    "decode-64x4": Workload("decode", context=64, batch=4),
    "decode-64x8": Workload("decode", context=64, batch=8),
    "decode-2100": Workload("decode", context=2100),
    "second": Workload("second"),
    "train": Workload("train"),
}
"""By the names that the command line knows."""


@dataclass(frozen=True)
class Inputs:
    """A prompt with a video and a question; placeholders are expanded."""

    input_ids: Int[Tensor, "B T"]
    videos: Float[Tensor, "B F C Y X"]
    video_end: int

    @property
    def question_ids(self) -> Int[Tensor, "B question"]:
        """What stands behind the video."""
        return self.input_ids[:, self.video_end :]


def make_inputs(config: ModelConfig, dtype: torch.dtype, rows: int = 1, seed: int = 0) -> Inputs:
    """Random pixels and words, the same for every peer."""
    generator = torch.Generator().manual_seed(seed)
    size, visual = config.video_tower.image_size, config.clip_tokens(FRAMES)
    words = random_ids(config, rows, PROMPT_HEAD + QUESTION_TOKENS, generator)
    video = torch.full((rows, visual), config.video_token_id or 0)
    ids_BT = torch.cat([words[:, :PROMPT_HEAD], video, words[:, PROMPT_HEAD:]], dim=1)
    pixels = torch.randn(rows, FRAMES, 3, size, size, generator=generator).to(dtype)
    return Inputs(ids_BT, pixels, PROMPT_HEAD + visual)


def random_ids(config: ModelConfig, rows: int, count: int, generator: torch.Generator) -> Int[Tensor, "B T"]:
    """Ids below every placeholder."""
    least = min(*config.placeholder_ids.values(), config.pad_token_id, config.text.vocab_size)
    low, high = (
        (3, least) if least > 3 else (10, config.text.vocab_size)
    )  # the embedded model's special ones come first
    return torch.randint(low, high, (rows, count), generator=generator)


def random_cache(config: ModelConfig, rows: int, context: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer (B, K, context, H), as if a prompt had been read."""
    generator = torch.Generator().manual_seed(1)
    text = config.text
    shape = (rows, text.num_kv_heads, context, text.head_dim)
    return [
        (torch.randn(shape, generator=generator).to(dtype), torch.randn(shape, generator=generator).to(dtype))
        for _ in range(text.num_layers)
    ]


class Runner:
    """One program with one checkpoint loaded; each method of a workload gives a function that does the work once and
    returns how many units that was.
    """

    directory: Path
    dtype: torch.dtype
    config: ModelConfig

    @abstractmethod
    def open(self, directory: Path, dtype: torch.dtype) -> None:
        """Load the weights."""

    @abstractmethod
    def greedy(self, count: int) -> list[int]:
        """The first tokens of an answer to the prompt that `prefill` reads: all must agree on them in float32."""

    def prepare(self, workload: Workload) -> Callable[[], int]:
        """The function that does the work."""
        method: Callable[[Workload], Callable[[], int]] = getattr(self, workload.kind)
        return method(workload)

    def load(self, _workload: Workload) -> Callable[[], int]:
        """Load the weights again."""

        def run() -> int:
            self.open(self.directory, self.dtype)
            return 1

        return run
