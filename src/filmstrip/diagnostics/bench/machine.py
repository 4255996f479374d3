"""The machine: what it is, what it can do at most, and how much of it other work takes."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import torch

from filmstrip.api.reuse import program_hash

_STAT, _CPUINFO = Path("/proc/stat"), Path("/proc/cpuinfo")
_READ_BYTES = 512 * 2**20  # far more than any cache holds
_SIDE = 2048
_PROGRAM = ("api", "cache", "checkpoint", "generation", "inputs", "kernels", "media", "models", "ops", "text")
_TRIAL = 0.4  # seconds: clocks of other processes' work tick in hundredths
_TRIALS, _ENOUGH = 8, 3  # at most, and how many of them undisturbed
_PACKAGES = ("filmstrip", "torch", "transformers", "llama_cpp_python")


@dataclass(frozen=True)
class Limits:
    """The best that was measured: bytes read from memory in a second, and FLOP/s of a square product by dtype.

    `others` are the CPU seconds that other work took for each second of the busiest measurement that counted.
    """

    read_bytes: float
    flops: dict[str, float]
    others: float = 0.0


def measure_limits(dtypes: tuple[str, ...] = ("float32",), quiet: float = 0.1) -> Limits:
    """Read memory and multiply matrices with the threads that PyTorch has; the best of several trials each.

    Trials beside other work than `quiet` (CPU seconds for each second) do not count, unless there is no other.
    """
    read, others = measure_reading(quiet)
    flops = {}
    for name in dtypes:
        flops[name], disturbed = measure_products(name, quiet)
        others = max(others, disturbed)
    return Limits(read, flops, others)


def measure_reading(quiet: float, enough: int = _ENOUGH) -> tuple[float, float]:
    """Bytes read from memory in a second, and what others took meanwhile; the best of `enough` quiet trials."""
    values = torch.ones(_READ_BYTES // 4)
    seconds, others = _best(values.sum, quiet, enough)
    return _READ_BYTES / seconds, others


def measure_products(name: str, quiet: float, enough: int = _ENOUGH) -> tuple[float, float]:
    """FLOP/s of a square product in the dtype `name`, and what others took meanwhile; the best as above."""
    # A native product of 16-bit matrices takes up to eight times as long where the processor has none.
    side = _SIDE if name == "float32" else _SIDE // 2
    matrix = torch.ones(side, side, dtype=getattr(torch, name))
    seconds, others = _best(partial(torch.mm, matrix, matrix), quiet, enough)
    return 2 * side**3 / seconds, others


def _best(work: Callable[[], object], quiet: float, enough: int = _ENOUGH) -> tuple[float, float]:
    """The least seconds that the work took, and what others took beside the trials that count."""
    trials: list[tuple[float, float]] = []
    for _ in range(_TRIALS):
        trials.append(_trial(work))
        if sum(others <= quiet for _, others in trials) == enough:
            break
    counted = [trial for trial in trials if trial[1] <= quiet] or trials
    return min(least for least, _ in counted), max(others for _, others in counted)


def _trial(work: Callable[[], object]) -> tuple[float, float]:
    """The least seconds of the work among some, and the CPU seconds of others for each second meanwhile."""
    known, begin, least = OtherWork((os.getpid(),)), perf_counter(), float("inf")
    while perf_counter() - begin < _TRIAL:
        started = perf_counter()
        work()
        least = min(least, perf_counter() - started)
    return least, known.seconds() / (perf_counter() - begin)


def describe_machine() -> dict[str, object]:
    """Processor, cores, memory, versions, the time and the load at this moment, as plain data."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "program": program_hash(_PROGRAM)[:12],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": os.getloadavg()[0],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


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
