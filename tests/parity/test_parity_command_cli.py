"""`filmstrip parity` as a command: exit codes, `--json`, `--report`, `--structure`, and what cannot be compared."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from filmstrip.testing.original import write_original_checkpoint
from filmstrip.testing.tiny import tiny_hf_config, write_json, write_tiny_checkpoint
from tests.e2e.helpers import refused, run, succeed

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    write_tiny_checkpoint(directory, temporal_frames=8)
    return directory


@pytest.fixture
def faulty(good: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(good, tmp_path / "faulty")
    state = load_file(copy / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    state[name] = state[name] * 1.5
    save_file(state, copy / "model.safetensors")
    return copy


@needs_transformers
def test_the_embedded_model_against_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed("parity", "tiny", "--tokens", "4")
    first = result.out.splitlines()[0]
    assert first.startswith(("equal", "rounding noise in 1 of"))
    assert re.search(r"^ *1  frames\.0\.drawn\.mp4 +equal +0 +0 +0 +–", result.out, re.MULTILINE)
    assert "text_tower.hidden_states.4" in result.out
    assert max(map(len, result.out.splitlines()[2:])) <= 80
    assert "Traceback" not in result.err


def test_help_fits_the_terminal_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed("parity", "--help")
    assert re.search(r"^ Examples *\n filmstrip parity ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out
    code = """
import sys
from filmstrip.cli.main import main
sys.argv = ["filmstrip", "parity", "--help"]
try:
    main()
except SystemExit:
    pass
sys.exit(f"imported: {found}" if (found := {"torch", "numpy", "transformers", "av"} & set(sys.modules)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_difference_exits_with_1_and_says_where(good: Path, faulty: Path, tmp_path: Path) -> None:
    saved = tmp_path / "report.json"
    result = run("parity", faulty, "--against", good, "--tokens", "2", "--report", saved)
    assert result.code == 1
    module = "text_tower.blocks.1.mlp.up_proj"
    assert result.out.startswith(f"difference introduced at {module} (step text_tower.hidden_states.2)\n")
    assert f"introduced at {module} (the reference's {module})" in result.out
    assert re.search(r"largest at row \d+, token \d+, channel \d+: -?[\d.]+ here, -?[\d.]+ in the ref", result.out)
    assert f"{module}.weight differs in 7,168 of 7,168 values" in result.out
    assert "steps after it" in result.out
    report = json.loads(saved.read_text())
    assert report["same"] is False
    assert report["faults"][0]["module"] == module
    assert report["faults"][0]["step"] == next(
        step["number"] for step in report["steps"] if step["verdict"] == "introduced"
    )
    assert [step["number"] for step in report["steps"]] == list(range(1, len(report["steps"]) + 1))


def test_json_is_one_object(good: Path, faulty: Path) -> None:
    result = run("parity", faulty, "--against", good, "--tokens", "2", "--json")
    assert result.code == 1
    report = result.json
    assert report["float64_run"] is True
    stages = list(dict.fromkeys(step["stage"] for step in report["steps"]))
    towers = ["image_tower", "projector", "video_tower", "embeddings", "text_tower", "logits"]
    assert stages == ["frames", "pixels", "ids", *towers, "tokens"]
    step = next(step for step in report["steps"] if step["verdict"] == "introduced")
    for name in ("total", "introduced", "total_double", "introduced_double"):
        assert step[name]["relative"] > 1e-3
        assert len(step[name]["index"]) == 3
    same = succeed("parity", good, "--against", good, "--tokens", "2", "--json").json
    assert same["verdict"].startswith("equal")
    assert same["float64_run"] is False


def test_all_lists_every_step(good: Path, faulty: Path) -> None:
    arguments = ("parity", faulty, "--against", good, "--tokens", "2")
    assert "tokens.1" not in run(*arguments).out
    assert "tokens.1" in run(*arguments, "--all").out


def test_temporal_attention_is_a_choice_on_both_sides(good: Path) -> None:
    report = succeed("parity", good, "--against", good, "--preset", "original", "--tokens", "2", "--json").json
    assert report["same"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--against", "no-such-model"), "no-such-model"),
        (("--dtype", "int8"), "dtype"),
        (("--device", "abacus"), "abacus"),
        (("--question", " "), "the question is empty"),
        (("--preset", "nonsense"), "preset"),
        (("--structure", "--question", "what"), "it takes no media and no question"),
    ],
)
def test_what_cannot_be_compared_is_one_line(good: Path, options: tuple[str, ...], words: str) -> None:
    assert words in refused("parity", good, "--against", good, *options)


def test_missing_and_damaged_media_are_one_line(good: Path, tmp_path: Path) -> None:
    assert "nothing.mp4" in refused("parity", good, tmp_path / "nothing.mp4", "--against", good)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    assert "broken.mp4" in refused("parity", good, broken, "--against", good)


def test_models_of_other_widths_are_refused(good: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tiny_hf_config(text_hidden_size=32, text_head_dim=16))
    assert "text hidden size 64 and 32" in refused("parity", good, "--against", tmp_path)


def test_without_transformers_it_says_what_to_install(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("transformers", "filmstrip.oracle"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "filmstrip.diagnostics.parity.reference_side", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)  # what importing finds when there is no such package
    line = refused("parity", good)
    assert "pip install 'transformers==" in line


@needs_transformers
def test_transformers_that_cannot_load_is_one_line(good: Path, tmp_path: Path) -> None:
    """A key that it would leave out in silence, with weights newly initialised in its place."""
    copy = shutil.copytree(good, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    write_json(copy / "config.json", config | {"model_type": "llava", "mm_video_tower": "elsewhere"})
    assert refused("parity", copy)


# --- structure ---

PUBLISHED = {
    "architectures": ["VideoLlavaForConditionalGeneration"],
    "model_type": "video_llava",
    "image_token_index": 32000,
    "video_token_index": 32001,
    "pad_token_id": 32002,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}


@needs_transformers
def test_structure_of_the_published_7b_needs_its_config_alone(tmp_path: Path) -> None:
    """Totals of the reference sheet (1.3)."""
    write_json(tmp_path / "config.json", PUBLISHED)
    for model in (tmp_path, tmp_path / "config.json"):
        report = succeed("parity", model, "--structure", "--json").json
        assert report["tensors"] == {"ours": 1077, "theirs": 1077}
        assert report["parameters"] == {"ours": 7_366_279_168, "theirs": 7_366_279_168}
    assert succeed("parity", tmp_path, "--structure").out.startswith("equal: 1,077 tensors with 7,366,279,168 param")


@needs_transformers
def test_structure_of_7b_by_its_name_needs_no_file(good: Path) -> None:
    """As `filmstrip params` and `filmstrip memory` take it."""
    report = succeed("parity", "7b", "--structure", "--json").json
    assert report["tensors"] == {"ours": 1077, "theirs": 1077}
    assert report["parameters"] == {"ours": 7_366_279_168, "theirs": 7_366_279_168}
    assert succeed("parity", "7b", "--structure", "--against", "7b").out.startswith("equal: 1,077 tensors")


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_structure_of_a_tower_on_its_own_says_what_it_is(tmp_path: Path, section: str) -> None:
    write_json(tmp_path / "config.json", tiny_hf_config()[section])
    title = {"text_config": "LLaMA text tower", "vision_config": "CLIP vision tower"}[section]
    for against in ("transformers", "tiny"):
        line = refused("parity", tmp_path, "--structure", "--against", against)
        assert f"only a part of a model ({title}" in line and "filmstrip assemble" in line


@needs_transformers
@pytest.mark.parametrize("overrides", [{"tie_word_embeddings": True}, {"text_attention_bias": True}, {}])
def test_structure_of_other_configurations(tmp_path: Path, overrides: dict[str, object]) -> None:
    write_json(tmp_path / "config.json", tiny_hf_config(**overrides))
    succeed("parity", tmp_path, "--structure")


@needs_transformers
def test_structure_of_the_original_layout_is_refused_as_its_values_are(tmp_path: Path) -> None:
    """transformers would build something from its own defaults: the file has no text_config."""
    write_original_checkpoint(tmp_path)
    for options in ((), ("--structure",)):
        assert "--to hf" in refused("parity", tmp_path, *options)
    assert succeed("parity", tmp_path, "--structure", "--against", tmp_path).out.startswith("equal")


def test_structure_of_two_checkpoints(good: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_tiny_checkpoint(plain, layout="D")
    assert succeed("parity", good, "--structure", "--against", good).out.startswith("equal")
    result = run("parity", plain, "--structure", "--against", good, "--json")
    assert result.code == 1
    report = result.json
    assert len(report["only_theirs"]) == 11 * 4  # temporal attention: eleven tensors in each of four layers
    assert all(".temporal." in name for name in report["only_theirs"])
    assert not report["only_ours"] and not report["shapes"]
    shown = run("parity", plain, "--structure", "--against", good)
    assert shown.out.startswith("different: 44 tensors (18,176 parameters) only in the reference")


def test_structure_names_shapes_that_differ(good: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, tiny_hf_config(text_intermediate_size=96), temporal_frames=8)
    result = run("parity", tmp_path, "--structure", "--against", good, "--json")
    assert result.code == 1
    shapes = result.json["shapes"]
    assert shapes["text_tower.blocks.0.mlp.up_proj.weight"] == {"ours": [96, 64], "theirs": [112, 64]}
    assert len(shapes) == 9


def test_structure_counts_what_is_stored(good: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(good, tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    lost = state.pop("multi_modal_projector.linear_1.bias")
    save_file(state, copy / "model.safetensors")
    report = run("parity", copy, "--structure", "--against", good, "--json").json
    assert report["only_theirs"] == {"projector.linear_1.bias": list(lost.shape)}
