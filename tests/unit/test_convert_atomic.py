"""A directory is written whole or not at all: errors, kills, two writers at once, leftovers of the dead."""

import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from filmstrip.checkpoint import atomic, write
from filmstrip.checkpoint.atomic import MARKER, atomic_directory
from filmstrip.checkpoint.files import open_tensors
from filmstrip.checkpoint.write import LazyTensor, convert, write_safetensors, write_weights
from filmstrip.errors import CheckpointError


def fill(directory: Path, text: str = "new") -> None:
    (directory / MARKER).write_text(text)


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a" / "out") as partial:
        fill(partial)
        assert not (tmp_path / "a" / "out").exists()
        assert partial.parent == tmp_path / "a" and partial.name.startswith(".out.") and partial.suffix == ".partial"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out" / MARKER).read_text() == "new"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as partial:
        fill(partial)
    assert (tmp_path / "out" / MARKER).read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with (
        pytest.raises(CheckpointError if isinstance(error, OSError) else type(error)) as caught,
        atomic_directory(tmp_path / "out") as partial,
    ):
        fill(partial)
        raise error
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {tmp_path / 'out'}: No space left on device"


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_overwriting_replaces_a_checkpoint_whole(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "old.bin").write_text("x")
    with atomic_directory(tmp_path / "out", overwrite=True) as partial:
        fill(partial)
        assert (tmp_path / "out" / MARKER).read_text() == "old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, overwrite, message in (
        ("thesis", False, "not empty"),
        ("thesis", True, "something other than a checkpoint"),
        ("file", False, "exists"),
        ("file", True, "something other than a checkpoint"),
    ):
        with (
            pytest.raises(CheckpointError, match=message),
            atomic_directory(tmp_path / name, overwrite=overwrite),
        ):
            pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis"]


def test_a_directory_filled_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="not empty"),
        atomic_directory(tmp_path / "out") as partial,
    ):
        fill(partial)
        (tmp_path / "out").mkdir()
        fill(tmp_path / "out", "another's")
    assert (tmp_path / "out" / MARKER).read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with atomic_directory(tmp_path / "out") as partial:
        fill(partial)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / MARKER).read_text() == "new"


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    """A lock says who lives; directories of other names are never touched."""
    dead = tmp_path / f".out.{'0' * 32}.partial"
    others = [tmp_path / ".out.mine.partial", tmp_path / f".another.{'0' * 32}.partial", tmp_path / "out.partial"]
    for path in (dead, *others):
        path.mkdir()
        fill(path)
    with atomic_directory(tmp_path / "out") as living:
        fill(living)
        assert not dead.exists()
        with atomic_directory(tmp_path / "out") as second:
            assert living.exists() and second != living
            with pytest.raises(CheckpointError, match="not empty"), atomic_directory(tmp_path / "out"):
                (tmp_path / "out").mkdir()
                fill(tmp_path / "out", "third")
            shutil.rmtree(tmp_path / "out")
        assert living.exists()
        shutil.rmtree(tmp_path / "out")
    assert all(path.exists() for path in others)


def test_a_checkpoint_that_stepped_aside_comes_back(tmp_path: Path) -> None:
    """What a kill between the two renames leaves, where directories cannot change places in one step."""
    aside = tmp_path / f".out.{'0' * 32}.old"
    aside.mkdir()
    fill(aside, "old")
    with pytest.raises(CheckpointError, match="not empty"), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / MARKER).read_text() == "old" and not aside.exists()


# ---------------------------------------------------------------------------------------------------- killed processes

WRITER = """
import os, signal, sys, time
from pathlib import Path
import torch
from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.write import LazyTensor, write_weights, write_files

overwrite = sys.argv[2] == "overwrite"
tensors = {}
for index in range(40):
    def read(index=index):
        time.sleep(0.001)
        return torch.full((1000,), float(index))
    tensors[f"t{index:02d}"] = LazyTensor((1000,), torch.float32, read)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        with atomic_directory(Path(sys.argv[1]), overwrite=overwrite) as partial:
            write_files(partial, {"config.json": b"{}"})
            write_weights(partial, tensors, max_shard_bytes=20_000)
        os._exit(0)
    if float(line) >= 0:
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)  # nobody else has this id before waitpid has returned
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator["subprocess.Popen[str]"]:
    """A process that forks one writer of `tmp_path / "out"` per line, kills it after so many seconds, says its end."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WRITER), str(tmp_path / "out"), request.param]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def run_one(process: "subprocess.Popen[str]", kill_after: float | None = None) -> bool:
    """One writer, killed after so many seconds or not at all; whether it was killed."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{-1 if kill_after is None else kill_after}\n")
    process.stdin.flush()
    return int(process.stdout.readline()) == signal.SIGKILL


def is_whole(directory: Path) -> bool:
    """Every tensor is there, with its values."""
    files = open_tensors(directory).tensors
    values = []
    for name, info in sorted(files.items()):
        with safe_open(info.path, framework="pt") as handle:
            values.append(torch.equal(handle.get_tensor(name), torch.full((1000,), float(int(name[1:])))))
    return len(values) == 40 and all(values) and (directory / MARKER).read_text() == "{}"


@pytest.mark.parametrize("writer", ["new", "overwrite"], indirect=True)
def test_a_kill_at_any_moment_leaves_nothing_or_a_whole_one(
    writer: "subprocess.Popen[str]", tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out, overwrite = tmp_path / "out", "overwrite" in request.node.callspec.id
    started = time.perf_counter()
    assert not run_one(writer)
    duration = time.perf_counter() - started
    assert is_whole(out)
    rng, killed, survived, left = random.Random(0), 0, 0, 0
    for _ in range(60):
        if not overwrite:
            shutil.rmtree(out, ignore_errors=True)
        was_killed = run_one(writer, kill_after=rng.uniform(0, 1.2 * duration))
        killed, survived = killed + was_killed, survived + (not was_killed)
        left += len(list(tmp_path.glob(".out.*")))
        assert (overwrite or was_killed) if not out.exists() else is_whole(out)
        if overwrite:
            assert out.exists()
        assert len(list(tmp_path.glob(".out.*"))) <= 1  # each run removed what the one before had left
    assert killed >= 20 and left >= 10, (killed, survived, left)
    shutil.rmtree(out, ignore_errors=True)
    assert not run_one(writer)
    assert is_whole(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


# --------------------------------------------------------------------------------------------------------- the files


def random_tensors(count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.randn((i + 1, 3), generator=generator) for i in range(count)}
    tensors |= {
        "half": torch.randn((3,), generator=generator).half(),
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 4),
    }
    return tensors


@pytest.mark.parametrize("limit", [10**9, 40, 1])
def test_what_is_written_is_read_back_by_the_safetensors_library(tmp_path: Path, limit: int) -> None:
    tensors = random_tensors()
    seen: list[tuple[int, int]] = []
    names = write_weights(
        tmp_path,
        {name: LazyTensor.of(tensor) for name, tensor in tensors.items()},
        max_shard_bytes=limit,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert seen[-1] == (total, total) and seen == sorted(seen)
    files = open_tensors(tmp_path).tensors
    assert {info.path.name for info in files.values()} == set(names) and files.keys() == tensors.keys()
    for name, info in files.items():
        with safe_open(info.path, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            assert torch.equal(handle.get_tensor(name), tensors[name])
            assert handle.get_tensor(name).dtype == tensors[name].dtype


def test_only_one_tensor_is_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Watched(torch.Tensor):
        pass

    def read(index: int) -> torch.Tensor:
        assert [reference for reference in alive if reference() is not None] == []
        tensor = torch.full((100,), float(index)).as_subclass(Watched)
        alive.append(weakref.ref(tensor))
        return tensor

    tensors = {f"t{i}": LazyTensor((100,), torch.float32, lambda i=i: read(i)) for i in range(10)}  # type: ignore[misc]
    write_weights(tmp_path, tensors)
    assert len(open_tensors(tmp_path).tensors) == 10


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A real limit of the system: no file of this process may grow beyond 100 kB."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, previous[1]))
    try:
        with (
            pytest.raises(CheckpointError, match=r"cannot write .*out: File too large"),
            atomic_directory(tmp_path / "out") as p,
        ):
            write_weights(p, {"t": LazyTensor.of(torch.zeros(100_000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage._replace(free=1000))

    def read() -> torch.Tensor:
        pytest.fail("nothing is read")

    with (
        pytest.raises(CheckpointError, match=r"cannot write 4,000 bytes of weights below .*: 1,000 are free"),
        atomic_directory(tmp_path / "out") as partial,
    ):
        write_weights(partial, {"t": LazyTensor((1000,), torch.float32, read)})
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_not_what_was_announced(tmp_path: Path) -> None:
    lazy = LazyTensor((3,), torch.float32, lambda: torch.zeros(4))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        list(write_safetensors(tmp_path / "x.safetensors", {"t": lazy}))


def test_a_value_that_does_not_fit_is_an_error_and_infinity_is_not() -> None:
    assert convert(torch.tensor([float("inf"), 1.0]), torch.float16).tolist() == [float("inf"), 1.0]
    with pytest.raises(CheckpointError, match=r"a weight of 7e\+04 does not fit float16"):
        convert(torch.tensor([-7e4, 1.0]), torch.float16)
    with pytest.raises(CheckpointError, match="does not fit bfloat16"):
        convert(torch.tensor([3.4e38]), torch.bfloat16)
