"""`filmstrip merge`: a checkpoint and an adapter become one plain checkpoint."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import load_weights, open_model, starting, status, warn


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that the adapter was trained on")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The adapter's directory, runs/NAME/adapter")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The directory to write")],
    dtype: options.Dtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that is there", rich_help_panel="Output")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Merge a low-rank adapter into the weights it was trained on.

    \b[bold]Examples[/bold]
    filmstrip merge runs/align/checkpoint runs/lora/adapter my-model
    filmstrip merge tiny runs/mine/adapter out --overwrite
    """
    with starting():
        from filmstrip.api.load import as_dtype
        from filmstrip.checkpoint.atomic import require_free
        from filmstrip.training.adapters import load_adapter, merge_adapters, read_adapter_info
    info = read_adapter_info(adapter)
    require_free(destination, overwrite=overwrite)
    target = as_dtype(dtype)
    assistant = load_weights(open_model(base, device="cpu", preset=None), None, compute="stored")
    if info.base_hash and info.base_hash != assistant.origin.weights_hash:
        warn(f"the adapter was trained on other weights than these ({info.base or 'unnamed'}); the result may be poor")
    with status("merging"):
        load_adapter(assistant.model, adapter)
        layers = merge_adapters(assistant.model)
        if target is not None:
            assistant.model.to(target)  # after the sums, which are rounded once
        assistant.save(destination, overwrite=overwrite)
    if as_json:
        content = {"result": str(destination), "layers": layers, "rank": info.rank, "base": base}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        sys.stdout.write(f"merged {layers} layers of rank {info.rank} into {destination}\n")
