"""Validation: it scores checkpoints that are safe already, with the weights that the result would have."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from filmstrip.training.batches import numbered_batches
from filmstrip.training.checkpoints import read_state
from filmstrip.training.log import read_log
from filmstrip.training.loop import Hooks, Trainer
from filmstrip.training.parallel import Parallel
from filmstrip.training.validation import Validation, validate
from tests.unit.test_training_loop import EVERY_STEP, losses, make_batch, run, settings, small_task


def test_validation_chooses_the_best_checkpoint(tmp_path: Path) -> None:
    scores = iter([0.5, 0.1, 0.9, 0.9])
    hooks = Hooks(validate=lambda: Validation(next(scores)))
    trainer = Trainer(small_task(), settings(4), tmp_path, Parallel(), hooks)
    trainer.run(numbered_batches(make_batch, 0, 0))
    assert read_state(trainer.store.best()).step == 2
    lines = [line for line in read_log(tmp_path / "log.jsonl") if "validation_loss" in line]
    assert lines == [
        {"step": step, "validation_loss": score} for step, score in enumerate([0.5, 0.1, 0.9, 0.9], start=1)
    ]
    batches = [make_batch(0), make_batch(1)]
    found = validate(trainer.task, batches, Parallel())
    with torch.no_grad():
        expected = np.mean([trainer.task(batch, 1.0)[0].item() for batch in batches])
    assert math.isclose(found.loss, expected, rel_tol=1e-6)
    assert (found.weight, found.fault) == (8.0, None)


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("wanted", ["best", "last"])
def test_the_result_is_the_checkpoint_that_is_wanted(tmp_path: Path, wanted: str, ema: float | None) -> None:
    """The best on the validation data, scored with the weights that it is made of; or the last."""
    seen: list[torch.Tensor] = []
    scores = iter([0.5, 0.1, 0.9, 0.9])
    task = small_task()

    def score() -> Validation:
        seen.append(task.patch_shape.weight.detach().clone())
        return Validation(next(scores))

    every = replace(EVERY_STEP, result=wanted)  # type: ignore[arg-type]
    trainer = Trainer(task, settings(4, ema=ema, checkpoints=every), tmp_path, Parallel(), Hooks(validate=score))
    trainer.run(numbered_batches(make_batch, 0, 0))
    chosen = 2 if wanted == "best" else 4
    assert trainer.result_step == chosen
    assert torch.equal(task.patch_shape.weight, seen[chosen - 1])
    plain = run(tmp_path / "plain", 4, 4, ema=ema)
    assert losses(tmp_path) == plain  # validation has moved nothing


def test_a_validation_that_fails_loses_no_checkpoint(tmp_path: Path) -> None:
    """The checkpoint is there before; a run that goes on validates it first."""

    def fail() -> Validation:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Trainer(small_task(), settings(2), tmp_path, Parallel(), Hooks(validate=fail)).run([make_batch(0)])
    again = Trainer(small_task(), settings(2), tmp_path, Parallel(), Hooks(validate=lambda: Validation(0.5)))
    assert (again.state.step, again.state.score) == (1, None)
    again.run([make_batch(1)])
    assert [read_state(path).score for path in again.store.paths()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Validation(math.nan), "the loss on the validation data is nan"),
        (Validation(0.0, 0.0, (("7", "missing file"),)), "no sample of the validation data could be read"),
    ],
)
def test_a_validation_that_says_nothing_is_no_score(tmp_path: Path, found: Validation, words: str) -> None:
    """It would be the best for ever, or make the checkpoint unreadable."""
    notes: list[str] = []
    answers = iter([found, Validation(0.7), Validation(0.9)])
    hooks = Hooks(validate=lambda: next(answers), on_note=notes.append)
    trainer = Trainer(small_task(), settings(3), tmp_path, Parallel(), hooks)
    trainer.run(numbered_batches(make_batch, 0, 0))
    assert notes == [f"the checkpoint of step 1 has no score: {words}"]
    assert read_state(trainer.store.best()).step == 2
    reported = [(line["sample"], line["validation"]) for line in read_log(tmp_path / "skipped.jsonl")]
    assert reported == [(name, True) for name, _ in found.skipped]


def test_samples_left_out_of_the_validation_are_named_once(tmp_path: Path) -> None:
    hooks = Hooks(validate=lambda: Validation(0.5, 1.0, (("7", "missing file"), ("8", "too long"))))
    for stop in (2, 4):
        trainer = Trainer(small_task(), settings(4), tmp_path, Parallel(), hooks)
        trainer.run(numbered_batches(make_batch, trainer.first_batch, 0, stop))
    assert [line["sample"] for line in read_log(tmp_path / "skipped.jsonl")] == ["7", "8"]
