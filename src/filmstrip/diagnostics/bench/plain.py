"""Results as plain data for JSON, and read from there again, to go on with a page that broke off."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filmstrip.config.checks import require
from filmstrip.diagnostics.bench.machine import Limits, describe_machine
from filmstrip.diagnostics.bench.peer import Sample
from filmstrip.diagnostics.bench.plan import NOT_RUN, can
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.run import Options, Results, Sitting
from filmstrip.diagnostics.bench.targets import judge
from filmstrip.errors import ConfigError

_CHANGES = ("date", "load", "threads")  # of a machine, between one sitting and the next
_SAME = ("rounds", "threads", "quiet")


def as_plain(results: Results) -> dict[str, Any]:
    """Everything that was measured, and what was run to measure it."""
    options = results.options
    return {
        "command": options.command,
        "complete": results.complete,
        "machine": results.machine,
        "sittings": [{"date": sitting.date, "limits": _plain_limits(sitting.limits)} for sitting in results.sittings],
        "rounds": options.rounds,
        "threads": options.threads,
        "quiet": options.quiet,
        "agreement": results.agreement,
        "skipped": results.skipped,
        "targets": [asdict(judgement) for judgement in judge(results.rows)],
        "rows": [_plain_row(row) for row in results.rows],
    }


def _plain_limits(limits: Limits) -> dict[str, Any]:
    return {"read_bytes_per_second": limits.read_bytes, "flops": limits.flops, "others": limits.others}


def _plain_row(row: Row) -> dict[str, Any]:
    ratios = row.ratios()
    return {
        "size": row.size,
        "dtype": row.dtype,
        "workload": row.workload,
        "tokens": row.tokens,
        "limit_seconds": row.limits,
        "share_of_limit": row.share,
        "ratio": row.ratio(),
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


def read_earlier(figures: Path, options: Options) -> Results:
    """The rows that are whole in the file of figures of an earlier run.

    Raises `ConfigError`, one line, where that run was another machine's or another program's, or took its samples in
    another way: its figures cannot stand beside new ones.
    """
    try:
        content = json.loads(figures.read_text(encoding="utf-8"))
        *before, last = [_read_sitting(sitting) for sitting in content["sittings"]]
        rows = [_read_row(row) for row in content["rows"]]
        agreement = {str(title): str(said) for title, said in content["agreement"].items()}
        found, settings = dict(content["machine"]), {name: content[name] for name in _SAME}
    except OSError as error:
        raise ConfigError(f"there is nothing to resume: {figures}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{figures} is not what `filmstrip bench --out` writes ({error})") from error
    machine = describe_machine()
    other = [name for name in machine if name not in _CHANGES and found.get(name) != machine[name]]
    other += [name for name in _SAME if settings[name] != getattr(options, name)]
    require(not other, f"{figures} was measured with another {', '.join(other)}; without --resume a run starts anew")
    whole = [row for row in rows if _is_whole(row, options)]
    return Results(found | {"date": last.date}, last.limits, options, whole, agreement, before=before)


def _is_whole(row: Row, options: Options) -> bool:
    """Whether there are samples of every peer that can do it and that there was memory for, and nothing went wrong."""
    without = {peer for peer, why in row.failed.items() if why.startswith(NOT_RUN)}
    asked = [peer for peer in options.peers if can(peer, row.tokens > 0) and peer not in without]
    return row.failed.keys() <= without and bool(asked) and all(row.samples.get(peer) for peer in asked)


def _read_sitting(content: dict[str, Any]) -> Sitting:
    limits = content["limits"]
    flops = {str(name): float(rate) for name, rate in limits["flops"].items()}
    return Sitting(str(content["date"]), Limits(float(limits["read_bytes_per_second"]), flops, float(limits["others"])))


def _read_row(content: dict[str, Any]) -> Row:
    peers = content["peers"]
    return Row(
        str(content["size"]),
        str(content["dtype"]),
        str(content["workload"]),
        int(content["tokens"]),
        [float(limit) for limit in content["limit_seconds"]],
        # What others did beside a sample is not kept: those that it spoilt are not there.
        {
            name: [Sample(float(s), 0.0, int(peer["peak_bytes"])) for s in peer["seconds"]]
            for name, peer in peers.items()
        },
        {name: int(peer["dropped"]) for name, peer in peers.items()},
        {str(name): str(why) for name, why in content["failed"].items()},
        [str(remark) for remark in content["remarks"]],
    )
