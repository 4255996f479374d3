"""Samples of one workload on one model, taken in turn."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from filmstrip.diagnostics.bench.peer import OURS, THEIRS, Sample
from filmstrip.errors import FilmstripError

_LONG, _FEW = 60.0, 3  # seconds of a round from which on so many rounds are enough


@dataclass
class Row:
    """One workload on one model: every peer's samples, what others' work spoilt, and what the machine allows.

    `tokens` are those that one unit makes, `limits` the least seconds that a unit could take when each of this
    program's samples had been taken; none where nothing bounds it. `remarks` are for people; without samples they say
    why there are none.
    """

    size: str
    dtype: str
    workload: str
    tokens: int = 0
    limits: list[float] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def seconds(self, peer: str) -> list[float]:
        """Seconds of one unit of work in every sample that counts."""
        return [sample.seconds for sample in self.samples.get(peer, [])]

    def median(self, peer: str) -> float | None:
        """Median seconds of one unit of work, None without samples."""
        seconds = self.seconds(peer)
        return statistics.median(seconds) if seconds else None

    def rate(self, peer: str) -> float | None:
        """Tokens a second, None for work that makes none."""
        median = self.median(peer)
        return self.tokens / median if self.tokens and median else None

    def ratio(self, peer: str = THEIRS) -> float | None:
        """How many times as long another program takes; above 1 this one is faster."""
        ours, theirs = self.median(OURS), self.median(peer)
        return None if not ours or not theirs else theirs / ours

    def ratios(self, peer: str = THEIRS) -> list[float]:
        """The ratio of each pair of samples, in the order in which they were taken."""
        return [other / own for own, other in zip(self.seconds(OURS), self.seconds(peer), strict=False)]

    @property
    def share(self) -> float | None:
        """How near this program comes to the least time that the machine allows: the median over its samples."""
        shares = [limit / own for limit, own in zip(self.limits, self.seconds(OURS), strict=False)]
        return statistics.median(shares) if shares else None


def take_in_turn(
    row: Row,
    takers: Mapping[str, Callable[[], Sample]],
    rounds: int,
    quiet: float,
    limit: Callable[[], float | None] = lambda: None,
) -> None:
    """One sample of every peer, round after round. A sample beside other work is dropped and counted; twice as many
    rounds are tried before a row stays short of samples. Rounds that take minutes are fewer. `limit` is asked after
    each sample of this program that counts: the machine may be shared, and faster in one minute than in another.
    """
    able = dict(takers)
    row.samples = {name: [] for name in able}
    row.dropped, row.limits = dict.fromkeys(able, 0), []
    wanted = rounds
    for _ in range(2 * rounds):
        started = perf_counter()
        wanting = [name for name in able if len(row.samples[name]) < wanted]
        if not wanting:
            return
        for name in wanting:
            try:
                sample = able[name]()
            except FilmstripError as error:
                row.failed[name] = str(error)
                del able[name]
                continue
            if sample.others > quiet:
                row.dropped[name] += 1
            else:
                row.samples[name].append(sample)
                if name == OURS and (least := limit()) is not None:
                    row.limits.append(least)
        if perf_counter() - started > _LONG:
            wanted = min(rounds, _FEW)
