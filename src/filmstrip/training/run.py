"""A whole training run: from a recipe to a checkpoint directory.

The output directory holds `recipe.json` (what was run), a directory per stage (`stages`), `checkpoint/` or `adapter/`
(the result) and `curves.png`.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.atomic import replace_file
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import json_bytes
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError, FilmstripError
from filmstrip.training.adapters import AdapterInfo, save_adapter
from filmstrip.training.checkpoints import CheckpointStore, is_first_process
from filmstrip.training.curves import plot_run
from filmstrip.training.log import ANSWERS_FILE, SKIPPED_FILE, WARNINGS_FILE, Rows, read_log
from filmstrip.training.loop import Hooks, Trainer
from filmstrip.training.parallel import Parallel, start_parallel, stop_parallel
from filmstrip.training.recipe import Recipe, StageRecipe
from filmstrip.training.recipe_file import recipe_values
from filmstrip.training.settings import build
from filmstrip.training.spread import gather_weights
from filmstrip.training.stages import Stage, open_stage
from filmstrip.training.start import start_model

RECIPE_FILE, CHECKPOINT, ADAPTER, CURVES = "recipe.json", "checkpoint", "adapter", "curves.png"

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True)
class Observer:
    """Who watches a run. `on_stage` is told a stage's name, what it trains and where it begins; `on_step` its name,
    its progress (0 to 1) and the figures of the step; `on_note` what a person should know; `on_answers` a stage's name,
    its step, and sample answers. In a run of several processes the first alone calls.
    """

    on_stage: Callable[[str, "StageStart"], None] = lambda name, start: None
    on_step: Callable[[str, float, dict[str, Any]], None] = lambda name, progress, figures: None
    on_note: Callable[[str], None] = lambda text: None
    on_answers: Callable[[str, int, Rows], None] = lambda name, step, rows: None


@dataclass(frozen=True)
class StageStart:
    """What a stage begins with. `steps` is None where time alone ends it."""

    trained_parameters: int
    parameters: int
    samples: int | None
    step: int
    steps: int | None


@dataclass
class RunResult:
    """What came out. `stages` has the last figures of each and the seconds in which it `waited` for samples, `skipped`
    how many samples were left out, by reason, `warnings` counts those that were used though something is wrong with
    them. `result` is made of the weights of step `result_step` of the last stage; `best` is that stage's best
    checkpoint if it is not the last.
    """

    output: Path
    result: Path
    best: Path | None = None
    result_step: int = 0
    warnings: int = 0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


def train(recipe: Recipe, output: Path, *, resume: bool = False, observer: Observer | None = None) -> RunResult:
    """Run every stage of `recipe` and write the result below `output`.

    With `resume` what an earlier run of the same recipe did there is not done again, and the rest is done exactly as
    that run would have. Raises `FilmstripError`, one line, when `output` is in the way, and whatever stages raise.
    """
    observer = observer or Observer()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    parallel = start_parallel(recipe.tensor_parallel)
    try:
        require(
            parallel.mesh is None or len(recipe.stages) == 1,
            "a recipe of several stages runs on one process; start one process per machine without torchrun",
        )
        with claimed(output, resume=resume):
            if is_first_process():
                _store_recipe(recipe, output / RECIPE_FILE)
            return _train(recipe, output, parallel, observer if is_first_process() else Observer())
    finally:
        stop_parallel(parallel)


def stored_recipe(output: Path) -> Recipe:
    """The recipe that the run in `output` was started with. Raises `FilmstripError` when there is none."""
    path = output / RECIPE_FILE
    if not path.is_file():
        raise FilmstripError(f"there is no run to resume in {output}")
    return build(Recipe, read_json(path), str(path))


def _store_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe, unless it is there: a run that goes on needs nothing of a disk that has filled up for that."""
    content = json_bytes(recipe_values(recipe))
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)


def _train(recipe: Recipe, output: Path, parallel: Parallel, observer: Observer) -> RunResult:
    assistant, base_hash = start_model(recipe, output, parallel)
    result = RunResult(output, output / CHECKPOINT)
    adapted: tuple[str, ...] = ()
    before: torch.nn.Module | None = None
    for number, stage in enumerate(recipe.stages):
        opened = open_stage(assistant, recipe, stage, recipe.seed + number, parallel, observer.on_note, before)
        adapted, before = opened.adapted, opened.task
        later = [output / following.name for following in recipe.stages[number + 1 :]]
        trainer = _run_stage(opened, stage, output / stage.name, parallel, observer, later)
        opened.finish()
        if is_first_process():  # others would read what this one may be removing
            best = trainer.store.best()
            result.best = best if best != trainer.store.last() else None
            result.result_step = trainer.result_step
            _collect(result, stage, output / stage.name)
    lora = recipe.stages[-1].lora
    # A checkpoint is written in the dtype of the one that training started from, an adapter as it was trained.
    gather_weights(assistant.model, getattr(torch, assistant.origin.dtype) if lora is None else None)
    if not is_first_process():
        return result
    with trainer.store.named_in_errors():
        if lora is not None:
            info = AdapterInfo(adapted, lora.rank, lora.alpha, str(recipe.model.checkpoint or ""), base_hash)
            result.result = save_adapter(assistant.model, info, output / ADAPTER)
        else:
            if recipe.precision == "bfloat16" and assistant.origin.dtype != "bfloat16":
                _restore(assistant.model, start_model(recipe, output, Parallel())[0].model)
            assistant.save(result.result, overwrite=True)
    plot_run(output, [stage.name for stage in recipe.stages], output / CURVES, observer.on_note)
    return result


def _restore(model: torch.nn.Module, start: torch.nn.Module) -> None:
    """Give weights that are those of the start but for their rounding to bfloat16, in which they were kept, every bit
    back.
    """
    values = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        value = values[name].detach().to("cpu")
        if torch.equal(parameter, value.to(torch.bfloat16).to(parameter.dtype)):
            parameter.data = value.to(parameter.dtype)


def _run_stage(
    opened: Stage, stage: StageRecipe, directory: Path, parallel: Parallel, observer: Observer, later: Sequence[Path]
) -> Trainer:
    schedule = opened.settings.schedule

    def report(figures: dict[str, Any]) -> None:
        observer.on_step(stage.name, schedule.progress(figures["step"], figures["seconds"]), figures)

    def show(step: int, rows: Rows) -> None:
        if step == 0:
            observer.on_note(f"{stage.name}: sample answers go to {directory / ANSWERS_FILE}")
        observer.on_answers(stage.name, step, rows)

    hooks = Hooks(report, opened.validate, opened.answer, show, observer.on_note)
    trainer = Trainer(opened.task, opened.settings, directory, parallel, hooks)
    if not trainer.is_done:
        _require_unused(directory, later)
    counts = [sum(p.numel() for p in group) for group in (trainer.trained.values(), opened.task.parameters())]
    start = StageStart(counts[0], counts[1], opened.num_samples, trainer.state.step, schedule.steps)
    observer.on_stage(stage.name, start)
    trainer.run(opened.batches(trainer.first_batch))
    return trainer


def _require_unused(directory: Path, later: Sequence[Path]) -> None:
    """Raise `FilmstripError` when a stage would go on from which a later one has begun: nothing would fit together."""
    begun = [path.name for path in later if CheckpointStore(path / "checkpoints", 1).last() is not None]
    if begun:
        raise FilmstripError(
            f"the stage {directory.name} has steps left, but {begun[0]} has begun from what it was: leave --steps, "
            "--minutes and --set as they were, or give another --output"
        )


def _collect(result: RunResult, stage: StageRecipe, directory: Path) -> None:
    result.warnings += len(read_log(directory / WARNINGS_FILE))
    steps = [line for line in read_log(directory / "log.jsonl") if "loss" in line]
    waited = sum(line.get("waited", 0.0) for line in steps)
    result.stages[stage.name] = {**steps[-1], "waited": waited} if steps else {}
    lines = read_log(directory / SKIPPED_FILE)
    for _, reason, held_out in {(line["sample"], line["reason"], line.get("validation", False)) for line in lines}:
        kind = ("validation data, " if held_out else "") + kind_of(reason)
        result.skipped[kind] = result.skipped.get(kind, 0) + 1


def kind_of(reason: str) -> str:
    """A reason without what it says of one sample alone: its path, what it quotes, details after a colon."""
    parts = [part for part in re.sub(r"(?<!\w)'[^']*'", "…", reason).split(": ") if "/" not in part]
    return (parts or [reason])[0].strip()


@contextmanager
def claimed(output: Path, *, resume: bool) -> Iterator[None]:
    """Make sure that this run, and no other at the same time, writes to `output`."""
    if not is_first_process():
        yield
        return
    try:
        if not resume and output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FilmstripError(
                f"{output} is not empty: --resume continues a run there, --output chooses another place"
            )
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror or error}") from error
    with lock:
        try:
            # A record lock: one of `flock` would live on in data workers, which outlast a killed run by seconds.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FilmstripError(f"another run is writing to {output}") from error
        yield
