"""What an experiment trains: each recipe without its tower stage, the towers once, and how many steps each may take.

Recipes without such a stage begin with the towers of a checkpoint (`model.towers`).

*Equal compute* is equal training FLOPs after the towers: the budget of a variant's stage is what its own recipe would
spend there with `keep-all`, and its number of steps is that budget divided by what one of its steps costs (`flops`).
FLOPs do not depend on the machine or on what else it does, so the comparison can be repeated. With `minutes` every
variant gets the same wall time instead; then what runs beside it counts, too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from filmstrip.checkpoint.write import json_bytes
from filmstrip.config import ModelConfig
from filmstrip.config.checks import require
from filmstrip.training.experiment.flops import step_flops
from filmstrip.training.recipe import ModelRecipe, Recipe, SampleRecipe, StageRecipe
from filmstrip.training.recipe_file import limit_minutes, limit_steps, recipe_values
from filmstrip.training.run import CHECKPOINT
from filmstrip.training.start import architecture_config

BASELINE = "keep-all"


@dataclass(frozen=True)
class Length:
    """How long to train: the recipes' own steps (neither is given), other steps, or equal minutes for each variant."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        require(self.steps is None or self.minutes is None, "give --steps or --minutes, not both")

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with this length."""
        if self.steps is not None:
            return limit_steps(recipe, self.steps)
        return recipe if self.minutes is None else limit_minutes(recipe, self.minutes)


@dataclass(frozen=True)
class Parts:
    """A recipe taken apart: the stages of the towers, those of the text tower, and what it builds."""

    recipe: Recipe
    config: ModelConfig
    towers: tuple[StageRecipe, ...]
    stages: tuple[StageRecipe, ...]


@dataclass(frozen=True)
class Variant:
    """One recipe of an experiment, ready to run.

    `towers` trains the vision towers into `towers_directory` (None: the recipe begins with those of a checkpoint, or
    trains them with the rest), `recipe` the rest. `step_flops` is what one optimizer step of each of its stages costs.
    """

    name: str
    recipe: Recipe
    config: ModelConfig
    step_flops: dict[str, float]
    towers: Recipe | None = None
    towers_directory: Path | None = None


def take_apart(recipes: Sequence[Recipe], length: Length) -> list[Parts]:
    """The recipes with their new length. Raises `ConfigError` for those that cannot be compared."""
    names = [recipe.name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two recipes are called {twice!r}; the name is where a result goes")
    return [_take_apart(length.of(recipe), length) for recipe in recipes]


def _take_apart(recipe: Recipe, length: Length) -> Parts:
    where = f"recipe {recipe.name!r}"
    require(recipe.model.architecture is not None, f"{where}: an experiment trains an architecture, not a checkpoint")
    towers = tuple(takewhile(lambda stage: stage.task == "stills", recipe.stages))
    require(
        recipe.model.towers is None or not towers,
        f"{where}: towers are trained by a stage of the recipe (stills) or come from model.towers, not both",
    )
    stages = recipe.stages[len(towers) :]
    require(
        [stage.task for stage in stages] in (["world"], ["clips", "world"]),
        f"{where}: an experiment's stages are those of the towers (stills), then clips or none, then world",
    )
    timed = length.minutes is not None or all(stage.schedule.steps is not None for stage in stages)
    require(timed, f"{where}: equal FLOPs need schedule.steps, or --minutes")
    return Parts(recipe, architecture_config(recipe.model), towers, stages)


def plan_variants(parts: Sequence[Parts], length: Length, output: Path, note: Callable[[str], None]) -> list[Variant]:
    """Count what a step of each costs, and give each as many as its budget allows. `output` is the experiment's."""
    return [_plan(one, length, output, note) for one in parts]


def tokenizer_directory(recipe: Recipe, output: Path) -> Path:
    """Where an experiment keeps the tokenizer that all recipes of one seed train."""
    return output / f"tokenizer-{recipe.seed}"


def _plan(parts: Parts, length: Length, output: Path, note: Callable[[str], None]) -> Variant:
    recipe, tokenizer = parts.recipe, tokenizer_directory(parts.recipe, output)
    note(f"{recipe.name}: counting the FLOPs of a step")
    flops = {stage.name: step_flops(recipe, parts.config, stage, tokenizer) for stage in parts.stages}
    plain = architecture_config(ModelRecipe(architecture=recipe.model.architecture))
    stages = []
    for stage in parts.stages:
        steps, own = stage.schedule.steps, flops[stage.name]
        if length.minutes is None and steps is not None:
            baseline = own if parts.config == plain else step_flops(recipe, plain, stage, tokenizer)
            steps = max(1, round(steps * baseline / own))
        stages.append(replace(stage, schedule=replace(stage.schedule, steps=steps)))
    # An experiment ends with one result for each recipe: no sample answers on the way.
    recipe = replace(recipe, samples=SampleRecipe())
    variant = Variant(recipe.name, replace(recipe, stages=tuple(stages)), parts.config, flops)
    if not parts.towers:
        return variant
    start = ModelRecipe(architecture=recipe.model.architecture)
    towers = replace(recipe, name="towers", stages=parts.towers, model=start)
    # Recipes that train their towers in the same way share them, so that what differs is the fusion alone.
    directory = output / f"towers-{hashlib.sha256(json_bytes(recipe_values(towers))).hexdigest()[:8]}"
    model = replace(recipe.model, towers=str((directory / CHECKPOINT).absolute()))
    return replace(variant, recipe=replace(variant.recipe, model=model), towers=towers, towers_directory=directory)
