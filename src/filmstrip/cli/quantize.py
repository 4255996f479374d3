"""`filmstrip quantize`: a checkpoint with weights of 8 or 4 bits."""

from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options, writing
from filmstrip.cli.terminal import starting, status

_WHAT = "Quantisation"


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint directory, a hub id, or tiny")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write")],
    bits: Annotated[
        int, typer.Option(metavar="N", help="Bits of the text tower's weights: 8 or 4", rich_help_panel=_WHAT)
    ] = 8,
    vision_bits: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Bits of the vision towers' and the projector's: 8, 4, or 0 to leave them as they are",
            rich_help_panel=_WHAT,
        ),
    ] = 8,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Weights of a row that share a scale [dim](64; 32 of 4-bit ones)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    max_shard: writing.MaxShard = "5GB",
    overwrite: writing.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Store a checkpoint's weights in 8 or 4 bits each: less memory, and faster answers on a CPU.

    Weights alone, rounded to nearest; no data is needed. Embeddings and the output head stay as they are. The result is
    this program's own format: ask, chat, eval, show and check read it, transformers refuses it.

    \b[bold]Examples[/bold]
    filmstrip quantize my-model my-model-int8
    filmstrip quantize my-model my-model-int4 --bits 4
    filmstrip quantize tiny tiny-int4 --bits 4 --vision-bits 0 --group 64
    """
    with starting():
        from filmstrip.checkpoint.atomic import require_apart, require_free
        from filmstrip.checkpoint.quantize import QuantizeOptions, quantized_output
        from filmstrip.checkpoint.resolve import resolve
    choices = QuantizeOptions(bits, vision_bits, group)
    path = resolve(source)
    require_apart(path, destination)
    require_free(destination.resolve(), overwrite=overwrite)
    with status("reading"):
        output = quantized_output(path, choices)
    writing.write(output, destination, max_shard=max_shard, overwrite=overwrite, as_json=as_json)
