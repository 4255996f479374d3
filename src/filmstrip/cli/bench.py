"""`filmstrip bench`: this program and its peers, in turn, beside what the machine can do."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import note, status
from filmstrip.errors import FilmstripError

_WHAT, _HOW = "What is timed", "How"


def bench(
    cache: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Where random weights are written, once (M takes 6.3 GB, 7B 15 to 30 GB)"),
    ],
    sizes: Annotated[str, typer.Option(metavar="LIST", help="Of tiny, S, M and 7B", rich_help_panel=_WHAT)] = "tiny,S",
    dtypes: Annotated[
        str, typer.Option(metavar="LIST", help="Of float32, bfloat16, float16", rich_help_panel=_WHAT)
    ] = "float32",
    workloads: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="start-up, load-cold, load-warm, vision, prefill, decode-64, decode-64x4, decode-64x8, decode-2100, "
            "second, train [dim](all)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    peers: Annotated[
        str, typer.Option(metavar="LIST", help="filmstrip and transformers", rich_help_panel=_WHAT)
    ] = "filmstrip,transformers",
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
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time this program beside transformers on the same weights, A B A B, each in a process of its own.

    Prints a page in Markdown: medians, spread, ratio, share of what the machine can do, peak memory. Random weights are
    written to DIR once. On a machine that does other work, samples are dropped and the page says how many.

    \b[bold]Examples[/bold]
    filmstrip bench /tmp/bench
    filmstrip bench /tmp/bench --sizes M --dtypes float32,bfloat16 --out docs/speed.md
    filmstrip bench /tmp/bench --sizes tiny --workloads decode-64,prefill --rounds 3 --json
    """
    with status("starting"):
        from filmstrip.api.load import DTYPES
        from filmstrip.config.checks import require_choice
        from filmstrip.diagnostics.bench.peer import OURS, THEIRS
        from filmstrip.diagnostics.bench.report import as_markdown
        from filmstrip.diagnostics.bench.run import Options, as_plain, run_bench
        from filmstrip.diagnostics.bench.sizes import NAMES
        from filmstrip.diagnostics.bench.workloads import WORKLOADS
    known = ("start-up", *WORKLOADS)
    chosen = _names(workloads) or known
    for what, names, allowed in (
        ("size", _names(sizes), NAMES),
        ("dtype", _names(dtypes), DTYPES),
        ("workload", chosen, known),
        ("peer", _names(peers), (OURS, THEIRS)),
    ):
        for name in names:
            require_choice(what, name, allowed)
    settings = Options(
        cache,
        _names(sizes),
        _names(dtypes),
        tuple(name for name in chosen if name != "start-up"),
        _names(peers),
        rounds,
        threads,
        quiet,
        startup="start-up" in chosen,
    )
    results = run_bench(settings, note)
    page = as_markdown(results, shlex.join(["filmstrip", *sys.argv[1:]]))
    plain = json.dumps(as_plain(results), indent=None if as_json else 2)
    if out is not None:
        try:
            out.write_text(page, encoding="utf-8")
            out.with_suffix(".json").write_text(plain + "\n", encoding="utf-8")
        except OSError as error:
            raise FilmstripError(f"{out}: cannot write here ({error.strerror or error})") from error
        note(f"wrote {out} and {out.with_suffix('.json')}")
    if as_json:
        sys.stdout.write(plain + "\n")
    elif out is None:
        sys.stdout.write(page)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
