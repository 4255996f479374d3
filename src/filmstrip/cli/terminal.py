"""What the verbs print: notes, warnings and progress on standard error, answers as they come, the token map."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from filmstrip.api import Answer, Assistant

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A dim line on standard error."""
    errors.print(Text(text, style="dim"))


def warn(text: str) -> None:
    """A warning on standard error."""
    errors.print(Text(f"warning: {text}", style="yellow"))


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on standard error while something runs; nothing when that is not a terminal."""
    if errors.is_terminal:
        with errors.status(text):
            yield
    else:
        yield


def load_assistant(
    model: str, *, device: str | None, dtype: str | None, preset: str | None, **choices: object
) -> "Assistant":
    """Load a model with a progress bar; print the line that says what was built, and its warnings."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=errors, transient=True
    ) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        from filmstrip.api import load

        assistant = load(
            model,
            device=device,
            dtype=dtype,
            preset=preset,
            quiet=True,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            **choices,
        )
    note(assistant.summary)
    for text in assistant.warnings:
        warn(text)
    return assistant


def print_stream(pieces: Iterator[str]) -> None:
    """Print an answer as it comes."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def answer_line(answer: "Answer") -> str:
    """One line on how an answer came about."""
    times, plan = answer.timings, answer.prompt.plan
    frames = sum(len(clip.indices) for clip in answer.media)
    rate = (len(answer.token_ids) - 1) / times.decode if times.decode > 0 and len(answer.token_ids) > 1 else 0.0
    parts = [
        f"{frames} frame{'s' * (frames != 1)}",
        f"{len(plan.input_ids)} prompt tokens ({plan.visual_tokens} visual)"
        + (f", {answer.prefix_reused} of them already read" if answer.prefix_reused else ""),
        f"first token {times.first_token:.2f} s",
        f"{len(answer.token_ids)} tokens" + (f" at {rate:.0f}/s" if rate else ""),
        f"ended by {answer.stop_reason}",
    ]
    return " · ".join(parts)


def token_map_table(answer: "Answer", assistant: "Assistant") -> Table:
    """Every span of the prompt: where it comes from, how many tokens, which positions."""
    from filmstrip.inputs.token_map import explain

    table = Table(title="token map", title_justify="left", box=None, pad_edge=False)
    table.add_column("span")
    table.add_column("tokens", justify="right")
    table.add_column("positions", justify="right")
    table.add_column("text", overflow="fold")
    for row in explain(answer.prompt.plan, assistant.processor.tokenizer):
        table.add_row(row.label, str(row.tokens), f"{row.first}..{row.last}", row.excerpt)
    return table
