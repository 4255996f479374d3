"""Peers in turn, A B A B, on the same weights: samples, of which those taken beside other work are dropped."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.diagnostics.bench.limits import limit_seconds
from filmstrip.diagnostics.bench.machine import Limits, describe_machine, measure_limits
from filmstrip.diagnostics.bench.peer import OURS, THEIRS, Peer, Sample, time_command
from filmstrip.diagnostics.bench.sizes import checkpoint_for
from filmstrip.diagnostics.bench.startup import startup_commands
from filmstrip.diagnostics.bench.workloads import WORKLOADS, Workload
from filmstrip.errors import FilmstripError

_GREEDY = 8  # tokens that the peers must agree on


@dataclass(frozen=True)
class Options:
    """What is run. `quiet` is the most CPU time of others, per second, beside which a sample counts."""

    cache: Path
    sizes: tuple[str, ...] = ("tiny", "S")
    dtypes: tuple[str, ...] = ("float32",)
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    peers: tuple[str, ...] = (OURS, THEIRS)
    rounds: int = 7
    threads: int = 2
    quiet: float = 0.1
    startup: bool = True


@dataclass
class Row:
    """One workload on one model: every peer's samples, what others' work spoilt, and what the machine allows."""

    size: str
    dtype: str
    workload: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    limit: float | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def median(self, peer: str) -> float | None:
        """Median seconds of one unit of work, None without samples."""
        seconds = [sample.seconds for sample in self.samples.get(peer, [])]
        return statistics.median(seconds) if seconds else None

    @property
    def ratio(self) -> float | None:
        """How many times as long the reference takes; above 1 this program is faster."""
        ours, theirs = self.median(OURS), self.median(THEIRS)
        return None if not ours or not theirs else theirs / ours


@dataclass
class Results:
    """Everything that was measured. `agreement` says for every model whether the peers chose the same tokens."""

    machine: dict[str, object]
    limits: Limits
    options: Options
    rows: list[Row] = field(default_factory=list)
    agreement: dict[str, str] = field(default_factory=dict)


def run_bench(options: Options, note: Callable[[str], None] = lambda text: None) -> Results:
    """Measure limits, then every model and workload. `note` hears what is being done.

    A peer that cannot do something (not installed, out of memory) is noted in its row and the others go on.
    """
    torch.set_num_threads(options.threads)
    note("measuring what the machine can do")
    results = Results(describe_machine(), measure_limits(tuple(sorted({"float32", *options.dtypes}))), options)
    if options.startup:
        results.rows += _startup(options, note)
    for size in options.sizes:
        for dtype in options.dtypes if size != "tiny" else ("float32",):
            note(f"{size} {dtype}: writing random weights, if they are not there")
            directory = checkpoint_for(size, dtype, options.cache)
            results.rows += _model(size, dtype, directory, options, results, note)
    return results


def _model(
    size: str, dtype: str, directory: Path, options: Options, results: Results, note: Callable[[str], None]
) -> list[Row]:
    """All workloads of one model, training last: it changes the weights."""
    config = read_checkpoint(directory).config
    rows = []
    with ExitStack() as stack:
        peers, failed = _open(options, directory, dtype, stack)
        if len(peers) > 1:
            results.agreement[f"{size} {dtype}"] = _agreement(peers)
        for name in sorted(options.workloads, key=lambda name: name == "train"):
            work = WORKLOADS[name]
            note(f"{size} {dtype}: {work.name}")
            limit = limit_seconds(config, work, dtype, results.limits)
            row = Row(size, dtype, work.name, limit=limit, failed=dict(failed))
            _in_turn(row, {peer.name: peer.sample for peer in _prepare(peers, work, row)}, options)
            rows.append(row)
    return rows


def _open(options: Options, directory: Path, dtype: str, stack: ExitStack) -> tuple[list[Peer], dict[str, str]]:
    """The peers that have loaded the model, and why the others have not."""
    peers, failed = [], {}
    for name in options.peers:
        try:
            peer = stack.enter_context(Peer(name))
            peer.ask("open", directory=str(directory), dtype=dtype, threads=options.threads)
            peers.append(peer)
        except FilmstripError as error:
            failed[name] = str(error)
    return peers, failed


def _prepare(peers: Iterable[Peer], workload: Workload, row: Row) -> list[Peer]:
    ready = []
    for peer in peers:
        try:
            peer.ask("prepare", **asdict(workload))
            ready.append(peer)
        except FilmstripError as error:
            row.failed[peer.name] = str(error)
    return ready


def _agreement(peers: Sequence[Peer]) -> str:
    said = [peer.ask("greedy", count=_GREEDY)["tokens"] for peer in peers]
    same = next((i for i, tokens in enumerate(zip(*said, strict=True)) if len(set(tokens)) > 1), _GREEDY)
    return f"the same {_GREEDY} tokens" if same == _GREEDY else f"the same {same} of {_GREEDY} tokens"


def _in_turn(row: Row, peers: Mapping[str, Callable[[], Sample]], options: Options) -> None:
    """One sample of every peer, round after round. A sample beside other work is dropped and counted; twice as many
    rounds are tried before a row stays short of samples."""
    takers = dict(peers)
    row.samples = {name: [] for name in takers}
    row.dropped = dict.fromkeys(takers, 0)
    for _ in range(2 * options.rounds):
        wanting = [name for name in takers if len(row.samples[name]) < options.rounds]
        if not wanting:
            return
        for name in wanting:
            try:
                sample = takers[name]()
            except FilmstripError as error:
                row.failed[name] = str(error)
                del takers[name]
                break
            if sample.others > options.quiet:
                row.dropped[name] += 1
            else:
                row.samples[name].append(sample)


def _startup(options: Options, note: Callable[[str], None]) -> list[Row]:
    rows = []
    for name, commands in startup_commands(options.cache, options.peers).items():
        note(name)
        row = Row("tiny", "float32", name)
        takers = {peer: partial(time_command, command) for peer, command in commands.items()}
        _in_turn(row, takers, options)
        rows.append(row)
    return rows


def as_plain(results: Results) -> dict[str, Any]:
    """Everything as plain data, for JSON."""
    options = results.options
    return {
        "machine": results.machine,
        "limits": {"read_bytes_per_second": results.limits.read_bytes, "flops": results.limits.flops},
        "rounds": options.rounds,
        "threads": options.threads,
        "quiet": options.quiet,
        "agreement": results.agreement,
        "rows": [
            {
                "size": row.size,
                "dtype": row.dtype,
                "workload": row.workload,
                "limit_seconds": row.limit,
                "ratio": row.ratio,
                "peers": {
                    name: {
                        "median_seconds": row.median(name),
                        "seconds": [sample.seconds for sample in samples],
                        "peak_bytes": max((sample.peak for sample in samples), default=0),
                        "dropped": row.dropped.get(name, 0),
                    }
                    for name, samples in row.samples.items()
                },
                "failed": row.failed,
            }
            for row in results.rows
        ],
    }
