"""Results as plain data, for JSON."""

from dataclasses import asdict
from typing import Any

from filmstrip.diagnostics.bench.machine import Limits
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.run import Results
from filmstrip.diagnostics.bench.targets import judge


def as_plain(results: Results) -> dict[str, Any]:
    """Everything that was measured, and what was run to measure it."""
    options = results.options
    return {
        "command": options.command,
        "complete": results.complete,
        "machine": results.machine,
        "sittings": [{"date": sitting.date, "limits": _limits(sitting.limits)} for sitting in results.sittings],
        "rounds": options.rounds,
        "threads": options.threads,
        "quiet": options.quiet,
        "agreement": results.agreement,
        "skipped": results.skipped,
        "targets": [asdict(judgement) for judgement in judge(results.rows)],
        "rows": [_row(row) for row in results.rows],
    }


def _limits(limits: Limits) -> dict[str, Any]:
    return {"read_bytes_per_second": limits.read_bytes, "flops": limits.flops, "others": limits.others}


def _row(row: Row) -> dict[str, Any]:
    ratios = row.ratios
    return {
        "size": row.size,
        "dtype": row.dtype,
        "workload": row.workload,
        "tokens": row.tokens,
        "limit_seconds": row.limit,
        "share_of_limit": row.share,
        "ratio": row.ratio,
        "ratio_spread": [min(ratios), max(ratios)] if ratios else None,
        "peers": {
            name: {
                "median_seconds": row.median(name),
                "seconds": row.seconds(name),
                "tokens_per_second": row.rate(name),
                "peak_bytes": max((sample.peak for sample in samples), default=0),
                "dropped": row.dropped.get(name, 0),
            }
            for name, samples in row.samples.items()
        },
        "failed": row.failed,
        "remarks": row.remarks,
    }
