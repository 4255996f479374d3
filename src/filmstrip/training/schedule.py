"""How long a stage runs and how its learning rate moves: linear warm-up, then half a cosine."""

import math
from dataclasses import dataclass

from filmstrip.errors import FilmstripError


@dataclass(frozen=True)
class Schedule:
    """The run ends at `steps` or after `minutes`, whichever is set and comes first.

    `warmup` is a share of the run, `floor` the share of the highest rate that is left at its end.
    """

    steps: int | None = None
    minutes: float | None = None
    warmup: float = 0.03
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise FilmstripError("a training stage needs a number of steps or of minutes")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, 0 to 1."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.minutes is not None:
            shares.append(seconds / (60 * self.minutes))
        return min(1.0, max(shares))

    def rate(self, progress: float) -> float:
        """Factor on the learning rate."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)  # a first step of rate 0 would be lost
        along = (progress - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along))
