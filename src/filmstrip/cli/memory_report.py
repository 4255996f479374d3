"""What `filmstrip memory` says: as plain data and as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from filmstrip.cli.terminal import visible

if TYPE_CHECKING:
    from filmstrip.diagnostics.memory import Estimate
    from filmstrip.diagnostics.memory_fit import Fit
    from filmstrip.diagnostics.memory_measure import Comparison, Measurement
    from filmstrip.diagnostics.memory_workload import Workload
    from filmstrip.diagnostics.model_source import ModelSource


def estimate_content(source: "ModelSource", found: "Estimate") -> dict[str, Any]:
    """Every figure of an estimate, in bytes."""
    return {
        "model": source.name,
        "description": source.title,
        "workload": asdict(found.workload),
        "extent": asdict(found.extent),
        "phases": [
            {
                "name": phase.name,
                "resident": dict(phase.resident),
                "transient": phase.transient,
                "total": phase.total,
            }
            for phase in found.phases
        ],
        "peak": {"phase": found.peak.name, "bytes": found.peak.total},
    }


def measured_content(run: "Measurement", comparisons: Sequence["Comparison"], place: str) -> dict[str, Any]:
    """Every figure of a run, in bytes."""
    return {
        "device": place,
        "weights": run.weights,
        "kv_cache": run.kv_cache,
        "phases": [{"name": row.phase, "estimated": row.estimated, "measured": row.measured} for row in comparisons],
    }


def fit_content(
    source: "ModelSource",
    workload: "Workload",
    budget: int,
    usable: int,
    unknowns: Sequence[str],
    found: Sequence["Fit"],
) -> dict[str, Any]:
    """What fits, in bytes."""
    return {
        "model": source.name,
        "description": source.title,
        "workload": asdict(workload),
        "budget": budget,
        "usable": usable,
        "unknown": list(unknowns),
        "fits": [asdict(row) | {"precision": row.precision} for row in found],
    }


def print_estimate(source: "ModelSource", found: "Estimate", comparisons: Sequence["Comparison"] | None) -> None:
    """The phases, what the worst of them is made of, and the measurement if there is one."""
    from rich.console import Console

    from filmstrip.diagnostics.memory_units import format_bytes

    console = Console(highlight=False)
    console.print(visible(source.title), style="bold", soft_wrap=True, markup=False)
    console.print(_work(found), style="dim", soft_wrap=True)
    console.print()
    console.print(_phases(found) if comparisons is None else _side_by_side(comparisons))
    peak = found.peak
    parts = sorted({**peak.resident, "activations (temporary)": peak.transient}.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    console.print(f"\npeak {format_bytes(peak.total)} at {peak.name}: {listed}", soft_wrap=True)
    if comparisons is not None:
        console.print(_explanation(comparisons), style="dim", soft_wrap=True)


def print_fit(
    source: "ModelSource",
    workload: "Workload",
    size: str,
    usable: int,
    unknowns: Sequence[str],
    found: Sequence["Fit"],
) -> None:
    """A sentence where one number was asked for, else a table."""
    from rich.console import Console
    from rich.table import Table

    from filmstrip.diagnostics.memory_units import format_bytes

    console = Console(highlight=False)
    console.print(visible(source.title), style="bold", soft_wrap=True, markup=False)
    work = f"training {workload.training}" if workload.training else "inference"
    console.print(f"{work} in {format_bytes(usable)} (of {size}, less the headroom)", style="dim")
    if not found:
        console.print("nothing fits")
        return
    if len(unknowns) == 1 and len(found) == 1:
        only = found[0]
        what = {"frames": "frame", "context": "token", "batch": "row"}[unknowns[0]]
        number = {"frames": only.frames, "context": only.context, "batch": only.batch}[unknowns[0]]
        plural = "s fit" if number != 1 else " fits"
        console.print(f"{number:,} {what}{plural}", style="bold")
    table = Table("precision", box=None, pad_edge=False)
    for column in ("batch", "frames", "context", "memory"):
        table.add_column(column, justify="right")
    table.add_column("peak at")
    for row in found:
        context = f"{row.context:,}{'*' if row.beyond_training else ''}"
        table.add_row(row.precision, f"{row.batch}", f"{row.frames}", context, format_bytes(row.total), row.phase)
    console.print(table)
    if any(row.beyond_training for row in found):
        console.print("* more positions than the text tower was trained on", style="dim")


def _work(found: "Estimate") -> str:
    work, extent = found.workload, found.extent
    kind = (
        f"training ({work.training}{', checkpointing' if work.checkpointing else ''})" if work.training else "inference"
    )
    stored = work.quantize or work.dtype
    precision = stored if stored == work.arithmetic else f"{stored} weights, {work.arithmetic}"
    precision += f", keys and values in {work.kept}" if work.kept != work.arithmetic else ""
    if not extent.length:  # a vision tower on its own
        return f"{kind}, {precision}, {work.attention} on {work.device}; {extent.clips} x {extent.frames} frames"
    tokens = f"{extent.length:,} tokens each, {extent.visual_tokens // extent.batch:,} of them visual"
    new = f", {work.new_tokens:,} new" if not work.training else ""
    rows = f"{extent.batch} row{'s' if extent.batch > 1 else ''}"
    return f"{kind}, {precision}, {work.attention} on {work.device}; {rows} of {tokens}{new}"


def _phases(found: "Estimate") -> Any:
    from rich.table import Table

    from filmstrip.diagnostics.memory_units import format_bytes

    table = Table("phase", box=None, pad_edge=False)
    for column in ("stays", "temporary", "total"):
        table.add_column(column, justify="right")
    for phase in found.phases:
        stays = sum(phase.resident.values())
        style = "bold" if phase == found.peak else None
        table.add_row(phase.name, *map(format_bytes, (stays, phase.transient, phase.total)), style=style)
    return table


def _side_by_side(comparisons: Sequence["Comparison"]) -> Any:
    from rich.table import Table

    from filmstrip.diagnostics.memory_units import format_bytes

    gauges = list(comparisons[0].measured)
    table = Table("phase", box=None, pad_edge=False)
    for column in ("estimate", *gauges, "estimate/measured"):
        table.add_column(column, justify="right")
    for row in comparisons:
        figures = [format_bytes(row.estimated), *(format_bytes(row.measured[gauge]) for gauge in gauges)]
        table.add_row(row.phase, *figures, f"{row.ratio(_reference(gauges)):.3f}")
    return table


def _reference(gauges: Sequence[str]) -> str:
    """The gauge that the estimate is about: CUDA's allocator where there is one."""
    return "device allocated" if "device allocated" in gauges else "allocated"


def _explanation(comparisons: Sequence["Comparison"]) -> str:
    gauges = list(comparisons[0].measured)
    lines = [f"the ratio is to '{_reference(gauges)}'; allocated: live tensors as PyTorch made them"]
    if "resident" in gauges:
        lines.append("resident: physical memory of the process beyond its start, libraries loaded meanwhile included")
    return "; ".join(lines)
