"""The estimate turned round: which batch, context, frames and precision fit into a given memory."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.config import ModelConfig, TextConfig
from filmstrip.config.checks import require
from filmstrip.diagnostics.memory import Estimate, estimate
from filmstrip.diagnostics.memory_workload import Workload
from filmstrip.errors import ConfigError

Unknown = Literal["batch", "context", "frames"]
Precision = tuple[str, str | None]
"""A dtype, and what the weights are quantised to."""

ALL_PRECISIONS: tuple[Precision, ...] = (
    ("float32", None),
    ("bfloat16", None),
    ("bfloat16", "int8"),
    ("bfloat16", "int4"),
)
MOST = 2**20  # nobody asks for more rows, frames or tokens
_TRIED = {"batch": [2**power for power in range(9)], "context": [2**power for power in range(9, 18)]}


@dataclass(frozen=True)
class Fit:
    """One combination that fits, one of its unknowns as large as possible. `context` are the slots of one row."""

    dtype: str
    quantize: str | None
    batch: int
    frames: int
    context: int
    total: int
    phase: str
    beyond_training: bool

    @property
    def precision(self) -> str:
        """What the weights are stored in."""
        return self.quantize or self.dtype


def fit(
    config: AnyConfig, workload: Workload, budget: int, unknowns: Sequence[Unknown], precisions: Sequence[Precision]
) -> tuple[Fit, ...]:
    """What fits into `budget` bytes, for every precision.

    One unknown is made as large as possible: the frames if they are unknown, else the context, else the batch. The
    others run over powers of two, from the smallest until nothing fits. `workload` gives what is known; with the
    context unknown its text grows. Raises `ConfigError` for a model that has no such unknown or cannot do the smallest.
    """
    _check(config, workload, unknowns)
    largest: Unknown = next(name for name in ("frames", "context", "batch") if name in unknowns)  # type: ignore[misc]
    tried = [name for name in ("batch", "context") if name in unknowns and name != largest]
    return tuple(
        found
        for dtype, quantize in precisions
        for found in _rows(config, replace(workload, dtype=dtype, quantize=quantize), budget, largest, tried)
    )


def _rows(config: AnyConfig, workload: Workload, budget: int, largest: Unknown, tried: list[str]) -> Iterator[Fit]:
    for values in product(*(_TRIED[name] for name in tried)):
        given = replace(workload, **dict(zip(tried, values, strict=True)))
        found = _largest(config, given, budget, largest)
        if found is not None:
            yield found
        elif not tried:
            estimate(config, _with(given, largest, 1))  # says so when it is not for want of memory


def _largest(config: AnyConfig, workload: Workload, budget: int, unknown: Unknown) -> Fit | None:
    """The largest value that fits. Memory grows with every unknown, and nearly in proportion: the next value to try is
    where a line through two known ones meets the budget, and every third one halves what is left, whatever the line.
    """
    found = _try(config, workload, unknown, 1)
    if found is None or found.peak.total > budget:
        return None
    low, high, best = (1, float(found.peak.total)), (MOST + 1, math.inf), found
    slope, step = 0.0, 0
    while high[0] - low[0] > 1:
        value = _next(low, high, slope, budget) if step % 3 < 2 else _halfway(low, high)
        found = _try(config, workload, unknown, value)
        total = math.inf if found is None else float(found.peak.total)
        if math.isfinite(total):
            slope = (total - low[1]) / (value - low[0])
        if found is not None and total <= budget:
            low, best = (value, total), found
        else:
            high = (value, total)
        step += 1
    return _as_fit(config, best)


def _next(low: tuple[int, float], high: tuple[int, float], slope: float, budget: int) -> int:
    """Where memory of this slope (bytes for one more) meets the budget, but nearer than `high`."""
    steps = (budget - low[1]) / slope if slope > 0 else 1.0
    return int(min(max(low[0] + steps, low[0] + 1), high[0] - 1))


def _halfway(low: tuple[int, float], high: tuple[int, float]) -> int:
    """The middle; twice as much as long as nothing is known not to fit."""
    return min(2 * low[0], high[0] - 1) if high[0] > MOST else (low[0] + high[0]) // 2


def _try(config: AnyConfig, workload: Workload, unknown: Unknown, value: int) -> Estimate | None:
    """None for more frames than temporal attention knows, or than the context holds."""
    try:
        return estimate(config, _with(workload, unknown, value))
    except ConfigError:
        return None


def _with(workload: Workload, unknown: Unknown, value: int) -> Workload:
    """The workload with a value for the unknown; a context is what text there is beside media and new tokens."""
    if unknown == "context":
        return replace(workload, context=None, prompt_tokens=value)
    return replace(workload, frames=value) if unknown == "frames" else replace(workload, batch=value)


def _as_fit(config: AnyConfig, found: Estimate) -> Fit:
    text = config.text if isinstance(config, ModelConfig) else config
    trained = text.max_positions if isinstance(text, TextConfig) else MOST
    return Fit(
        dtype=found.workload.dtype,
        quantize=found.workload.quantize,
        batch=found.extent.batch,
        frames=found.workload.frames if found.extent.clips else 0,
        context=found.extent.capacity,
        total=found.peak.total,
        phase=found.peak.name,
        beyond_training=found.extent.capacity > trained,
    )


def _check(config: AnyConfig, workload: Workload, unknowns: Sequence[Unknown]) -> None:
    require(len(unknowns) > 0, "nothing is unknown: put ? for the batch, the context or the frames")
    takes_video = not isinstance(config, TextConfig) and (
        not isinstance(config, ModelConfig) or (config.video_token_id is not None and workload.videos > 0)
    )
    require("frames" not in unknowns or takes_video, "there are no videos whose frames could be counted")
    has_context = isinstance(config, ModelConfig | TextConfig)
    require("context" not in unknowns or has_context, "a vision tower on its own has no context")
