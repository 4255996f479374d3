"""A peer's process: it is told what to do in lines of JSON and answers in lines of JSON.

python -m filmstrip.diagnostics.bench.worker filmstrip|transformers|llama.cpp
"""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.bench.peer import LLAMA, OURS
from filmstrip.diagnostics.bench.workloads import Runner, Work, Workload
from filmstrip.diagnostics.tracker import resident_gauge

_SHORTEST = 0.4  # seconds of one sample: clocks of other processes' work tick in hundredths
_IDLE = Work(lambda: 0)


class Worker:
    """Holds one peer and the work it is prepared for."""

    def __init__(self, peer: str) -> None:
        self.peer = _make(peer)
        self.work = _IDLE
        self.memory = resident_gauge(ExitStack())

    def open(self, directory: str, dtype: str, threads: int) -> dict[str, Any]:
        """Load a checkpoint; says in what precision it works."""
        _settle(threads)
        return dict(self.peer.open(Path(directory), getattr(torch, dtype)))

    def greedy(self, count: int) -> dict[str, Any]:
        """The first tokens of an answer."""
        return {"tokens": self.peer.greedy(count)}

    def prepare(self, **workload: Any) -> dict[str, Any]:
        """Get ready for a workload and do it once, which pays for what later runs reuse."""
        self.work = _IDLE  # what the last one held is not needed beside the new
        self.work = self.peer.prepare(Workload(**workload))
        self.work.before()
        self.work.run()
        return {}

    def sample(self) -> dict[str, Any]:
        """Do the work until a sample is long enough."""
        return self._time(self.work, _SHORTEST)

    def rehearse(self, threads: int) -> dict[str, Any]:
        """Load the embedded model and let go of it: that pays for what a program does once in its life."""
        _settle(threads)
        self.peer.open(resolve("tiny"), torch.float32)
        self.peer.close()
        return {}

    def load(self, directory: str, dtype: str) -> dict[str, Any]:
        """Load a checkpoint for the first time in this process, timed."""

        def run() -> int:
            self.peer.open(Path(directory), getattr(torch, dtype))
            return 1

        return self._time(Work(run), least=0.0)

    def _time(self, work: Work, least: float) -> dict[str, Any]:
        """Seconds of one unit, those of the whole sample, and the most memory that was resident."""
        started = perf_counter()
        work.before()
        if self.memory is not None:
            self.memory.reset()
        units, seconds = 0, 0.0
        while True:
            begun = perf_counter()
            units += work.run()
            seconds += perf_counter() - begun
            if seconds >= least:
                break
            work.before()
        total, peak = perf_counter() - started, self.memory.peak() if self.memory else 0
        return {"seconds": seconds / units, "total": total, "peak": peak}


def _settle(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def _make(peer: str) -> Runner:
    if peer == OURS:
        from filmstrip.diagnostics.bench.ours import Ours

        return Ours()
    if peer == LLAMA:
        from filmstrip.diagnostics.bench.llama import Llama

        return Llama()
    from filmstrip.diagnostics.bench.theirs import Theirs

    return Theirs()


def main() -> None:
    """Serve until standard input ends. What a request raises goes back as its answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not an answer
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
