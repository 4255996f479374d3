"""`filmstrip experiment`: train recipes at equal compute and compare them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.progress import TrainingDisplay
from filmstrip.cli.terminal import note, starting

if TYPE_CHECKING:
    from filmstrip.training.recipe import Recipe
    from filmstrip.training.run import Observer

_LENGTH, _PLACE = "Length and changes", "Output"


def experiment(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="YAML files or shipped recipes; a pattern such as fusion/* as well"),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Steps of every stage with keep-all [dim](the recipes' own)[/dim]",
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Equal wall time instead of equal FLOPs: minutes of each variant", rich_help_panel=_LENGTH
        ),
    ] = None,
    clips: Annotated[
        int, typer.Option(metavar="N", min=1, help="Clips of the test split to ask about", rich_help_panel=_LENGTH)
    ] = 300,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of every recipe, as threads=1; may be repeated",
            rich_help_panel=_LENGTH,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where runs and results go", rich_help_panel=_PLACE)
    ] = Path("runs/fusion"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on there: recipes with a result are not trained again", rich_help_panel=_PLACE
        ),
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train recipes one after another at equal compute, and compare what they learn and what they cost.

    Vision towers are those of a checkpoint (model.towers) or trained once and shared. Equal compute means equal
    training FLOPs after that, those of the recipe with keep-all; --minutes makes it equal wall time. DIR receives
    results.json, and results.md with its pictures.

    \b[bold]Examples[/bold]
    filmstrip experiment recipes/fusion/*.yaml
    filmstrip experiment recipes/fusion/*.yaml --resume
    filmstrip experiment fusion/keep-all fusion/resampler --steps 200 --output runs/two
    filmstrip experiment recipes/fusion/*.yaml --minutes 30 --output runs/half-an-hour
    """
    with starting():
        from filmstrip.training.experiment.plan import Length
        from filmstrip.training.experiment.run import PAGE, ExperimentOptions, Watcher, run_experiment
        from filmstrip.training.recipe_file import find_recipes, read_recipe
    chosen = [read_recipe(path, changes or ()) for path in find_recipes(recipes)]
    asked = ExperimentOptions(Length(steps, minutes), clips)
    display = TrainingDisplay()

    def observe(name: str, recipe: "Recipe") -> "Observer":
        from filmstrip.training.run import Observer

        return Observer(
            lambda stage, start: display.stage(f"{name}, {stage}", start),
            lambda stage, progress, figures: display.step(f"{name}, {stage}", progress, figures),
            display.say,
        )

    try:
        with display.bar:
            content = run_experiment(chosen, output, asked, resume=resume, watcher=Watcher(observe, display.say))
    except KeyboardInterrupt:
        note("stopped; the same command with --resume goes on from here")
        raise
    if as_json:
        sys.stdout.write(json.dumps({"output": str(output), **content}) + "\n")
    else:
        _print(content, output / PAGE)


def _print(content: dict[str, Any], page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("aggregation", box=None, pad_edge=False)
    names = list(next(iter(content["variants"].values()))["groups"])
    for title in ("tokens", "prefill", "MiB", *names, "all"):
        table.add_column(title, justify="right")
    for name, result in content["variants"].items():
        costs = result["costs"]
        right = [result["groups"][group]["accuracy"]["ordered"] for group in names]
        right.append(result["all"]["accuracy"]["ordered"])
        shown = [str(costs["visual_tokens"]), f"{costs['prefill_ratio']:.2f}", f"{costs['prefill_bytes'] / 2**20:.1f}"]
        table.add_row(name, *shown, *(f"{100 * share:.1f}" for share in right))
    console = Console(highlight=False)
    console.print(table)
    console.print(str(page), soft_wrap=True)
