"""Help, start-up and the words for a command that is not one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.helpers import run, succeed

VERBS = ("ask", "chat", "show", "check", "params", "memory", "parity", "convert", "assemble", "demo")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_fits_the_terminal(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed(verb, "--help")
    assert re.search(rf"^ Examples *\n filmstrip {verb} ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out  # nothing is cut off


def test_no_arguments_print_help() -> None:
    result = succeed()
    assert all(f" {verb} " in result.out for verb in VERBS)


def test_version() -> None:
    assert re.fullmatch(r"filmstrip \d+\.\d+\.\d+\n", succeed("--version").out)


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = f"""
import sys
from filmstrip.cli.main import main
for verb in {VERBS}:
    sys.argv = ["filmstrip", verb, "--help"]
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code == 0
heavy = {{"torch", "numpy", "transformers", "av", "PIL", "tokenizers"}} & set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "found"), [(None, "2000"), ("7", "7")])
def test_threads_that_wait_sleep_soon(given: str | None, found: str) -> None:
    """Before PyTorch is imported, which reads it then, and not against what the user has set."""
    code = "import sys, os, filmstrip.cli.main; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = others if given is None else others | {"GOMP_SPINCOUNT": given}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout.split() == [found, "False"]


def test_a_model_is_built_without_the_compiler(checkpoint: Path, clip: Path) -> None:
    """Importing `torch._dynamo` doubles the time to the first answer, and initialising weights would need it."""
    code = f"""
import sys
from filmstrip.cli.main import main
sys.argv = ["filmstrip", "ask", {str(clip)!r}, "what", "-m", {str(checkpoint)!r}, "--max-new-tokens", "2"]
try:
    main()
except SystemExit as stopped:
    assert stopped.code == 0
sys.exit("imported" if "torch._dynamo" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aks"], "No such command 'aks'. Did you mean 'ask'?"),
        (["ask", "what", "--fraems", "3"], "No such option: --fraems"),
        (["show", "a", "b"], "unexpected extra argument"),
    ],
)
def test_unknown_verbs_and_options(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err and "--help" in result.err
    assert result.err.startswith("filmstrip: ") and result.err.count("\n") == 1
