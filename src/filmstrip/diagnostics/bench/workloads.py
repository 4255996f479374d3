"""What is timed. A workload is one unit of work on one model; the peers' own code does it (`ours`, `theirs`)."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from filmstrip.config import ModelConfig
from filmstrip.media.clip import Clip
from filmstrip.shapes import Float, Int, Tensor

Kind = Literal["load", "vision", "prefill", "decode", "second", "train"]
FRAMES, QUESTION_TOKENS = 8, 40
TRAINING_ROWS = 2
PROMPT_HEAD = 4  # tokens before the video
STEPS = 16  # tokens in one run of decoding
WORDS = ("How", "many", "shapes", "are", "there", "and", "which", "of", "the", "red", "green", "blue", "moves", "left")
_AROUND_QUESTION = 2  # tokens of the prompt's form behind the video
_FRAME_SIZE = (240, 320)


@dataclass(frozen=True)
class Workload:
    """Decoding has `context` tokens in the cache and `batch` rows; a `cold` load finds nothing of the files in memory;
    `compiled` is this program's step through `torch.compile` beside the other's as it comes.
    """

    kind: Kind
    context: int = 0
    batch: int = 1
    cold: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """How tables call it."""
        names = {
            "load": "load, " + ("cold" if self.cold else "warm"),
            "vision": f"vision, {FRAMES} frames",
            "prefill": f"prefill, {FRAMES} frames and {QUESTION_TOKENS} tokens",
            "decode": f"decode at {self.context}" + (f", batch {self.batch}" if self.batch > 1 else ""),
            "second": "second question, same video",
            "train": f"training step, batch {TRAINING_ROWS}" + (", compiled" if self.compiled else ""),
        }
        return names[self.kind]

    @property
    def tokens(self) -> int:
        """Tokens that one unit of decoding makes; 0 for all other work."""
        return self.batch if self.kind == "decode" else 0


WORKLOADS: dict[str, Workload] = {
    "load-cold": Workload("load", cold=True),
    "load-warm": Workload("load"),
    "vision": Workload("vision"),
    "prefill": Workload("prefill"),
    "decode-64": Workload("decode", context=64),
    "decode-64x4": Workload("decode", context=64, batch=4),
    "decode-64x8": Workload("decode", context=64, batch=8),
    "decode-2100": Workload("decode", context=2100),
    "decode-2100x4": Workload("decode", context=2100, batch=4),
    "decode-2100x8": Workload("decode", context=2100, batch=8),
    "second": Workload("second"),
    "train": Workload("train"),
    "train-compiled": Workload("train", compiled=True),
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


def random_cache(
    config: ModelConfig, rows: int, context: int, dtype: torch.dtype
) -> Iterator[tuple[Float[Tensor, "B K context H"], Float[Tensor, "B K context H"]]]:
    """Keys and values, layer by layer, as if a prompt had been read."""
    generator = torch.Generator().manual_seed(1)
    text = config.text
    shape = (rows, text.num_kv_heads, context, text.head_dim)
    for _ in range(text.num_layers):
        keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        yield keys, values


def random_clip() -> Clip:
    """Decoded frames of a video that is nowhere."""
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, *_FRAME_SIZE, 3), dtype=np.uint8)
    return Clip(
        path="random.mp4",
        kind="video",
        frames=frames,
        times=tuple(map(float, range(FRAMES))),
        indices=tuple(range(FRAMES)),
        total_frames=FRAMES,
        duration=float(FRAMES),
    )


def make_question(number: int) -> str:
    """A question of about `QUESTION_TOKENS` tokens with the prompt around it, another one for every number."""
    return " ".join(WORDS[(number + place) % len(WORDS)] for place in range(QUESTION_TOKENS - _AROUND_QUESTION))


@dataclass(frozen=True)
class Work:
    """`run` does the work and returns how many units that was; `before` is what each run needs first, off the clock."""

    run: Callable[[], int]
    before: Callable[[], object] = lambda: None


class Runner(ABC):
    """One program with one checkpoint loaded. A method named like a kind of workload gets ready for it."""

    directory: Path
    dtype: torch.dtype
    config: ModelConfig

    @abstractmethod
    def open(self, directory: Path, dtype: torch.dtype) -> dict[str, str]:
        """Load the weights; the precision of the arithmetic (`compute`) and of kept keys and values (`kept`)."""

    @abstractmethod
    def greedy(self, count: int) -> list[int]:
        """The first tokens of an answer to the prompt that `prefill` reads: all must agree on them in float32."""

    def prepare(self, workload: Workload) -> Work:
        """The work of a workload."""
        method: Callable[[Workload], Work] = getattr(self, workload.kind)
        return method(workload)

    def load(self, _workload: Workload) -> Work:
        """Load the weights again. The old ones are let go before, or both would be in memory."""

        def run() -> int:
            self.open(self.directory, self.dtype)
            return 1

        return Work(run, before=self.close)

    def close(self) -> None:
        """Let go of the model, mapped files included."""
        for name in ("assistant", "model"):
            vars(self).pop(name, None)
        gc.collect()
