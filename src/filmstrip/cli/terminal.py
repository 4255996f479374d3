"""What the verbs print: notes, warnings and progress on standard error, answers as they come, the token map."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from filmstrip.api import Answer, Assistant, OpenedModel
    from filmstrip.cache import ContentStore
    from filmstrip.inputs.processor import Prompt
    from filmstrip.media.sample import FrameSelection
    from filmstrip.text.tokenizer import Tokenizer

errors = Console(stderr=True, highlight=False, soft_wrap=True)

# Control characters, which could move the cursor or retitle the window, become the pictures of themselves.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {127: "␡"} | dict.fromkeys(range(128, 160), "�")


def visible(text: str) -> str:
    """`text` with its control characters made visible, safe for a terminal."""
    return text.translate(_VISIBLE)


def note(text: str) -> None:
    """A dim line on standard error."""
    errors.print(Text(visible(text), style="dim"))


def warn(text: str) -> None:
    """A warning on standard error."""
    errors.print(Text(f"warning: {visible(text)}", style="yellow"))


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on standard error while something runs; nothing when that is not a terminal."""
    if errors.is_terminal:
        with errors.status(visible(text)):
            yield
    else:
        yield


@contextmanager
def starting() -> Iterator[None]:
    """`status` around imports that take a second.

    They make a million objects and no garbage: none is looked for meanwhile, nor among them later on and at the end.
    """
    gc.disable()
    try:
        with status("starting"):
            yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def byte_progress(text: str, before: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes with speed and time left, on standard error; yields what is to be called with done and total.

    `before` stands in the place of `text` until the first call.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=errors, transient=True, disable=not errors.is_terminal)
    with bar:
        task = bar.add_task(visible(before or text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, description=visible(text))


def count_progress() -> Progress:
    """A bar of things done with the time left, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


def open_model(name: str, *, device: str | None, preset: str | None, **choices: Any) -> "OpenedModel":
    """Find a model and check everything but its weights, so that whatever is wrong is said at once."""
    with starting():
        from filmstrip import api
    if "/" in name and errors.is_terminal and not Path(name).exists():
        note(f"asking the Hugging Face hub for {name}")  # no spinner: a download draws its own bars
    return api.open_model(name, device=device, preset=preset, **choices)


def load_weights(
    opened: "OpenedModel",
    dtype: str | None,
    selection: "FrameSelection | None" = None,
    compute: str = "auto",
    *,
    compiled: bool = False,
    kv: str = "auto",
) -> "Assistant":
    """Read the weights with a progress bar; print the line that says what was built, and its warnings.

    `selection` is the choice of frames of the questions to come, when it is not the model's own.
    """
    from filmstrip.api.load import as_dtype

    target = as_dtype(dtype)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task("reading weights", total=None)
        assistant = opened.load_weights(
            target,
            lambda done, total: bar.update(task, completed=done, total=total),
            compute=compute,
            compiled=compiled,
            kv=kv,
        )
    note(assistant.summary_with(selection or assistant.selection))
    if assistant.missing_kernels:
        note(assistant.missing_kernels)
    for text in assistant.warnings:
        warn(text)
    return assistant


def content_store(directory: Path | None, limit: float) -> "ContentStore | None":
    """Where one command remembers for the next what it has read; None: nowhere, since it ends when it has answered."""
    from filmstrip.cache import ContentStore
    from filmstrip.config.checks import require

    require(0 <= limit < float("inf"), f"--cache-limit is a number of gigabytes from 0 on, not {limit:g}")
    return None if directory is None else ContentStore(0, directory, round(limit * 1e9), warn)


def note_toy(assistant: "Assistant") -> None:
    """Say of the embedded model, or one like it, that it is a toy, before somebody takes its answers for seeing.

    Copies have other names and quantised ones other weights. What they all keep is a vocabulary made from the world's
    sentences: hundreds of pieces, not thousands, and each of its shapes is one of them.
    """
    from filmstrip.world import SHAPES

    tokenizer = assistant.processor.tokenizer
    whole = all(len(tokenizer.encode(f" {shape}", add_special=False).ids) == 1 for shape in SHAPES)
    if whole and tokenizer.vocab_size < 1000:
        name = assistant.origin.model
        note(f"{name} is a toy that knows its drawn world alone; whatever else it is shown, it answers in those terms")


def print_stream(pieces: Iterator[str]) -> None:
    """Print an answer as it comes. A spinner stands in for the first piece."""
    shown = visible if sys.stdout.isatty() else str
    with status("thinking"):
        piece = next(pieces, "")
    while piece:
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
        piece = next(pieces, "")
    sys.stdout.write("\n")
    sys.stdout.flush()


def answer_line(answer: "Answer") -> str:
    """One line on how an answer came about."""
    times, plan = answer.timings, answer.prompt.plan
    frames = sum(len(clip.indices) for clip in answer.media)
    count = len(answer.token_ids)
    rate = f" at {(count - 1) / times.decode:.0f}/s" if times.decode > 0 and count > 1 else ""
    read = f", {answer.prefix_reused} already read" if answer.prefix_reused else ""
    parts = [
        *([_counted(frames, "frame")] if frames else []),
        f"{_counted(len(plan.input_ids), 'prompt token')} ({plan.visual_tokens} visual{read})",
        f"first after {times.first_token:.2f} s",
        f"{_counted(count, 'token')}{rate}",
        f"ended by {answer.stop_reason}",
    ]
    return " · ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def token_map_table(prompt: "Prompt", tokenizer: "Tokenizer") -> Table:
    """Every span of the prompt: where it comes from, how many tokens, which positions."""
    from filmstrip.inputs.token_map import explain

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token map")
    table.add_column("tokens", justify="right")
    table.add_column("positions", justify="right")
    table.add_column("text", overflow="fold")
    names = {medium.name: Path(medium.name).name for medium in prompt.plan.media}
    for row in explain(prompt.plan, tokenizer):
        excerpt = row.excerpt
        for path, name in names.items():  # a whole path on every frame's row would leave no room
            if row.source == "media" and excerpt.startswith(path):
                excerpt = name + excerpt.removeprefix(path)
        place = str(row.first) if row.tokens == 1 else f"{row.first}–{row.last}"
        table.add_row(row.label, str(row.tokens), place, Text(visible(excerpt).replace("\n", "↵")))
    table.add_row("all", str(len(prompt.plan.input_ids)), "", f"{prompt.plan.visual_tokens} visual", style="bold")
    return table
