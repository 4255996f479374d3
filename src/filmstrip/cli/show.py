"""`filmstrip show`: what a checkpoint is, without reading its weights."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import status

if TYPE_CHECKING:
    from torch import nn

    from filmstrip.checkpoint.read import Checkpoint


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)] = "tiny",
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's configuration and its parameters by component. Weights are not read.

    \b[bold]Examples[/bold]
    filmstrip show tiny
    filmstrip show LanguageBind/Video-LLaVA-7B-hf --json
    """
    with status("starting"):
        from filmstrip.checkpoint.read import read_checkpoint
        from filmstrip.checkpoint.resolve import resolve
    directory = resolve(model)
    with status("reading"):
        content = summarise(read_checkpoint(directory))
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    _print(content)


def summarise(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Configuration and parameter counts as plain data; the model is built on the meta device."""
    from filmstrip.api.weightless import weightless
    from filmstrip.checkpoint.header import DTYPES
    from filmstrip.checkpoint.read import describe
    from filmstrip.models import VideoLlava

    with weightless():
        model = VideoLlava(checkpoint.config)
    parts: dict[str, nn.Module] = {
        "image_tower": model.image_tower,
        "video_tower": model.video_tower,
        "projector": model.projector,
        "text_tower": model.text_tower,
    }
    if checkpoint.config.shared_towers:
        del parts["video_tower"]
    rows = {
        name: {"parameters": sum(p.numel() for p in part.parameters()), "tensors": len(list(part.parameters()))}
        for name, part in parts.items()
    }
    stored = checkpoint.files.tensors.values()
    total = sum(row["parameters"] for row in rows.values())
    dtypes = sorted({str(DTYPES[info.dtype]).removeprefix("torch.") for info in stored})
    return {
        "description": describe(checkpoint.config, checkpoint.layout.title, "/".join(dtypes), total),
        "directory": str(checkpoint.directory),
        "layout": checkpoint.layout.name,
        "config": asdict(checkpoint.config),
        "tokens_per_image": checkpoint.config.tokens_per_frame("image"),
        "tokens_per_video_frame": checkpoint.config.tokens_per_frame("video"),
        "trained_frames": checkpoint.extras.trained_frames,
        "chat_template": checkpoint.processor.chat_template is not None,
        "parameters": rows | {"total": {"parameters": total, "tensors": sum(row["tensors"] for row in rows.values())}},
        "stored": {"tensors": len(stored), "bytes": sum(info.end - info.begin for info in stored), "dtypes": dtypes},
    }


def _print(content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(content["description"], style="bold", soft_wrap=True)
    console.print(content["directory"], style="dim", soft_wrap=True)
    table = Table("component", box=None, pad_edge=False, title="parameters", title_justify="left")
    table.add_column("parameters", justify="right")
    table.add_column("tensors", justify="right")
    for name, row in content["parameters"].items():
        table.add_row(name, f"{row['parameters']:,}", f"{row['tensors']:,}", style="bold" if name == "total" else None)
    console.print(table)
    stored = content["stored"]
    console.print(f"on disk: {stored['tensors']:,} tensors, {stored['bytes']:,} bytes, {', '.join(stored['dtypes'])}\n")
    config = content["config"]
    shown = Table("setting", "value", box=None, pad_edge=False, title="configuration", title_justify="left")
    for name, value in _flat(config):
        shown.add_row(name, str(value))
    for key in ("tokens_per_image", "tokens_per_video_frame", "trained_frames", "chat_template"):
        shown.add_row(key, str(content[key]))
    console.print(shown)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of a dotted name and a value."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
