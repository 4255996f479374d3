"""`filmstrip ask`: one question, one answer."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from filmstrip.cli import options
from filmstrip.cli.selection import frame_selection
from filmstrip.cli.terminal import answer_line, load_assistant, note, print_stream, status, token_map_table, warn
from filmstrip.errors import FilmstripError, PromptError


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar='MEDIA... "QUESTION"', help="Images and videos, then the question.")
    ],
    model: options.Model = "tiny",
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    fps: options.Fps = None,
    at: options.At = None,
    transform: options.Transform = None,
    prompt: options.PromptName = None,
    temporal: options.Temporal = None,
    preset: options.PresetName = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the token map of the prompt")] = False,
    run_card: Annotated[Path | None, typer.Option(help="Save the run card, a small JSON, here")] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Ask a question about images and videos.

    Examples:

      filmstrip ask clip.mp4 "Which way does the red square move?"

      filmstrip ask a.png b.mp4 "What is different?" --model LanguageBind/Video-LLaVA-7B-hf --frames 8

      filmstrip ask clip.mp4 "What happens?" --preset original --explain --json
    """
    media, question = split_words(words)
    assistant = load_assistant(
        model,
        device=device,
        dtype=dtype,
        preset=preset,
        image_transform=transform,
        prompt=prompt,
        temporal_attention=temporal,
    )
    selection = frame_selection(assistant.selection, sampler, frames, fps, at)
    with status("reading media"):
        stream = assistant.stream(
            media,
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
    for text in stream.request.prompt.warnings:
        warn(text)
    if not as_json:
        print_stream(iter(stream))
    answer = stream.answer
    if run_card is not None:
        save_json(run_card, answer.run_card)
    if as_json:
        sys.stdout.write(json.dumps(answer.to_dict()) + "\n")
        return
    note(answer_line(answer))
    if explain:
        from rich.console import Console

        Console(highlight=False).print(token_map_table(answer, assistant))


def split_words(words: list[str]) -> tuple[list[str], str]:
    """Media and question from the command line. Raises `PromptError` when the question seems to be missing."""
    *media, question = words
    if Path(question).is_file():
        raise PromptError(f"the last argument must be the question, but {question!r} is a file")
    return media, question


def save_json(path: Path, content: object) -> None:
    """Write JSON to a file of the user's choice. Raises `FilmstripError` when that fails."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FilmstripError(f"{path}: cannot write here ({error.strerror})") from error
