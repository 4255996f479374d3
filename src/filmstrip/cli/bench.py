"""`filmstrip bench`: this program and its peers, in turn, beside what the machine can do."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import note, starting, warn
from filmstrip.errors import ConfigError, FilmstripError

if TYPE_CHECKING:
    from filmstrip.diagnostics.bench.plan import Part
    from filmstrip.diagnostics.bench.run import Options, Results

_WHAT, _HOW = "What is timed", "How"
_FIGURES = ".json"


def bench(
    cache: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Where random weights are written, once (all of M takes 16 GB, of 7B 27 GB)"
        ),
    ],
    sizes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of tiny, S, M and 7B [dim](tiny,S)[/dim]", rich_help_panel=_WHAT),
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of float32, bfloat16, float16, int8, int4 [dim](float32)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    workloads: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="start-up, load-cold, load-warm, vision, prefill, decode-64, decode-64x4, decode-64x8, decode-2100, "
            "decode-2100x4, decode-2100x8, second, train, train-compiled [dim](all)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    results: Annotated[
        bool,
        typer.Option(
            "--results", help="What the page of results has: tiny, S and M, an hour or two", rich_help_panel=_WHAT
        ),
    ] = False,
    large: Annotated[
        bool,
        typer.Option("--with-7b", help="With --results: also the 7B, as far as memory goes", rich_help_panel=_WHAT),
    ] = False,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of filmstrip, transformers, llama.cpp [dim](all that are installed)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Samples of each", rich_help_panel=_HOW)] = 7,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of each program", rich_help_panel=_HOW)] = 2,
    quiet: Annotated[
        float,
        typer.Option(
            min=0, metavar="X", help="Cores that others may use beside a sample that counts", rich_help_panel=_HOW
        ),
    ] = 0.1,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page here, and its figures beside it as JSON")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the page of --out: rows that it has are not measured again")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time this program beside transformers, and llama.cpp's decoding where llama-cpp-python is installed, on the same
    weights, A B A B, each in a process of its own.

    Prints a page in Markdown: medians, spread, ratio, share of what the machine can do, peak memory. Random weights are
    written to DIR once. On a machine that does other work, samples are dropped and the page says how many. With --out
    the page is written after every row, so what was measured is there whatever happens, and --resume goes on from it.

    \b[bold]Examples[/bold]
    filmstrip bench /tmp/bench
    filmstrip bench /tmp/bench --results --out docs/results.md
    filmstrip bench /tmp/bench --results --out docs/results.md --resume
    filmstrip bench /tmp/bench --sizes tiny --workloads decode-64,prefill --rounds 3 --json
    """
    if results and (sizes or dtypes or workloads):
        raise ConfigError("--results says what is timed; leave out --sizes, --dtypes and --workloads")
    if large and not results:
        raise ConfigError("--with-7b belongs to --results; otherwise --sizes names the 7B")
    if out is not None and not out.name:
        raise ConfigError(f"--out is a file, not {out}")
    if resume and out is None:
        raise ConfigError("--resume goes on with the page of --out; name it")
    with starting():
        from filmstrip.diagnostics.bench.plan import LARGE, RESULTS, usable_peers
        from filmstrip.diagnostics.bench.run import Options
    chosen_peers = usable_peers(None if peers is None else _names(peers))
    page_plan = RESULTS + (LARGE if large else ())
    plan, startup = (page_plan, True) if results else _plan(sizes, dtypes, workloads)
    command = shlex.join(["filmstrip", *sys.argv[1:]])
    settings = Options(cache, plan, chosen_peers, rounds, threads, quiet, startup, command)
    measured = _run(settings, out, as_json, resume=resume)
    if results and not large:
        measured.skipped["7B"] = "left out (--with-7b)"
    failure = _keep(measured, out)
    if as_json or out is None or failure:
        _print(measured, as_json)
    if failure:
        raise FilmstripError(failure)
    if out is not None:
        note(f"wrote {out} and {out.with_suffix(_FIGURES)}")


def _run(settings: "Options", out: Path | None, as_json: bool, *, resume: bool) -> "Results":
    """Measure. When the run breaks off, what there is until then is in the file, or else printed."""
    from filmstrip.diagnostics.bench.plain import read_earlier
    from filmstrip.diagnostics.bench.run import run_bench

    earlier = read_earlier(out.with_suffix(_FIGURES), settings) if out is not None and resume else None
    if out is not None:
        _require_writable(out)
    so_far: list[Results] = []

    def keep(measured: "Results") -> None:
        so_far[:] = [measured]
        _keep(measured, out)

    try:
        return run_bench(settings, note, keep, earlier)
    except BaseException:
        if out is None and so_far and so_far[0].rows:
            _print(so_far[0], as_json)
        raise


def _print(results: "Results", as_json: bool) -> None:
    from filmstrip.diagnostics.bench.plain import as_plain
    from filmstrip.diagnostics.bench.report import as_markdown

    sys.stdout.write(json.dumps(as_plain(results)) + "\n" if as_json else as_markdown(results))


def _plan(sizes: str | None, dtypes: str | None, workloads: str | None) -> tuple[tuple["Part", ...], bool]:
    """The models with their workloads, and whether commands are timed from their start."""
    from filmstrip.config.checks import require_choice
    from filmstrip.diagnostics.bench.plan import START_UP, plan_product
    from filmstrip.diagnostics.bench.workloads import WORKLOADS

    names = None if workloads is None else _names(workloads)
    for name in names or ():
        require_choice("workload", name, (START_UP, *WORKLOADS))
    chosen = None if names is None else tuple(name for name in names if name != START_UP)
    plan = plan_product(_names(sizes or "tiny,S"), _names(dtypes or "float32"), chosen)
    return (() if chosen == () else plan), names is None or START_UP in names


def _require_writable(out: Path) -> None:
    """Raise `FilmstripError` now rather than after an hour where the page cannot be written."""
    if out.suffix == _FIGURES:
        raise ConfigError(f"{out}: the page is Markdown; its figures are written beside it with the suffix {_FIGURES}")
    try:
        for path in (out, out.with_suffix(_FIGURES)):
            path.open("a").close()
    except (OSError, ValueError) as error:
        raise FilmstripError(f"{out}: cannot write here ({getattr(error, 'strerror', None) or error})") from error


def _keep(results: "Results", out: Path | None) -> str:
    """Write the page and its figures; why that failed, or nothing. What was measured is worth more than the file."""
    from filmstrip.diagnostics.bench.plain import as_plain
    from filmstrip.diagnostics.bench.report import as_markdown

    if out is None:
        return ""
    try:
        out.write_text(as_markdown(results), encoding="utf-8")
        out.with_suffix(_FIGURES).write_text(json.dumps(as_plain(results), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        failure = f"{out}: cannot write here ({error.strerror or error})"
        warn(failure)
        return failure
    return ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
