"""Running an experiment: train what is not trained yet, evaluate, measure, write.

The output directory holds `tokenizer-*` and `towers-*`, which runs share, one directory per recipe (a training run and
`result.json`), and the files of the whole: `results.json`, `results.md`, and its pictures.
"""

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from filmstrip import __version__
from filmstrip.api import load
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import json_bytes
from filmstrip.config import ModelConfig
from filmstrip.config.checks import require
from filmstrip.errors import FilmstripError
from filmstrip.training.drawn import readings
from filmstrip.training.evaluate import CONDITIONS, Example, FamilyResult, as_json, by_group, evaluate, make_examples
from filmstrip.training.experiment.costs import measure_costs
from filmstrip.training.experiment.plan import BASELINE, Length, Variant, plan_variants, take_apart, tokenizer_directory
from filmstrip.training.experiment.plot import plot_results
from filmstrip.training.experiment.report import results_page
from filmstrip.training.photos import TEST_PHOTOS, load_photos
from filmstrip.training.recipe import ModelRecipe, Recipe
from filmstrip.training.recipe_file import recipe_values
from filmstrip.training.run import CHECKPOINT, RECIPE_FILE, Observer, RunResult, claimed, stored_recipe, train
from filmstrip.training.start import architecture_config
from filmstrip.training.tiny import NUM_FRAMES

RESULT, RESULTS, PAGE = "result.json", "results.json", "results.md"
PLOTS = {"groups": "results.png", "families": "results-families.png"}
ROUNDS = 15  # of timing the prefill
_SEED = 0  # of the test clips, the same for every variant


@dataclass(frozen=True)
class ExperimentOptions:
    """How long to train, and how many clips of the test split to ask about."""

    length: Length = field(default_factory=Length)
    clips: int = 300

    def __post_init__(self) -> None:
        require(self.clips > 0, f"clips must be at least 1, not {self.clips}")


@dataclass(frozen=True)
class Watcher:
    """Who watches: `observe` gives an observer of one training run, `on_note` is told everything else."""

    observe: Callable[[str, Recipe], Observer] = lambda name, recipe: Observer()
    on_note: Callable[[str], None] = lambda text: None


def run_experiment(
    recipes: Sequence[Recipe],
    output: Path,
    options: ExperimentOptions,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train and compare `recipes`; returns the content of `results.json`.

    With `resume` a recipe whose result is in `output` is not trained again, and one that was interrupted goes on.
    Raises `FilmstripError`, one line, when `output` is in the way, when a result there is of another recipe or length,
    for recipes that cannot be compared, and when the photographs of the test are not installed.
    """
    watcher = watcher or Watcher()
    load_photos(TEST_PHOTOS)  # whatever is missing is said before hours of training, not after them
    parts = take_apart(recipes, options.length)
    with claimed(output, resume=resume):
        _require_all([recipe.name for recipe in recipes], output)
        variants = plan_variants(parts, options.length, output, watcher.on_note)
        known = {variant.name: _stored(variant, output, options) for variant in variants}
        results: dict[str, Any] = {}
        for variant in variants:
            found = known[variant.name]
            if found is not None:
                watcher.on_note(f"{variant.name}: already there")
            results[variant.name] = found or _run(variant, output, options, watcher)
        _measure(variants, results, watcher)
        return _write(results, output, options, watcher)


def _measure(variants: Sequence[Variant], results: dict[str, Any], watcher: Watcher) -> None:
    """Add what answering costs to the results: of all variants at once, or they could not be compared."""
    plain = architecture_config(ModelRecipe(architecture="tiny"))
    configs = {variant.name: variant.config for variant in variants}
    for name, costs in measure_costs(configs, plain, NUM_FRAMES, ROUNDS, watcher.on_note).items():
        results[name] = {**results[name], "costs": asdict(costs)}


def _write(results: dict[str, Any], output: Path, options: ExperimentOptions, watcher: Watcher) -> dict[str, Any]:
    content = {"about": _about(options), "variants": results}
    (output / RESULTS).write_bytes(json_bytes(content))
    plots = {key: name for key, name in PLOTS.items() if plot_results(content, key, output / name, watcher.on_note)}
    (output / PAGE).write_text(results_page(content, plots), encoding="utf-8")
    return content


def asked_of_all(clips: int, config: ModelConfig) -> list[Example]:
    """The questions for every variant, of all families: on photographs too, without which no camera would move."""
    return make_examples("video", clips, _SEED, config.video_tower.image_size, load_photos(TEST_PHOTOS))


def _run(variant: Variant, output: Path, options: ExperimentOptions, watcher: Watcher) -> dict[str, Any]:
    """Train (towers first, if nobody has), evaluate, and keep the result."""
    if variant.towers is not None and variant.towers_directory is not None:
        if (variant.towers_directory / CHECKPOINT).is_dir():
            watcher.on_note(f"{variant.name}: begins with the towers in {variant.towers_directory.name}")
        else:
            _train(variant.towers, "towers", variant.towers_directory, output, watcher)
    place = output / variant.name
    own_towers = variant.towers is not None
    trained = _train(variant.recipe, variant.name, place, output, watcher, own_towers=own_towers)
    watcher.on_note(f"{variant.name}: asking about {options.clips} clips")
    assistant = load(str(trained.result), device="cpu", quiet=True)
    families = evaluate(assistant.model, assistant.processor, asked_of_all(options.clips, variant.config))
    stage = variant.recipe.stages[-1]
    figures = trained.stages[stage.name]
    result = {
        **_identity(variant, options),
        "aggregation": variant.config.aggregation,
        "parameters": sum(parameter.numel() for parameter in assistant.model.parameters()),
        "steps": figures["step"],
        "samples": figures["samples"],
        "seconds": figures["seconds"],
        "loss": figures["loss"],
        "step_flops": variant.step_flops[stage.name],
        "flops": sum(cost * trained.stages[name]["step"] for name, cost in variant.step_flops.items()),
        "readings": readings(variant.config),
        "families": as_json(families),
        "groups": as_json(by_group(families)),
        "all": as_json({"all": _together(families)})["all"],
    }
    (place / RESULT).write_bytes(json_bytes(result))
    return result


def _train(
    recipe: Recipe, name: str, place: Path, output: Path, watcher: Watcher, *, own_towers: bool = False
) -> RunResult:
    """One training run, or the rest of one; it finds its tokenizer made. `own_towers`: the recipe begins with what the
    experiment trained itself. Raises `FilmstripError` for another's.
    """
    told = _but_places if own_towers else recipe_values
    if (place / RECIPE_FILE).is_file() and told(stored_recipe(place)) != told(recipe):
        raise FilmstripError(f"{place} has the beginning of another recipe's run: give that one, or another --output")
    shutil.copytree(tokenizer_directory(recipe, output), place / "tokenizer", dirs_exist_ok=True)
    return train(recipe, place, resume=True, observer=watcher.observe(name, recipe))


def _but_places(recipe: Recipe) -> dict[str, Any]:
    """A recipe without where its towers lie, which changes with the directory."""
    values = recipe_values(recipe)
    return {**values, "model": {**values["model"], "towers": None}}


def _require_all(names: Sequence[str], output: Path) -> None:
    """Raise `FilmstripError` where earlier results would be lost: costs are measured, and written, of all at once."""
    whole = output / RESULTS
    left_out = [name for name in (read_json(whole)["variants"] if whole.is_file() else ()) if name not in names]
    if left_out:
        raise FilmstripError(
            f"{whole} has results of {', '.join(left_out)}, too: name all recipes, or another --output"
        )


def _together(families: dict[str, FamilyResult]) -> FamilyResult:
    """The mean over families, each counting alike."""
    parts = list(families.values())
    return FamilyResult(
        sum(part.questions for part in parts),
        fmean(part.constant for part in parts),
        {name: fmean(part.accuracy[name] for part in parts) for name in CONDITIONS},
        fmean(part.reversed_truth or 0.0 for part in parts),
        fmean(part.constant_by_phrasing for part in parts),
    )


def _identity(variant: Variant, options: ExperimentOptions) -> dict[str, Any]:
    """What a result is the result of."""
    recipe, towers = recipe_values(variant.recipe), None  # type: dict[str, Any], Any
    if variant.towers is not None:
        recipe, towers = _but_places(variant.recipe), recipe_values(variant.towers)  # which say what is there
    else:
        given = variant.recipe.model.towers
        towers = given and load(given, device="cpu", compute="stored", quiet=True).origin.weights_hash
    test = {"clips": options.clips, "photos": list(TEST_PHOTOS), "conditions": list(CONDITIONS)}
    return {"recipe": recipe, "towers": towers, **test}


def _stored(variant: Variant, output: Path, options: ExperimentOptions) -> dict[str, Any] | None:
    """An earlier result, None where there is none. Raises `FilmstripError` for one of something else.

    It is in the variant's directory, or, where that is gone, among the results of the whole.
    """
    own, whole = output / variant.name / RESULT, output / RESULTS
    if own.is_file():
        path, result = own, read_json(own)
    elif whole.is_file() and variant.name in (known := read_json(whole)["variants"]):
        path, result = whole, known[variant.name]
    else:
        return None
    for key, value in _identity(variant, options).items():
        if result.get(key) != value:
            raise FilmstripError(
                f"{path} has the result of another recipe, length or test ({key} differs); give the same ones, or "
                "another --output"
            )
    return result


def _about(options: ExperimentOptions) -> dict[str, Any]:
    minutes = options.length.minutes
    return {
        "compute": "equal training FLOPs"
        if minutes is None
        else f"equal wall time, {minutes:g} minutes each with the share of the towers",
        "baseline": BASELINE,
        "clips": options.clips,
        "rounds": ROUNDS,
        "versions": {"filmstrip": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }
