"""The optimisation loop: AdamW, warm-up and cosine decay, clipping, atomic checkpoints, a JSONL log.

Batches are numbered, and a batch's number decides its content, so a run continued from a checkpoint sees exactly the
batches that an uninterrupted run would have seen.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from filmstrip.errors import FilmstripError
from filmstrip.shapes import Tensor

LossFunction = Callable[[Any, float], tuple[Tensor, dict[str, float]]]
"""Batch and progress (0 to 1) to the loss and figures for the log."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. The run ends at `steps` or after `minutes`, whichever is set or comes first."""

    learning_rate: float
    steps: int | None = None
    minutes: float | None = None
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    checkpoint_every: float = 60.0

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.minutes is not None:
            shares.append(seconds / (60 * self.minutes))
        return min(1.0, max(shares))

    def rate(self, progress: float) -> float:
        """Factor on the learning rate: linear warm-up, then cosine to one fiftieth."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        along = (progress - self.warmup) / (1 - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along))


@dataclass
class RunState:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0


def parameter_groups(model: nn.Module, schedule: Schedule, factors: dict[str, float]) -> list[dict[str, Any]]:
    """One group per learning-rate factor and per decayed or not; names starting with a key of `factors` get its factor.

    Vectors (norms, biases, single embeddings) are not decayed. A factor of 0 freezes.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((value for prefix, value in factors.items() if name.startswith(prefix)), 1.0)
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": schedule.learning_rate * factor,
            "base_lr": schedule.learning_rate * factor,
            "weight_decay": schedule.weight_decay if decayed else 0.0,
        }
        for (factor, decayed), parameters in groups.items()
    ]


class Trainer:
    """Runs one stage. `directory` receives `log.jsonl` and `checkpoint.pt`; an existing checkpoint is continued."""

    def __init__(
        self, model: nn.Module, schedule: Schedule, directory: Path, factors: dict[str, float] | None = None
    ) -> None:
        if schedule.steps is None and schedule.minutes is None:
            raise FilmstripError("a training stage needs a number of steps or of minutes")
        self.model, self.schedule, self.directory = model, schedule, directory
        directory.mkdir(parents=True, exist_ok=True)
        groups = parameter_groups(model, schedule, factors or {})
        self.optimizer = torch.optim.AdamW(groups, betas=schedule.betas, foreach=True)
        self.state = RunState()
        self._resume()

    @property
    def checkpoint_path(self) -> Path:
        """The file that holds the last good state."""
        return self.directory / "checkpoint.pt"

    @property
    def log_path(self) -> Path:
        """One JSON object a step."""
        return self.directory / "log.jsonl"

    def run(
        self, batches: Iterable[Any], loss_function: LossFunction, report: Callable[[], None] | None = None
    ) -> None:
        """Train to the end of the schedule. `batches` start at number `state.step`.

        `report` is called with every checkpoint. Raises `FilmstripError` at the first loss that is not a number,
        naming the last good checkpoint.
        """
        started = time.monotonic() - self.state.seconds
        saved_at = self.state.seconds
        with _progress_bar() as bar, self.log_path.open("a") as log:
            task = bar.add_task(self.directory.name, total=1.0)
            for batch in self._until_done(batches):
                progress = self.schedule.progress(self.state.step, self.state.seconds)
                figures = self._step(batch, loss_function, progress)
                self.state.step += 1
                self.state.samples += len(batch)
                self.state.seconds = time.monotonic() - started
                line = {**vars(self.state), "rate": self.schedule.rate(progress), **figures}
                log.write(json.dumps({key: round(value, 5) for key, value in line.items()}) + "\n")
                shown = " ".join(f"{key} {value:.3f}" for key, value in figures.items())
                bar.update(task, completed=progress, description=f"{self.directory.name}  {shown}")
                if self.state.seconds - saved_at > self.schedule.checkpoint_every:
                    log.flush()
                    self._save()
                    saved_at = self.state.seconds
                    if report:
                        report()
        self._save()

    def _until_done(self, batches: Iterable[Any]) -> Iterator[Any]:
        if self.schedule.progress(self.state.step, self.state.seconds) >= 1.0:
            return
        for batch in batches:
            yield batch
            if self.schedule.progress(self.state.step, self.state.seconds) >= 1.0:
                return

    def _step(self, batch: Any, loss_function: LossFunction, progress: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.schedule.rate(progress)
        loss, figures = loss_function(batch, progress)
        if not bool(torch.isfinite(loss)):
            raise FilmstripError(
                f"the loss of step {self.state.step} is {loss.item()}; the last good state is {self.checkpoint_path}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.schedule.clip_norm)
        self.optimizer.step()
        return {"loss": loss.item(), **figures}

    def _save(self) -> None:
        """Write beside, then rename: a kill at any moment leaves the old file or the new one."""
        partial = self.checkpoint_path.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "run": vars(self.state)}
        torch.save(state, partial)
        partial.replace(self.checkpoint_path)

    def _resume(self) -> None:
        if not self.checkpoint_path.exists():
            return
        state = torch.load(self.checkpoint_path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.state = RunState(**state["run"])
        self._forget_later_steps()

    def _forget_later_steps(self) -> None:
        """Drop log lines of steps that ran after the checkpoint: they will be run, and logged, again."""
        path = self.log_path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.state.step]
        path.write_text("".join(f"{line}\n" for line in kept))


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=2
    )
