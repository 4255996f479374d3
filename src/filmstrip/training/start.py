"""What a run starts from: the model that a recipe names, with random weights or from a checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from filmstrip.api import Assistant, load
from filmstrip.config import ModelConfig
from filmstrip.config.checks import require
from filmstrip.models.wide import is_quantised
from filmstrip.training.parallel import Parallel
from filmstrip.training.patterns import require_matches
from filmstrip.training.recipe import ModelRecipe, Recipe
from filmstrip.training.tiny import TINY, initialise, new_tiny


def start_model(recipe: Recipe, output: Path, parallel: Parallel) -> tuple[Assistant, str]:
    """The model to train with all that belongs to it, and the hash of the weights it was read from.

    Raises `FilmstripError` for a checkpoint that cannot be read and for settings that contradict each other.
    """
    start = recipe.model
    if start.checkpoint is None:
        assistant = new_tiny(output / "tokenizer", recipe.seed, architecture_config(start))
        if start.towers is not None:
            copy_towers(start.towers, assistant)
    else:
        assistant = load(
            start.checkpoint,
            device=parallel.device,
            preset=start.preset,
            image_transform=start.image_transform,
            compute="stored",
            quiet=True,
        )
        _require_floats(assistant, start.checkpoint)
    if start.reset:
        require_matches(start.reset, [name for name, _ in assistant.model.named_parameters()], "model.reset")
        torch.manual_seed(recipe.seed)
        initialise(assistant.model, start.reset)
    assistant.model.to(parallel.device)
    return assistant, assistant.origin.weights_hash


def architecture_config(start: ModelRecipe) -> ModelConfig:
    """The configuration of a model that starts with random weights. Raises `ConfigError` for a contradiction."""
    return replace(
        TINY,
        aggregation=start.aggregation,
        aggregation_settings=start.aggregation_settings,
        video_class_token=start.video_class_token,
    )


def copy_towers(checkpoint: str, assistant: Assistant) -> None:
    """Give a model the vision towers of `checkpoint`. Raises `ConfigError` when they are of another shape."""
    source = load(checkpoint, device="cpu", compute="stored", quiet=True)
    _require_floats(source, checkpoint)
    trained, model = source.model, assistant.model
    for kind in ("image", "video"):
        config = getattr(trained.config, f"{kind}_tower")
        require(
            config == getattr(model.config, f"{kind}_tower"),
            f"the {kind} tower of {checkpoint} is of another shape than the model's",
        )
        getattr(model, f"{kind}_tower").load_state_dict(getattr(trained, f"{kind}_tower").state_dict())


def _require_floats(assistant: Assistant, checkpoint: str) -> None:
    quantised = is_quantised(assistant.model)
    require(not quantised, f"{checkpoint} is quantised; train the checkpoint that it was made from")
