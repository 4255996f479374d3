"""`filmstrip train`, `merge` and `eval` from the command line: a run to its end, one line for what is wrong."""

import json
import re
from pathlib import Path

import pytest

from filmstrip.api import load
from filmstrip.training.log import read_log
from tests.e2e.helpers import run, succeed
from tests.training import sound_records, write_data

CONVERSATIONS = """
name: mine
model: {{checkpoint: {checkpoint}}}
threads: 1
checkpoints: {{every_steps: 3}}
samples: {{every_steps: 3, count: 2, max_new_tokens: 4}}
stages:
  - name: only
    task: conversations
    train: [projector]
    {lora}
    data: {{files: {data}, validation: {data}, prompt: vicuna-v1, max_tokens: 400}}
    batch: {{size: 4, workers: 1, pack: true, group: length}}
    optimizer: {{learning_rate: 1e-3}}
    schedule: {{epochs: 2}}
"""


@pytest.mark.parametrize("verb", ["train", "merge", "eval"])
def test_help_fits_and_has_examples(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed(verb, "--help")
    assert re.search(rf"^ Examples *\n filmstrip {verb} ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out


def write_recipe(folder: Path, checkpoint: Path, lora: str = "") -> Path:
    data = write_data(folder / "data", [*sound_records() * 2, {"id": "bad", "conversations": []}])
    path = folder / "mine.yaml"
    path.write_text(CONVERSATIONS.format(checkpoint=checkpoint, data=data, lora=lora))
    return path


def test_a_run_from_files_to_a_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    recipe, output = write_recipe(tmp_path, checkpoint), tmp_path / "out"
    result = succeed("train", str(recipe), "--output", str(output), "--json").json
    assert result["stages"]["only"]["step"] == 6  # two passes of 11 samples in steps of 4
    assert result["skipped"] == {"there is no conversation": 1, "validation data, there is no conversation": 1}
    assert result["warnings"] == 0
    assert Path(result["result"]) == output / "checkpoint"
    assert (output / "curves.png").stat().st_size > 5_000
    assert list((output / "only" / "tensorboard").iterdir())
    log = [line for line in read_log(output / "only" / "log.jsonl") if "loss" in line]
    assert len(log) == 6
    assert log[-1]["loss"] < log[0]["loss"]
    assert "what is this" in (output / "only" / "answers.txt").read_text()
    before, after = load(checkpoint, quiet=True).model, load(output / "checkpoint", quiet=True).model
    changed = [
        name for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not a.equal(b)
    ]
    assert changed == [f"projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    again = run("train", str(recipe), "--output", str(output))
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "is not empty: --resume continues a run there" in again.err
    wrong = run("train", "lora", "--output", str(output), "--resume")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1) and "not of 'lora'" in wrong.err
    more = succeed("train", str(recipe), "--output", str(output), "--resume", "--steps", "8", "--json").json
    assert more["stages"]["only"]["step"] == 8


def test_adapters_are_trained_and_merged(tmp_path: Path, checkpoint: Path) -> None:
    recipe = write_recipe(tmp_path, checkpoint, "lora: {rank: 2, alpha: 4, targets: [text_tower.blocks.*_proj]}")
    output, merged = tmp_path / "out", tmp_path / "merged"
    shown = succeed("train", str(recipe), "--output", str(output), "--steps", "3")
    assert shown.out.splitlines()[-1] == str(output / "adapter")
    assert f"sample answers go to {output / 'only' / 'answers.txt'}" in shown.err
    assert re.search(r"^only, step 3: what is this -> .* \(true: a red square\)$", shown.err, re.MULTILINE), shown.err
    result = succeed("merge", str(checkpoint), str(output / "adapter"), str(merged), "--json")
    assert result.json == {"result": str(merged), "layers": 21, "rank": 2, "base": str(checkpoint)}
    assert "warning" not in result.err
    weights = load(merged, quiet=True).model.state_dict()
    base = load(checkpoint, quiet=True).model.state_dict()
    moved = {name for name in weights if not weights[name].equal(base[name])}
    assert "text_tower.blocks.0.mlp.down_proj.weight" in moved
    assert not any("tower.patch" in name or "lm_head" in name for name in moved)
    refused = run("merge", str(checkpoint), str(output / "adapter"), str(merged))
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_one_process_of_several_speaks(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = succeed(
        "train", str(write_recipe(tmp_path, checkpoint)), "--output", str(tmp_path / "out"), "--steps", "1"
    )
    assert result.out == ""


def test_evaluation(tmp_path: Path, checkpoint: Path) -> None:
    data = write_data(tmp_path / "data", sound_records())
    arguments = ("eval", str(checkpoint), "--data", str(data), "--max-new-tokens", "3", "--output", str(tmp_path / "e"))
    result = succeed(*arguments, "--json").json
    assert (result["questions"], result["failed"], result["accuracy"]) == (7, 0, 0.0)
    assert result["settings"]["num_frames"] == 8
    rows = [json.loads(line) for line in (tmp_path / "e" / "answers.jsonl").read_text().splitlines()]
    assert all({"id", "question", "answer", "pred"} <= row.keys() for row in rows)
    assert succeed(*arguments, "--json").json == result
    choice = run(*arguments, "--metric", "choice")
    assert choice.code == 1
    assert "7 count as wrong because their true answer names none of the options: image, video, turns" in choice.err
    write_data(tmp_path / "data", [*sound_records(), {"id": "bad"}])
    assert run(*arguments).code == 1


def test_another_file_of_the_same_name_does_not_get_the_answers_of_the_first(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, question in (("one", "what is this"), ("two", "how many")):
        write_data(tmp_path / folder, [{"id": 1, "image": "a.png", "question": question, "answer": "red"}], "q.json")
    ask = ("eval", str(checkpoint), "--max-new-tokens", "2", "--data")
    assert succeed(*ask, "one/q.json").out.startswith("1 questions")
    other = run(*ask, "two/q.json")
    assert (other.code, other.out) == (2, "")
    assert "holds the answer to another question with the id '1'" in other.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "tinny"), "did you mean 'tiny'"),
        (("train", "tiny", "--set", "tower.batch.sise=3"), "unknown setting 'sise'; did you mean 'size'?"),
        (("train", "tiny", "--minutes", "0"), "--minutes must be a number above zero"),
        (("train", "tiny", "--minutes", "1", "--steps", "2"), "give --steps or --minutes, not both"),
        (
            ("train", "tiny", "--set", "language.batch.pack=true"),
            "batch.pack does nothing in a stage of the task 'world'",
        ),
        (("train", "tiny", "--output", "{tmp}/none", "--resume"), "there is no run to resume"),
        (("train", "align", "--output", "{tmp}/x", "--set", "model.checkpoint={tmp}/no"), "no checkpoint"),
        (("merge", "tiny", "{tmp}", "{tmp}/x"), "adapter_config.json"),
        (("eval", "tiny", "--data", "{tmp}/no.json"), "cannot read"),
        (("eval", "tiny", "--data", "{tmp}/no.json", "--metric", "exat"), "did you mean 'exact'"),
    ],
)
def test_one_line_for_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.startswith("filmstrip: ")
    assert result.err.count("\n") == 1


def test_a_short_run_says_which_stages_it_leaves_out() -> None:
    said = "left out of a run as short as this one: motion\n"
    assert said in succeed("train", "tiny", "--minutes", "10", "--show").err
    assert "left out" not in succeed("train", "tiny", "--minutes", "60", "--show").err


def test_the_whole_recipe_is_shown() -> None:
    shown = succeed("train", "finetune", "--set", "data.files=a.json", "--show").out
    assert re.search(r"# highest learning rate\n +learning_rate: 2e-05\n", shown)
    assert re.search(r'files: \["/.*/a\.json"\]', shown)
