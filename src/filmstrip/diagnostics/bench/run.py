"""Peers in turn, A B A B, on the same weights: samples, of which those taken beside other work are dropped."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.bench.limits import limit_seconds, work_flops
from filmstrip.diagnostics.bench.machine import (
    Limits,
    describe_machine,
    measure_limits,
    measure_products,
    measure_reading,
)
from filmstrip.diagnostics.bench.page_cache import evict
from filmstrip.diagnostics.bench.peer import LLAMA, OURS, THEIRS, Peer, Sample
from filmstrip.diagnostics.bench.plan import START_UP, Part, able, choose_peers, plan_product, shortage
from filmstrip.diagnostics.bench.rows import Row, take_in_turn
from filmstrip.diagnostics.bench.sizes import checkpoint_for, plain_dtype, require_directory
from filmstrip.diagnostics.bench.startup import Start, startup_commands, time_command
from filmstrip.diagnostics.bench.workloads import WORKLOADS, Workload
from filmstrip.diagnostics.memory_measure import free_memory
from filmstrip.errors import FilmstripError
from filmstrip.kernels import find_kernels

_GREEDY = 8  # tokens that the peers must agree on
_PATIENCE = 600.0  # seconds that a prompt may take for it
Note = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is run. `quiet` is the most CPU time of others, per second, beside which a sample counts; `command` is what
    the user wrote."""

    cache: Path
    plan: tuple[Part, ...] = plan_product(("tiny", "S"), ("float32",))
    peers: tuple[str, ...] = (OURS, THEIRS)
    rounds: int = 7
    threads: int = 2
    quiet: float = 0.1
    startup: bool = True
    command: str = "filmstrip bench"


@dataclass(frozen=True)
class Sitting:
    """When a run began, or went on, and what the machine could do then."""

    date: str
    limits: Limits


@dataclass
class Results:
    """Everything that was measured. `agreement` says for every model whether the peers chose the same tokens, `skipped`
    why a model was not run; `complete` is false as long as something is still to come. `before` are the sittings
    before this one, whose date and limits the `machine` and `limits` tell."""

    machine: dict[str, object]
    limits: Limits
    options: Options
    rows: list[Row] = field(default_factory=list)
    agreement: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    before: list[Sitting] = field(default_factory=list)

    @property
    def sittings(self) -> list[Sitting]:
        """All of them, in order."""
        return [*self.before, Sitting(str(self.machine["date"]), self.limits)]

    def has(self, size: str, dtype: str, workload: str) -> bool:
        """Whether there is a row of a workload (by the name that rows have)."""
        return any((row.size, row.dtype, row.workload) == (size, dtype, workload) for row in self.rows)


def run_bench(
    options: Options,
    note: Note = lambda text: None,
    keep: Callable[[Results], None] = lambda results: None,
    earlier: Results | None = None,
) -> Results:
    """Measure limits, then every model and workload, but for what `earlier` has already (`plain.read_earlier`). `note`
    hears what is being done, `keep` gets the results so far after every row.

    A peer that cannot do something (not installed, out of memory) is noted in its row, a model that cannot be had in
    `skipped`, and the others go on. Raises `CheckpointError` where nothing can be written to `options.cache`.
    """
    require_directory(options.cache)
    torch.set_num_threads(options.threads)
    note("measuring what the machine can do")
    plain = {plain_dtype(part.dtype) for part in options.plan}
    limits = measure_limits(tuple(sorted({"float32", *plain})), options.quiet)
    results = Results(describe_machine(), limits, options)
    if earlier is not None:
        results.rows, results.agreement = [*earlier.rows], {**earlier.agreement}
        results.before = earlier.sittings
    keep(results)
    plan = [part if earlier is None else _what_is_left(part, earlier) for part in options.plan]
    if options.startup:
        try:
            _time_startup(results, note, keep)
        except FilmstripError as error:
            results.skipped[START_UP] = str(error)
    for part in (part for part in plan if part.workloads):
        try:
            _time_part(part, results, note, keep)
        except FilmstripError as error:
            results.skipped[part.title] = str(error)
    results.complete = True
    keep(results)
    return results


def _what_is_left(part: Part, earlier: Results) -> Part:
    left = [name for name in part.workloads if not earlier.has(part.size, part.dtype, WORKLOADS[name].name)]
    return replace(part, workloads=tuple(left))


def _time_part(part: Part, results: Results, note: Note, keep: Callable[[Results], None]) -> None:
    """All workloads of one model: first loads into a process that has none, last training, which changes the weights.

    Raises `FilmstripError` when the model cannot be had.
    """
    options, free = results.options, free_memory(torch.device("cpu"))
    works = [WORKLOADS[name] for name in part.workloads]
    peers, failed = choose_peers(part, [name for name in options.peers if able(name, works)], free)
    if not peers:
        raise FilmstripError("; ".join(dict.fromkeys(failed.values())) or f"not what {LLAMA} can do")
    note(f"{part.title}: writing weights, if they are not there")
    directories = {name: _directory(name, part, options.cache) for name in peers}
    others = [directory for name, directory in directories.items() if name != LLAMA]
    config = read_checkpoint((others or [checkpoint_for(part.size, plain_dtype(part.dtype), options.cache)])[0]).config
    for work in (work for work in works if work.cold):
        note(f"{part.title}: {work.name}")
        row = Row(part.size, part.dtype, work.name, failed=dict(failed))
        loading = [name for name in peers if able(name, [work])]
        takers = {name: partial(_load_cold, name, directories[name], part, options) for name in loading}
        take_in_turn(row, takers, options.rounds, options.quiet)
        results.rows.append(row)
        keep(results)
    rest = sorted((work for work in works if not work.cold), key=lambda work: (work.kind == "train", work.compiled))
    if not rest:
        return
    with ExitStack() as stack:
        model = _open(part, config, directories, options, stack)
        seeing = [peer for peer in model.peers if peer.name != LLAMA]
        if len(seeing) > 1 and part.title not in results.agreement:
            results.agreement[part.title] = _too_slow(part, config, results.limits) or _agreement(seeing)
        for work in rest:
            note(f"{part.title}: {work.name}")
            row = Row(part.size, part.dtype, work.name, work.tokens, failed=failed | model.failed)
            _time_row(row, work, model, results, free)
            results.rows.append(row)
            keep(results)


def _directory(peer: str, part: Part, cache: Path) -> Path:
    """What a peer loads, written if it is not there yet."""
    if peer != LLAMA:
        return checkpoint_for(part.size, part.dtype_of(peer), cache)
    from filmstrip.diagnostics.bench.llama_file import KINDS, write_text_tower

    source = checkpoint_for(part.size, plain_dtype(part.dtype), cache)
    return write_text_tower(source, cache / f"{source.name}-{KINDS[part.dtype]}", part.dtype)


@dataclass(frozen=True)
class _Model:
    """The peers that hold one model, what each said of its precision, and why others do not hold it."""

    part: Part
    config: ModelConfig
    peers: list[Peer]
    told: dict[str, dict[str, str]]
    failed: dict[str, str]


def _time_row(row: Row, work: Workload, model: _Model, results: Results, free: int | None) -> None:
    """One workload by the peers that hold the model, if there is room for it beside the weights."""
    options, part, config = results.options, model.part, model.config
    kept = {name: said["kept"] for name, said in model.told.items() if able(name, [work])}
    missing = shortage(part, config, work, kept, free)
    if missing:
        row.remarks.append(missing)
        return
    ready = {peer.name: peer.sample for peer in _prepare([one for one in model.peers if one.name in kept], work, row)}
    take_in_turn(row, ready, options.rounds, options.quiet, partial(_limit_now, work, model, results))


def _limit_now(work: Workload, model: _Model, results: Results) -> float | None:
    """The least seconds that the work could take at this moment: a machine that is shared with others has not the same
    memory all the time.
    """
    if OURS not in model.told or work.kind == "load":
        return None
    limits, dtype, quiet = results.limits, model.part.dtype, results.options.quiet
    if work.kind == "decode":
        limits = replace(limits, read_bytes=measure_reading(quiet, enough=1)[0])
    else:
        names = {"float32", plain_dtype(dtype)}
        limits = replace(limits, flops={name: measure_products(name, quiet, enough=1)[0] for name in names})
    return limit_seconds(model.config, work, dtype, limits, **model.told[OURS])


def _load_cold(name: str, directory: Path, part: Part, options: Options) -> Sample:
    """One load by a process that has loaded nothing of it, from files that are not in memory."""
    with Peer(name) as peer:
        peer.ask("rehearse", threads=options.threads)
        evict(sorted(directory.glob("*.safetensors")))
        return peer.sample("load", directory=str(directory), dtype=plain_dtype(part.dtype))


def _open(part: Part, config: ModelConfig, directories: dict[str, Path], options: Options, stack: ExitStack) -> _Model:
    """Have every peer load the model."""
    model = _Model(part, config, [], {}, {})
    for peer in [stack.enter_context(Peer(name)) for name in directories]:  # they start beside each other
        given = {"directory": str(directories[peer.name]), "dtype": plain_dtype(part.dtype)}
        try:
            model.told[peer.name] = peer.ask("open", **given, threads=options.threads)
            model.peers.append(peer)
        except FilmstripError as error:
            model.failed[peer.name] = str(error)
    return model


def _prepare(peers: Iterable[Peer], workload: Workload, row: Row) -> list[Peer]:
    ready = []
    for peer in peers:
        try:
            peer.ask("prepare", **asdict(workload))
            ready.append(peer)
        except FilmstripError as error:
            row.failed[peer.name] = str(error)
    return ready


def _too_slow(part: Part, config: ModelConfig, limits: Limits) -> str:
    """Why the peers are not compared, or nothing: some processors multiply 16-bit numbers a hundred times as slowly."""
    dtype = plain_dtype(part.dtype)
    seconds = work_flops(config, WORKLOADS["prefill"]) / limits.flops[dtype]
    minutes = f"{seconds / 60:,.0f} minutes"
    return f"not compared (reading it in {dtype} would take {THEIRS} {minutes})" if seconds > _PATIENCE else ""


def _agreement(peers: Sequence[Peer]) -> str:
    try:
        said = [peer.ask("greedy", count=_GREEDY)["tokens"] for peer in peers]
    except FilmstripError as error:
        return f"not compared ({error})"
    same = next((i for i, tokens in enumerate(zip(*said, strict=True)) if len(set(tokens)) > 1), _GREEDY)
    return f"the same {_GREEDY} tokens" if same == _GREEDY else f"the same {same} of {_GREEDY} tokens"


def _time_startup(results: Results, note: Note, keep: Callable[[Results], None]) -> None:
    """Commands from the start of the process to its end; one run of each does not count."""
    options = results.options
    if os.environ.get("FILMSTRIP_KERNELS") != "off":
        find_kernels("wait")  # the first start would compile them beside itself, and disturb those after it
    commands = startup_commands(options.cache, options.peers)
    for start in (start for start in commands if not results.has("tiny", "float32", start.name)):
        note(start.name)
        row = Row("tiny", "float32", start.name)
        row.remarks.append(" against ".join(f"`{text}`" for text in start.shown.values()))
        said, takers = {}, {}
        for peer, command in start.commands.items():
            try:
                _, said[peer] = time_command(command, options.threads)
                takers[peer] = partial(_sample_command, command, options.threads)
            except FilmstripError as error:
                row.failed[peer] = str(error)
        if start.answers and said:
            row.remarks.append(_answers(start, said))
        take_in_turn(row, takers, options.rounds, options.quiet)
        results.rows.append(row)
        keep(results)


def _sample_command(command: Sequence[str], threads: int) -> Sample:
    return time_command(command, threads)[0]


def _answers(start: Start, said: dict[str, str]) -> str:
    """Whether the commands gave the same answer."""
    shown = {" ".join(text.split()) for text in said.values()}
    if len(said) == len(start.commands) and len(shown) == 1:
        return f"both answered “{shown.pop()}”" if len(said) > 1 else f"the answer: “{shown.pop()}”"
    return "; ".join(f"{peer} answered “{' '.join(text.split())}”" for peer, text in said.items())
