"""`filmstrip convert` and `filmstrip assemble` on the command line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from filmstrip.checkpoint.files import open_tensors
from filmstrip.testing.original import write_original_checkpoint
from tests.e2e.helpers import refused, run, spawn, succeed


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original") / "model"
    write_original_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LLaMA from a GGUF file and a CLIP from the original's image tower."""
    helpers = pytest.importorskip("filmstrip.testing.gguf")
    folder = tmp_path_factory.mktemp("towers")
    file = helpers.write_gguf(folder / "llama.gguf", helpers.random_decoder())
    succeed("convert", file, folder / "llama")
    write_original_checkpoint(folder / "original", towers="inside")
    return folder / "llama", folder / "original" / "image_tower"


@pytest.mark.parametrize("verb", ["convert", "assemble"])
def test_help_has_an_example_and_fits_the_terminal(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed(verb, "--help")
    assert re.search(rf"^ Examples *\n filmstrip {verb} ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out


def test_there_and_back_on_the_command_line(original: Path, tmp_path: Path, clip: Path) -> None:
    result = succeed("convert", original, tmp_path / "hf")
    assert re.fullmatch(
        r"wrote \S+: hub layout \(A\), float32, 220 tensors, [\d,]+ parameters, [\d,]+ bytes in 1 file\n"
        r"\d+ rows added to the embedding and the head\n",
        result.out,
    ), result.out
    assert "added to the vocabulary: <image>, <video>, <pad>" in result.err
    answers = [
        succeed("ask", clip, "what is this", "-m", directory, "--preset", "original", "--json", "--frames", "3").json
        for directory in (original, tmp_path / "hf")
    ]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    back = succeed("convert", tmp_path / "hf", tmp_path / "back", "--to", "pku", "--json").json
    assert back["layout"] == "original PKU layout (P)" and back["dropped_rows"] == 448 - 408
    assert open_tensors(tmp_path / "back").tensors.keys() == open_tensors(original).tensors.keys()
    assert "temporal attention" in succeed("show", tmp_path / "back").out


def test_json_says_what_was_left_out(original: Path, tmp_path: Path) -> None:
    options = ["--without", "temporal-attention", "--dtype", "bfloat16", "--max-shard", "100kB", "--json"]
    content = succeed("convert", original, tmp_path / "out", *options).json
    assert content["dtypes"] == ["bfloat16"] and len(content["weight_files"]) > 2
    assert content["left_out"]["temporal-attention"] == 4 * (3 * 32 + 4 * (32 * 32 + 32) + 2 * 32)
    assert content["bytes"] == 2 * content["parameters"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    text = succeed("convert", original, tmp_path / "again", *options[:-1]).out
    assert f"left out: {content['left_out']['temporal-attention']:,} parameters (temporal-attention)" in text


def test_the_embedded_model_answers_the_same_in_another_layout(tmp_path: Path, clip: Path) -> None:
    succeed("convert", "tiny", tmp_path / "c", "--layout", "C")
    first, second = (
        succeed("ask", clip, "What shape is red?", "-m", model, "--json").json for model in ("tiny", tmp_path / "c")
    )
    assert first["token_ids"] == second["token_ids"]
    assert first["run_card"]["weights_hash"] == second["run_card"]["weights_hash"]


def test_an_assembled_model_answers_something(
    towers: tuple[Path, Path], tmp_path: Path, clip: Path, photo: Path
) -> None:
    text, vision = towers
    out = tmp_path / "model"
    content = succeed("assemble", "--text", text, "--vision", vision, out, "--temporal-frames", "4", "--json").json
    assert content["added_rows"] == 64 and content["destination"] == str(out)
    assert set(content["sources"]) == {"text tower", "image tower"}
    for media in (clip, photo):
        answer = succeed("ask", media, "what", "-m", out, "--max-new-tokens", "3", "--json", "--frames", "4").json
        assert answer["visual_tokens"] == (20 if media == clip else 4) and answer["generated_tokens"] >= 1
    assert "Video-LLaVA with temporal attention" in succeed("show", out).out
    assert "untrained" in (out / "README.md").read_text()
    spoken = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert spoken.token_to_id("<image>") == 320


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "nothing-there", "out"], "no checkpoint 'nothing-there'"),
        (["convert", "tiny", "out", "--to", "gguf"], "unknown format 'gguf' (known: hf, pku)"),
        (["convert", "tiny", "out", "--layout", "Q"], "unknown checkpoint layout 'Q'"),
        (["convert", "tiny", "out", "--dtype", "int3"], "unknown dtype 'int3'"),
        (["convert", "tiny", "out", "--max-shard", "big"], "'big' is not a size"),
        (["convert", "tiny", "out", "--without", "sound"], "unknown part to leave out 'sound'"),
        (["convert", "text.txt", "out"], "text.txt is not a GGUF file"),
        (["convert", "tiny", "full"], "full exists and is not empty"),
        (["convert", "tiny", "full", "--overwrite"], "holds something other than a checkpoint"),
        (["assemble", "--text", "tiny", "--vision", "tiny", "out"], "supported as a tower on its own"),
        (["assemble", "--text", "tiny", "out"], "Missing option '--vision'"),
        (["assemble", "--text", "full", "--vision", "full", "out"], "has no config.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "text.txt").write_text("not a model")
    assert words in refused(*arguments)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "text.txt", "thesis.tex"]


def test_overwriting_is_asked_for_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("convert", "tiny", out)
    assert "ask to overwrite" in refused("convert", "tiny", out)
    succeed("convert", "tiny", out, "--overwrite", "--dtype", "bfloat16")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filmstrip.checkpoint.convert_output.write_weights", full)
    assert refused("convert", "tiny", tmp_path / "out").endswith("out: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing but JSON on standard output, nothing at all on standard error when it is no terminal."""
    done = spawn("convert", "tiny", tmp_path / "out", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["tensors"] == 202
    assert done.stderr == b""
    assert run("check", tmp_path / "out").code == 0


def test_a_gguf_file_on_the_command_line(towers: tuple[Path, Path], tmp_path: Path, photo: Path) -> None:
    file = towers[0].parent / "llama.gguf"
    content = succeed("convert", file, tmp_path / "llama", "--dtype", "bfloat16", "--json").json
    assert content["layout"] == "LlamaForCausalLM layout" and content["dtypes"] == ["bfloat16"]
    assert content["sources"][str(file)].startswith("sha256:")
    assert "LLaMA text tower, LlamaForCausalLM layout, bfloat16" in succeed("show", tmp_path / "llama").out
    assert "`filmstrip assemble`" in refused("ask", photo, "what", "-m", tmp_path / "llama")
    assert "filmstrip assemble goes on from there" in refused("convert", file, tmp_path / "x", "--to", "pku")
    assert "`filmstrip assemble` builds" in refused("convert", tmp_path / "llama", tmp_path / "x", "--to", "pku")


def test_help_waits_for_nothing_heavy() -> None:
    code = """
import sys
from filmstrip.cli.main import main
for verb in ("convert", "assemble"):
    sys.argv = ["filmstrip", verb, "--help"]
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code == 0
heavy = {"torch", "numpy", "transformers", "gguf", "tokenizers"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_source_inside_the_destination_is_not_replaced(towers: tuple[Path, Path], tmp_path: Path) -> None:
    text, vision = towers
    inside = shutil.copytree(text, tmp_path / "model" / "text")
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments = ("--text", str(inside), "--vision", str(vision), str(tmp_path / "model"), "--overwrite")
    assert "which would be replaced" in refused("assemble", *arguments)
    assert (inside / "model.safetensors").is_file()
