"""`filmstrip parity`: the same input through two implementations or checkpoints, and where they part."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.ask import check_output, save_json
from filmstrip.cli.terminal import errors, note, starting, status, visible
from filmstrip.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from filmstrip.diagnostics.parity.report import Fault, ParityReport, Step
    from filmstrip.diagnostics.parity.structure import StructureReport

_COMPARE, _OUTPUT = "Comparison", "Output"
_LISTED = 12  # parameters that the structure report lists of each kind
_VERDICTS = {
    "equal": "equal",
    "rounding": "rounding",
    "introduced": "introduced",
    "inherited": "inherited",
    "absent": "not run",
}


def parity(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)],
    media: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MEDIA", help="Images and videos; without any, a drawn clip and picture."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(metavar="REFERENCE", help="transformers, or another checkpoint", rich_help_panel=_COMPARE),
    ] = "transformers",
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The question that goes with the media", rich_help_panel=_COMPARE)
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Greedy tokens that both generate", rich_help_panel=_COMPARE)
    ] = 16,
    structure: Annotated[
        bool,
        typer.Option(
            "--structure", help="Names and shapes alone; a config.json or 7b will do", rich_help_panel=_COMPARE
        ),
    ] = False,
    preset: options.PresetName = None,
    temporal: options.Temporal = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...", rich_help_panel="Model")
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="float32, bfloat16, float16", rich_help_panel="Model")
    ] = "float32",
    frames: options.Frames = None,
    all_steps: Annotated[
        bool, typer.Option("--all", help="List the steps after the first difference too", rich_help_panel=_OUTPUT)
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the whole report as JSON", rich_help_panel=_OUTPUT)
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Run the same input through two models and name the first step that differs.

    Compared in order: decoded frames, pixels, token ids, every named activation,
    logits, generated tokens. Each step is also run on the reference's own input,
    which tells what it introduces from what it inherits, and again in float64,
    which tells mistakes from rounding. Exit code: 0 equal or rounding noise,
    1 a difference, 2 not comparable.

    \b[bold]Examples[/bold]
    filmstrip parity tiny
    filmstrip parity ./converted --against ./original --preset original
    filmstrip parity ./mine clip.mp4 --against ./base --question "What moves?"
    filmstrip parity 7b --structure

    [dim]error: largest difference; relative: to the reference's largest value;
    added: what the step introduces; float64: what of that stays in float64[/dim]
    """
    if report is not None:
        check_output(report)
    if structure:
        if media or question is not None:
            raise ConfigError("--structure compares names and shapes; it takes no media and no question")
        return _structure(model, against, report, as_json)
    if question is not None and not question.strip():
        raise PromptError("the question is empty")
    with starting():
        from filmstrip.api.load import DTYPES
        from filmstrip.config.checks import require_choice
        from filmstrip.diagnostics.parity.run import DEFAULT_QUESTION, ParityOptions, compare_models
    require_choice("dtype", dtype, DTYPES)
    settings = ParityOptions(
        media=tuple(media or ()),
        question=question or DEFAULT_QUESTION,
        frames=frames,
        dtype=dtype,
        device=device,
        preset=preset,
        new_tokens=tokens,
        choices=() if temporal is None else (("temporal_attention", temporal),),
    )
    with _progress() as on_progress:
        found = compare_models(model, against, settings, on_progress)
    if report is not None:
        save_json(report, found.to_dict())
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        _print(found, all_steps)
    return found.exit_code


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner on standard error that says what is being done; nothing when that is not a terminal."""
    if not errors.is_terminal:
        yield lambda text: None
        return
    with errors.status("starting") as spinner:
        yield lambda text: spinner.update(visible(text))


def _structure(model: str, against: str, report: Path | None, as_json: bool) -> int:
    with status("building both without weights"):
        from filmstrip.diagnostics.parity.structure import compare_structure

        found = compare_structure(model, against)
    if report is not None:
        save_json(report, found.to_dict())
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        _print_structure(found)
    return found.exit_code


def _print(report: "ParityReport", all_steps: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(visible(report.verdict), style="bold", soft_wrap=True, markup=False)
    console.print(
        visible(f"{report.model} against {report.against}, {report.dtype}: {', '.join(report.media)}"),
        style="dim",
        soft_wrap=True,
        markup=False,
    )
    steps = report.steps
    if report.faults and not all_steps:
        steps = steps[: report.faults[0].step.number]
    console.print(_table(steps))
    for step in steps:
        if step.verdict == "absent":
            console.print(visible(f"{step.site} was not compared: {step.problem}"), soft_wrap=True, markup=False)
    left = report.steps[len(steps) :]
    if left:
        counts = {verdict: sum(step.verdict == verdict for step in left) for verdict in _VERDICTS}
        shown = ", ".join(f"{number} {_VERDICTS[verdict]}" for verdict, number in counts.items() if number)
        console.print(f"and {len(left)} steps after it: {shown} (--all lists them)", style="dim")
    _print_faults(console, report.faults)
    for ours, theirs in report.texts[:1]:
        same = "both answer" if ours == theirs else "this model answers"
        console.print(visible(f"{same}: {ours}"), soft_wrap=True, markup=False)
        if ours != theirs:
            console.print(visible(f"the reference answers: {theirs}"), soft_wrap=True, markup=False)
    for text in report.notes:
        note(f"note: {text}")


def _table(steps: "tuple[Step, ...]") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right")
    table.add_column("step", max_width=28, no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for title in ("error", "relative", "added", "float64"):
        table.add_column(title, justify="right", no_wrap=True)
    for step in steps:
        style = {"introduced": "bold red", "inherited": "yellow", "absent": "dim"}.get(step.verdict)
        total, introduced = step.total, step.introduced
        table.add_row(
            str(step.number),
            visible(step.site),
            _VERDICTS[step.verdict],
            _number(None if total is None else total.max_abs),
            _number(None if total is None else total.relative),
            _number(None if introduced is None else introduced.relative),
            _number(None if step.introduced_double is None else step.introduced_double.relative),
            style=style,
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def _print_faults(console: "Console", faults: "tuple[Fault, ...]") -> None:
    """The first fault in full, the others by name."""
    if not faults:
        return
    first = faults[0]
    there = f" (the reference's {first.their_module})" if first.their_module else ""
    console.print(visible(f"introduced at {first.module}{there}"), style="bold", soft_wrap=True, markup=False)
    difference = first.step.introduced
    if difference is not None and difference.index:
        place = ", ".join(f"{name} {number}" for name, number in _axes(first.step.site, difference.index))
        console.print(
            f"  largest at {place}: {difference.ours:.6g} here, {difference.theirs:.6g} in the reference "
            f"(relative {difference.relative:.1e})",
            soft_wrap=True,
            markup=False,
        )
    for line in (first.step.problem, *first.hints):
        if line:
            console.print(visible(f"  {line}"), soft_wrap=True, markup=False)
    for fault in faults[1 : 1 + _LISTED]:
        hint = f": {fault.hints[0]}" if fault.hints else ""
        line = f"also introduced at {fault.module} (step {fault.step.number}){hint}"
        console.print(visible(line), soft_wrap=True, markup=False)
    if len(faults) > 1 + _LISTED:
        console.print(f"and at {len(faults) - 1 - _LISTED} more steps (--json lists them)", style="dim")


def _axes(site: str, index: tuple[int, ...]) -> list[tuple[str, int]]:
    """What each number of an index counts, from the legend of `shapes`."""
    stage, _, rest = site.partition(".")
    names: tuple[str, ...] = ("row", "token", "vocabulary entry" if site == "logits" else "channel")
    if stage in ("ids", "tokens"):  # one row each
        names = ("position",)
    elif stage == "frames":
        names = ("frame", "line", "column", "colour")
    elif stage == "pixels":
        names = ("image", "colour", "line", "column")
        if rest == "videos":
            names = ("video", "frame", "colour", "line", "column")
    elif stage == "projector" or rest == "aggregated":
        names = ("medium", "token", "channel")
    elif stage in ("image_tower", "video_tower"):
        names = ("medium", "frame", "token", "channel")
    return list(zip(names, index, strict=False))


def _print_structure(report: "StructureReport") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(visible(report.verdict), style="bold", soft_wrap=True, markup=False)
    table = Table("", "tensors", "parameters", "source", box=None, pad_edge=False, header_style="dim")
    for place, name in enumerate((report.model, report.against)):
        table.add_row(
            visible(name), f"{report.tensors[place]:,}", f"{report.parameters[place]:,}", report.sources[place]
        )
    console.print(table)
    lists = {"only in this model": report.only_ours, "only in the reference": report.only_theirs}
    lines = {title: [f"{name} {shape}" for name, shape in shapes.items()] for title, shapes in lists.items()}
    both = report.shapes.items()
    lines["of another shape"] = [f"{name} {ours} here, {theirs} in the reference" for name, (ours, theirs) in both]
    for title, entries in lines.items():
        if entries:
            console.print(f"{title}: {len(entries):,}", style="bold")
        for entry in entries[:_LISTED]:
            console.print(visible(f"  {entry}"), soft_wrap=True, markup=False)
        if len(entries) > _LISTED:
            console.print(f"  and {len(entries) - _LISTED:,} more (--json lists them)", style="dim")
