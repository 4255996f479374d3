"""Results as a Markdown page."""

from filmstrip.diagnostics.bench.peer import OURS, Sample
from filmstrip.diagnostics.bench.run import Results, Row


def as_markdown(results: Results, command: str) -> str:
    """A page: which machine it was, what it can do, and every row: medians, spread, ratio, share of the limit."""
    machine, limits, options = results.machine, results.limits, results.options
    memory = float(str(machine["memory_bytes"])) / 2**30
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in limits.flops.items())
    lines = [
        "# Speed",
        "",
        f"Written by `{command}`; not a line of it by hand.",
        "",
        f"{machine['processor']} ({machine['vectors']}), {machine['cores']} cores, {machine['threads']} threads, "
        f"{memory:.0f} GiB, {machine['system']}, PyTorch {machine['torch']}, Python {machine['python']}.",
        "",
        f"What this machine can do at most, measured in the same run: read {limits.read_bytes / 1e9:.1f} GB/s from "
        f"memory; multiply matrices at {rates}.",
        "",
        f"Medians of {options.rounds} samples of each program, in turn; in brackets the fastest and the slowest. "
        "*Ratio* is the other program's median by ours. *Share of limit* is how near ours comes to the least time that "
        "memory or arithmetic allow. *Peak* is resident memory, mapped weights included. A sample beside which other "
        f"work took more than {options.quiet:.0%} of a core is *dropped* and taken again.",
    ]
    for model in dict.fromkeys((row.size, row.dtype) for row in results.rows):
        rows = [row for row in results.rows if (row.size, row.dtype) == model]
        lines += ["", f"## {model[0]}, {model[1]}", ""]
        said = results.agreement.get(" ".join(model))
        if said:
            lines += [f"Greedy answers to one prompt with a video: {said}.", ""]
        lines += _table(rows, options.peers)
        lines += [f"- {row.workload}, {name}: {why}" for row in rows for name, why in row.failed.items()]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row], peers: tuple[str, ...]) -> list[str]:
    times = " | ".join(f"{peer} | peak" for peer in peers)
    lines = [f"| work | {times} | ratio | share of limit | dropped |"]
    lines.append("|" + "---|" * (2 * len(peers) + 4))
    for row in rows:
        cells = [row.workload]
        for peer in peers:
            samples = row.samples.get(peer, [])
            cells += [_spread(row.median(peer), samples), _peak(samples)]
        ours, limit = row.median(OURS), row.limit
        cells.append("" if row.ratio is None else f"{row.ratio:.2f}")
        cells.append("" if limit is None or not ours else f"{limit / ours:.0%}")
        cells.append(str(sum(row.dropped.values())))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _spread(median: float | None, samples: list[Sample]) -> str:
    if median is None:
        return ""
    seconds = [sample.seconds for sample in samples]
    return f"{duration(median)} ({duration(min(seconds))}–{duration(max(seconds))})"


def _peak(samples: list[Sample]) -> str:
    most = max((sample.peak for sample in samples), default=0)
    return f"{most / 1e9:.2f} GB" if most else ""


def duration(seconds: float) -> str:
    """Seconds or milliseconds with three figures."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
