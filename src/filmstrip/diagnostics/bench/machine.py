"""The machine: what it is, what it can do at most, and how much of it other work takes."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

_STAT, _CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
_READ_BYTES = 512 * 2**20  # far more than any cache holds
_SIDE = 2048
_ROUNDS = 5


@dataclass(frozen=True)
class Limits:
    """The best that was measured: bytes read from memory in a second, and FLOP/s of a square product by dtype."""

    read_bytes: float
    flops: dict[str, float]


def measure_limits(dtypes: tuple[str, ...] = ("float32",)) -> Limits:
    """Read memory and multiply matrices with the threads that PyTorch has; the best of several rounds each."""
    values = torch.ones(_READ_BYTES // 4)
    read = _READ_BYTES / min(_seconds(values.sum) for _ in range(_ROUNDS))
    flops = {}
    for name in dtypes:
        # A native product of 16-bit matrices takes up to eight times as long where the processor has none.
        side = _SIDE if name == "float32" else _SIDE // 2
        matrix = torch.ones(side, side, dtype=getattr(torch, name))
        flops[name] = 2 * side**3 / min(_seconds(partial(torch.mm, matrix, matrix)) for _ in range(_ROUNDS))
    return Limits(read, flops)


def _seconds(work: Callable[[], object]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory and versions, as plain data."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class OtherWork:
    """CPU seconds that were spent by anything but the given processes since this was made.

    All busy time of the machine (stolen by a hypervisor included) less that of the processes and of what they started.
    Where there is no /proc it is always 0, and nothing is dropped.
    """

    def __init__(self, pids: tuple[int, ...]) -> None:
        self.pids, self.tick = pids, 1 / os.sysconf("SC_CLK_TCK")
        self.begin = self._seconds()

    def seconds(self) -> float:
        """CPU seconds of others so far."""
        return max(0.0, self._seconds() - self.begin)

    def _seconds(self) -> float:
        if not _STAT.is_file():
            return 0.0
        user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
            int, _STAT.read_text().split("\n")[0].split()[1:]
        )
        return (user + nice + system + irq + softirq + steal - sum(map(_ticks, self.pids))) * self.tick


def _ticks(pid: int) -> int:
    """User and system time of a process and of its children that have ended (proc(5): fields 14 to 17)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))
