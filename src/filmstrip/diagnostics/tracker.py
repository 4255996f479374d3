"""Peak memory of any piece of code, phase by phase: a context manager to put around it.

Three gauges, because no single one tells the whole truth:

- *allocated*: bytes of the tensors that PyTorch made since the tracker began and that are still alive, counted at the
  dispatcher (storages, so views cost nothing). Works on every device, `meta` included. It sees neither temporary
  buffers inside a kernel nor what worker processes hold.
- *resident*: physical memory of this process as Linux counts it (`VmHWM`), Python and libraries included. Pages count
  when they are first touched and may outlive the tensor that touched them.
- *device*: what CUDA's caching allocator handed out and what it reserved from the driver.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from filmstrip.shapes import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # written to clear_refs: VmHWM starts again from what is resident now (proc(5))
_SAMPLE_SECONDS = 0.002


@runtime_checkable
class Gauge(Protocol):
    """Something that knows how much memory is in use, and the most since it was last reset; both in bytes."""

    def now(self) -> int:
        """Bytes in use."""

    def peak(self) -> int:
        """The most since `reset`."""

    def reset(self) -> None:
        """Start a new peak from what is in use now."""


@dataclass
class Phase:
    """One stretch of the program: bytes at its beginning, at its end and at its worst, by gauge.

    `depth` is 0 for a phase that stands in no other. A phase's peak includes those of the phases inside it.
    """

    name: str
    depth: int
    begin: dict[str, int]
    peak: dict[str, int]
    end: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def growth(self, gauge: str) -> int:
        """How far the peak was above the beginning."""
        return self.peak[gauge] - self.begin[gauge]


class MemoryTracker:
    """Measure phases by name; they may be nested, and a name may come again.

    ::

        with track_memory() as tracker:
            with tracker.phase("forward"):
                loss = model(batch).sum()
            with tracker.phase("backward"):
                loss.backward()
        print(tracker)

    `device` adds CUDA's own counters when it is one; by default the current CUDA device if CUDA is in use. Tensors on
    `meta` hold nothing and do not count, unless `device` is `meta`: then only they do, which tells what a run would
    take without running it. Tensors that were there before count after `include`. Counting costs some microseconds for
    every operation.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.phases: list[Phase] = []
        self._tensors = _TensorGauge(on_meta=device is not None and torch.device(device).type == "meta")
        self.gauges: dict[str, Gauge] = {"allocated": self._tensors}
        self._open: list[Phase] = []
        self._stack = ExitStack()
        self._device = _cuda_device(device)

    def __enter__(self) -> "MemoryTracker":
        with self._tensors:  # the first operation under a dispatch mode imports tens of MiB of PyTorch
            torch.empty(0)
        resident = resident_gauge(self._stack)
        if resident is not None:
            self.gauges["resident"] = resident
        if self._device is not None:
            self.gauges |= {
                "device allocated": _CudaGauge(self._device, "allocated"),
                "device reserved": _CudaGauge(self._device, "reserved"),
            }
        self._stack.enter_context(self._tensors)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Everything inside belongs to the phase `name`; the record is complete when the block has ended."""
        self._fold()
        now = self._now()
        phase = Phase(name, len(self._open), now, dict(now))
        self.phases.append(phase)
        self._open.append(phase)
        started = perf_counter()
        try:
            yield phase
        finally:
            phase.seconds = perf_counter() - started
            self._fold()
            phase.end = self._now()
            self._open.remove(phase)

    def include(self, *holders: nn.Module | Tensor) -> None:
        """Count tensors that existed before: parameters and buffers of modules, or tensors themselves."""
        for holder in holders:
            tensors = [holder] if isinstance(holder, Tensor) else [*holder.parameters(), *holder.buffers()]
            for tensor in tensors:
                self._tensors.add(tensor)

    def _now(self) -> dict[str, int]:
        return {name: gauge.now() for name, gauge in self.gauges.items()}

    def _fold(self) -> None:
        """Carry the gauges' peaks over to every open phase, and start new ones."""
        peaks = {name: gauge.peak() for name, gauge in self.gauges.items()}  # all first: CUDA's share one reset
        for gauge in self.gauges.values():
            gauge.reset()
        for phase in self._open:
            for name, peak in peaks.items():
                phase.peak[name] = max(phase.peak[name], peak)

    def __str__(self) -> str:
        """A table for people: peak of every phase, in MiB."""
        names = list(self.gauges)
        rows = [("phase", "seconds", *names)]
        rows += [
            (
                "  " * phase.depth + phase.name,
                f"{phase.seconds:.2f}",
                *(f"{phase.peak[name] / 2**20:,.1f} MiB" for name in names),
            )
            for phase in self.phases
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(pairs))
            for pairs in ([*zip(row, widths, strict=True)] for row in rows)
        )


def track_memory(device: torch.device | str | None = None) -> AbstractContextManager[MemoryTracker]:
    """`with track_memory() as tracker:` - see `MemoryTracker`."""
    return MemoryTracker(device)


class _TensorGauge(TorchDispatchMode):
    """Live tensor storages. A storage is counted when an operation returns it and none of its inputs had it."""

    def __init__(self, *, on_meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_meta = on_meta
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._in_use = self._most = 0

    def now(self) -> int:
        return self._in_use

    def peak(self) -> int:
        return self._most

    def reset(self) -> None:
        self._most = self._in_use

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive or size == 0 or tensor.is_meta != self._on_meta:
            return
        self._in_use += size
        self._most = max(self._most, self._in_use)
        self._alive[key] = weakref.ref(storage, self._forget(key, size))

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self._in_use -= size
            del self._alive[key]

        return gone

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        if made:
            given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
            for tensor in made:
                if id(tensor.untyped_storage()) not in given:  # otherwise a view, or a result written in place
                    self.add(tensor)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    """All dense tensors in nested arguments or results (sparse ones have no single storage)."""
    leaves: Iterable[Any] = tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided]


class _CudaGauge:
    """CUDA's caching allocator: bytes handed out, or bytes reserved from the driver."""

    def __init__(self, device: torch.device, kind: str) -> None:
        self._device, self._kind = device, kind

    def now(self) -> int:
        reader = torch.cuda.memory_allocated if self._kind == "allocated" else torch.cuda.memory_reserved
        return reader(self._device)

    def peak(self) -> int:
        reader = torch.cuda.max_memory_allocated if self._kind == "allocated" else torch.cuda.max_memory_reserved
        return reader(self._device)

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)


def _cuda_device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return torch.device("cuda") if in_use else None
    place = torch.device(device)
    return place if place.type == "cuda" else None


class _ResidentGauge:
    """`VmRSS` and `VmHWM`, whose maximum the kernel starts anew on request."""

    def now(self) -> int:
        return _status_bytes("VmRSS")

    def peak(self) -> int:
        return _status_bytes("VmHWM")

    def reset(self) -> None:
        _CLEAR.write_text(_RESET_PEAK)


class _SampledResidentGauge:
    """For kernels without `clear_refs`: a thread looks every two milliseconds, so short peaks may be missed."""

    def __init__(self, stack: ExitStack) -> None:
        self._most = self.now()
        self._stop = threading.Event()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self._stop.set)

    def now(self) -> int:
        return _status_bytes("VmRSS")

    def peak(self) -> int:
        return max(self._most, self.now())

    def reset(self) -> None:
        self._most = self.now()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._most = max(self._most, self.now())


def resident_gauge(stack: ExitStack) -> Gauge | None:
    """The best gauge of physical memory that this system offers; None where there is no /proc."""
    if not _STATUS.is_file():
        return None
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return _SampledResidentGauge(stack)
    return _ResidentGauge()


def _status_bytes(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
