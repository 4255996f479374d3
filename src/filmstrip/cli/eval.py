"""`filmstrip eval`: a model's answers to a file of questions, and how many are right."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.selection import frame_selection
from filmstrip.cli.terminal import count_progress, load_weights, open_model, starting, warn

_DATA = "Questions"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP)],
    data: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON or JSONL: LLaVA conversations, or flat", rich_help_panel=_DATA),
    ],
    media_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where its media lie [dim](the file's directory)[/dim]", rich_help_panel=_DATA
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="exact, contains, choice, open (not scored)", rich_help_panel=_DATA)
    ] = "exact",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first questions", rich_help_panel=_DATA)
    ] = None,
    suffix: Annotated[
        str, typer.Option(metavar="TEXT", help="A line behind every question", rich_help_panel=_DATA)
    ] = "",
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Questions asked together", rich_help_panel=_DATA)
    ] = 8,
    max_new_tokens: options.MaxNewTokens = 64,
    preset: options.PresetName = None,
    transform: options.Transform = None,
    prompt: options.PromptName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compute: options.Compute = "auto",
    kv: options.Kv = "auto",
    compiled: options.Compiled = False,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Answers and results [dim](eval/ and the names)[/dim]", rich_help_panel="Output"
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Ask a model every question of a file; save the answers as they come and score them.

    Called again, it goes on where it stopped. Exit code 1: some questions could not be asked, or have no true answer.

    \b[bold]Examples[/bold]
    filmstrip eval tiny --data questions.json
    filmstrip eval my-model --data mcq.jsonl --media-root videos --metric choice
    filmstrip eval my-model --data msvd.json --metric open --output msvd
    """
    with starting():
        from filmstrip.config.checks import require_choice
        from filmstrip.training.benchmark import BenchmarkOptions, run_benchmark
        from filmstrip.training.questions import read_questions
        from filmstrip.training.scoring import METRICS
    require_choice("metric", metric, METRICS)
    questions = read_questions(data, media_root)[:limit]
    opened = open_model(model, device=device, preset=preset, image_transform=transform, prompt=prompt)
    selection = frame_selection(opened.selection, sampler, frames, None, None)
    assistant = load_weights(opened, dtype, selection, compute, compiled=compiled, kv=kv)
    assistant.selection = selection
    place = output or Path("eval") / f"{Path(model).name}-{data.stem}"
    asking = BenchmarkOptions(metric, batch_size, max_new_tokens or 64, suffix)  # type: ignore[arg-type]
    with count_progress() as bar:
        task = bar.add_task("asking", total=None)
        results = run_benchmark(
            assistant, questions, place, asking, lambda done, total: bar.update(task, completed=done, total=total)
        )
    if as_json:
        sys.stdout.write(json.dumps({**results, "output": str(place)}) + "\n")
    else:
        _print(results, place)
    return 1 if results["failed"] or results["without_truth"] else 0


def _print(results: dict[str, Any], place: Path) -> None:
    accuracy = results["accuracy"]
    scored = "not scored" if accuracy is None else f"{100 * accuracy:.1f} % right ({results['metric']})"
    sys.stdout.write(f"{results['questions']} questions, {scored}; answers: {place / 'answers.jsonl'}\n")
    if results["failed"]:
        warn(f"{results['failed']} could not be asked and count as wrong; answers.jsonl says why")
    untrue = results["without_truth"]
    if untrue:
        what = "names none of the options" if results["metric"] == "choice" else "has no words"
        names = ", ".join(untrue[:5]) + (", ..." if len(untrue) > 5 else "")
        warn(f"{len(untrue)} count as wrong because their true answer {what}: {names}")
