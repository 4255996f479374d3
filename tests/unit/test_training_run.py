"""Whole small runs through `train`: what learns, what the result is made of, what is written where."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from filmstrip.api import load
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError
from filmstrip.training.adapters import load_adapter, merge_adapters
from filmstrip.training.checkpoints import read_state
from filmstrip.training.language import LanguageTraining
from filmstrip.training.log import read_log
from filmstrip.training.parallel import Parallel
from filmstrip.training.run import Observer, kind_of, train
from filmstrip.training.spread import prepare_task
from filmstrip.training.validation import Validation
from tests.training import small_recipe, sound_records, write_data


def with_validation(folder: Path, **changes: Any) -> dict[str, Any]:
    held_out = write_data(folder / "held-out", [*sound_records(), {"id": "bad"}])
    return {"data": {"validation": [str(held_out)]}, **changes}


def merge_adapters_of(base: Path, adapter: Path) -> int:
    model = load(base, quiet=True).model
    load_adapter(model, adapter)
    return merge_adapters(model)


def test_bfloat16_validates(tmp_path: Path) -> None:
    """Frozen weights are bfloat16 and learning ones float32: only autocast brings them together."""
    changes = with_validation(tmp_path, train=["projector"], recipe={"precision": "bfloat16"})
    result = train(small_recipe(tmp_path, **changes), tmp_path / "out")
    lines = [line for line in read_log(tmp_path / "out" / "only" / "log.jsonl") if "validation_loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert result.skipped == {"validation data, there is no conversation": 1}


def test_the_result_is_that_of_the_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.1, 0.9])
    monkeypatch.setattr("filmstrip.training.stages.validate", lambda *_: Validation(next(scores)))
    recipe = small_recipe(tmp_path, **with_validation(tmp_path, train=["projector"]))
    result = train(recipe, tmp_path / "out")
    assert result.best is not None
    assert result.result_step == read_state(result.best).step == 4
    weights = load(result.result, quiet=True).model.projector.linear_1.weight
    saved = next(path for path in result.best.iterdir() if path.suffix == ".safetensors")
    assert torch.equal(weights, load_file(saved)["model.model.projector.linear_1.weight"])
    again = train(recipe, tmp_path / "out", resume=True)
    assert again.result_step == 4
    assert torch.equal(load(again.result, quiet=True).model.projector.linear_1.weight, weights)


def test_only_adapters_learn_unless_more_is_named(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    started: list[int] = []
    observer = Observer(on_stage=lambda name, start: started.append(start.trained_parameters))
    stage = {"lora": {"rank": 2}, "schedule": {"steps": 1}}
    result = train(small_recipe(tmp_path, **stage), tmp_path / "out", observer=observer)
    adapters = load_file(result.result / "adapter_model.safetensors")
    assert started == [sum(tensor.numel() for tensor in adapters.values())]
    assert load_file(result.result / "other_weights.safetensors") == {}
    assert merge_adapters_of(tmp_path / "base", result.result) == 21


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A run that goes on finds its recipe, and needs no room for it; a changed one appears whole."""
    recipe = small_recipe(tmp_path, schedule={"steps": 1})
    train(recipe, tmp_path / "out")
    stored = tmp_path / "out" / "recipe.json"
    before = stored.stat().st_mtime_ns, stored.stat().st_ino
    train(recipe, tmp_path / "out", resume=True)
    assert (stored.stat().st_mtime_ns, stored.stat().st_ino) == before
    train(small_recipe(tmp_path, schedule={"steps": 2}), tmp_path / "out", resume=True)
    assert json.loads(stored.read_text())["stages"][0]["schedule"]["steps"] == 2
    assert not list((tmp_path / "out").glob(".recipe*"))


def test_a_result_that_cannot_be_written_names_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CheckpointError("cannot write it: No space left on device")

    monkeypatch.setattr("filmstrip.api.Assistant.save", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device; the last good checkpoint is .*step-00000001"):
        train(small_recipe(tmp_path, schedule={"steps": 1}), tmp_path / "out")


def test_curves_that_cannot_be_written_are_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "out" / "curves.png").mkdir(parents=True)
    recipe = small_recipe(tmp_path, schedule={"steps": 1})
    result = train(recipe, tmp_path / "out", resume=True, observer=Observer(on_note=notes.append))
    assert result.result.is_dir()
    assert notes == ["no curves.png: Is a directory"]


def test_sample_answers_are_seen(tmp_path: Path) -> None:
    notes: list[str] = []
    seen: list[tuple[str, int, int]] = []
    observer = Observer(on_note=notes.append, on_answers=lambda name, step, rows: seen.append((name, step, len(rows))))
    samples = {"samples": {"every_steps": 2, "count": 3, "max_new_tokens": 2}}
    train(small_recipe(tmp_path, schedule={"steps": 2}, recipe=samples), tmp_path / "out", observer=observer)
    assert seen == [("only", 0, 3), ("only", 2, 3)]
    assert notes == [f"only: sample answers go to {tmp_path / 'out' / 'only' / 'answers.txt'}"]


def test_bfloat16_leaves_what_does_not_learn_as_it_was(tmp_path: Path) -> None:
    """Bit for bit, though frozen weights are kept in bfloat16 while others learn."""
    train(small_recipe(tmp_path, train=["projector"], recipe={"precision": "bfloat16"}), tmp_path / "out")
    before, after = (load(path, quiet=True).model for path in (tmp_path / "base", tmp_path / "out" / "checkpoint"))
    changed = {
        name.split(".")[0]
        for (name, first), second in zip(before.named_parameters(), after.parameters(), strict=True)
        if not first.equal(second)
    }
    assert changed == {"projector"}


def test_a_run_without_a_readable_sample_fails(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, data={"media_root": str(tmp_path / "nowhere")}, schedule={"steps": 2})
    records = [record for record in sound_records() if "<image>" in str(record) or "<video>" in str(record)]
    write_data(tmp_path / "data", records)
    with pytest.raises(FilmstripError, match="no sample could be read; reasons"):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_stage_does_not_go_on_under_one_that_has_begun(tmp_path: Path) -> None:
    """The later stage was trained from the earlier one's weights, which would be others then."""
    recipe = small_recipe(tmp_path, schedule={"steps": 2})
    (first,) = recipe.stages
    two = replace(recipe, stages=(first, replace(first, name="second")))
    train(two, tmp_path / "out")
    more = replace(first, schedule=replace(first.schedule, steps=4))
    with pytest.raises(FilmstripError, match="the stage only has steps left, but second has begun"):
        train(replace(two, stages=(more, two.stages[1])), tmp_path / "out", resume=True)
    longer = replace(two.stages[1], schedule=more.schedule)
    assert train(replace(two, stages=(first, longer)), tmp_path / "out", resume=True).stages["second"]["step"] == 4


@pytest.mark.parametrize("name", ["checkpoint", "adapter", "tokenizer"])
def test_a_stage_is_not_named_as_what_a_run_writes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="writes something else there"):
        replace(small_recipe(tmp_path).stages[0], name=name)


def test_a_misspelt_part_to_reset_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, recipe={"model": {"checkpoint": str(tmp_path / "base"), "reset": ["projectr"]}})
    with pytest.raises(ConfigError, match=r"model\.reset: 'projectr' is the path of no part .* mean 'projector"):
        train(recipe, tmp_path / "out")


def test_a_later_stage_computes_activations_twice_not_more(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, recipe={"activation_checkpointing": True})
    model = load(str(tmp_path / "base"), quiet=True).model
    task = LanguageTraining(model)
    task.requires_grad_(True)
    for _ in range(2):
        prepare_task(task, model, recipe, Parallel())
    forward = model.text_tower.blocks[0].forward
    assert isinstance(forward, partial)
    assert not isinstance(forward.args[0], partial)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (
            "/data/sub/bad.mp4: no frame of the video can be decoded; the file is damaged",
            "no frame of the video can be",
        ),
        ("missing file 'clips/7.mp4'", "missing file …"),
        ("turn 3 is the assistant's, and so is turn 4", "turn 3 is the assistant's, and so is turn 4"),
        ("the sample has 900 tokens: more than 512", "the sample has 900 tokens"),
    ],
)
def test_reasons_are_counted_by_kind(reason: str, kind: str) -> None:
    assert kind_of(reason).startswith(kind) and "/" not in kind_of(reason)


def test_a_sample_that_is_left_out_in_every_pass_counts_once(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, [*sound_records(), {"id": "bad"}], schedule={"steps": 6})
    assert train(recipe, tmp_path / "out").skipped == {"there is no conversation": 1}
