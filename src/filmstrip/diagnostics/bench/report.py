"""Results as a Markdown page."""

from collections.abc import Iterable

from filmstrip.diagnostics.bench.peer import LLAMA, THEIRS
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.run import Results, Sitting
from filmstrip.diagnostics.bench.sizes import plain_dtype
from filmstrip.diagnostics.bench.targets import Judgement, judge

_QUANTISED = (
    "transformers has no weights of so few bits here: it runs those in {dtype} that these were made from, and *ratio* "
    "is over that."
)

_LEGEND = """\
Programs run in turn, each in a process of its own, until there are {rounds} samples of each (3 where a round takes
minutes); the first run of each does not count. Times are medians, in brackets the fastest and the slowest. *Ratio* is
the other program's median by ours, in brackets the least and the most of the pairs of samples. *Share of limit* is how
near ours comes to the least time that memory or arithmetic allow, by what they did beside the samples: on a machine
that is shared with others that changes. *Peak* is resident memory, mapped weights included.
*Samples* is how many count; one beside which other work took more than {quiet:.0%} of a core is *dropped* and taken
again, as long as that is not too often.

A *cold* load is the first one of a process whose libraries are loaded, from files that are not in memory; both programs
map them and read most of them later. Decoding is timed by the token, a *second question* from decoded frames to the
first token; transformers, in its default use, reads the whole prompt again, from frames that are prepared already."""

_LLAMA = """\
llama.cpp {version} runs the text tower alone, and only decodes, from a file of the same weights: 16-bit ones as its
F16, int8 as Q8_0, int4 as Q4_0. Keys and values are in float16; flash attention is off, which makes it faster on a
CPU."""


def as_markdown(results: Results) -> str:
    """A page: which machine it was, what it can do, the targets, and every row with its spread and ratio."""
    lines = ["# Speed, measured", "", *_head(results), ""]
    if not results.complete:
        lines += ["**Not finished: this is what was measured until now.**", ""]
    lines += ["## Targets", "", *_targets(judge(results.rows)), ""]
    if results.skipped:
        lines += ["## Not run", "", *(f"- {title}: {why}" for title, why in results.skipped.items()), ""]
    for size, dtype in dict.fromkeys((row.size, row.dtype) for row in results.rows):
        rows = [row for row in results.rows if (row.size, row.dtype) == (size, dtype)]
        lines += [f"## {size}, {dtype}", ""]
        said = results.agreement.get(f"{size} {dtype}")
        if said:
            lines += [f"Greedy answers to one prompt with a video: {said}.", ""]
        if plain_dtype(dtype) != dtype:
            lines += [_QUANTISED.format(dtype=plain_dtype(dtype)), ""]
        lines += [*_table(rows, results.options.peers), "", *_remarks(rows)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _head(results: Results) -> list[str]:
    machine, options = results.machine, results.options
    memory = float(str(machine["memory_bytes"])) / 2**30
    dates = " and ".join(sitting.date for sitting in results.sittings)
    return [
        f"Written by `{options.command}` on {dates}. The targets and notes on them are kept in the program; "
        "every other figure was measured in this run.",
        "",
        f"{machine['processor']} ({machine['vectors']}), {machine['cores']} cores, {options.threads} threads, "
        f"{memory:.0f} GiB, {machine['system']}, Python {machine['python']}, PyTorch {machine['torch']}, "
        f"transformers {machine['transformers']}, filmstrip {machine['filmstrip']}.",
        "",
        *(_limits(sitting, options.quiet) for sitting in results.sittings),
        "",
        _LEGEND.format(rounds=options.rounds, quiet=options.quiet),
        *(["", _LLAMA.format(version=machine["llama_cpp_python"])] if LLAMA in options.peers else []),
    ]


def _limits(sitting: Sitting, quiet: float) -> str:
    limits = sitting.limits
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in limits.flops.items())
    disturbed = ""
    if limits.others > quiet:
        disturbed = f" Other work took {limits.others:.0%} of a core meanwhile, so these may be too low."
    return (
        f"What this machine could do when it began, on {sitting.date}: read "
        f"{limits.read_bytes / 1e9:.1f} GB/s from memory; multiply matrices at {rates}.{disturbed}"
    )


def _targets(judgements: Iterable[Judgement]) -> list[str]:
    lines = ["| work | at least | stretch | measured | share of limit | |", "|---|---|---|---|---|---|"]
    notes = []
    for judgement in judgements:
        target = judgement.target
        least = "" if target.least is None else f"{target.least:g}x"
        if target.share is not None:
            least += f" and {target.share:.0%} of the limit"
        stretch = _stretch(judgement) if target.stretch is None else f"{target.stretch:g}x"
        measured = "" if judgement.ratio is None else f"{judgement.ratio:.2f}x{_range(judgement.spread)}"
        share = "" if judgement.share is None else f"{judgement.share:.0%}"
        lines.append(f"| {target.title} | {least} | {stretch} | {measured} | {share} | {judgement.verdict} |")
        if target.note and judgement.verdict == "missed":
            notes.append(f"- {target.title}: {target.note}")
    return [*lines, *([""] if notes else []), *notes]


def _stretch(judgement: Judgement) -> str:
    said, found = judgement.target.stretch_said, judgement.to_peer
    return said if found is None else f"{said} ({found:.2f}x)"


def _table(rows: list[Row], peers: Iterable[str]) -> list[str]:
    decoded = any(row.samples.get(LLAMA) for row in rows)
    peers = [peer for peer in peers if peer != LLAMA or decoded]
    others = {"ratio": THEIRS} | ({f"ratio to {LLAMA}": LLAMA} if decoded else {})
    columns = [cell for peer in peers for cell in (peer, "peak")] + [*others, "share of limit", "samples", "dropped"]
    lines = [f"| work | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        cells = [row.workload]
        for peer in peers:
            cells += [_time(row, peer), _peak(row, peer)]
        cells += [_ratio(row, other) for other in others.values()]
        cells.append("" if row.share is None else f"{row.share:.0%}")
        cells.append(", ".join(str(len(row.samples.get(peer, []))) for peer in peers))
        cells.append(str(sum(row.dropped.values())))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _remarks(rows: list[Row]) -> list[str]:
    """What is to be said of single rows, and how tokens a second grow with the batch."""
    lines = [f"- {row.workload}: {remark}" for row in rows for remark in row.remarks]
    lines += [f"- {row.workload}, {name}: {why}" for row in rows for name, why in row.failed.items()]
    singles = [row for row in rows if row.tokens == 1]
    for single in singles:
        for row in (row for row in rows if row.tokens > 1 and row.workload.startswith(f"{single.workload},")):
            rates = {peer: (row.rate(peer), single.rate(peer)) for peer in row.samples}
            growth = [f"{peer} {more / one:.2f}x" for peer, (more, one) in rates.items() if more and one]
            if growth:
                lines.append(f"- {row.workload}, tokens a second over batch 1: {', '.join(growth)}")
    return [*lines, ""] if lines else []


def _time(row: Row, peer: str) -> str:
    median, rate, seconds = row.median(peer), row.rate(peer), row.seconds(peer)
    if median is None:
        return ""
    tokens = "" if rate is None else f", {rate:.3g} tokens/s"
    return f"{duration(median)} ({duration(min(seconds))}–{duration(max(seconds))}){tokens}"


def _ratio(row: Row, peer: str) -> str:
    ratio, pairs = row.ratio(peer), row.ratios(peer)
    return "" if ratio is None else f"{ratio:.2f}{_range((min(pairs), max(pairs)))}"


def _peak(row: Row, peer: str) -> str:
    most = max((sample.peak for sample in row.samples.get(peer, [])), default=0)
    return f"{most / 1e9:.2f} GB" if most else ""


def _range(spread: tuple[float, float] | None) -> str:
    return "" if spread is None else f" ({spread[0]:.2f}–{spread[1]:.2f})"


def duration(seconds: float) -> str:
    """Seconds or milliseconds with three figures."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
