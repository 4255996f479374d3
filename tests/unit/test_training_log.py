"""The record of a run: what a full disk does to it, TensorBoard's copy, sample answers that come once."""

import json
from pathlib import Path

import pytest

from filmstrip.training.batches import numbered_batches
from filmstrip.training.board import Board
from filmstrip.training.log import LogError, RunLog
from filmstrip.training.loop import Hooks, Trainer
from filmstrip.training.parallel import Parallel
from tests.unit.test_training_loop import losses, make_batch, run, settings, small_task


@pytest.fixture
def full_disk() -> Path:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    return Path("/dev/full")


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path, full_disk: Path) -> None:
    run(tmp_path, 1, 3)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to(full_disk)
    trainer = Trainer(small_task(), settings(3), tmp_path, Parallel())
    expected = r"cannot write the log in .*No space left.*; the last good checkpoint is .*step-00000001$"
    with pytest.raises(LogError, match=expected):
        trainer.run([make_batch(1), make_batch(2)])


def test_closing_a_log_hides_no_error(tmp_path: Path, full_disk: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to(full_disk)
    log = RunLog(tmp_path, 0)
    log.step({"step": 1, "loss": 1.0})
    log.close()


def test_a_run_goes_on_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are a copy: one note, and every figure is in the log."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Board, "add", refuse)
    notes: list[str] = []
    trainer = Trainer(small_task(), settings(3), tmp_path, Parallel(), Hooks(on_note=notes.append))
    trainer.run(numbered_batches(make_batch, 0, 0))
    assert notes == ["no more figures for TensorBoard: No space left on device"]
    assert len(losses(tmp_path)) == 3


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, 2, 3)
    run(tmp_path, 3, 3)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = [(event.step, event.value) for event in events.Scalars("loss")]
    assert seen == [(step, pytest.approx(loss)) for step, loss in enumerate(losses(tmp_path), start=1)]


def test_sample_answers_come_once(tmp_path: Path) -> None:
    """Those of steps that a run does again, too; and who watches sees them."""
    seen: list[int] = []
    rows = [("what?", "a circle\nstep 9", "a square")]

    def answering(stop: int) -> None:
        hooks = Hooks(answer=lambda: rows, on_answers=lambda step, rows: seen.append(step))
        trainer = Trainer(small_task(), settings(4, samples_every=1), tmp_path, Parallel(), hooks)
        trainer.run(numbered_batches(make_batch, trainer.first_batch, 0, stop))

    answering(2)
    after_two = (tmp_path / "answers.txt").read_text()
    log = tmp_path / "log.jsonl"
    late = {"step": 3, "answers": [{"question": "lost", "said": "lost", "true": "lost"}]}
    log.write_text(log.read_text() + json.dumps(late) + "\n")
    (tmp_path / "answers.txt").write_text(after_two + "step 3\n  lost\n")
    answering(4)
    text = (tmp_path / "answers.txt").read_text()
    assert text.startswith(after_two)
    assert "lost" not in text
    assert seen == [0, 1, 2, 3, 4]
    assert text.count("    true: a square\n") == 5
    assert after_two.startswith("step 0\n  what?\n    said: a circle")
