"""The command line. Verbs import what they need when they run, so that `--help` does not wait for PyTorch."""

import sys
from typing import Annotated

import typer

from filmstrip import __version__
from filmstrip.cli import ask, chat, demo, show
from filmstrip.errors import FilmstripError

app = typer.Typer(
    name="filmstrip",
    help="Video-LLaVA from scratch: ask questions about images and videos, and see what the model was given.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("show")(show.show)
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"filmstrip {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask questions about images and videos."""


def main() -> None:
    """Run the command line: 0 done, 1 findings, 2 bad input with one line on standard error."""
    try:
        app()
    except FilmstripError as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(f"filmstrip: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
