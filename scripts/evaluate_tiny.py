"""Accuracy on drawn clips and pictures of the test split: python scripts/evaluate_tiny.py [MODEL] [--clips 500]"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from filmstrip.api import Assistant, load
from filmstrip.training.evaluate import CONDITIONS, Example, as_json, evaluate, make_examples, markdown_table
from filmstrip.training.photos import TEST_PHOTOS, load_photos


def main(
    model: Annotated[str, typer.Argument(help="tiny, a directory or a hub id")] = "tiny",
    clips: Annotated[int, typer.Option(help="Clips, and as many pictures")] = 500,
    seed: Annotated[int, typer.Option(help="Which clips")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON here")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Print one table for videos and one for images."""
    torch.set_num_threads(threads)
    assistant = load(model)
    size = assistant.config.video_tower.image_size
    photos = load_photos(TEST_PHOTOS)
    figures = {}
    for kind in ("video", "image"):
        examples = make_examples(kind, clips, seed, size, photos)
        results = run(assistant, examples, len(CONDITIONS) if kind == "video" else 1)
        figures[kind] = as_json(results)
        typer.echo(f"\n{kind}: {clips} of the test split, seed {seed}\n\n{markdown_table(results)}")
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def run(assistant: Assistant, examples: list[Example], rounds: int) -> dict:
    """Evaluate with a progress bar on standard error."""
    with Progress(transient=True) as bar:
        task = bar.add_task("answering", total=len(examples) * rounds)
        return evaluate(
            assistant.model, assistant.processor, examples, on_progress=lambda done: bar.advance(task, done)
        )


if __name__ == "__main__":
    typer.run(main)
