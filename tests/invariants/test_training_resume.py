"""Nothing is lost: a run that is killed again and again has the losses of one that was not, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filmstrip.training.log import read_log
from filmstrip.training.recipe_file import recipe_values
from tests.training import small_recipe, sound_records

ROOT = Path(__file__).parents[2]
STEPS = 12
# Workers, packing and accumulation move the place in the data; adapters with dropout draw random numbers.
PLAIN: dict[str, Any] = {
    "schedule": {"steps": STEPS},
    "batch": {"size": 4, "per_device": 2, "pack": True, "workers": 1, "group": "modality-length"},
    "train": ["projector", "text_tower"],
    "ema": 0.9,
}
ADAPTED: dict[str, Any] = {**PLAIN, "train": ["projector"], "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}


def command(recipe: Path, output: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "tests.training_process", str(recipe), str(output), *map(str, options)]


def run(recipe: Path, output: Path, *options: object) -> subprocess.CompletedProcess[str]:
    called = command(recipe, output, *options)
    return subprocess.run(called, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False)


def signal_when(
    ready: Callable[[], bool], wait: float, number: signal.Signals, recipe: Path, output: Path, *options: object
) -> tuple[int, str]:
    """Start a run, and send a signal to all its processes `wait` seconds after `ready`; its exit code and errors."""
    with subprocess.Popen(
        command(recipe, output, *options),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not ready():
            time.sleep(0.0005)
        time.sleep(wait)
        if process.poll() is None:
            os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
    return process.returncode, errors


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(output / "only" / "log.jsonl")}


def write_recipe(folder: Path, stage: dict[str, Any]) -> Path:
    records = [{**values, "id": f"{values['id']} {copy}"} for copy in range(4) for values in sound_records()]
    records[3] = {"id": "broken"}
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe_values(small_recipe(folder, records, **stage))))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("resume"), PLAIN)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    return run_whole(recipe)


def run_whole(recipe: Path) -> Path:
    output = recipe.parent / "whole"
    done = run(recipe, output)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == STEPS
    return output


def kill_and_finish(recipe: Path, output: Path, steps: list[int]) -> None:
    for step in steps:
        killed = run(recipe, output, "--kill-at", step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run(recipe, output)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) < STEPS  # it did not begin anew


def test_killed_at_a_random_step(recipe: Path, whole: Path) -> None:
    output = recipe.parent / "killed"
    kill_and_finish(recipe, output, [random.Random(8).randrange(3, STEPS)])
    assert losses(output) == losses(whole)
    assert len(losses(whole)) == STEPS
    assert (output / "checkpoint" / "model.safetensors").read_bytes() == (
        whole / "checkpoint" / "model.safetensors"
    ).read_bytes()
    skipped = [read_log(place / "only" / "skipped.jsonl") for place in (output, whole)]
    assert skipped[0] == skipped[1]
    assert {line["sample"] for line in skipped[0]} == {"broken"}


@pytest.mark.slow
def test_killed_again_and_again_while_dropout_draws(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, ADAPTED)
    whole, output = run_whole(recipe), tmp_path / "killed"
    kill_and_finish(recipe, output, sorted(random.Random(3).sample(range(1, STEPS), 4)))
    assert losses(output) == losses(whole)
    for name in ("adapter_model.safetensors", "other_weights.safetensors"):
        assert (output / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


@pytest.mark.slow
def test_killed_from_outside_at_any_moment(recipe: Path, whole: Path) -> None:
    """First anywhere in the run, then while a checkpoint is being written: other moments in every call of the test."""
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    output = recipe.parent / "outside"
    checkpoints = output / "only" / "checkpoints"
    count = moments.randrange(1, 4)  # the checkpoint to meet
    written: set[str] = set()

    def is_writing() -> bool:
        written.update(path.name for path in checkpoints.glob(".step-*.partial"))
        return len(written) >= count

    kill = (signal.SIGKILL, recipe, output, "--pause", 0.05)
    signal_when((output / "only" / "log.jsonl").exists, moments.random(), *kill)
    signal_when(is_writing, 0.01 * moments.random(), *kill)
    done = run(recipe, output)
    assert done.returncode == 0, (seed, done.stderr)
    assert losses(output) == losses(whole), f"seed {seed}"
    assert not list(checkpoints.glob(".*")), f"seed {seed}"


@pytest.mark.slow
def test_asked_to_stop(recipe: Path, whole: Path) -> None:
    """SIGTERM ends the run after the step under way with a checkpoint of that very step."""
    output = recipe.parent / "asked"
    stopped = run(recipe, output, "--kill-at", 5, "--send", int(signal.SIGTERM))
    assert stopped.returncode == 130, stopped.stderr
    assert (output / "only" / "checkpoints" / "step-00000005").is_dir()
    done = run(recipe, output)
    assert len(json.loads(done.stdout)) == STEPS - 5
    assert losses(output) == losses(whole)


@pytest.mark.slow
def test_all_processes_asked_to_stop(recipe: Path, whole: Path) -> None:
    """As job systems do it: data workers are told, too, and the step under way still gets its samples."""
    output = recipe.parent / "group"
    second = output / "only" / "checkpoints" / "step-00000002"
    code, errors = signal_when(second.exists, 0.0, signal.SIGTERM, recipe, output, "--pause", 0.2)
    assert code == 130, errors
    done = run(recipe, output)
    assert len(json.loads(done.stdout)) < STEPS
    assert losses(output) == losses(whole)


@pytest.mark.slow
def test_a_data_worker_that_dies(recipe: Path, whole: Path) -> None:
    """One line that names it, and a checkpoint of the last step there were samples for."""
    output = recipe.parent / "worker"
    stopped = run(recipe, output, "--kill-worker-at", 3)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    assert "a data worker died: process" in line
    [last] = [path for path in (output / "only" / "checkpoints").iterdir() if path.name in line]
    assert int(last.name.removeprefix("step-")) >= 3
    done = run(recipe, output)
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(whole)


@pytest.mark.parametrize(
    ("limit", "what"),
    [(4096, "only/checkpoints"), pytest.param(300, "cannot write the log in", marks=pytest.mark.slow)],
)
def test_a_disk_that_fills_up(recipe: Path, whole: Path, limit: int, what: str) -> None:
    """The system refuses to write: one line, with the last good checkpoint, from which the run goes on later."""
    output = recipe.parent / f"full-{limit}"
    stopped = run(recipe, output, "--file-limit", limit)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.count("FilmstripError: ") == 1
    assert what in stopped.stderr
    assert "step-00000002" in stopped.stderr.splitlines()[-1]
    left = sorted(path.name for path in (output / "only" / "checkpoints").iterdir())
    assert left == ["step-00000002"]
    done = run(recipe, output)
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(whole)
