"""Numbered batches, made by worker processes: a batch's number decides its content."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from filmstrip.media.transform import CLIP_MEAN, CLIP_STD, normalise
from filmstrip.shapes import Float, Tensor

MakeBatch = Callable[[int], Any]


class _Numbered(IterableDataset[Any]):
    """Batches `start`, `start + 1`, ... without end; workers take turns, so their order does not depend on speed."""

    def __init__(self, make: MakeBatch, start: int) -> None:
        self.make, self.start = make, start

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self.start + first
        while True:
            yield self.make(number)
            number += stride


def numbered_batches(make: MakeBatch, start: int = 0, num_workers: int = 1) -> DataLoader[Any]:
    """Iterate over `make(start)`, `make(start + 1)`, ...; `make` must draw all randomness from the number."""
    return DataLoader(
        _Numbered(make, start),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def frames_to_pixels(frames: np.ndarray) -> Float[Tensor, "*frames C Y X"]:
    """uint8 (..., Y, X, C) at the tower's size to what `to_pixels` makes of it (CLIP's mean and deviation)."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -3).float() / 255
    return normalise(pixels, CLIP_MEAN, CLIP_STD)
