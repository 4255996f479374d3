"""`filmstrip check` as users run it: what it prints, its exit codes, its JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.testing.tiny import write_tiny_checkpoint
from tests.e2e.helpers import needs_bundled_model, refused, run, spawn, succeed

NORM = "language_model.model.norm.weight"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A NaN in the text tower, and no tokenizer."""
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    state[NORM][5] = float("nan")
    save_file(state, path, {"format": "pt"})
    (tmp_path / "tokenizer.json").unlink()
    return tmp_path


@needs_bundled_model
def test_the_bundled_model_is_sound() -> None:
    result = succeed("check", "tiny")
    assert result.out.startswith("Video-LLaVA without temporal attention, hub layout (A), float32, 3.0 M parameters\n")
    assert "error" not in result.out and "warning" not in result.out
    assert "202 tensors, 12,043,776 bytes, headers and values" in " ".join(result.out.split())


def test_findings_say_where_what_and_what_to_do(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = run("check", damaged)
    text = " ".join(result.out.split())
    assert result.code == 1 and result.err == ""
    assert re.search(rf"error +{re.escape(NORM)} +1 of 64 values are NaN or infinite, the first at \[5\]", text), text
    assert "[not-finite]" in text and "→ Take an earlier checkpoint" in text
    assert "neither tokenizer.json nor tokenizer.model is here [tokenizer-missing]" in text
    assert "2 errors" in result.out
    assert max(map(len, result.out.splitlines())) <= 120


def test_json_has_everything(damaged: Path) -> None:
    result = run("check", damaged, "--json")
    assert (result.code, result.err) == (1, "")
    content = result.json
    assert content["sound"] is False and content["sentence"].startswith("Video-LLaVA without temporal attention")
    assert {finding["code"] for finding in content["findings"]} >= {"not-finite", "tokenizer-missing"}
    for finding in content["findings"]:
        assert set(finding) == {"code", "severity", "subject", "what", "meaning", "remedy"}
    assert content["facts"]["tensors"] == 176 and content["facts"]["examined"] == "values"


def test_fast_reads_headers_only(damaged: Path) -> None:
    result = run("check", damaged, "--fast", "--json")
    assert result.code == 1 and result.json["facts"]["examined"] == "headers"
    codes = {finding["code"] for finding in result.json["findings"]}
    assert "tokenizer-missing" in codes and "not-finite" not in codes


def test_a_sound_checkpoint_exits_with_0(checkpoint: Path) -> None:
    assert succeed("check", checkpoint, "--json").json["sound"] is True
    assert "headers only" in succeed("check", checkpoint, "--fast").out


def test_what_cannot_be_examined_exits_with_2(tmp_path: Path) -> None:
    assert "neither a config.json nor weights" in refused("check", tmp_path)
    assert "neither a config.json nor weights" in refused("check", tmp_path, "--json")
    assert "no checkpoint" in refused("check", tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused("check", tmp_path / "file")


def test_a_hub_id_that_cannot_be_had_exits_with_2() -> None:
    assert "nobody/nothing" in refused("check", "nobody/nothing")


def test_hostile_names_do_not_reach_the_terminal(damaged: Path) -> None:
    path = damaged / "model.safetensors"
    save_file(load_file(path) | {"\x1b[2J\nevil": torch.ones(1)}, path, {"format": "pt"})
    result = spawn("check", damaged)
    assert result.returncode == 1
    assert b"\x1b" not in result.stdout and rb"\x1b[2J\nevil" in result.stdout


def test_a_closed_pipe_is_no_traceback(damaged: Path) -> None:
    command = f"{sys.executable} -m filmstrip.cli.main check {damaged} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert b"Traceback" not in done.stderr and done.stdout.startswith(b"Video-LLaVA")


def test_help_has_examples_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed("check", "--help")
    assert re.search(r"^ Examples *\n filmstrip check ", result.out, re.MULTILINE)
    assert max(map(len, result.out.splitlines())) <= 80 and "…" not in result.out


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from filmstrip.cli.main import main; sys.argv = ['filmstrip', 'check', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


def test_the_values_pass_needs_no_more_memory_for_larger_tensors(tmp_path: Path) -> None:
    """Peak memory of reading a tensor of 256 MiB, in a process of its own, stays near that of reading none."""
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    end = len(raw) - 8 - length
    size = 256 * 2**20
    name = "language_model.model.layers.7.mlp.up_proj.weight"
    header[name] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [end, end + size]}
    changed = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])
        file.truncate(8 + len(changed) + end + size)  # zeros that take no room on the disk
    code = (
        "import resource, sys; from pathlib import Path; from filmstrip.diagnostics.doctor import diagnose\n"
        "peaks = []\n"
        "for values in (False, True):\n"
        f"    found = diagnose(Path({str(tmp_path)!r}), values=values)\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
        "print(peaks[1] - peaks[0], [f.what for f in found.findings if f.code == 'all-zero'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    more, found = done.stdout.split(" ", 1)
    assert int(more) < 64, f"{more} MiB more"
    assert f"{size // 2:,} values are zero" in found
