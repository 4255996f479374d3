"""The loss on held-out data."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from filmstrip.shapes import Tensor
from filmstrip.training.batches import TrainingBatch
from filmstrip.training.parallel import Parallel


@dataclass(frozen=True)
class Validation:
    """The mean loss over `weight` targets, and the samples that were left out, with reasons."""

    loss: float
    weight: float = 1.0
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def fault(self) -> str | None:
        """Why the loss says nothing about the model; None: it does."""
        if self.weight == 0:
            return "no sample of the validation data could be read"
        return None if math.isfinite(self.loss) else f"the loss on the validation data is {self.loss}"


def validate(task: nn.Module, batches: Iterable[TrainingBatch], parallel: Parallel) -> Validation:
    """The loss over all targets of `batches`, on all devices, with the weights as they are."""
    total, weight = 0.0, 0.0
    skipped: list[tuple[str, str]] = []
    was_training = task.training
    task.eval()
    with torch.no_grad():
        for batch in batches:
            loss: Tensor = task(batch.to(parallel.device), 1.0)[0]
            total += loss.item() * batch.weight
            weight += batch.weight
            skipped += batch.skipped
    task.train(was_training)
    total, weight = parallel.sum(total), parallel.sum(weight)
    return Validation(total / max(weight, 1), weight, tuple(parallel.gather(skipped)))
