"""The command line. Verbs import what they need when they run, so that `--help` does not wait for PyTorch."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from filmstrip import __version__
from filmstrip.cli import (
    ask,
    assemble,
    bench,
    chat,
    check,
    convert,
    demo,
    eval,
    experiment,
    memory,
    merge,
    params,
    parity,
    quantize,
    show,
    train,
    world,
)
from filmstrip.errors import FilmstripError

# GNU's OpenMP reads this when PyTorch loads it: how often a thread looks whether there is work before it sleeps. By
# default that takes milliseconds, and where something else runs on the same cores, threads spend them waiting for one
# that is not running; so few take microseconds.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

UsageError: type[Any] = typer.BadParameter.__bases__[0]  # newer versions of typer carry their own copy of click

app = typer.Typer(
    name="filmstrip",
    help="Video-LLaVA from scratch: ask questions about images and videos, and see what the model was given.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("show")(show.show)
app.command("check")(check.check)
app.command("params")(params.params)
app.command("memory")(memory.memory)
app.command("bench")(bench.bench)
app.command("parity")(parity.parity)
app.command("convert")(convert.convert)
app.command("quantize")(quantize.quantize)
app.command("assemble")(assemble.assemble)
app.command("demo")(demo.demo)
app.add_typer(world.app, name="world")
app.command("train")(train.train)
app.command("experiment")(experiment.experiment)
app.command("merge")(merge.merge)
app.command("eval")(eval.evaluate)


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"filmstrip {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask questions about images and videos."""


def main() -> None:
    """Run the command line: 0 done, 1 findings, 2 bad input with one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a model may say what the terminal's encoding cannot
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except FilmstripError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _fail(str(error))
    except UsageError as error:
        context = getattr(error, "ctx", None)
        _fail(f"{error.format_message()} (see '{context.command_path if context else 'filmstrip'} --help')")
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def _fail(message: str) -> None:
    from filmstrip.cli.terminal import visible

    sys.stderr.write(f"filmstrip: {visible(' '.join(message.split()))}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
