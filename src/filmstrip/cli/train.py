"""`filmstrip train`: run a recipe."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.progress import TrainingDisplay, clock
from filmstrip.cli.terminal import note, starting, warn
from filmstrip.config.checks import require

if TYPE_CHECKING:
    from filmstrip.training.run import RunResult

_LENGTH, _PLACE = "Length and changes", "Output"


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or tiny, align, finetune, lora (they ship)")
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Minutes in all, divided among the stages, of which few may leave some out (see --show)",
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Optimizer steps of every stage", rich_help_panel=_LENGTH)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Other weights, other order", rich_help_panel=_LENGTH)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting, as language.batch.size=16; may be repeated",
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the run goes [dim](runs/ and the name)[/dim]", rich_help_panel=_PLACE),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in the output directory exactly", rich_help_panel=_PLACE),
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the whole recipe, explained; train nothing", rich_help_panel=_PLACE)
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a model by a recipe. Nothing is lost when it is interrupted.

    \b[bold]Examples[/bold]
    filmstrip train recipes/tiny.yaml --minutes 10
    filmstrip train recipes/tiny.yaml --minutes 10 --resume
    filmstrip train finetune --set data.files=my.json --set model.checkpoint=DIR
    filmstrip train lora --show
    """
    with starting():
        from filmstrip.training.recipe_file import (
            changed_recipe,
            find_recipe,
            limit_minutes,
            limit_steps,
            read_recipe,
            recipe_text,
        )
        from filmstrip.training.run import Observer, stored_recipe
        from filmstrip.training.run import train as run_recipe
    require(minutes is None or steps is None, "give --steps or --minutes, not both")
    settings = [*(changes or ()), *([f"seed={seed}"] if seed is not None else [])]
    chosen = read_recipe(find_recipe(recipe), () if resume else settings)
    place = output or Path("runs") / chosen.name
    if resume:
        asked, chosen = chosen.name, changed_recipe(stored_recipe(place), settings)
        require(asked == chosen.name, f"the run in {place} is of the recipe {chosen.name!r}, not of {asked!r}")
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one
    if minutes is not None:
        whole, chosen = chosen, limit_minutes(chosen, minutes, begun=resume)
        left_out = [stage.name for stage in whole.stages if stage.name not in {kept.name for kept in chosen.stages}]
        if speaks and left_out:
            note(f"left out of a run as short as this one: {', '.join(left_out)}")
    if steps is not None:
        chosen = limit_steps(chosen, steps)
    if show:
        sys.stdout.write(recipe_text(chosen))
        return
    display = TrainingDisplay(quiet=not speaks)
    observer = Observer(display.stage, display.step, display.say, display.answers)
    try:
        with display.bar:
            result = run_recipe(chosen, place, resume=resume, observer=observer)
    except KeyboardInterrupt:
        if speaks:
            note(f"stopped; `filmstrip train {recipe} --output {place} --resume` goes on from here")
        raise
    if not speaks:
        return
    if as_json:
        sys.stdout.write(json.dumps(_content(result)) + "\n")
    else:
        _print(result)


def _content(result: "RunResult") -> dict[str, Any]:
    return {
        "output": str(result.output),
        "result": str(result.result),
        "result_step": result.result_step,
        "best": None if result.best is None else str(result.best),
        "stages": result.stages,
        "skipped": result.skipped,
        "warnings": result.warnings,
    }


def _print(result: "RunResult") -> None:
    for name, figures in result.stages.items():
        if figures:
            sys.stdout.write(
                f"{name}: {figures['step']:,} steps, {figures['samples']:,} samples, {clock(figures['seconds'])} "
                f"({figures['waited'] / max(figures['seconds'], 1e-9):.1%} of it waiting for samples), "
                f"loss {figures['loss']:.4f}\n"
            )
    for reason, count in sorted(result.skipped.items(), key=lambda item: -item[1]):
        warn(f"{count} {'sample' if count == 1 else 'samples'} skipped: {reason} (see skipped.jsonl)")
    if result.warnings:
        many = "sample was" if result.warnings == 1 else "samples were"
        warn(f"{result.warnings} {many} used though something is wrong with them (see warnings.jsonl)")
    last = list(result.stages.values())[-1].get("step", result.result_step)
    if result.result_step != last:
        note(f"the result is that of step {result.result_step:,}, which has the lowest loss on the validation data")
    elif result.best is not None:
        note(f"the best checkpoint by loss was an earlier one, and is kept: {result.best}")
    sys.stdout.write(f"{result.result}\n")
