"""Every command and every piece of Python shown in the documents runs, with the embedded model and small media."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.media.encode import write_video

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n)?```(\w+)\n(.*?)```", re.DOTALL)
# The first two are run by the build itself; the script behind the third is run below on a few clips.
ELSEWHERE = {"make demo", "make test", "make evaluate"}


def blocks(language: str) -> list[tuple[str, str]]:
    """(document and number, text) of every block in `language` that is to be run."""
    found = []
    for path in DOCUMENTS:
        for number, match in enumerate(BLOCK.finditer(path.read_text())):
            skipped, kind, text = match.groups()
            if kind == language and not skipped:
                found.append((f"{path.name}-{number}", text))
    return found


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """The commands of every block: one may read what the one before it wrote."""
    found = []
    for name, text in blocks("console"):
        lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
        found.append((name, tuple(line for line in lines if line not in ELSEWHERE)))
    return [(name, lines) for name, lines in found if lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the documents mention."""
    path = tmp_path_factory.mktemp("docs")
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    for name in ("clip.mp4", "b.mp4"):
        write_video(path / name, frames)
    Image.fromarray(frames[0]).save(path / "a.png")
    return path


@pytest.mark.parametrize(
    ("name", "lines"), commands(), ids=lambda value: value if isinstance(value, str) else value[0][:60]
)
def test_commands(name: str, lines: tuple[str, ...], folder: Path) -> None:
    executable = Path(sys.executable).parent
    for command in lines:
        shell = command.replace("filmstrip ", f"{shlex.quote(str(executable / 'filmstrip'))} ")
        result = subprocess.run(shell, shell=True, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, f"{name}: {command}\n{result.stderr}"
        assert result.stdout.strip(), f"{name}: {command} printed nothing"


@pytest.mark.parametrize(("name", "code"), blocks("python"), ids=lambda value: value[:30])
def test_python(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, name, "exec"), {})


@pytest.mark.slow
def test_the_evaluation_script(tmp_path: Path) -> None:
    """What `make evaluate` runs, on three clips: tables for videos, images and footage."""
    script = [sys.executable, str(ROOT / "scripts" / "evaluate_tiny.py"), "--clips", "3", "--out", "figures.json"]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    assert "| direction |" in result.stdout
    assert set(json.loads((tmp_path / "figures.json").read_text())) == {"video", "image", "footage"}


def test_something_is_run() -> None:
    assert len(commands()) >= 8
    assert blocks("python")
