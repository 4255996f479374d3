"""One training run in a process of its own: python -m tests.training_process RECIPE.json OUTPUT [--kill-at STEP] ...

Prints the losses of the steps it runs as a JSON list when it gets to the end.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from filmstrip.errors import FilmstripError
from filmstrip.training import loop
from filmstrip.training.recipe import Recipe
from filmstrip.training.run import Observer, train
from filmstrip.training.settings import build


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--send", type=int, default=signal.SIGKILL)
    parser.add_argument("--kill-worker-at", type=int, help="kill a data worker after this step")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after each step")
    parser.add_argument("--stop-at", type=int, help="end after this step with a checkpoint, on every process")
    parser.add_argument("--file-limit", type=int, help="bytes: larger files cannot be written, as on a full disk")
    options = parser.parse_args()
    losses = []

    def step(_name: str, _progress: float, figures: dict[str, Any]) -> None:
        losses.append(figures["loss"])
        if options.file_limit and figures["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, options.file_limit))
        if figures["step"] == options.kill_at:
            os.kill(os.getpid(), options.send)
        if figures["step"] == options.kill_worker_at:
            os.kill(next(iter(multiprocessing.active_children())).pid or 0, signal.SIGKILL)
        time.sleep(options.pause)

    if options.stop_at is not None:
        whole_train = loop.Trainer.run

        def part(trainer: loop.Trainer, batches: Iterable[loop.TrainingBatch]) -> None:
            left = (options.stop_at - trainer.state.step) * trainer.settings.micro_batches
            whole_train(trainer, islice(batches, left))

        loop.Trainer.run = part  # type: ignore[method-assign]
    recipe = build(Recipe, json.loads(options.recipe.read_text()), "recipe")
    try:
        train(recipe, options.output, resume=options.output.exists(), observer=Observer(on_step=step))
    except FilmstripError as error:
        sys.exit(f"FilmstripError: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if left := [name for name in threads() if "gloo" in name]:
        sys.exit(f"left by the process group, and may abort the process while it ends: {left}")
    print(json.dumps(losses))


def threads() -> list[str]:
    """Names of this process's threads, native ones as well."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    main()
