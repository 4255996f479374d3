"""`filmstrip assemble`: a new multimodal model from a LLaMA and a CLIP checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options, writing
from filmstrip.cli.terminal import starting, status

_PARTS = "Parts"


def assemble(
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write")],
    text: Annotated[
        str,
        typer.Option("--text", metavar="DIR", help="The text tower: a LLaMA checkpoint", rich_help_panel=_PARTS),
    ],
    vision: Annotated[
        str,
        typer.Option("--vision", metavar="DIR", help="The vision towers: a CLIP checkpoint", rich_help_panel=_PARTS),
    ],
    video_vision: Annotated[
        str | None,
        typer.Option(
            "--video-vision",
            metavar="DIR",
            help="Another checkpoint for the video tower [dim](a copy of --vision)[/dim]",
            rich_help_panel=_PARTS,
        ),
    ] = None,
    shared_towers: Annotated[
        bool, typer.Option("--shared-towers", help="One tower for images and videos", rich_help_panel=_PARTS)
    ] = False,
    projector: Annotated[
        str,
        typer.Option(
            "--projector",
            metavar="new|FILE",
            help="new (random), or a trained one: .safetensors, LLaVA's mm_projector.bin",
            rich_help_panel=_PARTS,
        ),
    ] = "new",
    temporal_frames: Annotated[
        int,
        typer.Option(
            "--temporal-frames",
            metavar="N",
            min=0,
            max=4096,
            help="Give the video tower new temporal attention over N frames [dim](none)[/dim]",
            rich_help_panel=_PARTS,
        ),
    ] = 0,
    select_layer: Annotated[
        int,
        typer.Option("--select-layer", metavar="N", help="Hidden state to project", rich_help_panel=_PARTS),
    ] = -2,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the new projector", rich_help_panel=_PARTS)
    ] = 0,
    dtype: writing.Dtype = None,
    max_shard: writing.MaxShard = "5GB",
    overwrite: writing.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Assemble a new Video-LLaVA from a LLaMA and a CLIP checkpoint, ready to be trained.

    The vocabulary gains <image>, <video> and <pad>; what the text tower computes is unchanged. DST/README.md records
    what the model was made of and what of it is untrained.

    \b[bold]Examples[/bold]
    filmstrip assemble --text vicuna-7b --vision clip-vit-l-14 my-model
    filmstrip assemble --text smollm2 --vision clip --shared-towers my-model
    filmstrip assemble --text a --vision b --projector mm_projector.bin my-model
    """
    with starting():
        from filmstrip.api.load import as_dtype
        from filmstrip.checkpoint.assemble import AssembleOptions
        from filmstrip.checkpoint.assemble import assemble as plan
        from filmstrip.checkpoint.atomic import require_apart, require_free
        from filmstrip.checkpoint.resolve import resolve
    choices = AssembleOptions(
        projector=None if projector == "new" else Path(projector).expanduser(),
        video_vision=None if video_vision is None else resolve(video_vision),
        shared_towers=shared_towers,
        temporal_frames=temporal_frames,
        select_layer=select_layer,
        seed=seed,
        dtype=as_dtype(dtype),
    )
    sources = resolve(text), resolve(vision)
    for source in (*sources, choices.video_vision, choices.projector):
        if source is not None:
            require_apart(source, destination)
    require_free(destination.resolve(), overwrite=overwrite)
    with status("reading"):
        output = plan(*sources, choices)
    writing.write(output, destination, max_shard=max_shard, overwrite=overwrite, as_json=as_json)
