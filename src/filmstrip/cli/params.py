"""`filmstrip params`: how many parameters a model has, where they are and what they weigh."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import starting, status, visible
from filmstrip.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from filmstrip.diagnostics.model_source import ModelSource
    from filmstrip.diagnostics.params import Count, ParameterReport

MODEL_HELP = "7b (published configuration), tiny, a directory, a config.json, or a hub id"
# What learns in the two stages of the original's training (reference sheet 7); the towers never do.
STAGES = {"align": ("projector",), "finetune": ("projector", "text_tower")}

_LEARNING = "What learns"


def params(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = "tiny",
    layers: Annotated[bool, typer.Option("--layers", help="One line for every layer, equal ones not joined")] = False,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="align: the projector learns; finetune: also the text tower",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Only this part learns; may be repeated", rich_help_panel=_LEARNING),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="This part does not learn, such as image_tower; repeatable", rich_help_panel=_LEARNING
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Count a model's parameters by component, layer and kind. No weights are read.

    Tied weights and shared towers count once. A PATH names a module or parameter; * stands for anything.

    \b[bold]Examples[/bold]
    filmstrip params 7b --stage finetune
    filmstrip params tiny --freeze image_tower --freeze '*.mlp' --json
    """
    if stage is not None and stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r} (known: {', '.join(STAGES)})")
    if stage is not None and train:
        raise ConfigError("--stage says what learns; leave out --train (parts of it can be frozen with --freeze)")
    with starting():
        from filmstrip.diagnostics.model_source import find_model
        from filmstrip.diagnostics.params import count_parameters
    with status("reading"):
        source = find_model(model)
        module = source.build()
        _choose(module, list(STAGES[stage]) if stage else train or ["*"], freeze or [])
        report = count_parameters(module)
    if as_json:
        sys.stdout.write(json.dumps(_content(source, report, every_layer=layers)) + "\n")
    else:
        _print(source, report, every_layer=layers)


def _choose(module: "nn.Module", train: list[str], freeze: list[str]) -> None:
    """Mark what learns. Freezing everything is a question that counting can answer, unlike training."""
    from filmstrip.training.patterns import matches_any, require_matches

    names = [name for name, _ in module.named_parameters()]
    require_matches(train, names, "--train")
    require_matches(freeze, names, "--freeze")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(matches_any(name, train) and not matches_any(name, freeze))


def _content(source: "ModelSource", report: "ParameterReport", *, every_layer: bool) -> dict[str, Any]:
    from filmstrip.diagnostics.params import fold_layers

    rows = report.layers if every_layer else fold_layers(report.layers)
    return {
        "model": source.name,
        "description": source.title,
        "total": _row(report.total),
        "components": {name: _row(count) for name, count in report.components.items()},
        "kinds": {name: _row(count) for name, count in report.kinds.items()},
        "layers": [{"path": row.label, "layers": row.number, "each": _row(row.each)} for row in rows],
        "counted_once": list(report.shared),
        "bytes": report.bytes_as,
        "stored": _stored(source),
    }


def _row(count: "Count") -> dict[str, int]:
    return {
        "parameters": count.parameters,
        "tensors": count.tensors,
        "trainable": count.trainable,
        "frozen": count.frozen,
    }


def _stored(source: "ModelSource") -> dict[str, Any] | None:
    """What the files hold, by dtype; None for a configuration without weights."""
    from filmstrip.checkpoint.header import DTYPES, dtype_name

    if not source.stored:
        return None
    by_dtype: dict[str, dict[str, int]] = {}
    for info in source.stored:
        row = by_dtype.setdefault(dtype_name(DTYPES[info.dtype]), {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += info.end - info.begin
    return {
        "tensors": len(source.stored),
        "bytes": sum(row["bytes"] for row in by_dtype.values()),
        "dtypes": by_dtype,
    }


def _print(source: "ModelSource", report: "ParameterReport", *, every_layer: bool) -> None:
    from rich.console import Console

    from filmstrip.checkpoint.describe import short_count
    from filmstrip.diagnostics.memory_units import format_bytes
    from filmstrip.diagnostics.params import fold_layers

    console = Console(highlight=False)
    total = report.total
    title = source.title if source.stored else f"{source.title}: {short_count(total.parameters)} parameters"
    console.print(visible(title), style="bold", soft_wrap=True, markup=False)
    learning = total.frozen > 0
    console.print(_table("component", report.components | {"total": total}, learning))
    console.print(_table("kind", report.kinds, learning))
    rows = report.layers if every_layer else fold_layers(report.layers)
    console.print(_table("layer (each)", {row.label: row.each for row in rows}, learning))
    for name in report.shared:
        console.print(f"{name} is the same tensors under a second name and counts once")
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in report.bytes_as.items())
    console.print(f"weights as {sizes}", soft_wrap=True)
    stored = _stored(source)
    if stored:
        dtypes = "/".join(stored["dtypes"])
        console.print(f"on disk: {stored['tensors']:,} tensors, {stored['bytes']:,} bytes, {dtypes}")


def _table(title: str, rows: dict[str, "Count"], learning: bool) -> Any:
    from rich.table import Table

    table = Table(title, box=None, pad_edge=False)
    for column in ("parameters", "tensors", *(("trainable", "frozen") if learning else ())):
        table.add_column(column, justify="right")
    for name, count in rows.items():
        figures = [count.parameters, count.tensors, *((count.trainable, count.frozen) if learning else ())]
        table.add_row(name, *(f"{figure:,}" for figure in figures), style="bold" if name == "total" else None)
    table.add_row()
    return table
