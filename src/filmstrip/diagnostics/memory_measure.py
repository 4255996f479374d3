"""Run a workload on random weights and measure what the estimate claims, phase by phase.

Allocation does not depend on values, so no checkpoint is read. Decoding is measured where it needs most: at the last
new token, with the cache full. Training measures one whole step, the optimizer's averages in place.
"""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from filmstrip.api.load import DTYPES
from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.config import ModelConfig, SamplingConfig
from filmstrip.diagnostics.memory import Estimate
from filmstrip.diagnostics.memory_random import TrainingModel, random_inputs, random_model
from filmstrip.diagnostics.memory_units import format_bytes
from filmstrip.diagnostics.memory_workload import Extent, Workload
from filmstrip.diagnostics.tracker import MemoryTracker, Phase
from filmstrip.errors import ConfigError, FilmstripError
from filmstrip.generation import TokenLoop
from filmstrip.generation.step import decode_step, new_cache
from filmstrip.inputs.collate import Batch
from filmstrip.shapes import Tensor

_MEMORY = Path("/proc/meminfo")
_USABLE = 0.95  # of the memory that is free: the rest of the system moves, too


@dataclass(frozen=True)
class Measurement:
    """What a run needed. `phases` in order; `weights` and `kv_cache` are what their allocation alone took (bytes)."""

    phases: tuple[Phase, ...]
    gauges: tuple[str, ...]
    weights: int
    kv_cache: int
    start: dict[str, int]

    def peak(self, name: str, gauge: str) -> int:
        """The most in phase `name`, beyond what the process held before the run."""
        return max(phase.peak[gauge] for phase in self.phases if phase.name == name) - self.start[gauge]


@dataclass(frozen=True)
class Comparison:
    """One phase, estimated and measured: bytes, `measured` by gauge."""

    phase: str
    estimated: int
    measured: dict[str, int]

    def ratio(self, gauge: str) -> float:
        """Estimate over measurement."""
        return self.estimated / max(self.measured[gauge], 1)


def compare(estimate: Estimate, measurement: Measurement) -> tuple[Comparison, ...]:
    """Phases side by side, in order. An estimate tells moments of one phase apart (`backward: loss`), a run does not;
    the worst of them counts."""
    worst: dict[str, int] = {}
    for phase in estimate.phases:
        name = phase.name.split(":")[0]
        worst[name] = max(worst.get(name, 0), phase.total)
    return tuple(
        Comparison(name, total, {gauge: measurement.peak(name, gauge) for gauge in measurement.gauges})
        for name, total in worst.items()
    )


def measure(
    estimate: Estimate,
    config: AnyConfig,
    device: torch.device,
    on_phase: Callable[[str], None] | None = None,
    snapshot: Path | None = None,
) -> Measurement:
    """Run the workload of an estimate on `device`. `on_phase` hears the name of each phase; `snapshot` is a file for
    CUDA's record of every allocation (https://pytorch.org/memory_viz shows it).

    Raises `ConfigError` for workloads that cannot be run here (towers on their own, quantised weights, a snapshot
    without CUDA), `FilmstripError` when memory would not suffice by the estimate.
    """
    workload = estimate.workload
    if not isinstance(config, ModelConfig):
        raise ConfigError("only whole models can be measured; for a tower on its own there is the estimate")
    if workload.quantize:
        raise ConfigError("quantised weights cannot be measured, only estimated")
    if snapshot is not None and device.type != "cuda":
        raise ConfigError(f"--snapshot records CUDA's allocator; this run is on the {device.type}")
    require_memory(estimate.peak.total, device)
    torch.manual_seed(0)
    with ExitStack() as stack:
        if snapshot is not None:
            torch.cuda.memory._record_memory_history()
            stack.callback(torch.cuda.memory._record_memory_history, None)
        tracker = stack.enter_context(MemoryTracker(device))
        run = _Run(config, workload, estimate.extent, device, tracker, on_phase or (lambda name: None))
        with tracker.phase("start") as start:
            run.load()
            run.train() if workload.training else run.infer()
        if snapshot is not None:
            torch.cuda.memory._dump_snapshot(str(snapshot))  # type: ignore[no-untyped-call]
    phases = tuple(phase for phase in tracker.phases if phase is not start)
    return Measurement(phases, tuple(tracker.gauges), run.weights, run.kv_cache, start.begin)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMORY.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def require_memory(needed: int, device: torch.device) -> None:
    """Raise `FilmstripError` when `needed` bytes are not free on `device` (nothing is known of other systems)."""
    free = free_memory(device)
    if free is not None and needed > free * _USABLE:
        raise FilmstripError(
            f"this would need {format_bytes(needed)} by the estimate, and {format_bytes(free)} are free on {device}; "
            "leave out --measure or ask for less"
        )


class _Run:
    """One run, its phases named as it goes along."""

    def __init__(
        self,
        config: ModelConfig,
        workload: Workload,
        extent: Extent,
        device: torch.device,
        tracker: MemoryTracker,
        on_phase: Callable[[str], None],
    ) -> None:
        self.config, self.workload, self.extent, self.device = config, workload, extent, device
        self.tracker, self.on_phase = tracker, on_phase
        self.weights = self.kv_cache = 0
        self._stack = ExitStack()

    def begin(self, name: str) -> Phase:
        """End the phase that is open and begin the next."""
        self.end()
        self.on_phase(name)
        return self._stack.enter_context(self.tracker.phase(name))

    def end(self) -> None:
        """End the phase that is open."""
        self._stack.close()

    def load(self) -> None:
        """Weights, then inputs."""
        phase = self.begin("load")
        self.model = random_model(self.config, self.workload, self.device)
        self.end()
        self.weights = phase.end["allocated"] - phase.begin["allocated"]
        if isinstance(self.model, TrainingModel):
            self.weights -= self.model.optimizer_bytes
        self.batch: Batch = random_inputs(self.config, self.workload, self.extent, self.device)
        for kind in ("image", "video"):
            self._announce(kind)

    def _announce(self, kind: str) -> None:
        """Let encoding a kind of media begin a phase of its own."""
        plain = getattr(self.model.model, f"encode_{kind}s")

        def encode(*arguments: Any) -> Tensor:
            self.begin(f"vision ({kind}s)")
            tokens: Tensor = plain(*arguments)
            return tokens

        setattr(self.model.model, f"encode_{kind}s", encode)

    def _tap(self, site: str, value: Tensor) -> Tensor:
        """A tap that changes nothing: where a tower's output appears, the next phase begins."""
        kind, _, rest = site.partition("_tower.")
        if rest == "selected" and not self.workload.training:
            self.begin(f"projector ({kind}s)")
        elif site.startswith("projector.") and not self.workload.training:
            self.begin("fusion")
        return value

    def embed(self) -> Tensor:
        """Media and text to fused embeddings."""
        return self.model.model.embed(self.batch.input_ids, *self.batch.media, self._tap)

    def infer(self) -> None:
        """Prefill with the first token chosen, then the last decoding step."""
        workload, model, batch = self.workload, self.model.model, self.batch
        mask = batch.attention_mask if workload.padded else None
        with torch.inference_mode():
            x_BTD = self.embed()
            cache_phase = self.begin("kv cache")
            cache = new_cache(model, self.extent.batch, self.extent.capacity)
            self.begin("prefill")
        self.kv_cache = cache_phase.growth("allocated")
        loop = TokenLoop(model, cache, x_BTD, batch.input_ids, SamplingConfig(), attention_mask=mask)
        ids_B = next(iter(loop))
        if workload.new_tokens:
            cache.length = self.extent.capacity - 1
            if mask is not None:
                mask = functional.pad(mask, (0, self.extent.capacity - mask.shape[1]), value=1)
            self.begin("decode")
            with torch.inference_mode():
                decode_step(model, cache, ids_B, mask)
        self.end()

    def train(self) -> None:
        """One step: forward, loss, backward, clipping, AdamW."""
        workload, batch = self.workload, self.batch
        assert isinstance(self.model, TrainingModel)
        mask = batch.attention_mask if workload.padded else None
        autocast = workload.dtype != "float32"
        precision = torch.autocast(self.device.type, DTYPES[workload.dtype]) if autocast else nullcontext()
        with precision:
            x_BTD = self.embed()
            self.begin("forward")
            hidden_BTD = self.model.model.decode(x_BTD, mask)
            self.begin("backward")
            loss = _loss(self.model.model.text_tower.logits, hidden_BTD, workload.loss_tokens)
        del x_BTD, hidden_BTD
        loss.backward()  # type: ignore[no-untyped-call]
        self.begin("optimizer")
        nn.utils.clip_grad_norm_(self.model.learning, 1.0)
        self.model.optimizer.step()
        self.model.optimizer.zero_grad(set_to_none=True)
        self.end()


def _loss(logits: Callable[[Tensor], Tensor], hidden_BTD: Tensor, positions: int | None) -> Tensor:
    """Cross entropy of arbitrary targets at the last `positions` of each row."""
    scores = logits(hidden_BTD if positions is None else hidden_BTD[:, -positions:]).flatten(0, 1)
    return functional.cross_entropy(scores.float(), torch.zeros_like(scores[:, 0], dtype=torch.long))
