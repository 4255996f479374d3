"""Recipes: what is wrong in one is said in a line that names the place; the shipped ones carry the published values."""

import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from filmstrip.errors import ConfigError
from filmstrip.training.recipe import Recipe
from filmstrip.training.recipe_file import (
    change,
    changed_recipe,
    find_recipe,
    limit_minutes,
    limit_steps,
    read_recipe,
    recipe_text,
    recipe_values,
    shipped_recipes,
)
from filmstrip.training.settings import build

STAGE: dict[str, Any] = {"name": "one", "task": "world", "schedule": {"steps": 10}}
VALUES: dict[str, Any] = {"name": "x", "model": {"architecture": "tiny"}, "stages": [STAGE]}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["tiny", "align", "finetune", "lora"])
def test_shipped_recipes_are_sound_and_explained(name: str) -> None:
    recipe = read_recipe(find_recipe(f"recipes/{name}.yaml"))
    assert recipe.name == name
    assert find_recipe(name) == find_recipe(f"{name}.yaml") == shipped_recipes()[name]
    text = recipe_text(recipe)
    assert build(Recipe, yaml.safe_load(text), "text") == recipe
    assert build(Recipe, recipe_values(recipe), "values") == recipe
    assert "# AdamW" not in text
    assert "# highest learning rate" in text


def test_published_hyper_parameters() -> None:
    """PKU-YuanGroup/Video-LLaVA, scripts/v1_5 (reference sheet, section 7)."""
    align, finetune, lora = (read_recipe(find_recipe(name)) for name in ("align", "finetune", "lora"))
    for recipe in (align, finetune, lora):
        [stage] = recipe.stages
        assert recipe.precision == "bfloat16"
        assert recipe.activation_checkpointing
        assert (stage.schedule.epochs, stage.schedule.warmup, stage.schedule.floor) == (1, 0.03, 0.0)
        assert (stage.optimizer.weight_decay, stage.optimizer.betas) == (0.0, (0.9, 0.999))
        assert (stage.data.prompt, stage.data.max_tokens) == ("vicuna-v1", 3072)
    assert (align.stages[0].batch.size, align.stages[0].batch.per_device) == (256, 32)
    assert (finetune.stages[0].batch.size, finetune.stages[0].batch.per_device) == (128, 16)
    assert (lora.stages[0].batch.size, lora.stages[0].batch.per_device) == (128, 16)
    rates = [recipe.stages[0].optimizer.learning_rate for recipe in (align, finetune, lora)]
    assert rates == [1e-3, 2e-5, 2e-4]
    assert lora.stages[0].optimizer.rates == {"projector": 2e-5}
    assert [recipe.stages[0].train for recipe in (align, finetune, lora)] == [
        ("projector",),
        ("projector", "text_tower"),
        ("projector",),
    ]
    adapter = lora.stages[0].lora
    assert adapter is not None
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (128, 256, 0.05)
    assert [recipe.stages[0].batch.group for recipe in (align, finetune, lora)] == [
        "none",
        "modality-length",
        "modality-length",
    ]
    # --image_aspect_ratio pad in both fine-tuning scripts, and not in pretrain.sh
    assert [recipe.model.image_transform for recipe in (align, finetune, lora)] == [None, *["languagebind-pad"] * 2]


def test_every_setting_has_a_meaning() -> None:
    seen, waiting = set(), [Recipe]
    while waiting:
        kind = waiting.pop()
        seen.add(kind)
        hints = get_type_hints(kind)
        for field in fields(kind):
            assert len(field.metadata.get("help", "")) > 8, f"{kind.__name__}.{field.name}"
            parts = [hints[field.name], *get_args(hints[field.name])]
            waiting += [part for part in parts if is_dataclass(part) and part not in seen]
    assert len(seen) >= 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sede": 1}, "unknown setting 'sede'; did you mean 'seed'?"),
        ({"stages": [{**STAGE, "optimizer": {"lerning_rate": 1}}]}, "stages 1, optimizer: .* mean 'learning_rate'"),
        ({"seed": "zero"}, "seed is 'zero'; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"seed": -1}, "seed must be from 0"),
        ({"precision": "bfloat"}, "precision is 'bfloat'; did you mean 'bfloat16'"),
        ({"stages": []}, "at least one is needed"),
        ({"stages": [STAGE, STAGE]}, "two stages share a name"),
        ({"stages": [{"name": "one", "task": "world"}]}, "schedule is missing"),
        ({"stages": [{**STAGE, "name": "../x"}]}, "letters, digits"),
        ({"stages": [{**STAGE, "schedule": {}}]}, "give steps, epochs or minutes"),
        ({"stages": [{**STAGE, "schedule": {"epochs": 1}}]}, "draws new samples without end"),
        ({"stages": [{**STAGE, "schedule": {"steps": 0}}]}, "above zero"),
        ({"stages": [{**STAGE, "task": "conversations"}]}, "needs data.files"),
        ({"stages": [{**STAGE, "batch": {"size": 10, "per_device": 4}}]}, "multiple of per_device"),
        ({"stages": [{**STAGE, "optimizer": {"betas": [0.9]}}]}, "expected 2 values, not 1"),
        ({"stages": [{**STAGE, "lora": {}}, {**STAGE, "name": "two"}]}, "only the last stage"),
        ({"model": {}}, "give either architecture or checkpoint"),
        ({"model": {"checkpoint": "x", "image_transform": "pad"}}, "image_transform is 'pad'"),
        (
            {"model": {"architecture": "tiny", "image_transform": "languagebind"}},
            "preset and image_transform go with checkpoint",
        ),
        ({"model": 7}, "expected settings by name"),
        ({"stages": 7}, "expected a list"),
        ({"samples": {"every_steps": 0}}, "every_steps must be a number above zero"),
        ({"samples": {"count": -1}}, "count must be a number above zero"),
        ({"samples": {"max_new_tokens": 0}}, "max_new_tokens must be a number above zero"),
        ({"model": {"architecture": "tiny", "preset": "original"}}, "preset and image_transform go with checkpoint"),
        ({"stages": [{**STAGE, "batch": {"pack": True}}]}, "batch.pack does nothing in a stage of the task 'world'"),
        ({"stages": [{**STAGE, "batch": {"group": "length"}}]}, "batch.group does nothing"),
        (
            {"stages": [{**STAGE, "data": {"files": "a.json"}}]},
            "data.files does nothing in a stage of the task 'world'",
        ),
        ({"stages": [{**STAGE, "task": "clips", "world": {"questions": 3}}]}, "world.questions does nothing"),
        (
            {"stages": [{**STAGE, "task": "conversations", "data": {"files": "a"}, "world": {"photos": False}}]},
            "world.photos does nothing in a stage of the task 'conversations'",
        ),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(Recipe, {**VALUES, **changes}, "r.yaml")
    assert str(caught.value).startswith("r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "a list of settings by name"),
        ("name: a\nname: b", "names the setting 'name' twice"),
        ("name: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("{}", "name is missing"),
        ("? [a, b]\n: 1", "not valid YAML|unknown setting"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_recipe(write(tmp_path, text))


def test_a_bomb_of_aliases_is_one_line(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
    with pytest.raises(ConfigError, match="unknown setting 'a0'"):
        read_recipe(write(tmp_path, "\n".join(levels)))
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, "\n".join([*levels, "name: *a8"]).replace("a0:", "seed:")))
    assert len(str(caught.value)) < 500


def test_without_yaml_the_extra_that_has_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"pip install 'filmstrip\[train\]'"):
        read_recipe(find_recipe("tiny"))


def test_names_of_recipes() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'tinny'.*did you mean 'tiny'"):
        find_recipe("recipes/tinny.yaml")
    with pytest.raises(ConfigError, match=r"elsewhere/x\.yaml: no such recipe file"):
        find_recipe("elsewhere/x.yaml")


def test_floats_without_a_point(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text; a recipe takes it for what it is."""
    recipe = read_recipe(find_recipe("tiny"), ["language.optimizer.learning_rate=1e-3"])
    assert recipe.stages[-1].optimizer.learning_rate == 1e-3


def test_changes() -> None:
    values = {**VALUES, "stages": [dict(STAGE)]}
    assert change(values, "seed=3")["seed"] == 3
    assert change(values, "one.batch.size=8")["stages"][0]["batch"] == {"size": 8}
    assert change(values, "batch.size=8")["stages"][0]["batch"] == {"size": 8}
    assert change(values, "train=[projector, text_tower]")["stages"][0]["train"] == ["projector", "text_tower"]
    assert "batch" not in values["stages"][0]  # the original is as it was
    assert change({**VALUES, "stages": [STAGE, {**STAGE, "name": "two"}]}, "one=null")["stages"] == [
        {**STAGE, "name": "two"}
    ]
    for text, words in (
        ("seed", "takes key=value"),
        ("=3", "takes key=value"),
        ("sede=3", "did you mean 'seed'"),
        ("name.x.y=3", "name has no settings inside"),
    ):
        with pytest.raises(ConfigError, match=words):
            change(values, text)


def test_changes_of_a_recipe_without_stages() -> None:
    assert change({**VALUES, "stages": 7}, "seed=3")["seed"] == 3
    with pytest.raises(ConfigError, match="unknown setting 'batch'"):
        change({**VALUES, "stages": 7}, "batch.size=8")


def test_paths_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run can be continued from another directory; bundled models and hub ids are no paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "tiny"):
        (tmp_path / name).mkdir()
    recipe = read_recipe(find_recipe("finetune"), ["model.checkpoint=mine", "data.files=a.json"])
    assert recipe.model.checkpoint == str(tmp_path / "mine")
    changed = changed_recipe(recipe, ["data.files=b.json", "model.checkpoint=tiny"])
    assert changed.stages[0].data.files == (str(tmp_path / "b.json"),)
    assert changed.model.checkpoint == "tiny"
    assert changed_recipe(recipe, ["model.checkpoint=owner/name"]).model.checkpoint == "owner/name"


def test_limits_of_time_and_steps() -> None:
    recipe = read_recipe(find_recipe("tiny"))
    usual = [stage.schedule.usual_minutes for stage in recipe.stages]
    limited = limit_minutes(recipe, sum(usual) / 2)
    assert [stage.schedule.minutes for stage in limited.stages] == [minutes / 2 for minutes in usual]
    assert [stage.schedule.steps for stage in limited.stages] == [None] * 3
    assert [stage.schedule.steps for stage in limit_steps(recipe, 5).stages] == [5] * 3
    with pytest.raises(ConfigError, match="above zero"):
        limit_minutes(recipe, 0)


def _stages(**schedules: dict[str, object]) -> Recipe:
    """A recipe whose stages, by name, have such schedules and batches of 64 that may shrink to 16."""
    batch = {"size": 64, "least": 16}
    stages = [
        STAGE | {"name": name, "batch": batch, "schedule": {"steps": 10} | schedule}
        for name, schedule in schedules.items()
    ]
    return build(Recipe, VALUES | {"stages": stages}, "recipe")


def _divided(recipe: Recipe, minutes: float, *, begun: bool = False) -> dict[str, tuple[float | None, int]]:
    limited = limit_minutes(recipe, minutes, begun=begun)
    return {stage.name: (stage.schedule.minutes, stage.batch.size) for stage in limited.stages}


def test_a_short_run_has_small_batches_and_no_stage_that_is_of_no_use_in_it() -> None:
    recipe = _stages(
        first={"usual_minutes": 20, "least_minutes": 4},
        second={"usual_minutes": 40, "skip_below": 30},
        third={"usual_minutes": 60},
    )
    assert _divided(recipe, 240) == {"first": (40, 64), "second": (80, 64), "third": (120, 64)}
    assert _divided(recipe, 60) == {"first": (10, 32), "second": (20, 32), "third": (30, 32)}
    assert _divided(recipe, 20) == {"first": (5, 16), "third": (15, 16)}
    assert _divided(recipe, 10) == {"first": (4, 16), "third": (6, 16)}
    assert _divided(recipe, 4) == {"first": (2, 16), "third": (2, 16)}


def test_a_run_that_has_begun_keeps_its_stages_and_batches() -> None:
    """So `--minutes 60 --resume` does what `--minutes 60` would have, whatever was limited before."""
    recipe = _stages(first={"usual_minutes": 20}, second={"usual_minutes": 40, "skip_below": 30})
    begun = limit_minutes(recipe, 40)
    assert _divided(begun, 40, begun=True) == _divided(recipe, 40)
    assert _divided(begun, 20, begun=True).keys() == {"first", "second"}
    assert _divided(begun, 20, begun=True)["first"] == (pytest.approx(20 / 3), begun.stages[0].batch.size)


def test_time_that_is_enough_for_no_stage() -> None:
    recipe = _stages(one={"skip_below": 30}, two={"skip_below": 50})
    with pytest.raises(ConfigError, match="--minutes 20 leaves out every stage of this recipe; give 30 or more"):
        limit_minutes(recipe, 20)


@pytest.mark.parametrize("batch", [{"size": 4, "least": 5}, {"least": 0}, {"size": 4, "per_device": 2, "least": 2}])
def test_batches_that_cannot_shrink_so(batch: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="least"):
        build(Recipe, VALUES | {"stages": [STAGE | {"batch": batch}]}, "recipe")
