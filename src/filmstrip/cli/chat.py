"""`filmstrip chat`: several turns about the same media."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import options
from filmstrip.cli.selection import frame_selection
from filmstrip.cli.terminal import (
    answer_line,
    content_store,
    load_weights,
    note,
    note_toy,
    open_model,
    print_stream,
    status,
    warn,
)
from filmstrip.errors import FilmstripError, PromptError

if TYPE_CHECKING:
    from filmstrip.api import Chat


def chat(
    media: Annotated[list[str] | None, typer.Argument(metavar="MEDIA", help="Images and videos.")] = None,
    model: options.Model = "tiny",
    preset: options.PresetName = None,
    transform: options.Transform = None,
    prompt: options.PromptName = None,
    temporal: options.Temporal = None,
    image_tower: options.ImageTower = None,
    video_tower: options.VideoTower = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compute: options.Compute = "auto",
    kv: options.Kv = "auto",
    compiled: options.Compiled = False,
    cache: options.Cache = None,
    cache_limit: options.CacheLimit = 20.0,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    fps: options.Fps = None,
    at: options.At = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Talk about images and videos, turn by turn.

    \bMedia are read once, and so is everything said. An empty line or Ctrl-D ends.
    Questions may also come from a pipe, one a line; there empty lines are skipped.
    The first bad line ends it; --json still has the turns before.

    \b[bold]Examples[/bold]
    filmstrip chat clip.mp4
    filmstrip chat clip.mp4 < questions.txt > answers.txt
    """
    from filmstrip.media.limits import DEFAULT_LIMITS, check_file

    for path in media or ():
        check_file(Path(path), DEFAULT_LIMITS)
    opened = open_model(
        model,
        device=device,
        preset=preset,
        image_transform=transform,
        prompt=prompt,
        temporal_attention=temporal,
        image_tower=image_tower,
        video_tower=video_tower,
    )
    selection = frame_selection(opened.selection, sampler, frames, fps, at)
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop_strings": tuple(stop) if stop else None,
    }
    opened.settings(sampling)
    with status("reading media"):
        clips = opened.read(media or (), selection)
    store = content_store(cache, cache_limit)
    assistant = load_weights(opened, dtype, selection, compute, compiled=compiled, kv=kv)
    assistant.store = store
    talk = assistant.chat(clips, system=system, selection=selection)
    note_toy(assistant)
    for clip in clips:
        note(f"{clip.path}: {clip.kind}, {len(clip.indices)} of {clip.total_frames} frames")
    turns: list[dict[str, Any]] = []
    try:
        for question in _answered(talk, sampling, quiet=as_json):
            turns.append({"question": question} | talk.last.to_dict())
    except (FilmstripError, KeyboardInterrupt):
        if as_json and turns:  # answers are not lost to a bad line after them
            _print_json(turns)
        raise
    if as_json:
        _print_json(turns)


def _print_json(turns: list[dict[str, Any]]) -> None:
    sys.stdout.write(json.dumps({"turns": turns}) + "\n")


def _answered(talk: "Chat", sampling: dict[str, Any], quiet: bool) -> Iterator[str]:
    """Answer the user's lines one by one; each is yielded once its answer is there."""
    warned: set[str] = set()
    while question := _next_line():
        try:
            pieces = talk.stream(question, **sampling)
        except PromptError as error:
            if not sys.stdin.isatty():
                raise
            warn(str(error))  # a slip of the pen should not end a conversation
            continue
        if quiet:
            for _ in pieces:
                pass
        else:
            print_stream(pieces)
        for text in talk.last.warnings:
            if text not in warned:
                warn(text)
                warned.add(text)
        note(answer_line(talk.last))
        yield question


def _next_line() -> str:
    """The user's next line without surrounding blanks; empty at the end of input.

    At a terminal an empty line ends the conversation; in a pipe it only separates questions.
    """
    try:
        if not sys.stdin.isatty():
            return next((line for text in sys.stdin if (line := text.strip())), "")
        if not sys.stdout.isatty():
            return sys.stdin.readline().strip()
        import readline  # noqa: F401 - gives `input` line editing and history

        return input("you> ").strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise PromptError(f"the questions on standard input are not UTF-8 text ({error.reason})") from error
