"""Numbered batches, made by worker processes: a batch's number decides its content."""

import gc
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from filmstrip.errors import FilmstripError
from filmstrip.media.transform import CLIP_MEAN, CLIP_STD, normalise
from filmstrip.shapes import Float, Int, Tensor

T = TypeVar("T", bound="TensorBatch")
MakeBatch = Callable[[int], Any]
IGNORE = -100  # a label that does not count


class WorkerError(FilmstripError):
    """A process that makes batches died."""


@runtime_checkable
class TrainingBatch(Protocol):
    """What the loop must know about a batch.

    `weight` is the number of targets that its mean loss is over (tokens, stills), `tokens` what is read, padding not
    counted; `skipped` names the samples that were left out, `warnings` those that were used though something is wrong
    with them, each with what it is.
    """

    @property
    def weight(self) -> float: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def skipped(self) -> Sequence[tuple[str, str]]: ...  # noqa: D102
    @property
    def warnings(self) -> Sequence[tuple[str, str]]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def to(self, device: torch.device) -> "TrainingBatch": ...  # noqa: D102


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches: tensors and whatever else, which can move to a device as one."""

    def to(self: T, device: torch.device) -> T:
        """The batch with all its tensors on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | TensorBatch)}
        return replace(self, **moved)


class DrawnBatch(TensorBatch):
    """Base of batches whose losses are means over drawn samples, none of which can be damaged."""

    def __len__(self) -> int:
        """Number of samples."""
        raise NotImplementedError

    @property
    def weight(self) -> float:
        """Every sample counts alike."""
        return float(len(self))

    @property
    def skipped(self) -> tuple[()]:
        """There are none."""
        return ()

    @property
    def warnings(self) -> tuple[()]:
        """There are none."""
        return ()


@dataclass(frozen=True)
class ConversationBatch(TensorBatch):
    """Prompts and answers, padded on the right (causal attention never reads to the right, so no mask is needed).

    `labels` is IGNORE everywhere but on the assistant's words and the end-of-sequence that closes them; aligned with
    `input_ids`, not shifted. `motion` says what moves in each frame (drawn videos only, `motion.motion_labels`),
    `mentions` what is true of the shapes that questions name (drawn media only, `mentions.mention_labels`).
    `image_sizes` are heights and widths in pixels. `documents` number the conversations that share a row, -1 for
    padding; None: one conversation a row. `branches` number texts that go on from one beginning (0), -1 for padding
    (`ops.masks.branch_mask`). `skipped` has the samples that were left out and why, `warnings` what is wrong with some
    that were not. `num_samples` and `num_tokens` leave padding out.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    images: Float[Tensor, "N C Y X"] | None = None
    videos: Float[Tensor, "V F C Y X"] | None = None
    motion: TensorBatch | None = None
    mentions: TensorBatch | None = None
    image_sizes: Int[Tensor, "I 2"] | None = None
    documents: Int[Tensor, "B T"] | None = None
    branches: Int[Tensor, "B T"] | None = None
    skipped: Sequence[tuple[str, str]] = ()
    warnings: Sequence[tuple[str, str]] = ()
    num_samples: int = 0
    num_tokens: int = 0

    def __len__(self) -> int:
        """Number of conversations."""
        return self.num_samples

    @property
    def tokens(self) -> int:
        """Tokens that are read, visual ones included."""
        return self.num_tokens

    @property
    def weight(self) -> float:
        """Tokens whose prediction is scored: the first of a row is predicted by nothing."""
        return float((self.labels[:, 1:] != IGNORE).sum())


class _Numbered(IterableDataset[Any]):
    """Batches `start`, `start + 1`, ...; workers take turns, so their order does not depend on speed."""

    def __init__(self, make: MakeBatch, start: int, stop: int | None) -> None:
        self.make, self.start, self.stop = make, start, stop

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self.start + first
        while self.stop is None or number < self.stop:
            yield self.make(number)
            number += stride


class _Loader(DataLoader[Any]):
    """A `DataLoader` that may be started after videos were decoded in this process, and that names a worker that dies.

    PyAV leaves scalers with threads behind as garbage; a forked worker that collected it would wait for threads that
    it does not have. So garbage is collected before the fork, and workers leave alone what they inherit.

    Workers end with the iterator: when it is used up, closed, or raises. They must, because they ignore the SIGTERM
    with which Python would end them, and then wait for them, at the end of the program.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Raises `WorkerError` where the batch of a worker that died would come, and nowhere else."""
        gc.collect()
        with _child_handler_kept():
            batches = super().__iter__()
        try:
            yield from batches
        except (RuntimeError, OSError, EOFError) as error:  # the last two from reading what a dead worker shared
            told = _deaths(getattr(batches, "_workers", ()))
            if not told:
                raise
            raise WorkerError(f"a data worker died: {told}") from error
        finally:
            getattr(batches, "_shutdown_workers", lambda: None)()


@contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Take back the handler that PyTorch sets for the death of a child: it raises wherever the program is at that
    moment, in the middle of an optimizer's step too. What waits for a batch looks after its workers without it.
    """
    number = getattr(signal, "SIGCHLD", None)  # not on Windows
    before = None if number is None else signal.getsignal(number)
    yield
    if number is not None and before is not None:
        with suppress(ValueError):  # only the main thread may handle signals
            signal.signal(number, before)


def _deaths(workers: Sequence[Any]) -> str:
    """Which processes died, and of what; one that is dying has a second to do so.

    A process closes its files, `sentinel` among them, before the system tells how it ended: `join` waits for that.
    """
    ended = wait([worker.sentinel for worker in workers], 1.0)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(10.0)
    return ", ".join(f"process {worker.pid} {_end(worker.exitcode)}" for worker in workers if worker.exitcode)


def _end(exit_code: int) -> str:
    if exit_code > 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"was ended by {name}{' (most often the system, out of memory)' if name == 'SIGKILL' else ''}"


def numbered_batches(make: MakeBatch, start: int = 0, num_workers: int = 1, stop: int | None = None) -> DataLoader[Any]:
    """Iterate over `make(start)`, `make(start + 1)`, ... up to `stop`; all randomness must come from the number."""
    return _Loader(
        _Numbered(make, start, stop),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_prepare_worker,
    )


def _prepare_worker(_worker: int) -> None:
    gc.freeze()
    torch.set_num_threads(1)
    # Ctrl-C and what job systems send reach all processes of a group; the main one ends the run, and its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def pad_right(
    conversations: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Stack ids and labels of different lengths."""
    length = max(len(ids) for ids, _ in conversations)
    ids_BT = np.full((len(conversations), length), pad_id)
    labels_BT = np.full((len(conversations), length), IGNORE)
    for row, (ids, labels) in enumerate(conversations):
        ids_BT[row, : len(ids)] = ids
        labels_BT[row, : len(labels)] = labels
    return torch.from_numpy(ids_BT), torch.from_numpy(labels_BT)


def frames_to_pixels(frames: np.ndarray) -> Float[Tensor, "*frames C Y X"]:
    """uint8 (..., Y, X, C) at the tower's size to what `to_pixels` makes of it (CLIP's mean and deviation)."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 255
    return normalise(pixels, CLIP_MEAN, CLIP_STD)
