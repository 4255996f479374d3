"""Aggregations from the command line: the life of a checkpoint, a whole experiment, one line for what is wrong."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.api import load
from filmstrip.checkpoint.resolve import resolve
from filmstrip.config.aggregation import AGGREGATIONS
from filmstrip.training import evaluate
from filmstrip.training.experiment.plan import Length, take_apart
from filmstrip.training.experiment.plot import plot_results
from filmstrip.training.experiment.report import results_page
from filmstrip.training.experiment.run import PLOTS, asked_of_all
from filmstrip.training.recipe_file import find_recipes, read_recipe
from filmstrip.training.start import architecture_config
from filmstrip.training.tiny import TINY, new_tiny
from filmstrip.world import FAMILIES, GROUPS, Agreement
from tests.e2e.helpers import refused, run, succeed
from tests.training import put_tokenizer

SMALL = """
name: {name}
model: {model}
threads: 1
checkpoints: {{every_minutes: null}}
stages:
  - name: tower
    task: stills
    batch: {{size: 2, workers: 0}}
    schedule: {{steps: 1}}
    world: {{photos: false}}
  - name: motion
    task: clips
    batch: {{size: 2, workers: 0}}
    schedule: {{steps: 2}}
    world: {{photos: false}}
  - name: language
    task: world
    batch: {{size: 2, workers: 0}}
    schedule: {{steps: 2}}
    world: {{photos: false, image_every: 2, questions: 2}}
"""
SETTINGS = {
    "resampler": ", aggregation_settings: {queries: 6, layers: 1}",
}


def write_recipes(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        model = f"{{architecture: tiny, aggregation: {name}{SETTINGS.get(name, '')}}}"
        (folder / f"{name}.yaml").write_text(SMALL.format(name=name, model=model))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the resampler, untrained."""
    folder = tmp_path_factory.mktemp("own")
    (recipe,) = find_recipes(["fusion/resampler"])
    config = architecture_config(read_recipe(recipe).model)
    return new_tiny(put_tokenizer(folder / "tokenizer"), 0, config).save(folder / "resampler")


def test_a_checkpoint_with_an_aggregation_is_shown_checked_counted_and_asked(own: Path, clip: Path) -> None:
    shown = succeed("show", own, "--json").json
    assert (shown["tokens_per_video_frame"], shown["tokens_per_video"]) == (0, 32)
    assert shown["config"]["aggregation"] == "resampler"
    assert succeed("params", own, "--json").json["components"]["aggregation"]["parameters"] > 0
    assert not [item for item in run("check", own, "--json").json["findings"] if item["severity"] != "note"]
    answer = succeed("ask", clip, "How many?", "--model", own, "--max-new-tokens", "2", "--json").json
    assert answer["visual_tokens"] == 32
    labels = [span["label"] for span in answer["run_card"]["token_map"]["spans"]]
    assert "video 0 all frames" in labels


@pytest.mark.parametrize("to", ["hf", "pku"])
def test_export_is_refused_with_the_reason(own: Path, to: str, tmp_path: Path) -> None:
    line = refused("convert", own, tmp_path / "out", "--to", to)
    assert "frames are aggregated by 'resampler'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_experiment_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One aggregation of each kind: towers once, results once, and the second call trains nothing."""
    monkeypatch.setattr(evaluate, "_MAX_NEW_TOKENS", 4)
    monkeypatch.setattr("filmstrip.training.experiment.run.ROUNDS", 1)
    monkeypatch.chdir(tmp_path)
    write_recipes(tmp_path / "mine", ("keep-all", "resampler", "temporal-spatial-pool"))
    call = ("experiment", "mine/*.yaml", "--clips", "1", "--output", "out")
    first = succeed(*call, "--json").json
    variants = first["variants"]
    assert len(list(Path("out").glob("towers-*"))) == 1
    tokens = {name: result["costs"]["visual_tokens"] for name, result in variants.items()}
    assert tokens == {"keep-all": 136, "resampler": 6, "temporal-spatial-pool": 25}
    budget = variants["keep-all"]["flops"]
    for name, result in variants.items():
        assert result["steps"] >= 2
        assert abs(result["flops"] - budget) <= result["step_flops"], name  # half a step in each of two stages
        assert result["costs"]["prefill_bytes"] > 0
        assert set(result["groups"]) <= {"still", "motion", "time", "camera", "describe"}
    readings = {name: result["readings"] for name, result in variants.items()}
    assert readings["keep-all"] == ["patches", "frames", "clip"]
    assert (readings["temporal-spatial-pool"], readings["resampler"]) == (["frames", "clip"], ["clip"])
    page = Path("out/results.md").read_text()
    assert "| resampler | 6 |" in page
    for picture in ("results.png", "results-families.png"):
        assert f"({picture})" in page
        assert Path("out", picture).stat().st_size > 20_000
    assert set(variants["resampler"]["all"]["accuracy"]) == set(evaluate.CONDITIONS)
    assert "is not empty" in refused(*call)
    # As if it had been interrupted while one variant was evaluated: nothing is trained again.
    for written in ("resampler/result.json", "results.json"):
        Path("out", written).unlink()
    logs = {path: path.read_bytes() for path in Path("out").glob("*/language/log.jsonl")}
    again = succeed(*call, "--resume")
    assert "keep-all: already there" in again.err and "resampler: already there" not in again.err
    assert logs == {path: path.read_bytes() for path in Path("out").glob("*/language/log.jsonl")}
    assert Path("out/resampler/result.json").is_file()
    shutil.rmtree("out/keep-all")
    whole = succeed(*call, "--resume", "--json")
    assert "keep-all: already there" in whole.err and set(whole.json["variants"]) == set(variants)
    fewer = refused("experiment", "mine/keep-all.yaml", *call[2:], "--resume")
    assert "results.json has results of" in fewer and "name all recipes" in fewer
    other = run(*call[:-3], "2", "--output", "out", "--resume")
    assert other.code == 2
    assert "another recipe, length or test (clips differs)" in other.err.splitlines()[-1]


def test_the_camera_is_asked_about_as_it_moves() -> None:
    """Over photographs: without any, `still` and `no` would be right for all questions about the camera."""
    answers: dict[str, set[str]] = {"camera": set(), "cut": set()}
    for example in asked_of_all(60, TINY):
        if example.question.family in answers:
            answers[example.question.family].add(example.question.answer)
    assert len(answers["camera"]) > 4
    assert len(answers["cut"]) > 1


def pretended(share: float) -> dict[str, Any]:
    """One variant of `results.json`, `share` right in everything, with another figure for each control."""
    figures = dict(zip(evaluate.CONDITIONS, (share, 0.3, 0.21, 0.42), strict=True))
    result = evaluate.FamilyResult(50, 0.11, figures, reversed_truth=0.53, constant_by_phrasing=0.17)
    found = asdict(replace(result, facts={"ordered": Agreement(0.5, 0.5, 0.5)}))
    costs = {"visual_tokens": 8, "vision_seconds": 1, "vision_ratio": 1, "prefill_seconds": 1, "prefill_ratio": share}
    return {
        "families": dict.fromkeys(FAMILIES, found),
        "groups": dict.fromkeys(GROUPS, found),
        "all": found,
        "costs": {**costs, "prefill_bytes": 2**20},
        **dict.fromkeys(("parameters", "steps", "flops", "seconds"), 1),
        "readings": ["patches", "frames", "clip"],
        "recipe": {"model": {"towers": "tiny"}},
    }


def test_the_page_of_an_experiment_has_every_control_and_every_family(tmp_path: Path) -> None:
    about = {"compute": "x", "clips": 1, "versions": {}, "threads": 1, "rounds": 1, "baseline": "keep-all"}
    content = {"about": about, "variants": {"keep-all": pretended(0.9), "mean-frames": pretended(0.6)}}
    page = results_page(content, PLOTS)
    for row in ("*best constant* | 11.0", "*best constant per phrasing* | 17.0", "mean-frames | 60.0"):
        assert f"| {row} |" in page
    for percent in (30.0, 21.0, 42.0, 53.0):  # shuffled, reversed, first frame, reversed by its truth
        assert f"| keep-all | {percent} |" in page
    for family in FAMILIES:
        assert f"| {family} | 50 | 11.0 | 17.0 | 90.0 | 60.0 |" in page
        assert f"| {family} | 50 | 11.0 | 17.0 | 60.0 | 30.0 | 21.0 | 53.0 | 42.0 |" in page
    assert "the vision towers, which are those of `tiny`." in page
    for key, name in PLOTS.items():
        assert f"({name})" in page
        assert plot_results(content, key, tmp_path / name, print)
        assert (tmp_path / name).stat().st_size > 20_000


def test_shipped_recipes_begin_with_the_embedded_models_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, hardly trained: the towers come out as they went in, and a result knows whose they are."""
    monkeypatch.setattr(evaluate, "_MAX_NEW_TOKENS", 4)
    monkeypatch.setattr("filmstrip.training.experiment.run.ROUNDS", 1)
    small = ("motion.batch.size=2", "motion.batch.workers=0", "language.batch.size=8", "language.batch.workers=0")
    changes = [part for change in (*small, "threads=1") for part in ("--set", change)]
    call = ("experiment", "fusion/class-token", "--steps", "1", "--clips", "1", "--output", tmp_path / "out", *changes)
    (result,) = succeed(*call, "--json").json["variants"].values()
    assert result["recipe"]["model"]["towers"] == "tiny"
    assert result["steps"] >= 1 and not list(tmp_path.glob("out/towers-*"))
    trained, tiny = load(str(tmp_path / "out/class-token/checkpoint"), quiet=True), load("tiny", quiet=True)
    assert result["towers"] == tiny.origin.weights_hash
    for name, weight in tiny.model.video_tower.state_dict().items():
        assert torch.equal(weight, trained.model.video_tower.state_dict()[name]), name
    assert "already there" in succeed(*call, "--resume").err
    # As if it had been interrupted before its result was written: it does not go on from other towers.
    for written in ("class-token/result.json", "results.json"):
        (tmp_path / "out" / written).unlink()
    towers = shutil.copytree(resolve("tiny"), tmp_path / "towers")
    other = run(*call, "--set", f"model.towers={towers}", "--resume")
    assert other.code == 2 and "the beginning of another recipe's run" in other.err.splitlines()[-1]


def test_photographs_are_asked_for_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmstrip.training.photos.find_spec", lambda name: None)
    assert "filmstrip[train]" in refused("experiment", "fusion/keep-all", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_minutes_are_those_of_each_variant() -> None:
    """By wall time the towers have their share of the minutes, and no number of steps is asked for."""
    (path,) = find_recipes(["fusion/keep-all"])
    length = Length(minutes=30)
    (parts,) = take_apart([read_recipe(path)], length)
    minutes = [stage.schedule.minutes for stage in parts.recipe.stages]
    assert sum(minute or 0 for minute in minutes) == pytest.approx(30)
    assert all(stage.schedule.steps is None for stage in parts.recipe.stages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fusion/keep-al",), "did you mean 'fusion/keep-all'"),
        (("nothing/*.yaml",), "nothing/*.yaml: no recipe matches; shipped are align, finetune, fusion/class-token"),
        (("fusion/keep-all", "keep-all.yaml"), "two recipes are called 'keep-all'"),
        (("towers.yaml",), "towers are trained by a stage of the recipe (stills) or come from model.towers, not both"),
        (("align",), "an experiment trains an architecture, not a checkpoint"),
        (("fusion/keep-all", "--steps", "3", "--minutes", "3"), "give --steps or --minutes, not both"),
        (("fusion/keep-all", "--set", "language.batch.sise=2"), "unknown setting 'sise'; did you mean 'size'?"),
        (("wrong.yaml",), "model, aggregation is 'mean-frame'; did you mean 'mean-frames'?"),
        (("unused.yaml",), "the aggregation 'keep-all' has no setting kept"),
        (("own.yaml",), "go with architecture; a checkpoint has its own"),
        (("circle.yaml",), "is based on itself"),
        (("both.yaml",), "a recipe with a base has `base` and `set` alone, not 'name'"),
    ],
)
def test_one_line_for_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipes(tmp_path, ("keep-all",))
    for name, model in {
        "wrong": "{architecture: tiny, aggregation: mean-frame}",
        "unused": "{architecture: tiny, aggregation_settings: {kept: 3}}",
        "own": "{checkpoint: tiny, aggregation: mean-frames}",
        "towers": "{architecture: tiny, towers: tiny}",
    }.items():
        Path(f"{name}.yaml").write_text(SMALL.format(name=name, model=model))
    Path("circle.yaml").write_text("base: circle.yaml\n")
    Path("both.yaml").write_text("base: tiny\nname: mine\n")
    assert words in refused("experiment", *arguments, "--output", "out")
    assert not Path("out").exists()


def test_shipped_recipes_are_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [read_recipe(path) for path in find_recipes(["recipes/fusion/*.yaml"])]
    assert {recipe.model.aggregation for recipe in found} == set(AGGREGATIONS)
    assert all(recipe.name == recipe.model.aggregation for recipe in found)
    assert find_recipes(["fusion/*", "recipes/fusion/keep-all.yaml"]) == find_recipes(["recipes/fusion/*.yaml"])
    first, *others = found
    assert all(other.stages == first.stages for other in others)  # the same recipe but for the aggregation
