"""`filmstrip chat`: several turns about the same media."""

import sys
from typing import Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.selection import frame_selection
from filmstrip.cli.terminal import answer_line, errors, load_assistant, note, print_stream, status, warn
from filmstrip.errors import PromptError


def chat(
    media: Annotated[list[str] | None, typer.Argument(metavar="MEDIA...", help="Images and videos.")] = None,
    model: options.Model = "tiny",
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    preset: options.PresetName = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    debug: options.Debug = False,
) -> None:
    """Talk about images and videos, turn by turn. Media are read once; an empty line or Ctrl-D ends.

    Questions may also come from a pipe, one a line.

    Examples:

      filmstrip chat clip.mp4

      printf 'How many shapes are there?\\nDescribe the video.\\n' | filmstrip chat clip.mp4
    """
    assistant = load_assistant(model, device=device, dtype=dtype, preset=preset)
    with status("reading media"):
        talk = assistant.chat(
            media or (), system=system, selection=frame_selection(assistant.selection, sampler, frames, None, None)
        )
    for clip in talk.clips:
        note(f"{clip.path}: {clip.kind}, {len(clip.indices)} of {clip.total_frames} frames")
    warned: set[str] = set()
    while True:
        question = _next_line()
        if not question:
            return
        try:
            pieces = talk.stream(
                question,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
            )
        except PromptError as error:
            if not sys.stdin.isatty():
                raise
            warn(str(error))  # a slip of the pen should not end a conversation
            continue
        print_stream(pieces)
        for text in talk.last.warnings:
            if text not in warned:
                warn(text)
                warned.add(text)
        note(answer_line(talk.last))


def _next_line() -> str:
    """The user's next line without surrounding blanks; empty at the end of input."""
    if sys.stdin.isatty():
        errors.print("[bold]you[/bold] ", end="")
    return sys.stdin.readline().strip()
