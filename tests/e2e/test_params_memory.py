"""`filmstrip params` and `filmstrip memory` on the command line: figures, JSON, questions, errors, exit codes."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.helpers import ASSETS, needs_bundled_model, run, succeed

TINY_PARAMETERS = 3_010_944
WEIGHTS_7B = 14_732_558_336


@pytest.mark.parametrize("verb", ["params", "memory"])
def test_help_has_an_example_and_fits_the_terminal(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed(verb, "--help")
    assert re.search(rf"^ Examples *\n filmstrip {verb} ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out


def test_the_published_model_is_counted_without_files() -> None:
    content = succeed("params", "7b", "--json").json
    assert (content["total"]["parameters"], content["total"]["tensors"]) == (7_366_279_168, 1077)
    assert content["components"]["text_tower.lm_head"]["parameters"] == 131_334_144
    assert content["bytes"]["bfloat16"] == WEIGHTS_7B
    assert content["stored"] is None
    assert {key: next(row for row in content["layers"] if row["layers"] == 32)[key] for key in ("path", "layers")} == {
        "path": "text_tower.blocks.0–31",
        "layers": 32,
    }


@pytest.mark.parametrize(("stage", "trainable"), [("align", 20_979_712), ("finetune", 6_759_919_616)])
def test_stages_of_the_original_training(stage: str, trainable: int) -> None:
    assert succeed("params", "7b", "--stage", stage, "--json").json["total"]["trainable"] == trainable


@needs_bundled_model
def test_what_learns_is_chosen_by_path() -> None:
    content = succeed("params", "tiny", "--train", "text_tower", "--freeze", "*.mlp", "--json").json
    kinds, components = content["kinds"], content["components"]
    assert kinds["mlp"]["trainable"] == 0 < kinds["attention"]["trainable"]
    assert components["image_tower"]["trainable"] == 0
    assert content["total"]["parameters"] == TINY_PARAMETERS
    assert content["counted_once"] == ["text_tower.lm_head"]
    assert succeed("params", "tiny", "--freeze", "*", "--json").json["total"]["trainable"] == 0


@needs_bundled_model
def test_tables_for_people() -> None:
    folded = succeed("params", "tiny").out
    assert "text_tower.blocks.0–5" in folded and "3,010,944" in folded
    assert "text_tower.lm_head is the same tensors under a second name and counts once" in folded
    assert "on disk: 202 tensors, 12,043,776 bytes, float32" in folded
    assert "trainable" not in folded
    spread = succeed("params", "tiny", "--layers", "--freeze", "projector").out
    assert "text_tower.blocks.3" in spread and "0–3" not in spread and "trainable" in spread


def test_a_checkpoint_its_configuration_and_its_bare_file_count_alike(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    totals = [
        succeed("params", str(path), "--json").json["total"]
        for path in (checkpoint, tmp_path, tmp_path / "config.json")
    ]
    assert totals[0] == totals[1] == totals[2]


@needs_bundled_model
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["params", "tiny", "--freeze", "imag_tower"], "did you mean 'image_tower'?"),
        (["params", "tiny", "--stage", "both"], "unknown stage 'both' (known: align, finetune)"),
        (["params", "tiny", "--stage", "align", "--train", "*"], "leave out --train"),
        (["params", "no-such-model"], "no checkpoint 'no-such-model'"),
        (["memory", "tiny", "--frames", "?"], "? needs --fit SIZE"),
        (["memory", "tiny", "--frames", "many"], "--frames must be a whole number above zero or ?"),
        (["memory", "tiny", "--fit", "lots"], "'lots' is not a size"),
        (["memory", "tiny", "--fit", "1GiB", "--measure"], "leave out --measure"),
        (["memory", "tiny", "--snapshot", "x"], "--snapshot belongs to --measure"),
        (["memory", "tiny", "--measure", "--device", "cpu", "--snapshot", "x"], "CUDA's allocator"),
        (["memory", "tiny", "--device", "tpu"], "--device must be cpu or cuda"),
        (["memory", "tiny", "--training", "lor"], "did you mean 'lora'?"),
        (["memory", "tiny", "--context", "20"], "cannot hold"),
        (["memory", "tiny", "--image-size", "480"], "--image-size (width)"),
        (["memory", "7b", "--batch", "100000", "--measure", "--device", "cpu"], "would need"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err and result.err.count("\n") == 1


def test_the_estimate_of_the_published_model() -> None:
    content = succeed("memory", "7b", "--prompt-tokens", "18", "--new-tokens", "0", "--json").json
    phases = {phase["name"]: phase for phase in content["phases"]}
    assert phases["load"]["total"] == WEIGHTS_7B
    assert phases["prefill"]["resident"]["kv cache"] == 2074 * 2**19
    assert content["peak"]["bytes"] == max(phase["total"] for phase in content["phases"])
    assert "peak 14.94 GiB at prefill" in succeed("memory", "7b").out


def test_a_quantised_checkpoint_is_estimated_as_such(tmp_path: Path) -> None:
    succeed("quantize", "tiny", str(tmp_path / "small"), "--bits", "4")
    content = succeed("memory", str(tmp_path / "small"), "--device", "cpu", "--json").json
    assert (content["workload"]["quantize"], content["workload"]["compute"]) == ("int4", "float32")
    assert content["workload"]["dtype"] == "float32", "what is not quantised"
    header = 50_000
    stored = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert stored - header < content["phases"][0]["resident"]["weights"] < stored
    chosen = succeed("memory", str(tmp_path / "small"), "--dtype", "bfloat16", "--json").json
    assert (chosen["workload"]["quantize"], chosen["workload"]["compute"]) == (None, "stored")


def test_how_many_frames_fit() -> None:
    result = succeed("memory", "7b", "--fit", "16GiB", "--frames", "?")
    (number,) = re.findall(r"^(\d+) frames fit$", result.out, re.MULTILINE)
    content = succeed("memory", "7b", "--fit", "16GiB", "--frames", "?", "--json").json
    (only,) = content["fits"]
    assert only["frames"] == int(number) and only["total"] <= content["usable"] == int(16 * 2**30 * 0.95)
    assert content["unknown"] == ["frames"]


def test_which_batch_frames_and_precision_fit() -> None:
    content = succeed("memory", "7b", "--fit", "24GiB", "--json").json
    assert {row["precision"] for row in content["fits"]} == {"bfloat16", "int8", "int4"}
    assert {row["precision"] for row in succeed("memory", "7b", "--fit", "40GiB", "--json").json["fits"]} >= {"float32"}
    quantised = succeed("memory", "7b", "--fit", "24GiB", "--quantize", "int4", "--json").json
    assert {row["precision"] for row in quantised["fits"]} == {"int4"}


def test_nothing_fits() -> None:
    result = run("memory", "7b", "--fit", "1GiB", "--frames", "?")
    assert (result.code, result.err) == (1, "") and "nothing fits" in result.out


@needs_bundled_model
@pytest.mark.parametrize("training", [[], ["--training", "finetune", "--batch", "2"]])
def test_measured_beside_estimated(training: list[str]) -> None:
    options = ["memory", "tiny", "--measure", "--device", "cpu", "--dtype", "float32", *training]
    content = succeed(*options, "--json").json
    assert content["measured"]["weights"] == 4 * TINY_PARAMETERS
    for phase in content["measured"]["phases"]:
        assert phase["estimated"] == pytest.approx(phase["measured"]["allocated"], rel=0.05), phase["name"]
    shown = succeed(*options).out
    assert "estimate/measured" in shown and "resident" in shown


@needs_bundled_model
def test_damaged_weights_are_said_not_ignored(tmp_path: Path) -> None:
    """A directory is taken for configuration only when it holds nothing that could be weights."""
    shutil.copy(ASSETS / "tiny" / "config.json", tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "shards are missing" in run("params", str(tmp_path)).err


def test_towers_on_their_own(tmp_path: Path) -> None:
    """A plain LLaMA and a plain CLIP configuration are counted and estimated; only whole models are measured."""
    llama = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2}
    clip = {"model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4}
    for name, values, phases in (("llama", llama, ["load", "prefill", "decode"]), ("clip", clip, ["load", "vision"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values | heads))
        parameters = succeed("params", str(tmp_path / name), "--json").json["total"]["parameters"]
        content = succeed("memory", str(tmp_path / name), "--json").json
        assert [phase["name"] for phase in content["phases"]] == phases
        assert content["phases"][0]["total"] == 2 * parameters
        assert "only whole models" in run("memory", str(tmp_path / name), "--measure", "--device", "cpu").err
    assert "1 x 8 frames" in succeed("memory", str(tmp_path / "clip")).out
