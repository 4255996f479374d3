"""The example task of lmms-eval: what it asks, and the whole harness where that is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.e2e.helpers import needs_bundled_model, succeed

EXAMPLE = Path(__file__).parents[2] / "examples" / "lmms_eval"
FAMILIES = "count,colour,presence,describe"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lmms") / "world"
    drawn = ("--clips", "3", "--images", "2", "--size", "64", "--split", "test", "--no-photos", "--families", FAMILIES)
    succeed("world", "export", path, *drawn)
    return path


@pytest.fixture(scope="module")
def task() -> ModuleType:
    """The module beside the task's YAML file."""
    spec = importlib.util.spec_from_file_location("filmstrip_world", EXAMPLE / "filmstrip_world.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_asks_every_short_question_of_a_world(world: Path, task: ModuleType) -> None:
    truth = json.loads((world / "truth.json").read_text())
    asked = [one for item in truth.values() for one in item["questions"] if one["family"] != "describe"]
    rows = task.questions(world)
    assert [(row["question"], row["answer"]) for row in rows] == [(one["text"], one["answer"]) for one in asked]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(Path(*task.media(row)).is_file() for row in rows)
    assert task.scores(rows[0], [f" {rows[0]['answer'].upper()}."]) == {"exact_match": 1}
    assert task.scores(rows[0], ["a melon"]) == {"exact_match": 0}


def test_the_functions_that_the_task_names_are_there(task: ModuleType) -> None:
    class Loader(yaml.SafeLoader):
        """Knows lmms-eval's `!function`."""

    named: list[str] = []
    Loader.add_constructor("!function", lambda loader, node: named.append(str(node.value)))
    values: dict[str, Any] = yaml.load((EXAMPLE / "filmstrip_world.yaml").read_text(), Loader)
    assert values["dataset_kwargs"]["data_files"] == {"test": f"{task.WORLD}/conversations.json"}
    assert len(named) == 3
    for name in named:
        module, _, function = name.partition(".")
        assert module == "filmstrip_world" and callable(getattr(task, function))


@needs_bundled_model
@pytest.mark.slow
def test_the_harness_counts_as_eval_does(world: Path, task: ModuleType) -> None:
    """Through the entry point, as a user calls it: the same share of right answers as `filmstrip eval` has."""
    pytest.importorskip("lmms_eval")
    flat = [row | {"video": row["medium"]} for row in task.questions(world)]
    (world.parent / "flat.json").write_text(json.dumps(flat))
    data = ("--data", world.parent / "flat.json", "--media-root", world, "--output", world.parent / "own")
    own = succeed("eval", "tiny", *data, "--max-new-tokens", "64", "--json").json
    command = [sys.executable, "-m", "lmms_eval", "--model", "filmstrip", "--model_args", "pretrained=tiny"]
    command += [
        "--include_path",
        str(EXAMPLE),
        "--tasks",
        "filmstrip_world",
        "--batch_size",
        "4",
        "--output_path",
        "out",
    ]
    offline = {"HF_HOME": str(world.parent / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(
        command, cwd=world.parent, env=os.environ | offline, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (results,) = (world.parent / "out").rglob("*results.json")
    found = json.loads(results.read_text())["results"]["filmstrip_world"]
    assert found["exact_match,none"] == pytest.approx(own["accuracy"])
