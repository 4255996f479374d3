"""`filmstrip world`: look at the drawn world, write it as files that any trainer reads, read such files back."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import count_progress, note, starting, status
from filmstrip.errors import FilmstripError

if TYPE_CHECKING:
    from filmstrip.world import Question, Scene

app = typer.Typer(
    help="The drawn world of moving shapes: look at it, export it for any trainer, read an export back.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)

_WHAT = "What is drawn"
Split = Annotated[str, typer.Option(metavar="NAME", help="train, val or test", rich_help_panel=_WHAT)]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Which clips of the split", rich_help_panel=_WHAT)]
Families = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Families of questions, e.g. count,camera [dim](all)[/dim]"),
]
Photos = Annotated[
    bool,
    typer.Option(
        "--photos/--no-photos",
        help="Photographs behind the shapes and under the camera, from scikit-image",
        rich_help_panel=_WHAT,
    ),
]


@app.command("show")
def show(
    seed: Seed = 7,
    split: Split = "test",
    plot: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="plain, arrivals, speed, recolour, events, bounces or camera [dim](any)[/dim]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    photos: Photos = True,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the contact sheet goes")] = Path("out/world"),
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw one clip, print every question about it with its truth, and write a contact sheet.

    \b[bold]Examples[/bold]
    filmstrip world show --seed 7
    filmstrip world show --plot camera --split train --json
    """
    with status("drawing"):
        from filmstrip.media.sheet import contact_sheet
        from filmstrip.training.world_files import world_photos
        from filmstrip.world import FAMILIES, TICKS, ask_about, describe, draw_clip, sample_clip, split_rng

        shown = world_photos(split) if photos else []
        rng = split_rng(split, seed)
        scene = sample_clip(rng, split, _world(plot, len(shown)))
        questions = ask_about(scene, rng, len(FAMILIES))
        frames = draw_clip(scene, 256, shown)
        lines = [(question.text, question.answer) for question in questions]
        sheet = contact_sheet(frames, [tick / 2 for tick in range(TICKS)], lines)
    path = out / f"{split}-{seed}{f'-{plot}' if plot else ''}.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise FilmstripError(f"{path}: cannot write here ({error.strerror or error})") from error
    if as_json:
        content = {
            "sheet": str(path),
            "description": describe(scene),
            "scene": _plain_scene(scene),
            "questions": [_plain(question) for question in questions],
        }
        sys.stdout.write(json.dumps(content) + "\n")
        return
    sys.stdout.write(f"{describe(scene)}\n\n")
    _print_questions(questions)
    note(f"plot: {scene.plot}; contact sheet: {path}")


@app.command("export")
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go; an export is continued")],
    clips: Annotated[int, typer.Option(min=0, metavar="N", help="Clips, as mp4", rich_help_panel=_WHAT)],
    images: Annotated[int, typer.Option(min=0, metavar="N", help="Pictures, as PNG", rich_help_panel=_WHAT)] = 0,
    split: Split = "train",
    seed: Seed = 0,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Edge of the frames", rich_help_panel=_WHAT)] = 256,
    frames: Annotated[
        int, typer.Option(metavar="N", help="Frames of a clip, a multiple of 8", rich_help_panel=_WHAT)
    ] = 32,
    photos: Photos = True,
    families: Families = None,
    questions: Annotated[int, typer.Option(metavar="N", help="Questions about each")] = 6,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write clips and pictures with conversations in LLaVA's format, and the truth of every question beside them.

    Run again, an export that was stopped goes on; the same options always give the same files.

    \b[bold]Examples[/bold]
    filmstrip world export world --clips 1000 --images 200
    filmstrip world export hard --clips 200 --split test --families events,bounces
    """
    with starting():
        from filmstrip.training.world_files import CONVERSATIONS, WorldPlan, export_world
    chosen = tuple(name.strip() for name in families.split(",") if name.strip()) if families is not None else ()
    plan = WorldPlan(clips, images, split, seed, size, frames, questions, chosen, photos)
    with count_progress() as bar:
        task = bar.add_task("drawing", total=clips + images)
        counts = export_world(directory, plan, lambda done: bar.advance(task, done))
    content = {"directory": str(directory), "conversations": str(directory / CONVERSATIONS)}
    _report(content | {"clips": clips, "images": images}, counts, as_json)


@app.command("import")
def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `filmstrip world export` wrote")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Read an export back: every question with its truth, every clip and picture decoded. Exit code 1 if one is not.

    \b[bold]Examples[/bold]
    filmstrip world import world
    filmstrip world import world --json
    """
    with starting():
        from filmstrip.media import FrameSelection, load_media
        from filmstrip.training.world_files import read_world
    with status("reading the questions"):
        items = list(read_world(directory))
    damaged = []
    with count_progress() as bar:
        for item in bar.track(items, description="decoding"):
            try:
                clip = load_media(item.path, FrameSelection())
                damaged += [f"{item.id}: {text}" for text in clip.warnings]
            except FilmstripError as error:
                damaged.append(f"{item.id}: {error}")
    kinds = Counter(item.kind for item in items)
    counts = Counter(question.family for item in items for question in item.questions)
    content = {"directory": str(directory), "clips": kinds["video"], "images": kinds["image"], "damaged": damaged}
    _report(content, counts, as_json)
    return 1 if damaged else 0


def _world(plot: str | None, num_photos: int) -> Any:
    from dataclasses import replace

    from filmstrip.world import CLIPS

    world = replace(CLIPS, num_photos=num_photos)
    return world if plot is None else replace(world, plots=(plot,))


def _report(content: dict[str, Any], counts: "Counter[str]", as_json: bool) -> None:
    from filmstrip.world import FAMILIES

    families = {family: counts[family] for family in FAMILIES if counts[family]}
    if as_json:
        sys.stdout.write(json.dumps(content | {"questions": families}) + "\n")
        return
    asked = sum(families.values())
    head = f"{content['directory']}: {content['clips']} clips, {content['images']} images, {asked} questions"
    sys.stdout.write(head + "\n")
    for family, count in families.items():
        sys.stdout.write(f"  {family:<12}{count:>8}\n")
    for text in content.get("damaged", []):
        note(text)


def _print_questions(questions: "list[Question]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("family", "question", "answer", "backwards", box=None, pad_edge=False)
    for question in questions:
        if question.family != "describe":  # it stands above
            backwards = "" if question.reversed_answer == question.answer else question.reversed_answer
            table.add_row(question.family, question.text, question.answer, backwards)
    Console(highlight=False).print(table)


def _plain(question: "Question") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(question) | {"facts": sorted(question.facts)}


def _plain_scene(scene: "Scene") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(scene)
