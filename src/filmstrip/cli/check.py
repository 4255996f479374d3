"""`filmstrip check`: everything that is wrong with a checkpoint, what it means and what to do."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import byte_progress, starting, visible

if TYPE_CHECKING:
    from rich.text import Text

    from filmstrip.diagnostics.doctor import Diagnosis, Finding

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)],
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Read headers and configuration only, no values: no NaN, zeros, copies are found"),
    ] = False,
    image_tower: options.ImageTower = None,
    video_tower: options.VideoTower = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Examine a checkpoint: what it is, everything wrong with it, and what to do about it.

    Exit code 0: sound (notes may be printed); 1: errors or warnings; 2: nothing there that could be examined.

    \b[bold]Examples[/bold]
    filmstrip check tiny
    filmstrip check ~/models/Video-LLaVA-7B-hf --fast
    filmstrip check my-model --json
    """
    with starting():
        from filmstrip.checkpoint.pku_towers import TowerSources
        from filmstrip.checkpoint.resolve import resolve
        from filmstrip.diagnostics.doctor import diagnose
    directory = resolve(model)
    with byte_progress("reading values", "reading headers") as on_progress:
        diagnosis = diagnose(
            directory, values=not fast, towers=TowerSources(image_tower, video_tower), on_progress=on_progress
        )
    if as_json:
        content = {"sentence": diagnosis.sentence, "sound": diagnosis.sound}
        content |= {"findings": [asdict(finding) for finding in diagnosis.findings], "facts": diagnosis.facts}
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        _print(diagnosis)
    return 0 if diagnosis.sound else 1


def _print(diagnosis: "Diagnosis") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(visible(diagnosis.sentence), style="bold"), soft_wrap=True)
    console.print(Text(visible(diagnosis.facts["directory"]), style="dim"), soft_wrap=True)
    if diagnosis.findings:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
        table.add_column("severity")
        table.add_column("where, what, what it means, what to do", overflow="fold")
        for finding in diagnosis.findings:
            severity = Text(finding.severity, style=STYLES[finding.severity])
            table.add_row(severity, _explained(finding))
        console.print()
        console.print(table)
    console.print(_summary(diagnosis))


def _explained(finding: "Finding") -> "Text":
    """Where it is, the fact, what it means, and what to do."""
    from rich.text import Text

    text = Text(visible(finding.subject), style="bold")
    text = Text.assemble(text, f"\n{visible(finding.what)}")
    text.append(f" [{finding.code}]", style="dim")
    text.append(f"\n{finding.meaning}")
    text.append(f"\n→ {finding.remedy}", style="cyan")
    return text


def _summary(diagnosis: "Diagnosis") -> str:
    facts = diagnosis.facts
    counts = {name: sum(finding.severity == name for finding in diagnosis.findings) for name in STYLES}
    found = ", ".join(f"{number} {name}{'s' if number > 1 else ''}" for name, number in counts.items() if number)
    examined = f"{facts['tensors']:,} tensors, {facts['bytes']:,} bytes"
    read = "headers and values" if facts["examined"] == "values" else "headers only"
    return f"{found or 'no findings'}: {examined}, {read}, {facts['seconds']:.2f} s"
