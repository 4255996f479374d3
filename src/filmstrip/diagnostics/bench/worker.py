"""A peer's process: it is told what to do in lines of JSON and answers in lines of JSON.

python -m filmstrip.diagnostics.bench.worker filmstrip|transformers
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from filmstrip.diagnostics.bench.workloads import Runner, Workload
from filmstrip.diagnostics.tracker import resident_gauge

_SHORTEST = 0.4  # seconds of one sample: clocks of other processes' work tick in hundredths


class Worker:
    """Holds one peer and the work it is prepared for."""

    def __init__(self, peer: str) -> None:
        self.peer = _make(peer)
        self.run: Callable[[], int] = lambda: 0
        self.cold: tuple[Path, ...] = ()
        self.memory = resident_gauge(ExitStack())

    def open(self, directory: str, dtype: str, threads: int) -> dict[str, Any]:
        """Load a checkpoint."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.peer.open(Path(directory), getattr(torch, dtype))
        return {}

    def greedy(self, count: int) -> dict[str, Any]:
        """The first tokens of an answer."""
        return {"tokens": self.peer.greedy(count)}

    def prepare(self, **workload: Any) -> dict[str, Any]:
        """Get ready for a workload and do it once, which pays for what later runs reuse."""
        what = Workload(**workload)
        self.cold = tuple(sorted(self.peer.directory.glob("*.safetensors"))) if what.cold else ()
        self.run = self.peer.prepare(what)
        self.run()
        return {}

    def sample(self) -> dict[str, Any]:
        """Do the work until a sample is long enough; seconds of one unit, and the most memory that was resident."""
        for path in self.cold:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if self.memory is not None:
            self.memory.reset()
        units, started = 0, perf_counter()
        while units == 0 or (perf_counter() - started < _SHORTEST and not self.cold):
            units += self.run()
        seconds = perf_counter() - started
        return {"seconds": seconds / units, "total": seconds, "peak": self.memory.peak() if self.memory else 0}


def _make(peer: str) -> Runner:
    if peer == "filmstrip":
        from filmstrip.diagnostics.bench.ours import Ours

        return Ours()
    from filmstrip.diagnostics.bench.theirs import Theirs

    return Theirs()


def main() -> None:
    """Serve until standard input ends. What a request raises goes back as its answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not an answer
    worker = Worker(sys.argv[1])
    answers.write("{}\n")
    answers.flush()
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
