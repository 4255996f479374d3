"""`filmstrip train`: run a recipe."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import errors, note, status, visible, warn

if TYPE_CHECKING:
    from filmstrip.training.recipe import Recipe
    from filmstrip.training.run import RunResult, StageStart

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal to draw a bar on
_LENGTH, _PLACE = "Length and changes", "Output"


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or tiny, align, finetune, lora (they ship)")
    ],
    minutes: Annotated[
        float | None,
        typer.Option(metavar="X", help="Minutes in all, divided among the stages", rich_help_panel=_LENGTH),
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
    with status("starting"):
        from filmstrip.training.recipe_file import find_recipe, limit_minutes, limit_steps, read_recipe, recipe_text
        from filmstrip.training.run import Observer, changed_recipe, stored_recipe
        from filmstrip.training.run import train as run_recipe
    settings = [*(changes or ()), *([f"seed={seed}"] if seed is not None else [])]
    chosen = read_recipe(find_recipe(recipe), () if resume else settings)
    place = output or Path("runs") / chosen.name
    if resume:
        chosen = changed_recipe(stored_recipe(place), settings)
    if minutes is not None:
        chosen = limit_minutes(chosen, minutes)
    if steps is not None:
        chosen = limit_steps(chosen, steps)
    if show:
        sys.stdout.write(recipe_text(chosen))
        return
    display = _Display(chosen)
    try:
        with display.bar:
            result = run_recipe(
                chosen, place, resume=resume, observer=Observer(display.stage, display.step, display.say)
            )
    except KeyboardInterrupt:
        note(f"stopped; `filmstrip train {recipe} --output {place} --resume` goes on from here")
        raise
    if as_json:
        sys.stdout.write(json.dumps(_content(result)) + "\n")
    else:
        _print(result)


class _Display:
    """Progress on standard error: a bar on a terminal, else a line now and then."""

    def __init__(self, recipe: "Recipe") -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.recipe = recipe
        self.bar = Progress(
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            console=errors,
            refresh_per_second=4,
            disable=not errors.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, stage="", figures="")
        self._spoke = 0.0
        self._before: tuple[int, float] | None = None
        self._speed = 0.0

    def stage(self, name: str, start: "StageStart") -> None:
        """Say what begins."""
        length = f"{start.steps:,} steps" if start.steps is not None else "as long as it is given"
        samples = f", {start.samples:,} samples" if start.samples is not None else ""
        after = f", from step {start.step:,}" if start.step else ""
        self.say(f"{name}: {start.trained_parameters:,} of {start.parameters:,} parameters, {length}{samples}{after}")
        self.bar.update(self.task, completed=0.0, stage=name, figures="")
        self._before, self._spoke, self._speed = None, 0.0, 0.0

    def step(self, name: str, progress: float, figures: dict[str, Any]) -> None:
        """Show the figures of a step."""
        if self._before is not None:
            tokens, seconds = figures["tokens"] - self._before[0], figures["seconds"] - self._before[1]
            latest = tokens / max(seconds, 1e-6)
            self._speed = 0.9 * self._speed + 0.1 * latest if self._speed else latest
        self._before = (figures["tokens"], figures["seconds"])
        left = figures["seconds"] / progress * (1 - progress) if progress > 0 else 0.0
        right = next((f"right {100 * figures[key]:.1f} %" for key in ("right", "patch_right") if key in figures), "")
        parts = [
            f"step {figures['step']:,}",
            f"loss {figures['loss']:.4f}",
            right,
            f"rate {figures['rate']:.2e}",
            f"{self._speed:,.0f} tokens/s" if self._speed else "",
            f"{_clock(left)} left",
            f"{figures['skipped']} skipped" if figures["skipped"] else "",
        ]
        shown = " · ".join(part for part in parts if part)
        if errors.is_terminal:
            self.bar.update(self.task, completed=progress, figures=shown)
        elif time.monotonic() - self._spoke > _LINE_SECONDS or progress >= 1.0:
            self._spoke = time.monotonic()
            note(f"{name} {100 * progress:.0f} % · {shown}")

    def say(self, text: str) -> None:
        """A line for people."""
        self.bar.console.print(visible(text), style="dim")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _content(result: "RunResult") -> dict[str, Any]:
    return {
        "output": str(result.output),
        "result": str(result.result),
        "best": None if result.best is None else str(result.best),
        "stages": result.stages,
        "skipped": result.skipped,
    }


def _print(result: "RunResult") -> None:
    for name, figures in result.stages.items():
        if figures:
            sys.stdout.write(
                f"{name}: {figures['step']:,} steps, {figures['samples']:,} samples, {_clock(figures['seconds'])}, "
                f"loss {figures['loss']:.4f}\n"
            )
    for reason, count in sorted(result.skipped.items(), key=lambda item: -item[1]):
        warn(f"{count} {'sample' if count == 1 else 'samples'} skipped: {reason} (see skipped.jsonl)")
    if result.best is not None:
        note(f"the best checkpoint by loss was an earlier one, and is kept: {result.best}")
    sys.stdout.write(f"{result.result}\n")
