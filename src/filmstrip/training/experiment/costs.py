"""What answering costs with each aggregation: visual tokens, time and memory of the prefill. Weights do not matter."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from filmstrip.config import ModelConfig
from filmstrip.diagnostics.memory import estimate
from filmstrip.diagnostics.memory_measure import measure
from filmstrip.diagnostics.memory_random import random_inputs, random_model
from filmstrip.diagnostics.memory_workload import Workload
from filmstrip.generation.step import new_cache, prefill

PROMPT_TOKENS = 16  # a question with its template
ROWS = 4  # clips in a batch: one alone would time Python rather than products


@dataclass(frozen=True)
class Costs:
    """Of a clip and a short question; times are those of a batch of `ROWS`, in seconds.

    `vision` is pixels to fused embeddings (tower, aggregation, projector), `prefill` the text tower over the prompt.
    The ratios are medians over rounds of this variant's time by the baseline's in the same round, so that what else the
    machine does falls on both. `prefill_bytes` is the peak of that phase without weights: activations, embeddings and
    key/value cache, as allocated.
    """

    visual_tokens: int
    vision_seconds: float
    vision_ratio: float
    prefill_seconds: float
    prefill_ratio: float
    prefill_bytes: int


def measure_costs(
    configs: Mapping[str, ModelConfig], baseline: ModelConfig, frames: int, rounds: int, note: Callable[[str], None]
) -> dict[str, Costs]:
    """Time every model once a round, the baseline first, and take medians.

    On one thread: several wait for each other whenever something else runs, and would measure that.
    """
    workload = Workload(
        batch=ROWS, frames=frames, prompt_tokens=PROMPT_TOKENS, new_tokens=0, dtype="float32", device="cpu"
    )
    note("measuring time and memory of the prefill")
    timers = {name: _Timer(config, workload) for name, config in {"": baseline, **configs}.items()}
    with _one_thread():
        for timer in timers.values():
            timer()  # the first call pays for what later ones reuse
        times = [{name: timer() for name, timer in timers.items()} for _ in range(rounds)]
    found = {}
    for name, config in configs.items():
        vision, prefilling = zip(*(row[name] for row in times), strict=True)
        by_baseline = [[own / plain for own, plain in zip(row[name], row[""], strict=True)] for row in times]
        run = measure(estimate(config, workload), config, torch.device("cpu"))
        found[name] = Costs(
            visual_tokens=config.clip_tokens(frames),
            vision_seconds=median(vision),
            vision_ratio=median(ratio[0] for ratio in by_baseline),
            prefill_seconds=median(prefilling),
            prefill_ratio=median(ratio[1] for ratio in by_baseline),
            prefill_bytes=run.peak("prefill", "allocated") - run.weights,
        )
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Timer:
    """One model with random weights and inputs; a call gives the seconds of vision and of prefill."""

    def __init__(self, config: ModelConfig, workload: Workload) -> None:
        cpu = torch.device("cpu")
        self.extent = estimate(config, workload).extent
        self.model = random_model(config, workload, cpu).model
        self.batch = random_inputs(config, workload, self.extent, cpu)

    def __call__(self) -> tuple[float, float]:
        with torch.inference_mode():
            started = perf_counter()
            x_BTD = self.model.embed(self.batch.input_ids, *self.batch.media)
            embedded = perf_counter()
            prefill(self.model, new_cache(self.model, self.extent.batch, self.extent.capacity), x_BTD)
            return embedded - started, perf_counter() - embedded
