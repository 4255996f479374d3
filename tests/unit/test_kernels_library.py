"""The kernels' library: found, built, refused; and that everything runs without it."""

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from filmstrip.errors import ConfigError
from filmstrip.kernels import StoredMatrix, find_kernels, library, product
from tests.models import random_model

COMPILER = library._compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing known from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FILMSTRIP_KERNELS", raising=False)
    library._find.cache_clear()
    yield tmp_path / "filmstrip"
    library._find.cache_clear()


def built(cache: Path) -> list[Path]:
    return list(cache.glob("kernels-*/step.so"))


@needs_compiler
def test_the_first_process_builds_beside_itself(cache: Path) -> None:
    kernels, why = find_kernels()
    assert kernels is None and "from the next start on" in why
    deadline = time.monotonic() + 120
    while not built(cache) and time.monotonic() < deadline:
        time.sleep(0.1)
    library._find.cache_clear()  # as a new process
    kernels, why = find_kernels()
    assert kernels is not None and why == ""
    (path,) = built(cache)
    assert {entry.name for entry in path.parent.iterdir()} == {"step.so", "step.so.size"}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@needs_compiler
def test_waiting_for_it(cache: Path) -> None:
    assert find_kernels("wait")[0] is not None and built(cache)


@needs_compiler
@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_library_that_was_cut_short_is_made_anew(cache: Path, length: int) -> None:
    """A full disk, a lost power supply: mapping what is not there would end the process without a word."""
    find_kernels("wait")
    (path,) = built(cache)
    whole = path.read_bytes()
    path.unlink()  # this process has mapped it
    path.write_bytes(whole[:length])
    library._find.cache_clear()
    assert find_kernels("wait")[0] is not None and path.stat().st_size == len(whole)


def test_off() -> None:
    assert find_kernels("off") == (None, "")


def test_an_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILMSTRIP_KERNELS", "of")
    with pytest.raises(ConfigError, match=r"FILMSTRIP_KERNELS 'of'.*off"):
        find_kernels()


def test_without_a_compiler_everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_compiler", lambda: None)
    kernels, why = find_kernels("wait")
    assert kernels is None and "no C++ compiler" in why
    model = random_model()
    ids = torch.randint(0, 190, (2, 5), generator=torch.Generator().manual_seed(0))
    assert model.generate(ids, max_new_tokens=3).shape == (2, 3)
    weight, x = torch.randn(6, 8).bfloat16(), torch.randn(2, 8)
    torch.testing.assert_close(product(x, StoredMatrix(weight)), x @ weight.float().T, atol=1e-5, rtol=0)


@needs_compiler
def test_what_does_not_compile_is_said_and_not_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER is not None
    command = library._command
    monkeypatch.setattr(library, "_command", lambda compiler, output: [*command(compiler, output), "--no-such-option"])
    kernels, why = find_kernels("wait")
    assert kernels is None and "did not compile" in why
    (log,) = cache.glob("kernels-*/failed.log")
    assert "no-such-option" in log.read_text()
    library._find.cache_clear()
    monkeypatch.setattr(library, "_build", lambda *arguments: pytest.fail("it was tried again"))
    assert str(log) in find_kernels("wait")[1]


@needs_compiler
def test_a_directory_that_others_may_write_to_is_not_trusted(cache: Path) -> None:
    assert find_kernels("wait")[0] is not None
    (path,) = built(cache)
    path.parent.chmod(0o777)
    library._find.cache_clear()
    kernels, why = find_kernels("wait")
    assert kernels is None and "written by others" in why


@needs_compiler
def test_a_damaged_library_is_said(cache: Path) -> None:
    assert COMPILER is not None
    directory = cache / f"kernels-{library._fingerprint(COMPILER)}"
    directory.mkdir(mode=0o700, parents=True)
    (directory / "step.so").write_bytes(b"not a library")
    (directory / "step.so.size").write_text("13\n")
    kernels, why = find_kernels("wait")
    assert kernels is None and why.startswith("no compiled kernels")


@needs_compiler
def test_another_processor_or_compiler_has_a_library_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER is not None
    first = library._fingerprint(COMPILER)
    monkeypatch.setattr(library, "processor_name", lambda: "another")
    assert library._fingerprint(COMPILER) != first
