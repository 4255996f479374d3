"""`filmstrip demo`: a drawn clip, several questions, answers beside the truth."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from filmstrip.cli import options
from filmstrip.cli.terminal import load_weights, note, open_model, print_stream, status
from filmstrip.errors import FilmstripError

if TYPE_CHECKING:
    import numpy as np

    from filmstrip.api import AnswerStream
    from filmstrip.world import Question, Scene

_SIZE, _FRAMES_DRAWN, _FPS = 256, 32, 8
_LONGEST_ANSWER = 96  # tokens; the longest description of three shapes has 55
_QUESTIONS = 6


def demo(
    model: options.Model = "tiny",
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Which clip to draw; none of them was seen in training")
    ] = 5,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the clip and its contact sheet go")] = Path(
        "out/demo"
    ),
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a clip, write it as mp4, ask several questions about it, and write a contact sheet.

    \b[bold]Examples[/bold]
    filmstrip demo
    filmstrip demo --seed 12 --out my-demo
    """
    from filmstrip.cli.frames import show_frames
    from filmstrip.media.encode import write_video
    from filmstrip.media.sheet import contact_sheet

    with status("drawing a clip"):
        scene, frames, questions = draw_demo(seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FilmstripError(f"{out}: cannot write here ({error.strerror})") from error
    path = out / f"clip-{seed}.mp4"
    write_video(path, frames, _FPS)
    note(f"drew {path}: {len(frames)} frames, {len(scene.shapes)} shapes, seed {seed}")
    opened = open_model(model, device=device, preset=None)
    (clip,) = opened.read(path)
    assistant = load_weights(opened, dtype)
    if not as_json:
        show_frames(clip.frames)
    results = []
    for question in questions:
        stream = assistant.stream(clip, question.text, max_new_tokens=_LONGEST_ANSWER)
        results.append(_ask(stream, question, quiet=as_json))
    sheet = out / f"clip-{seed}.png"
    contact_sheet(clip.frames, clip.times, [_sheet_line(result) for result in results]).save(sheet)
    right = sum(result["score"] == 1 for result in results)
    note(f"{tally([result['score'] for result in results])} · contact sheet: {sheet}")
    if as_json:
        content = {"clip": str(path), "sheet": str(sheet), "seed": seed, "right": right, "questions": results}
        sys.stdout.write(json.dumps(content) + "\n")


def _ask(stream: "AnswerStream", question: "Question", quiet: bool) -> dict[str, Any]:
    """Ask one question of the drawn clip and compare the answer with the truth."""
    from filmstrip.world import score

    if not quiet:
        out = Console(highlight=False, soft_wrap=True)
        out.print(question.text, style="bold", markup=False)
        print_stream(iter(stream))
    answer = stream.answer.text
    points = score(question, answer)
    if points < 1 and not quiet:
        note(f"  the truth: {question.answer}")
    return {"question": question.text, "answer": answer, "truth": question.answer, "score": points}


def tally(scores: Sequence[float]) -> str:
    """How many answers were right, and how far the others (a description may be right in part)."""
    partly = [f"one {score:.0%} right" for score in scores if 0 < score < 1]
    return ", ".join([f"{sum(score == 1 for score in scores)} of {len(scores)} right", *partly])


def _sheet_line(result: dict[str, Any]) -> tuple[str, str]:
    truth = "" if result["score"] == 1 else f"   (truth: {result['truth']})"
    return result["question"], result["answer"] + truth


def draw_demo(seed: int) -> "tuple[Scene, np.ndarray, list[Question]]":
    """A clip of the test split, two questions that a frame may answer, three that take several, and a description.

    The camera does not move in it: that takes photographs, which are not in the package.
    """
    from filmstrip.world import CLIPS, GROUPS, OVER_TIME, ask_about, draw_clip, sample_clip, split_rng

    rng = split_rng("test", 1_000_000 + seed)
    options_ = replace(CLIPS, num_frames=_FRAMES_DRAWN)
    while True:
        scene = sample_clip(rng, "test", options_)
        parts = ((2, GROUPS["still"]), (3, OVER_TIME), (1, GROUPS["describe"]))
        questions = [question for count, families in parts for question in ask_about(scene, rng, count, families)]
        if len(questions) == _QUESTIONS:  # not every clip has so much to ask
            return scene, draw_clip(scene, _SIZE), questions
