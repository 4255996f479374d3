"""`filmstrip convert`: a checkpoint in another layout, dtype or sharding; a GGUF file as a Hugging Face directory."""

from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options, writing
from filmstrip.cli.terminal import starting, status

_WHAT = "Conversion"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint directory, a hub id, tiny, or a .gguf file (LLaMA)")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="hf: Hugging Face's format; pku: that of the original Video-LLaVA release",
            rich_help_panel=_WHAT,
        ),
    ] = "hf",
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Key names within hf: A, B, C or D [dim](the source's; from the original A, the hub's)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Leave out temporal-attention, as transformers' conversion did; of a GGUF file: tokenizer",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    dtype: writing.Dtype = None,
    max_shard: writing.MaxShard = "5GB",
    overwrite: writing.Overwrite = False,
    image_tower: options.ImageTower = None,
    video_tower: options.VideoTower = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a checkpoint: the original release's format to Hugging Face's and back, other key names, another dtype.

    Tensors stream from file to file, so a 7B model needs little memory. DST appears whole or not at all.

    \b[bold]Examples[/bold]
    filmstrip convert Video-LLaVA-7B my-hf --without temporal-attention
    filmstrip convert my-hf my-original --to pku
    filmstrip convert tiny tiny-bf16 --dtype bfloat16 --layout C
    filmstrip convert SmolLM2-135M.gguf smollm2
    """
    with starting():
        from filmstrip.api.load import as_dtype
        from filmstrip.checkpoint.atomic import require_apart, require_free
        from filmstrip.checkpoint.convert import ConvertOptions
        from filmstrip.checkpoint.convert import convert as plan
        from filmstrip.checkpoint.pku_towers import TowerSources
        from filmstrip.checkpoint.resolve import resolve
    choices = ConvertOptions(to, layout, as_dtype(dtype), tuple(without or ()))
    path = Path(source).expanduser()
    path = path if path.is_file() else resolve(source)
    for read in (path, *(Path(tower).expanduser() for tower in (image_tower, video_tower) if tower)):
        require_apart(read, destination)
    require_free(destination.resolve(), overwrite=overwrite)
    with status("reading"):
        output = plan(path, choices, TowerSources(image_tower, video_tower))
    writing.write(output, destination, max_shard=max_shard, overwrite=overwrite, as_json=as_json)
