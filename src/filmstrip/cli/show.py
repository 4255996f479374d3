"""`filmstrip show`: what a checkpoint is, without reading its weights."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import starting, status, warn

if TYPE_CHECKING:
    from filmstrip.checkpoint.read import Checkpoint
    from filmstrip.checkpoint.towers import TowerCheckpoint


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)] = "tiny",
    image_tower: options.ImageTower = None,
    video_tower: options.VideoTower = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's configuration and its parameters by component. Weights are not read.

    A text tower (LLaMA) or a vision tower (CLIP) on its own is shown as well.

    \b[bold]Examples[/bold]
    filmstrip show tiny
    filmstrip show LanguageBind/Video-LLaVA-7B-hf --json
    """
    with starting():
        from filmstrip.checkpoint.pku_towers import TowerSources
        from filmstrip.checkpoint.read import read_any
        from filmstrip.checkpoint.resolve import resolve
    directory = resolve(model)
    with status("reading"):
        content = summarise(read_any(directory, TowerSources(image_tower, video_tower)))
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    _print(content)


def summarise(checkpoint: "Checkpoint | TowerCheckpoint") -> dict[str, Any]:
    """Configuration and parameter counts as plain data; the model is built on the meta device."""
    from filmstrip.checkpoint.header import DTYPES, dtype_name

    rows = {
        name: {"parameters": count.parameters, "tensors": count.tensors}
        for name, count in _components(checkpoint).items()
    }
    stored = [info for files, _ in checkpoint.parts for info in files.tensors.values()]
    total = {key: sum(row[key] for row in rows.values()) for key in ("parameters", "tensors")}
    return {
        "description": checkpoint.describe(),
        "directory": str(checkpoint.directory),
        "layout": checkpoint.layout.name,
        "config": asdict(checkpoint.config),
        **_media(checkpoint),
        "parameters": rows | {"total": total},
        "stored": {
            "tensors": len(stored),
            "bytes": sum(info.end - info.begin for info in stored),
            "dtypes": sorted({dtype_name(DTYPES[info.dtype]) for info in stored}),
        },
        "warnings": list(checkpoint.warnings),
    }


def _components(checkpoint: "Checkpoint | TowerCheckpoint") -> "dict[str, Count]":
    """The parameters of each component, shared ones once."""
    from filmstrip.checkpoint.towers import TowerCheckpoint
    from filmstrip.diagnostics.params import count_modules, count_parameters

    model = checkpoint.build_meta()
    if isinstance(checkpoint, TowerCheckpoint):
        return {f"{checkpoint.kind}_tower": count_parameters(model).total}
    return count_modules(model)


def _media(checkpoint: "Checkpoint | TowerCheckpoint") -> dict[str, Any]:
    """What a multimodal checkpoint says about media and prompts; nothing for a tower on its own."""
    from filmstrip.checkpoint.towers import TowerCheckpoint

    if isinstance(checkpoint, TowerCheckpoint):
        return {}
    return {
        "tokens_per_image": checkpoint.config.tokens_per_frame("image"),
        "tokens_per_video_frame": checkpoint.config.tokens_per_frame("video"),
        "tokens_per_video": checkpoint.config.clip_tokens(checkpoint.extras.trained_frames),
        "trained_frames": checkpoint.extras.trained_frames,
        "chat_template": checkpoint.processor.chat_template is not None,
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
    for key in ("tokens_per_image", "tokens_per_video_frame", "tokens_per_video", "trained_frames", "chat_template"):
        if key in content:
            shown.add_row(key, str(content[key]))
    console.print(shown)
    for text in content["warnings"]:
        warn(text)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of a dotted name and a value."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
