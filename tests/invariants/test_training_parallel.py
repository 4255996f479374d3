"""Two processes do what one does: FSDP, tensor parallelism, and checkpoints that go from two to one and back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from filmstrip.training.log import read_log
from filmstrip.training.recipe_file import recipe_values
from tests.training import small_recipe, sound_records, write_data

ROOT = Path(__file__).parents[2]
STEPS = 20
# Sums over two processes come in another order; 20 steps of a rate this high carry that on.
CLOSE = 1e-4


def start(recipe: Path, output: Path, processes: int = 1, *options: object) -> "subprocess.CompletedProcess[str]":
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    command = [*launcher, "tests.training_process", str(recipe), str(output), *map(str, options)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)


def run(recipe: Path, output: Path, processes: int = 1, *options: object) -> dict[int, float]:
    """Losses of a run by step."""
    done = start(recipe, output, processes, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses_of(output)


def write(folder: Path, name: str, **changes: Any) -> Path:
    """A recipe whose samples are of all kinds, so that one process may have text where the other has videos."""
    recipe = small_recipe(
        folder,
        sound_records() * 4,
        batch={"size": 4, "per_device": changes.pop("per_device", 2)},
        schedule={"steps": changes.pop("steps", STEPS), "warmup": 0.1},
        **changes,
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(recipe_values(recipe)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """One process, everything trained, two passes a step."""
    output = folder / "alone"
    losses = run(write(folder, "alone"), output)
    assert losses[STEPS] < losses[1]
    return output


def losses_of(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(output / "only" / "log.jsonl") if "loss" in line}


def assert_same_weights(first: Path, second: Path) -> None:
    pairs = [load_file(output / "checkpoint" / "model.safetensors") for output in (first, second)]
    assert pairs[0].keys() == pairs[1].keys()
    worst = max(float((pairs[0][name] - pairs[1][name]).abs().max()) for name in pairs[0])
    # AdamW's first steps are the signs of gradients: one that is zero but for rounding may go either way by the rate.
    assert worst < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["fsdp", "tensor parallel"])
def test_two_processes_learn_as_one(folder: Path, alone: Path, tensor_parallel: int) -> None:
    output = folder / f"two-{tensor_parallel}"
    recipe = write(folder, f"two-{tensor_parallel}", recipe={"tensor_parallel": tensor_parallel})
    losses = run(recipe, output, 2)
    assert losses == pytest.approx(losses_of(alone), abs=CLOSE)
    assert_same_weights(output, alone)


@pytest.mark.slow
def test_a_checkpoint_of_two_goes_on_with_one_and_back(folder: Path, alone: Path) -> None:
    output = folder / "handed"
    recipe = write(folder, "handed")
    values = json.loads(recipe.read_text())
    for processes, steps in ((2, 6), (1, 12), (2, STEPS)):
        # The same schedule, cut short: a stop after a step leaves a checkpoint of that step.
        recipe.write_text(json.dumps(values))
        stop = [] if steps == STEPS else ["--stop-at", steps]
        run(recipe, output, processes, *stop)
    assert losses_of(output) == pytest.approx(losses_of(alone), abs=CLOSE)
    assert_same_weights(output, alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [{"lora": {"rank": 4}}, {}], ids=["adapters", "bfloat16"])
def test_the_published_recipes_shapes_run_on_two(folder: Path, stage: dict[str, Any]) -> None:
    """Frozen and learning weights together, bfloat16, activation checkpointing: close to one process doing the same."""
    settings = {"precision": "float32" if stage else "bfloat16", "activation_checkpointing": True}
    name = "adapted" if stage else "halves"
    train = {"train": ["projector"] if stage else ["projector", "text_tower"], **stage}
    if stage:
        train["lora"] = {"rank": 4, "dropout": 0.0}
    recipe = write(folder, name, steps=4, recipe=settings, **train)
    one, two = run(recipe, folder / f"{name}-1"), run(recipe, folder / f"{name}-2", 2)
    assert two == pytest.approx(one, abs=CLOSE if stage else 0.02)  # bfloat16 keeps 8 bits: 0.4 % of each value


@pytest.mark.slow
def test_two_processes_validate_as_one(folder: Path) -> None:
    """With the running mean in the weights' place, which sharing must not mix up; the result is the best step's."""
    held_out = write_data(folder / "held-out", sound_records())
    data = {"validation": [str(held_out)]}
    recipe = write(folder, "validated", steps=6, ema=0.9, data=data)
    outputs = folder / "validated-1", folder / "validated-2"
    one, two = run(recipe, outputs[0]), run(recipe, outputs[1], 2)
    assert two == pytest.approx(one, abs=CLOSE)
    scores = [
        {
            line["step"]: line["validation_loss"]
            for line in read_log(output / "only" / "log.jsonl")
            if "loss" not in line
        }
        for output in outputs
    ]
    assert list(scores[0]) == [2, 4, 6]
    assert scores[1] == pytest.approx(scores[0], abs=CLOSE)
    assert_same_weights(*outputs)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(folder: Path, alone: Path) -> None:
    """They would wait for each other otherwise, one saving and the other in its next step."""
    output = folder / "signalled"
    recipe = write(folder, "signalled")
    stopped = start(recipe, output, 2, "--kill-at", 5, "--send", int(signal.SIGTERM))  # the first process alone
    assert stopped.returncode != 0
    assert (output / "only" / "checkpoints" / "step-00000005").is_dir(), stopped.stderr[-3000:]
    assert run(recipe, output, 2) == pytest.approx(losses_of(alone), abs=CLOSE)
