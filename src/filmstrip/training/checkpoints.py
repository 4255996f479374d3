"""Checkpoints of a run: directories that appear whole or not at all, of which the last few and the best are kept.

A checkpoint `step-00001200` holds `run.json` (where the run stands) and safetensors files written by
`torch.distributed.checkpoint`, one per process: the weights that learn, the optimizer's state, the running means. They
can be read by any other number of processes, and nothing in them is executed. Weights that do not learn are those of
the model the run started from and are not written again.

There is no random state to save: every step seeds its own randomness from the recipe's seed and its number.
"""

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from filmstrip.checkpoint.atomic import atomic_directory, remove_leftovers, replace_file
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import json_bytes
from filmstrip.errors import CheckpointError, FilmstripError
from filmstrip.shapes import Tensor
from filmstrip.training.optimizer import RunningMean

STATE_FILE = "run.json"
_NAME = re.compile(r"step-(\d{8})")
_LEFT = re.compile(r"\.(step-\d{8})\..*")  # what a writer that was killed left of a checkpoint


@dataclass
class RunState:
    """Where a stage stands. `score` is the figure by which the best checkpoint is chosen (lower is better); None where
    there is none yet, or none that says anything.
    """

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    score: float | None = None


class CheckpointStore:
    """The checkpoints of one stage, in `directory`."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.directory / f"step-{step:08d}"

    def paths(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            path for path in self.directory.iterdir() if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file()
        )

    def last(self) -> Path | None:
        """The newest checkpoint, or None."""
        return next(reversed(self.paths()), None)

    def save(self, tensors: dict[str, Tensor], state: RunState) -> Path:
        """Write a checkpoint of this step; on every process, which all write their shards.

        Raises `CheckpointError` when it cannot be written (a full disk).
        """
        path = self.path(state.step)
        if path.exists():
            return path
        try:
            with _shared_directory(path) as partial:
                _require_room(partial, tensors)
                _save_tensors(tensors, partial)
                if is_first_process():
                    (partial / STATE_FILE).write_bytes(json_bytes(asdict(state)))
        except (CheckpointError, OSError, RuntimeError) as error:
            raise CheckpointError(str(error).split("\n", maxsplit=1)[0]) from error
        if is_first_process():
            self._remove_old()
        return path

    def rate(self, state: RunState) -> None:
        """Write the score of a step down in its checkpoint, by the first process. Raises `CheckpointError`."""
        if is_first_process():
            replace_file(self.path(state.step) / STATE_FILE, json_bytes(asdict(state)))
            self._remove_old()

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors of the block, and what the system refuses in it, as one line that names the last good checkpoint."""
        try:
            yield
        except (FilmstripError, OSError) as error:
            kind = type(error) if isinstance(error, FilmstripError) else CheckpointError
            raise kind(f"{error}; the last good checkpoint is {self.last() or 'none'}") from error

    def load(self, path: Path, tensors: dict[str, Tensor]) -> RunState:
        """Fill `tensors` in place; returns where the run stood. Raises `CheckpointError` when they do not fit."""
        state = read_state(path)
        try:
            _load_tensors(tensors, path)
        except Exception as error:  # the library raises whatever went wrong in one of its threads
            reason = str(error).strip().split("\n")[-1][:200]
            raise CheckpointError(f"{path} does not fit this run: {reason}") from error
        return state

    def best(self) -> Path | None:
        """The checkpoint with the lowest score, or the last one."""
        scored = [(state.score, path) for path in self.paths() if (state := read_state(path)).score is not None]
        return min(scored)[1] if scored else self.last()

    def remove_leftovers(self) -> None:
        """Remove what killed writers left of checkpoints; what a running one writes is left alone."""
        if self.directory.is_dir():
            left = {match[1] for path in self.directory.iterdir() if (match := _LEFT.fullmatch(path.name))}
            for name in left:
                remove_leftovers(self.directory / name)

    def _remove_old(self) -> None:
        paths, best = self.paths(), self.best()
        for path in paths[: -self.keep]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)


def read_state(path: Path) -> RunState:
    """The `run.json` of a checkpoint. Raises `CheckpointError` for one that is not ours."""
    values = read_json(path / STATE_FILE)
    try:
        return RunState(**values)
    except TypeError as error:
        raise CheckpointError(f"{path / STATE_FILE} is not the state of a training run") from error


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, mean: RunningMean | None) -> dict[str, Tensor]:
    """Every tensor that training changes, under a name of its own; the tensors themselves, to save or to fill."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"model.{name}"] = parameter.data
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    if mean is not None:
        tensors |= {f"mean.{name}": value for name, value in mean.means.items()}
    return tensors


def is_first_process() -> bool:
    """Whether this process writes logs: the only one, or rank 0."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def _shared_directory(destination: Path) -> Iterator[Path]:
    """`atomic_directory` of rank 0, into which all processes write."""
    if not distributed.is_initialized():
        with atomic_directory(destination) as partial:
            yield partial
        return
    place: list[Any] = [None]
    if distributed.get_rank() == 0:
        with atomic_directory(destination) as partial:
            distributed.broadcast_object_list([str(partial)])
            yield partial
            distributed.barrier()
    else:
        distributed.broadcast_object_list(place)
        yield Path(place[0])
        distributed.barrier()
    distributed.barrier()  # nobody goes on before the directory has its name


def _require_room(directory: Path, tensors: dict[str, Tensor]) -> None:
    needed = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointError(f"cannot write a checkpoint of {needed:,} bytes: {free:,} are free")


def _save_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _plain_errors():
        save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True),
            no_dist=not distributed.is_initialized(),
        )


def _load_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _plain_errors():
        load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(directory)),
            no_dist=not distributed.is_initialized(),
        )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """The library wraps what went wrong on any process in an exception that is no `Exception`: unwrap it.

    It also warns when one process saves alone, which is what is meant here.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise RuntimeError(str(first).strip() or type(first).__name__) from error
