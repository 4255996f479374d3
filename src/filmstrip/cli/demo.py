"""`filmstrip demo`: a drawn clip, several questions, answers beside the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.terminal import errors, load_assistant, note, print_stream
from filmstrip.errors import FilmstripError

if TYPE_CHECKING:
    import numpy as np

    from filmstrip.world import Question, Scene

_SIZE, _FRAMES_DRAWN, _FPS = 256, 32, 8
_FAMILIES = ("count", "shape", "direction", "order", "presence", "describe")


def demo(
    model: options.Model = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="Which clip to draw; none of them was seen in training")] = 7,
    out: Annotated[Path, typer.Option(help="Where the clip and its contact sheet go")] = Path("out/demo"),
    device: options.Device = None,
    dtype: options.Dtype = None,
    debug: options.Debug = False,
) -> None:
    """Draw a clip, write it as mp4, ask several questions about it, and write a contact sheet.

    Examples:

      filmstrip demo

      filmstrip demo --seed 12 --out my-demo
    """
    from filmstrip.cli.frames import show_frames
    from filmstrip.media.encode import write_video
    from filmstrip.media.sheet import contact_sheet
    from filmstrip.world import score

    scene, frames, questions = draw_demo(seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FilmstripError(f"{out}: cannot write here ({error.strerror})") from error
    path = out / f"clip-{seed}.mp4"
    write_video(path, frames, _FPS)
    note(f"drew {path}: {len(frames)} frames, {len(scene.shapes)} shapes, seed {seed}")
    assistant = load_assistant(model, device=device, dtype=dtype, preset=None)
    talk = assistant.chat(path)
    clip = talk.clips[0]
    show_frames(clip.frames)
    lines, right = [], 0.0
    for question in questions:
        answer = assistant.stream(clip, question.text)
        errors.print(f"[bold]{question.text}[/bold]")
        print_stream(iter(answer))
        text = answer.answer.text
        points = score(question, text)
        right += points
        if points < 1:
            note(f"  the truth: {question.answer}")
        lines.append((question.text, text if points == 1 else f"{text}   (truth: {question.answer})"))
    sheet = out / f"clip-{seed}.png"
    contact_sheet(clip.frames, clip.times, lines).save(sheet)
    note(f"{right:g} of {len(questions)} right · contact sheet: {sheet}")


def draw_demo(seed: int) -> "tuple[Scene, np.ndarray, list[Question]]":
    """A clip of the test split with two or three shapes that come and go, and a question of each family."""
    from filmstrip.world import SceneOptions, ask_about, draw_clip, sample_clip, split_rng

    rng = split_rng("test", 1_000_000 + seed)
    options_ = SceneOptions(num_frames=_FRAMES_DRAWN)
    while True:
        scene = sample_clip(rng, "test", options_)
        questions = [question for family in _FAMILIES for question in ask_about(scene, rng, 1, [family])]
        if len(questions) == len(_FAMILIES):  # a clip with an order to ask about
            return scene, draw_clip(scene, _SIZE), questions
