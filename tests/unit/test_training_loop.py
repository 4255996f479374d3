"""The loop: runs resume exactly, accumulation changes nothing, what goes wrong stops it and nothing is lost."""

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from filmstrip.config import VisionConfig
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError
from filmstrip.models.vision import VisionTower
from filmstrip.training.batches import numbered_batches
from filmstrip.training.checkpoints import CheckpointStore, RunState, read_state
from filmstrip.training.log import read_log
from filmstrip.training.loop import LoopSettings, Trainer
from filmstrip.training.optimizer import RunningMean, clip_gradients, parameter_groups
from filmstrip.training.parallel import Parallel
from filmstrip.training.patterns import freeze
from filmstrip.training.recipe import CheckpointRecipe, OptimizerRecipe
from filmstrip.training.schedule import Schedule
from filmstrip.training.tiny import initialise
from filmstrip.training.tower import StillBatch, StillBatches, TowerPretraining

SMALL = VisionConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, image_size=64, patch_size=16)
EVERY_STEP = CheckpointRecipe(every_steps=1, every_minutes=None)


def small_task() -> TowerPretraining:
    torch.manual_seed(1)
    tower = VisionTower(SMALL)
    initialise(tower)
    return TowerPretraining(tower, (-1,))


def settings(steps: int, **changes: object) -> LoopSettings:
    return replace(LoopSettings(Schedule(steps=steps), checkpoints=EVERY_STEP), **changes)  # type: ignore[arg-type]


def make_batch(number: int) -> StillBatch:
    return StillBatches(0, 64, 16, 4, [])(number)


def run(directory: Path, stop: int, of: int, **changes: object) -> list[float]:
    """Train to step `stop` of a schedule of `of` steps, as if killed there; returns the losses logged so far."""
    trainer = Trainer(small_task(), settings(of, **changes), directory, Parallel())
    passes = trainer.settings.micro_batches
    batches = numbered_batches(make_batch, trainer.first_batch, 0, stop * passes)
    trainer.run(batches)
    return losses(directory)


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in read_log(directory / "log.jsonl") if "loss" in line]


MUON = OptimizerRecipe(muon=("tower.blocks",), rates={"tower.blocks": 2e-3})


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.9, "micro_batches": 2}, {"optimizer": MUON}],
    ids=["plain", "mean and accumulation", "Muon"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, changes: dict[str, object]) -> None:
    whole = run(tmp_path / "whole", 6, 6, **changes)
    run(tmp_path / "parts", 2, 6, **changes)
    assert run(tmp_path / "parts", 6, 6, **changes) == whole
    assert len(whole) == 6
    assert whole[-1] < whole[0]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = small_task()
    Trainer(first, settings(2), tmp_path, Parallel()).run([make_batch(0), make_batch(1)])
    again = small_task()

    def refuse() -> object:
        pytest.fail("a batch was asked for")

    Trainer(again, settings(2), tmp_path, Parallel()).run(iter(refuse, None))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_killed_run_continues_from_its_checkpoint(tmp_path: Path) -> None:
    """Steps after the last checkpoint are lost, run again and logged once; the losses are those of a whole run."""
    whole = run(tmp_path / "whole", 6, 6)
    run(tmp_path / "killed", 3, 6)
    log = tmp_path / "killed" / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 4, "loss": 1e9}) + '\n{"step": 5, "lo')
    assert run(tmp_path / "killed", 6, 6) == whole


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Two batches of 4 and one of both, of unequal weight, give the same losses."""

    class Cut(nn.Module):
        """Mean over the first `weight` stills of a batch."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 1)

        def forward(self, batch: "Rows", _progress: float) -> tuple[torch.Tensor, dict[str, float]]:
            loss = (self.linear(batch.values) ** 2).mean()
            return loss, {"mean": loss.item()}

    class Rows:
        def __init__(self, values: torch.Tensor) -> None:
            self.values, self.weight, self.tokens = values, float(len(values)), len(values)
            self.skipped, self.warnings = (), ()

        def __len__(self) -> int:
            return len(self.values)

        def to(self, device: torch.device) -> "Rows":
            return self

    values = [torch.randn(8, 4, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    together, apart = Cut(), Cut()
    Trainer(together, settings(5), tmp_path / "a", Parallel()).run([Rows(rows) for rows in values])
    parts = [Rows(part) for rows in values for part in (rows[:2], rows[2:])]
    Trainer(apart, settings(5, micro_batches=2), tmp_path / "b", Parallel()).run(parts)
    # The same sums in another order, in float32.
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-5)
    torch.testing.assert_close(together.linear.weight, apart.linear.weight, rtol=1e-5, atol=1e-6)


def broken_from(step: int) -> Callable[[TowerPretraining], nn.Module]:
    class Broken(nn.Module):
        def __init__(self, task: TowerPretraining) -> None:
            super().__init__()
            self.task, self.calls = task, 0

        def forward(self, batch: StillBatch, progress: float) -> tuple[torch.Tensor, dict[str, float]]:
            self.calls += 1
            factor = float("nan") if self.calls > step else 1.0
            loss, figures = self.task(batch, progress)
            return loss * factor, figures

    return Broken


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    trainer = Trainer(broken_from(2)(small_task()), settings(5), tmp_path, Parallel())
    expected = r"loss of step 2 is nan; the last good checkpoint is .*step-00000002"
    with pytest.raises(FilmstripError, match=expected):
        trainer.run(numbered_batches(make_batch, 0, 0))
    saved = trainer.store.load(trainer.store.last(), {})
    assert saved.step == 2
    assert len(losses(tmp_path)) == 2


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    task = small_task()
    task.patch_shape.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FilmstripError, match=r"the gradient's norm in step 0 is (nan|inf).*checkpoint is none"):
        Trainer(task, settings(2), tmp_path, Parallel()).run([make_batch(0)])
    assert all(bool(torch.isfinite(parameter).all()) for parameter in task.parameters())


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that has no room names the last good one, and leaves nothing behind."""
    trainer = Trainer(small_task(), settings(5), tmp_path, Parallel())
    usage = type("Usage", (), {"free": 10})()

    def after_two(_: object) -> object:
        return usage if trainer.state.step > 2 else type("Usage", (), {"free": 10**12})()

    monkeypatch.setattr("filmstrip.training.checkpoints.shutil.disk_usage", after_two)
    with pytest.raises(CheckpointError, match=r"10 are free; the last good checkpoint is .*step-00000002"):
        trainer.run(numbered_batches(make_batch, 0, 0))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_nothing_to_read_stops_the_run(tmp_path: Path) -> None:
    class Empty(StillBatch):
        weight = 0.0  # type: ignore[assignment]

    run(tmp_path, 1, 50)
    empty = Empty(**vars(make_batch(0)))
    expected = r"no sample of the last 20 steps could be read.*; the last good checkpoint is .*step-000000\d\d$"
    with pytest.raises(FilmstripError, match=expected):
        Trainer(small_task(), settings(50), tmp_path, Parallel()).run([empty] * 30)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """Of whatever step; what a running process holds stays."""
    run(tmp_path, 1, 2)
    left, held = (tmp_path / "checkpoints" / f".step-0000000{n}.{n * 32}.partial" for n in ("7", "8"))
    left.mkdir()
    held.mkdir()
    descriptor = os.open(held, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        Trainer(small_task(), settings(2), tmp_path, Parallel())
        assert not left.exists()
        assert held.exists()
    finally:
        os.close(descriptor)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    tensor = torch.arange(3.0)
    for step, score in enumerate([3.0, 1.0, 2.0, 5.0, 4.0]):
        store.save({"a": tensor}, RunState(step=step, score=score))
    assert [read_state(path).step for path in store.paths()] == [1, 3, 4]
    assert read_state(store.best()).step == 1
    assert read_state(store.last()).step == 4


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.save({"a": torch.zeros(3)}, RunState(step=1))
    for tensors in ({"a": torch.zeros(4)}, {"b": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="step-00000001 does not fit this run"):
            store.load(path, tensors)
    (path / "run.json").write_text('{"steps": 1}')
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        store.load(path, {"a": torch.zeros(3)})


def test_freezing_and_rates_by_path() -> None:
    task = small_task()
    freeze(task, ["*"], ["tower.blocks.*.attention"])
    frozen = [name for name, parameter in task.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(".attention." in name for name in frozen)
    groups = parameter_groups(task, OptimizerRecipe(learning_rate=1e-3, rates={"patch_*": 5e-4}, weight_decay=0.1))
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    assert by_parameter[id(task.patch_shape.weight)]["lr"] == 5e-4
    assert by_parameter[id(task.frame_shape.weight)]["lr"] == 1e-3
    assert by_parameter[id(task.frame_shape.weight)]["weight_decay"] == 0.1
    assert by_parameter[id(task.frame_shape.bias)]["weight_decay"] == 0.0
    assert id(task.tower.blocks[0].attention.q_proj.weight) not in by_parameter


def test_a_path_that_names_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train: 'tower.block' is the path of no part .* mean 'tower.blocks'"):
        freeze(small_task(), ["tower.block"], [])
    with pytest.raises(ConfigError, match="rates"):
        parameter_groups(small_task(), OptimizerRecipe(rates={"projectr": 1.0}))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(small_task(), ["tower"], ["tower"])


def test_clipping_is_over_all_gradients() -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([first, second], 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(first.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(second.grad, torch.tensor([0.8]))
    assert clip_gradients([first, second], 0.0) == pytest.approx(1.0)


def test_the_running_mean_is_the_written_out_one() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    mean = RunningMean({"w": weight}, 0.99)
    expected = 1.0
    for step, value in enumerate([2.0, 5.0, -1.0], start=1):
        weight.data.fill_(value)
        mean.update(step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    mean.apply()
    assert weight.item() == pytest.approx(expected)


def test_the_schedule_rises_and_falls() -> None:
    schedule = Schedule(steps=100, warmup=0.1, floor=0.02)
    rates = [schedule.rate(schedule.progress(step, 0.0)) for step in range(101)]
    assert rates[0] == 0.01
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.02 + 0.98 * 0.5)
    assert rates[100] == pytest.approx(0.02)
    assert schedule.progress(50, 1e9) == 0.5
    assert Schedule(steps=100, minutes=1).progress(50, 45) == 0.75
    with pytest.raises(FilmstripError, match="needs a number of steps or of minutes"):
        Schedule()
