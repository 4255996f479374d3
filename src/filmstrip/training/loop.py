"""The optimisation loop: accumulation, clipping, checkpoints, the log.

Batches are numbered, and a batch's number decides its content; a step's number decides its random state. So a run
continued from a checkpoint does exactly what an uninterrupted run would have done.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from filmstrip.errors import FilmstripError
from filmstrip.shapes import Tensor
from filmstrip.training.checkpoints import CheckpointStore, RunState, is_first_process, training_state
from filmstrip.training.log import SKIPPED_FILE, RunLog
from filmstrip.training.optimizer import RunningMean, clip_gradients, make_optimizer, set_rate
from filmstrip.training.parallel import Parallel
from filmstrip.training.recipe import CheckpointRecipe, OptimizerRecipe
from filmstrip.training.schedule import Schedule

_EMPTY_STEPS = 20  # so many steps in a row without one readable sample end the run


@runtime_checkable
class TrainingBatch(Protocol):
    """What the loop must know about a batch.

    `weight` is the number of targets that its mean loss is over (tokens, stills), `tokens` what is read, padding not
    counted; `skipped` names the samples that were left out, with reasons.
    """

    @property
    def weight(self) -> float: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def skipped(self) -> Sequence[tuple[str, str]]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def to(self, device: torch.device) -> "TrainingBatch": ...  # noqa: D102


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of a recipe. `micro_batches` forward passes make one step of one process."""

    schedule: Schedule
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    checkpoints: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    micro_batches: int = 1
    seed: int = 0
    autocast: torch.dtype | None = None
    ema: float | None = None
    samples_every: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What happens beside training. `on_step` sees each step's figures, `validate` gives a loss at every checkpoint,
    `answer` rows of (question, said, true).
    """

    on_step: Callable[[dict[str, Any]], None] = lambda figures: None
    validate: Callable[[], float] | None = None
    answer: Callable[[], list[tuple[str, str, str]]] | None = None


class Trainer:
    """Runs one stage: `task(batch, progress)` gives a mean loss and figures for the log.

    `directory` receives the logs and `checkpoints/`; the newest checkpoint there is continued.
    """

    def __init__(
        self, task: nn.Module, settings: LoopSettings, directory: Path, parallel: Parallel, hooks: Hooks | None = None
    ) -> None:
        self.task, self.settings, self.directory, self.parallel = task, settings, directory, parallel
        self.hooks = hooks or Hooks()
        self.trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(task, settings.optimizer)
        self.mean = None if settings.ema is None else RunningMean(self.trained, settings.ema)
        self.store = CheckpointStore(directory / "checkpoints", settings.checkpoints.keep)
        self.state = RunState()
        self._empty_steps, self._recent = 0, list[float]()
        last = self.store.last()
        if last is not None:
            self.state = self.store.load(last, training_state(task, self.optimizer, self.mean))

    @property
    def first_batch(self) -> int:
        """Number of the first batch that `run` needs."""
        return self.state.step * self.settings.micro_batches

    def run(self, batches: Iterable[TrainingBatch]) -> None:
        """Train to the end of the schedule; `batches` start at number `first_batch`.

        Afterwards the model has its final weights: the running mean, if one is kept. Raises `FilmstripError`, naming
        the last good checkpoint, when a loss is not a number, a checkpoint or the log cannot be written, or no sample
        can be read. An interrupt (Ctrl-C, SIGTERM) ends it after the step under way, with a checkpoint.
        """
        if self.settings.schedule.progress(self.state.step, self.state.seconds) < 1.0:
            log = RunLog(self.directory, self.state.step) if is_first_process() else None
            try:
                self._train(iter(batches), log)
            finally:
                if log is not None:
                    log.close()
        if self.mean is not None:
            self.mean.apply()

    def _train(self, batches: Iterator[TrainingBatch], log: RunLog | None) -> None:
        state, schedule = self.state, self.settings.schedule
        started = time.monotonic() - state.seconds
        saved = (state.step, state.seconds)
        if state.step == 0:
            self._report_answers(log)
        with _stop_on_signal() as stop:
            while schedule.progress(state.step, state.seconds) < 1.0 and not stop:
                micro_batches = list(islice(batches, self.settings.micro_batches))
                if not micro_batches:
                    break
                figures = self._step(micro_batches, schedule.progress(state.step, state.seconds))
                state.step += 1
                state.seconds = self.parallel.from_first(time.monotonic() - started)
                self._write(log, micro_batches, figures)
                if self._is_due(*saved):
                    self._save(log)
                    saved = (state.step, state.seconds)
        self._save(log)
        if stop:
            raise KeyboardInterrupt

    def _step(self, batches: Sequence[TrainingBatch], progress: float) -> dict[str, float]:
        """One optimizer step. The loss is the mean over all targets of all its batches on all devices."""
        parallel, rate = self.parallel, self.settings.schedule.rate(progress)
        torch.manual_seed(self._step_seed())
        set_rate(self.optimizer, rate)
        total = parallel.sum(sum(batch.weight for batch in batches))
        self.optimizer.zero_grad(set_to_none=True)
        loss, means = 0.0, dict[str, float]()
        for batch in batches:
            share = batch.weight / max(total, 1)
            with self._autocast():
                batch_loss, figures = self.task(batch.to(parallel.device), progress)
            # Gradients are averaged over devices, and this loss is a part of one mean over all of them.
            (batch_loss * (share * parallel.data_size)).backward()
            loss += batch_loss.item() * share
            for name, value in figures.items():
                means[name] = means.get(name, 0.0) + value * batch.weight / max(sum(b.weight for b in batches), 1)
        loss = parallel.sum(loss)
        norm = clip_gradients(self.trained.values(), self.settings.optimizer.clip_norm)
        self._require_finite(loss, norm)
        self._require_samples(total)
        if total > 0:
            self.optimizer.step()
            if self.mean is not None:
                self.mean.update(self.state.step + 1)
        self.state.samples += int(parallel.sum(sum(len(batch) for batch in batches)))
        self.state.tokens += int(parallel.sum(sum(batch.tokens for batch in batches)))
        self._recent.append(loss)
        return {"loss": loss, "rate": rate * self.settings.optimizer.learning_rate, "gradient_norm": norm, **means}

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.autocast
        return torch.autocast(self.parallel.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _step_seed(self) -> int:
        """Dropout of this step, the same whether the run was interrupted or not; other samples, other dropout."""
        return (self.settings.seed * 1_000_003 + self.state.step * 1009 + self.parallel.data_rank) % 2**62

    def _require_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss of step {self.state.step} is {loss}"
        if math.isfinite(loss):
            what = f"the gradient's norm in step {self.state.step} is {norm} (at a loss of {loss:.4g})"
        raise FilmstripError(f"{what}; the last good checkpoint is {self.store.last() or 'none'}")

    def _require_samples(self, total: float) -> None:
        self._empty_steps = 0 if total else self._empty_steps + 1
        if self._empty_steps == _EMPTY_STEPS:
            raise FilmstripError(
                f"no sample of the last {_EMPTY_STEPS} steps could be read; reasons: {self.directory / SKIPPED_FILE}"
            )

    def _write(self, log: RunLog | None, batches: Sequence[TrainingBatch], figures: dict[str, float]) -> None:
        state = self.state
        line = {
            "step": state.step,
            "samples": state.samples,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            **{name: value if name == "loss" else float(f"{value:.6g}") for name, value in figures.items()},
        }
        skipped = self.parallel.gather([item for batch in batches for item in batch.skipped])
        if log is not None:
            for sample, reason in skipped:
                log.skipped(state.step, sample, reason)
            log.step({**line, "skipped": len(skipped)} if skipped else line)
        self.hooks.on_step({**line, "skipped": len(skipped)})
        every = self.settings.samples_every
        if every is not None and state.step % every == 0:
            self._report_answers(log)

    def _report_answers(self, log: RunLog | None) -> None:
        if self.hooks.answer is not None and log is not None and self.settings.samples_every is not None:
            log.answers(self.state.step, self.hooks.answer())

    def _is_due(self, step: int, seconds: float) -> bool:
        every = self.settings.checkpoints
        by_steps = every.every_steps is not None and self.state.step - step >= max(every.every_steps, 1)
        by_time = every.every_minutes is not None and self.state.seconds - seconds >= 60 * every.every_minutes
        return by_steps or by_time

    def _save(self, log: RunLog | None) -> None:
        """Logs first: a checkpoint says that the lines up to its step are on the disk."""
        if log is not None:
            log.flush()
        if self.hooks.validate is not None:
            self.state.score = self.hooks.validate()
        elif self._recent:
            self.state.score = sum(self._recent) / len(self._recent)
        self._recent = []
        self.store.save(training_state(self.task, self.optimizer, self.mean), self.state)


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop; a second time it stops at once, as usual."""
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    with suppress(ValueError):  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.getsignal(number)
            signal.signal(number, remember)
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def mean_loss(task: nn.Module, batches: Iterable[TrainingBatch], parallel: Parallel) -> float:
    """The loss over all targets of `batches` with the weights as they are; for validation."""
    total, weight = 0.0, 0.0
    was_training = task.training
    task.eval()
    with torch.no_grad():
        for batch in batches:
            loss: Tensor = task(batch.to(parallel.device), 1.0)[0]
            total += loss.item() * batch.weight
            weight += batch.weight
    task.train(was_training)
    return parallel.sum(total) / max(parallel.sum(weight), 1)
