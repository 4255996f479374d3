"""`filmstrip ask`: one question, one answer."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.selection import frame_selection
from filmstrip.cli.terminal import (
    answer_line,
    content_store,
    errors,
    load_weights,
    note,
    note_toy,
    open_model,
    print_stream,
    status,
    token_map_table,
    warn,
)
from filmstrip.errors import FilmstripError, MediaError, PromptError

# How a forgotten question is told from a question: the last argument ends like a file.
_MEDIA_ENDINGS = {".mp4", ".webm", ".mkv", ".avi", ".mov", ".mpg", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def ask(
    *,
    media: Annotated[list[str] | None, typer.Argument(metavar="MEDIA", help="Images and videos, any number.")] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.")],
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
    explain: options.Explain = False,
    run_card: options.RunCard = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Ask a question about images and videos.

    \b[bold]Examples[/bold]
    filmstrip ask clip.mp4 "Which way does the red square move?"
    filmstrip ask a.png b.mp4 "What is different?" --frames 16
    filmstrip ask clip.mp4 "What happens?" --preset original --explain
    filmstrip ask clip.mp4 "And then?" --cache ~/.cache/filmstrip
    filmstrip ask clip.mp4 "Describe the video." --json > answer.json
    """
    check_inputs(media or [], question)
    if run_card is not None:
        check_output(run_card)
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
    with status("reading media"):
        request = opened.request(
            media or (),
            question,
            system=system,
            selection=selection,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_strings=tuple(stop) if stop else None,
        )
    store = content_store(cache, cache_limit)
    assistant = load_weights(opened, dtype, selection, compute, kv=kv)
    assistant.store = store
    note_toy(assistant)
    for text in request.prompt.warnings:
        warn(text)
    if explain and not as_json:
        errors.print(token_map_table(request.prompt, opened.processor.tokenizer), "", soft_wrap=False)
    stream = assistant.answer(request)
    if as_json:
        with status("thinking"):
            answer = stream.answer
    else:
        print_stream(iter(stream))
        answer = stream.answer
    if run_card is not None:
        save_json(run_card, answer.run_card)
    if as_json:
        sys.stdout.write(json.dumps(answer.to_dict()) + "\n")
    else:
        note(answer_line(answer))


def check_inputs(media: list[str], question: str) -> None:
    """Say what is wrong at once, before anything that takes time is imported.

    Raises `PromptError` when the question seems to be missing, `MediaError` for a file that cannot be opened.
    """
    from filmstrip.media.limits import DEFAULT_LIMITS, check_file

    if not question.strip():
        raise PromptError("the question is empty")
    kind = _file_kind(question)
    if kind is not None:
        raise PromptError(f"the last argument must be the question, in quotes, but {question!r} {kind}")
    for path in media:
        if not _looks_like_media(path) and _file_kind(path) is None:
            raise MediaError(f"{path}: no such file; the question is the last argument, in quotes")
        check_file(Path(path), DEFAULT_LIMITS)


def _file_kind(text: str) -> str | None:
    """What `text` names instead of asking something, or None."""
    try:
        path = Path(text)
        if path.is_dir():
            return "is a directory"
        if path.exists():
            return "is a file"
    except (OSError, ValueError):  # too long for a name
        return None
    return "looks like a file (and there is none of this name)" if _looks_like_media(text) else None


def _looks_like_media(text: str) -> bool:
    return Path(text).suffix.lower() in _MEDIA_ENDINGS and " " not in text


def check_output(path: Path) -> None:
    """Raise `FilmstripError` when a file clearly cannot be written at `path`; nothing is created yet."""
    if path.is_dir():
        raise FilmstripError(f"{path}: cannot write here (it is a directory)")
    if not path.parent.is_dir():
        raise FilmstripError(f"{path}: cannot write here (there is no directory {path.parent})")


def save_json(path: Path, content: object) -> None:
    """Write JSON to a file of the user's choice. Raises `FilmstripError` when that fails."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FilmstripError(f"{path}: cannot write here ({error.strerror})") from error
