"""What the verbs that write a checkpoint share: options, the progress of the writing, and what is said afterwards."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli.terminal import byte_progress, note

if TYPE_CHECKING:
    from filmstrip.checkpoint.convert_output import Output

_WRITING = "Writing"

MaxShard = Annotated[
    str, typer.Option("--max-shard", metavar="SIZE", help="Largest weight file, as 5GB", rich_help_panel=_WRITING)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a checkpoint that is at DST", rich_help_panel=_WRITING)
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="float32, bfloat16, float16 [dim](as stored)[/dim]", rich_help_panel=_WRITING),
]


def write(output: "Output", destination: Path, *, max_shard: str, overwrite: bool, as_json: bool) -> None:
    """Write with a progress bar, then say what was written and what is to be known about it."""
    from filmstrip.checkpoint.convert_output import WriteOptions, write_output
    from filmstrip.diagnostics.memory_units import parse_size

    options = WriteOptions(max_shard_bytes=parse_size(max_shard), overwrite=overwrite)
    with byte_progress("writing weights") as on_progress:
        names = write_output(output, destination, options, on_progress)
    content = _content(output, destination, names)
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for line in _lines(content):
        sys.stdout.write(f"{line}\n")
    for text in output.notes:
        note(text)


def _content(output: "Output", destination: Path, names: list[str]) -> dict[str, Any]:
    return {
        "destination": str(destination),
        "layout": output.layout,
        "dtypes": list(output.dtypes),
        "tensors": len(output.tensors),
        "parameters": output.parameters,
        "bytes": output.nbytes,
        "weight_files": names,
        "files": sorted(output.files),
        "sources": dict(output.sources),
        "left_out": dict(output.left_out),
        "added_rows": output.added_rows,
        "dropped_rows": output.dropped_rows,
        "notes": list(output.notes),
    }


def _lines(content: dict[str, Any]) -> list[str]:
    files = "1 file" if len(content["weight_files"]) == 1 else f"{len(content['weight_files'])} files"
    lines = [
        f"wrote {content['destination']}: {content['layout']}, {'/'.join(content['dtypes'])}, "
        f"{content['tensors']:,} tensors, {content['parameters']:,} parameters, {content['bytes']:,} bytes in {files}"
    ]
    lines += [f"left out: {count:,} parameters ({reason})" for reason, count in content["left_out"].items()]
    for key, verb in (("added_rows", "added to"), ("dropped_rows", "dropped from")):
        if content[key]:
            lines.append(f"{content[key]:,} rows {verb} the embedding and the head")
    return lines
