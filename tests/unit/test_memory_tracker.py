"""The memory tracker: live tensors counted exactly, phases, resident memory, agreement with the allocator's log."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from filmstrip.diagnostics.tracker import MemoryTracker, track_memory

MIB = 2**20


def tensor(mebibytes: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(mebibytes * MIB // 4, device=device)


def test_live_tensors_and_their_peak_are_counted_exactly() -> None:
    with track_memory() as tracker:
        with tracker.phase("grow") as grow:
            kept = tensor(3)
            doubled = kept * 2  # 3 more
            del doubled
        with tracker.phase("rest") as rest:
            view = kept.view(-1, 4)[1:]  # no bytes of its own
            kept += 1  # in place
    assert (grow.begin["allocated"], grow.peak["allocated"], grow.end["allocated"]) == (0, 6 * MIB, 3 * MIB)
    assert grow.growth("allocated") == 6 * MIB
    assert rest.peak["allocated"] == rest.end["allocated"] == 3 * MIB
    assert view.numel() and grow.seconds > 0


def test_a_view_keeps_its_storage_alive() -> None:
    with track_memory() as tracker, tracker.phase("all") as phase:
        whole = tensor(2)
        part = whole[:1]
        del whole
    assert phase.end["allocated"] == 2 * MIB
    assert part.numel() == 1


def test_a_phase_holds_the_peak_of_the_phases_inside() -> None:
    with track_memory() as tracker, tracker.phase("outer") as outer:
        kept = tensor(1)
        with tracker.phase("inner") as inner:
            del kept
            kept = tensor(4)
        del kept
        with tracker.phase("after") as after:
            pass
    assert [phase.depth for phase in tracker.phases] == [0, 1, 1]
    assert outer.peak["allocated"] == inner.peak["allocated"] == 4 * MIB
    assert after.peak["allocated"] == 0


class _SharedReset:
    """A gauge like CUDA's: resetting one starts the peak of both anew."""

    def __init__(self, peaks: dict[str, int], name: str) -> None:
        self.peaks, self.name = peaks, name

    def now(self) -> int:
        return 100

    def peak(self) -> int:
        return self.peaks[self.name]

    def reset(self) -> None:
        self.peaks.update(dict.fromkeys(self.peaks, 100))


def test_peaks_are_read_before_any_gauge_starts_anew() -> None:
    peaks = {"allocated": 100, "reserved": 100}
    with track_memory() as tracker:
        tracker.gauges = {name: _SharedReset(peaks, name) for name in peaks}  # type: ignore[dict-item]
        with tracker.phase("step") as phase:
            peaks.update(allocated=700, reserved=900)
    assert phase.peak == {"allocated": 700, "reserved": 900}


def test_a_phase_that_raises_is_closed() -> None:
    with track_memory() as tracker:
        with pytest.raises(ZeroDivisionError), tracker.phase("broken"):
            raise ZeroDivisionError
        with tracker.phase("next") as phase:
            pass
    assert phase.depth == 0 and tracker.phases[0].end


def test_backward_and_the_optimizer_are_seen() -> None:
    model = nn.Linear(512, 512, bias=False)  # 1 MiB
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    with track_memory() as tracker:
        tracker.include(model)
        with tracker.phase("backward") as backward:
            model(torch.ones(1, 512)).sum().backward()
        with tracker.phase("step") as step:
            optimizer.step()
    assert backward.begin["allocated"] == MIB
    assert backward.end["allocated"] == pytest.approx(2 * MIB, rel=0.01)
    assert step.end["allocated"] == pytest.approx(4 * MIB, rel=0.01)  # and two averages
    assert step.peak["allocated"] == pytest.approx(5 * MIB, rel=0.01)  # and their square roots


def test_meta_tensors_count_only_where_they_are_what_is_measured() -> None:
    with track_memory() as real, real.phase("all") as phase:
        large = tensor(100_000, "meta")
    assert phase.peak["allocated"] == 0
    with track_memory("meta") as planned, planned.phase("all") as phase:
        large = tensor(100_000, "meta")
        small = tensor(1)
    assert phase.peak["allocated"] == large.nbytes
    assert small.numel()


def test_included_tensors_count_once() -> None:
    shared = tensor(2)
    with track_memory() as tracker:
        tracker.include(shared, shared.view(2, -1))
        with tracker.phase("all") as phase:
            pass
    assert phase.peak["allocated"] == 2 * MIB


def test_the_table_has_a_line_for_every_phase() -> None:
    with MemoryTracker() as tracker, tracker.phase("outer"), tracker.phase("inner"):
        kept = tensor(5)
    lines = str(tracker).splitlines()
    assert [line.split()[0] for line in lines] == ["phase", "outer", "inner"]
    assert lines[2].startswith("  inner") and "5.0 MiB" in lines[1]
    assert kept.numel()


def test_operations_count_as_the_allocator_logs_them() -> None:
    """PyTorch's profiler logs every allocation of the CPU allocator; the tracker must see the same peak.

    The bound of 2 % is for small buffers inside kernels. Fork-free and quiet: the profiler writes to standard error.
    """
    code = """
import json, torch
from torch.profiler import ProfilerActivity, profile
from filmstrip.diagnostics.tracker import track_memory
torch.set_num_threads(1)
layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
x = torch.randn(4, 128, 256)
def work():
    layer(x).square().sum().backward()
    layer.zero_grad(set_to_none=True)
work()
with track_memory() as tracker, tracker.phase("work") as phase:
    work()
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
    work()
events, stack = [], list(log.profiler.kineto_results.experimental_event_tree())
while stack:
    event = stack.pop()
    stack.extend(event.children)
    if event.tag.name == "Allocation":
        events.append((event.start_time_ns, event.extra_fields.alloc_size))
now = most = 0
for _, size in sorted(events):
    now += size
    most = max(most, now)
print(json.dumps([phase.peak["allocated"], most]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    ours, theirs = json.loads(done.stdout.splitlines()[-1])
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_resident_memory_grows_by_what_is_touched_and_its_peak_starts_anew() -> None:
    """In a process of its own: one that has freed much before has pages left that the block would be put in."""
    code = f"""
import json, torch
from filmstrip.diagnostics.tracker import track_memory
with track_memory() as tracker:
    with tracker.phase("large") as large:
        block = torch.ones({64 * MIB})  # 256 MiB of pages that are written
        del block
    with tracker.phase("small") as small:
        pass
print(json.dumps([large.growth("resident"), large.peak["resident"], small.peak["resident"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    growth, large, small = json.loads(done.stdout.splitlines()[-1])
    assert growth == pytest.approx(256 * MIB, rel=0.05)
    assert small < large - 200 * MIB


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counters() -> None:
    with track_memory("cuda") as tracker, tracker.phase("all") as phase:
        kept = tensor(8, "cuda")
    assert phase.growth("device allocated") == 8 * MIB
    assert phase.peak["device reserved"] >= 8 * MIB
    assert kept.numel()
