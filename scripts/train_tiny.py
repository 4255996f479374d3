"""Train the embedded model from nothing: python scripts/train_tiny.py runs/tiny

Continues where an earlier run in the same directory stopped. The finished checkpoint is DIRECTORY/checkpoint.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from filmstrip.training.curves import plot_run
from filmstrip.training.tiny import TinyRecipe, export, make_tokenizer, pretrain_tower, train_language


def main(
    directory: Annotated[Path, typer.Argument(help="Where checkpoints, logs and the result go.")],
    seed: Annotated[int, typer.Option(help="Decides the weights and every clip.")] = 0,
    tower_minutes: Annotated[
        float | None, typer.Option(help="Time for the vision tower (default: the recipe's number of steps).")
    ] = None,
    language_minutes: Annotated[
        float | None, typer.Option(help="Time for the conversations (default: the recipe's number of steps).")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 1 beside other work, 2 on a quiet pair of cores.")] = 2,
) -> None:
    """Vision tower, then language model. Rates follow the share of steps, or of minutes, that has passed."""
    torch.set_num_threads(threads)
    recipe = TinyRecipe(seed=seed)
    if tower_minutes is not None:
        recipe = replace(recipe, tower=replace(recipe.tower, steps=None, minutes=tower_minutes))
    if language_minutes is not None:
        recipe = replace(recipe, language=replace(recipe.language, steps=None, minutes=language_minutes))
    tokenizer = make_tokenizer(directory / "tokenizer", seed)
    tower = pretrain_tower(recipe, directory / "tower")
    model = train_language(recipe, tower, tokenizer, directory / "language")
    export(model, tokenizer, directory / "checkpoint")
    plot_run(directory, directory / "curves.png")


if __name__ == "__main__":
    typer.run(main)
