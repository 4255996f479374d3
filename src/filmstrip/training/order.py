"""Which samples belong to which step: a pure function of the seed and the step's number."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from filmstrip.training.recipe import Grouping

_MEGA = 16  # samples are sorted by length within so many steps' worth; enough to fill steps with equals


class SampleOrder:
    """Shuffled passes over `lengths.size` samples, `size` a step; every pass has another order.

    With the grouping `length` the samples of a step have similar lengths, so that little is padded. `modality-length`
    also keeps kinds of media apart, as the original does: a step is of videos, of images or of text. What is left over
    of each kind makes mixed steps. Where a pass does not fill its last step, samples of its beginning do (as PyTorch's
    `DistributedSampler` has it), so that every step has as many.
    """

    def __init__(
        self, lengths: Sequence[int], kinds: Sequence[object], size: int, grouping: Grouping, seed: int
    ) -> None:
        self.lengths, self.size, self.grouping, self.seed = np.array(lengths), size, grouping, seed
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        self.kinds = np.array([numbers[kind] for kind in kinds])
        self.steps_per_epoch = -(-len(self.lengths) // size)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def step(self, number: int) -> np.ndarray:
        """Indices of the samples of step `number` (from 0), int64 (size,)."""
        epoch, index = divmod(number, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def __getstate__(self) -> dict[str, object]:
        """Without the cache, which cannot go to another process."""
        return {name: value for name, value in vars(self).items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """See `__getstate__`."""
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        if self.grouping == "none":
            return self._fill(order)
        parts = [order]
        if self.grouping == "modality-length":
            parts = [order[self.kinds[order] == kind] for kind in range(self.kinds.max() + 1)]
        whole, left = [], []
        for part in parts:
            end = len(part) // self.size * self.size
            whole.append(self._by_length(part[:end]))
            left.append(part[end:])
        steps = np.concatenate(whole)
        rest = self._by_length(rng.permutation(np.concatenate(left)))
        steps = steps.reshape(-1, self.size)[rng.permutation(len(steps) // self.size)]
        if not len(rest):
            return steps
        return np.concatenate([steps, self._fill(rest, steps.flatten())])

    def _by_length(self, part: np.ndarray) -> np.ndarray:
        mega = _MEGA * self.size
        chunks = [part[start : start + mega] for start in range(0, len(part), mega)]
        return np.concatenate([part[:0], *(chunk[np.argsort(-self.lengths[chunk], kind="stable")] for chunk in chunks)])

    def _fill(self, order: np.ndarray, spare: np.ndarray | None = None) -> np.ndarray:
        """Cut into steps; the last is filled up from `spare`, or from the beginning."""
        missing = -len(order) % self.size
        source = order if spare is None or len(spare) < missing else spare
        return np.concatenate([order, np.resize(source, missing)]).reshape(-1, self.size)
