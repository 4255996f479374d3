"""The optimisation loop: accumulation, clipping, checkpoints, the log.

Batches are numbered, and a batch's number decides its content; a step's number decides its random state. So a run
continued from a checkpoint does exactly what an uninterrupted run would have done.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filmstrip.errors import FilmstripError
from filmstrip.training.batches import TrainingBatch, WorkerError
from filmstrip.training.checkpoints import CheckpointStore, RunState, is_first_process, read_state, training_state
from filmstrip.training.log import SKIPPED_FILE, Rows, RunLog
from filmstrip.training.optimizer import RunningMean, clip_gradients, make_optimizer, set_rate
from filmstrip.training.parallel import Parallel, share_again
from filmstrip.training.recipe import CheckpointRecipe, OptimizerRecipe
from filmstrip.training.schedule import Schedule
from filmstrip.training.signals import stop_on_signal
from filmstrip.training.validation import Validation

_EMPTY_STEPS = 20  # so many steps in a row without one readable sample end the run


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
    `answer` sample answers, which `on_answers` sees with the number of steps before them; `on_note` is told what a
    person should know.
    """

    on_step: Callable[[dict[str, Any]], None] = lambda figures: None
    validate: Callable[[], Validation] | None = None
    answer: Callable[[], Rows] | None = None
    on_answers: Callable[[int, Rows], None] = lambda step, rows: None
    on_note: Callable[[str], None] = lambda text: None


class Trainer:
    """Runs one stage: `task(batch, progress)` gives a mean loss and figures for the log.

    `directory` receives the logs and `checkpoints/`; the newest checkpoint there is continued. `result_step` is the
    step whose weights the model has after `run`.
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
        self._waited = 0.0  # seconds that the step under way waited for its batches
        last = self.store.last()
        if last is not None:
            self.state = self.store.load(last, training_state(task, self.optimizer, self.mean))
        if is_first_process():
            self.store.remove_leftovers()
        self.result_step = self.state.step

    @property
    def first_batch(self) -> int:
        """Number of the first batch that `run` needs."""
        return self.state.step * self.settings.micro_batches

    @property
    def is_done(self) -> bool:
        """Whether the schedule has no steps left."""
        return self.settings.schedule.progress(self.state.step, self.state.seconds) >= 1.0

    def run(self, batches: Iterable[TrainingBatch]) -> None:
        """Train to the end of the schedule; `batches` start at number `first_batch`.

        Afterwards the model has its final weights: the running mean, if one is kept; those of the checkpoint with the
        lowest loss on the validation data, if there is any and the recipe does not want the last. Raises
        `FilmstripError`, naming the last good checkpoint, when a loss is not a number, a checkpoint or the log cannot
        be written, no sample can be read, or a process that reads them dies. An interrupt (Ctrl-C, SIGTERM) ends it
        after the step under way, with a checkpoint.
        """
        done = self.is_done
        if not done or self._is_unscored():
            with self.store.named_in_errors(), self._open_log() as log:
                if self._is_unscored():  # it was stopped after it had saved, before it had validated
                    self._validate(log)
                if not done:
                    self._train(batches, log)
        self._take_result()

    @contextmanager
    def _open_log(self) -> Iterator[RunLog | None]:
        log = RunLog(self.directory, self.state.step, self.hooks.on_note) if is_first_process() else None
        try:
            yield log
        finally:
            if log is not None:
                log.close()

    def _train(self, batches: Iterable[TrainingBatch], log: RunLog | None) -> None:
        state, schedule = self.state, self.settings.schedule
        started = time.monotonic() - state.seconds
        saved = (state.step, state.seconds)
        stopping = False
        if state.step == 0:
            self._report_answers(log)
        with _closing(iter(batches)) as coming, stop_on_signal() as stop:
            while schedule.progress(state.step, state.seconds) < 1.0 and not stopping:
                micro_batches = self._next(coming, saved[0], log)
                if not micro_batches:
                    break
                figures = self._step(micro_batches, schedule.progress(state.step, state.seconds))
                state.step += 1
                state.seconds = time.monotonic() - started
                self._write(log, micro_batches, figures)
                # Clocks differ, and signals come to one process earlier than to another: all must decide alike.
                state.seconds, stopping = self.parallel.agree(state.seconds, bool(stop))
                if self._is_due(*saved) and not stopping:
                    self._save(log)
                    saved = (state.step, state.seconds)
            if not state.samples and not stopping:
                raise FilmstripError(f"no sample could be read; reasons: {self.directory / SKIPPED_FILE}")
            if state.step != saved[0]:
                self._save(log, validate=not stopping)  # who asks to stop does not wait; a run that goes on validates
            if self.parallel.agree(state.seconds, bool(stop))[1]:
                raise KeyboardInterrupt

    def _next(self, batches: Iterator[TrainingBatch], saved: int, log: RunLog | None) -> list[TrainingBatch]:
        """The batches of the next step. If a process that makes them dies, what was done since step `saved` is saved
        before the run ends.
        """
        asked = time.monotonic()
        try:
            return list(islice(batches, self.settings.micro_batches))
        except WorkerError:
            # Other processes know nothing of it and could not take part.
            if self.parallel.mesh is None and self.state.step != saved:
                self._save(log, validate=False)
            raise
        finally:
            self._waited = time.monotonic() - asked

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
        raise FilmstripError(what)

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
            "waited": round(self._waited, 4),
            **{name: value if name == "loss" else float(f"{value:.6g}") for name, value in figures.items()},
        }
        here = [(batch.skipped, batch.warnings) for batch in batches]
        everywhere = self.parallel.gather(here)
        skipped = [item for left_out, _ in everywhere for item in left_out]
        if log is not None:
            for sample, reason in skipped:
                log.skipped(state.step, sample, reason)
            for sample, reason in (item for _, warned in everywhere for item in warned):
                log.warning(state.step, sample, reason)
            log.step({**line, "skipped": len(skipped)} if skipped else line)
        self.hooks.on_step({**line, "skipped": len(skipped)})
        every = self.settings.samples_every
        if every is not None and state.step % every == 0:
            self._report_answers(log)

    def _report_answers(self, log: RunLog | None) -> None:
        if self.hooks.answer is not None and log is not None and self.settings.samples_every is not None:
            rows = self.hooks.answer()
            log.answers(self.state.step, rows)
            self.hooks.on_answers(self.state.step, rows)

    def _is_due(self, step: int, seconds: float) -> bool:
        every = self.settings.checkpoints
        by_steps = every.every_steps is not None and self.state.step - step >= max(every.every_steps, 1)
        by_time = every.every_minutes is not None and self.state.seconds - seconds >= 60 * every.every_minutes
        return by_steps or by_time

    def _save(self, log: RunLog | None, *, validate: bool = True) -> None:
        """Logs first: a checkpoint says that the lines up to its step are on the disk. It is there before it is scored:
        whatever happens to the validation, it is not lost.
        """
        if log is not None:
            log.flush()
        self.state.score = None
        if self.hooks.validate is None and self._recent:
            self.state.score = sum(self._recent) / len(self._recent)
        self._recent = []
        self.store.save(training_state(self.task, self.optimizer, self.mean), self.state)
        if validate and self.hooks.validate is not None:
            self._validate(log)

    def _is_unscored(self) -> bool:
        return self.hooks.validate is not None and self.state.step > 0 and self.state.score is None

    def _validate(self, log: RunLog | None) -> None:
        """Score the checkpoint of this step. A loss that says nothing is no score: it would be the best for ever."""
        if self.hooks.validate is None:
            return
        with self._autocast(), self._as_result():
            found = self.hooks.validate()
        if log is not None:
            log.skipped_validation(self.state.step, found.skipped)
        if found.fault is not None:
            self.hooks.on_note(f"the checkpoint of step {self.state.step} has no score: {found.fault}")
            return
        if log is not None:
            log.step({"step": self.state.step, "validation_loss": found.loss})
            log.flush()
        self.state.score = found.loss
        self.store.rate(self.state)

    @contextmanager
    def _as_result(self) -> Iterator[None]:
        """The weights for the block are those that the result would have now."""
        if self.mean is not None:
            self.mean.swap()
        try:
            yield
        finally:
            share_again(self.task, self.parallel)
            if self.mean is not None:
                self.mean.swap()

    def _take_result(self) -> None:
        """Give the model the weights that `run` promises."""
        self.result_step = self.state.step
        if self.hooks.validate is not None and self.settings.checkpoints.result == "best":
            best = self.store.best() if is_first_process() else None  # others might see one that is being removed
            step = 0 if best is None else read_state(best).step
            self.result_step = int(self.parallel.from_first(float(step))) or self.state.step
            if self.result_step != self.state.step:
                self.store.load(self.store.path(self.result_step), training_state(self.task, self.optimizer, self.mean))
        if self.mean is not None:
            self.mean.apply()


@contextmanager
def _closing(batches: Iterator[TrainingBatch]) -> Iterator[Iterator[TrainingBatch]]:
    """`contextlib.closing` for whatever iterates: processes that make batches end with their iterator."""
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
