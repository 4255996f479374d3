"""A peer's process as the harness holds it."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from select import select
from time import monotonic
from types import TracebackType
from typing import IO, Any

from filmstrip.diagnostics.bench.machine import OtherWork
from filmstrip.errors import FilmstripError

_WORKER = "filmstrip.diagnostics.bench.worker"
OURS, THEIRS, LLAMA = "filmstrip", "transformers", "llama.cpp"
TIMEOUT = 3600.0  # seconds; half an hour goes into a 16-bit prompt of a large model on a CPU
_LAST_LINES, _LAST_BYTES = 3, 4096


@dataclass(frozen=True)
class Sample:
    """Seconds of one unit of work; CPU seconds that others took for each second of it; bytes resident at the most."""

    seconds: float
    others: float
    peak: int


class Peer:
    """`filmstrip`, `transformers` or `llama.cpp` in a process of its own; once it has started it waits, without work,
    until it is asked, which may be before.

    Raises `FilmstripError` with the peer's last words when it ends, a request fails, or there is no answer for
    `timeout` seconds, after which the process is ended.
    """

    def __init__(self, name: str, timeout: float = TIMEOUT) -> None:
        self.name, self.timeout = name, timeout
        self._buffer = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  a pipe would fill up while nobody reads it
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )

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
        self._said.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said at its end is read below
        return self._read()

    def sample(self, do: str = "sample", **arguments: Any) -> Sample:
        """Time the work that it was prepared for, or another request that is timed."""
        others = OtherWork((os.getpid(), self._process.pid))
        answer = self.ask(do, **arguments)
        return Sample(answer["seconds"], others.seconds() / answer["total"], answer["peak"])

    def _read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            raise FilmstripError(f"{self.name}: {answer['error']}")
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = monotonic() + self.timeout
        while b"\n" not in self._buffer:
            readable, _, _ = select([self._process.stdout], [], [], max(0.0, deadline - monotonic()))
            if not readable:
                self._process.kill()
                raise FilmstripError(f"{self.name}: no answer for {self.timeout:.0f} s, so it was ended")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                raise FilmstripError(f"{self.name}: {last_words(self._said, self._process.wait())}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def last_words(file: IO[bytes], code: int) -> str:
    """How a process ended: its exit code and the last lines that it wrote to `file`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LAST_BYTES))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {' / '.join(lines[-_LAST_LINES:]) or 'it said nothing'}"
