"""A peer's process as the harness holds it, and one command that is timed from start to end."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from filmstrip.diagnostics.bench.machine import OtherWork
from filmstrip.errors import FilmstripError

_WORKER = "filmstrip.diagnostics.bench.worker"
OURS, THEIRS = "filmstrip", "transformers"


@dataclass(frozen=True)
class Sample:
    """Seconds of one unit of work; CPU seconds that others took for each second of it; bytes resident at the most."""

    seconds: float
    others: float
    peak: int


class Peer:
    """`filmstrip` or `transformers` in a process of its own; it waits, without work, until it is asked.

    Raises `FilmstripError` with the peer's last words when it ends or a request fails.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said at its end is read below
        return self._read()

    def sample(self) -> Sample:
        """Time the work that it was prepared for."""
        others = OtherWork((os.getpid(), self._process.pid))
        answer = self.ask("sample")
        return Sample(answer["seconds"], others.seconds() / answer["total"], answer["peak"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines() or ["it ended without a word"]
            raise FilmstripError(f"{self.name}: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FilmstripError(f"{self.name}: {answer['error']}")
        return answer


def time_command(command: Sequence[str], environment: dict[str, str] | None = None) -> Sample:
    """One run of a command, process start included. Raises `FilmstripError` when it fails."""
    others = OtherWork((os.getpid(),))
    started = perf_counter()
    process = subprocess.Popen(
        [*command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    _, said = process.communicate()
    seconds = perf_counter() - started
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or ["no message"]
        raise FilmstripError(f"{Path(command[0]).name} {' '.join(command[1:3])} failed: {lines[-1]}")
    return Sample(seconds, others.seconds() / seconds, 0)
