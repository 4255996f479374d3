"""Accuracy on drawn clips and pictures of the test split: python scripts/evaluate_tiny.py [MODEL] [--clips 500]

Of every family, and of the camera's on real footage.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from filmstrip.api import Assistant, load
from filmstrip.config import MediaKind
from filmstrip.training.evaluate import (
    CONDITIONS,
    Example,
    FamilyResult,
    as_json,
    by_group,
    evaluate,
    make_examples,
    markdown_table,
)
from filmstrip.training.footage import footage_examples, load_footage
from filmstrip.training.photos import TEST_PHOTOS, load_photos

KINDS: tuple[MediaKind, ...] = ("video", "image")


def main(
    model: Annotated[str, typer.Argument(help="tiny, a directory or a hub id")] = "tiny",
    clips: Annotated[int, typer.Option(help="Clips, and as many pictures")] = 500,
    seed: Annotated[int, typer.Option(help="Which clips")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON here")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Print tables for videos, images and real footage, by family and by group."""
    torch.set_num_threads(threads)
    assistant = load(model)
    size = assistant.config.video_tower.image_size
    photos = load_photos(TEST_PHOTOS)
    asked = {kind: make_examples(kind, clips, seed, size, photos) for kind in KINDS}
    asked["footage"] = footage_examples(load_footage(), clips, seed, size)
    results = {name: run(assistant, examples) for name, examples in asked.items()}
    for name, families in results.items():
        source = "of real footage" if name == "footage" else f"of the test split, seed {seed}"
        typer.echo(f"\n{name}: {clips} {source}\n\n{markdown_table(families)}")
        typer.echo(f"\n{markdown_table(by_group(families))}")
        describe_facts(families)
    if out is not None:
        out.write_text(json.dumps({name: as_json(one) for name, one in results.items()}, indent=2) + "\n")


def describe_facts(families: dict[str, FamilyResult]) -> None:
    """Precision and recall of the facts that descriptions state."""
    facts = families["describe"].facts.get("ordered") if "describe" in families else None
    if facts is not None:
        typer.echo(f"\nfacts stated: precision {facts.precision:.3f}, recall {facts.recall:.3f}, F1 {facts.f1:.3f}")


def run(assistant: Assistant, examples: list[Example]) -> dict[str, FamilyResult]:
    """Evaluate with a progress bar on standard error."""
    rounds = len(CONDITIONS) if examples[0].kind == "video" else 1
    with Progress(transient=True) as bar:
        task = bar.add_task("answering", total=len(examples) * rounds)
        return evaluate(
            assistant.model, assistant.processor, examples, on_progress=lambda done: bar.advance(task, done)
        )


if __name__ == "__main__":
    typer.run(main)
