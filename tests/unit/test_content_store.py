"""The store of what was read before: bounded, in memory and on disk, and never wrong about what it holds."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from filmstrip.cache import ContentStore
from filmstrip.errors import FilmstripError

KEYS = [f"{number:064x}" for number in range(8)]
SHAPES = {"a": ((4, 25), torch.float32), "b": ((10,), torch.bfloat16)}
SIZE = 420  # bytes of one entry


def entry(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((4, 25), value), "b": torch.full((10,), value, dtype=torch.bfloat16)}


def names(directory: Path) -> set[str]:
    return {path.stem for path in directory.iterdir()}


def test_what_was_put_is_got_and_nothing_else(tmp_path: Path) -> None:
    for store in (ContentStore(10_000), ContentStore(0, tmp_path, 10_000)):
        store.put(KEYS[0], entry(3.0))
        found = store.get(KEYS[0], SHAPES)
        assert found is not None and all(torch.equal(found[name], entry(3.0)[name]) for name in SHAPES)
        assert store.get(KEYS[1], SHAPES) is None


def test_the_least_recently_used_go_first() -> None:
    store = ContentStore(2 * SIZE)
    store.put(KEYS[0], entry())
    store.put(KEYS[1], entry())
    store.get(KEYS[0], SHAPES)
    store.put(KEYS[2], entry())
    assert [store.get(key, SHAPES) is not None for key in KEYS[:3]] == [True, False, True]
    assert store.nbytes <= store.max_bytes
    store.put(KEYS[3], {"a": torch.zeros(10_000)})  # larger than all there is
    assert store.get(KEYS[0], SHAPES) is not None and store.nbytes <= store.max_bytes


def test_the_disk_is_bounded_too(tmp_path: Path) -> None:
    one_file = 0
    for count, key in enumerate(KEYS):
        store = ContentStore(0, tmp_path, 3 * one_file or 10_000)
        store.put(key, entry())
        one_file = (tmp_path / f"{key}.safetensors").stat().st_size
        os.utime(tmp_path / f"{key}.safetensors", (count, count))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= store.max_disk_bytes
    assert KEYS[-1] in names(tmp_path) and KEYS[0] not in names(tmp_path)
    store.put("f" * 64, {"a": torch.zeros(10_000)})  # larger than the bound: not written, and nothing removed for it
    assert "f" * 64 not in names(tmp_path) and KEYS[-1] in names(tmp_path)
    ContentStore(0, tmp_path, one_file)  # a lower bound than before holds from the start
    assert names(tmp_path) == {KEYS[-1]}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"x" * 5000)
    store = ContentStore(0, tmp_path, 1000)
    store.put(KEYS[0], entry())
    assert names(tmp_path) == {"mine", KEYS[0]}


def test_another_process_finds_it(tmp_path: Path) -> None:
    process = get_context("spawn").Process(target=_put, args=(tmp_path,))
    process.start()
    process.join()
    found = ContentStore(10_000, tmp_path, 10_000).get(KEYS[0], SHAPES)
    assert found is not None and float(found["a"][0, 0]) == 7.0


def _put(directory: Path) -> None:
    ContentStore(0, directory, 10_000).put(KEYS[0], entry(7.0))


@pytest.mark.parametrize(
    "damage", ["truncated", "garbage", "zeroed", "empty", "other shapes", "other dtype", "other names"]
)
def test_damaged_and_foreign_entries_are_made_anew(tmp_path: Path, damage: str) -> None:
    heard: list[str] = []
    writer = ContentStore(0, tmp_path, 10_000)
    foreign = {
        "other shapes": {"a": torch.zeros(4, 24), "b": entry()["b"]},
        "other dtype": {"a": torch.zeros(4, 25, dtype=torch.float16), "b": entry()["b"]},
        "other names": {"a": torch.zeros(4, 25), "c": entry()["b"]},
    }
    writer.put(KEYS[0], foreign.get(damage, entry()))
    path = tmp_path / f"{KEYS[0]}.safetensors"
    content = path.read_bytes()
    written = {"truncated": content[:-20], "garbage": b"\xff" * len(content), "empty": b""}
    written["zeroed"] = content[:-20] + bytes(20)
    path.write_bytes(written.get(damage, content))
    store = ContentStore(10_000, tmp_path, 10_000, heard.append)
    assert store.get(KEYS[0], SHAPES) is None
    assert len(heard) == 1 and "damaged" in heard[0] and "\n" not in heard[0]
    assert not path.exists()
    store.put(KEYS[0], entry(2.0))
    assert ContentStore(0, tmp_path, 10_000).get(KEYS[0], SHAPES) is not None


def test_a_header_that_promises_more_than_the_file_costs_nothing(tmp_path: Path) -> None:
    """Shapes are compared before anything is allocated."""
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / f"{KEYS[0]}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert ContentStore(0, tmp_path, 10_000).get(KEYS[0], SHAPES) is None


def half_written(directory: Path, key: str, age: float) -> Path:
    """What a killed process leaves: a directory with the file that the library was writing under a name of its own."""
    left = directory / f"{key}.123-0123abcd.partial"
    left.mkdir()
    (left / ".tmpQw12Er").write_bytes(b"x" * 5000)
    os.utime(left, (time.time() - age,) * 2)
    return left


def test_half_written_entries_are_swept_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    old, new = half_written(tmp_path, KEYS[0], 7200), half_written(tmp_path, KEYS[1], 60)
    store = ContentStore(0, tmp_path, 6000)
    assert not old.exists() and new.exists()
    store.put(KEYS[2], entry())
    store.put(KEYS[3], entry())  # with what is being written there is room for one
    assert names(tmp_path) == {new.stem, KEYS[3]}


def test_the_library_writes_nothing_beside_the_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []

    def write(_tensors: object, path: Path, _metadata: object) -> None:
        places.append(path)
        path.write_bytes(b"")

    monkeypatch.setattr("filmstrip.cache.store.save_file", write)
    ContentStore(0, tmp_path, 10_000).put(KEYS[0], entry())
    assert places[0].parent.parent == tmp_path and names(tmp_path) == {KEYS[0]}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A directory of downloads may be given as the cache; limits are no reason to remove what it holds."""
    theirs = [tmp_path / name for name in ("film.mkv.partial", "model.safetensors", ".tmpAb12Cd")]
    for path in theirs:
        path.write_bytes(b"x" * 5000)
        os.utime(path, (1, 1))
    store = ContentStore(0, tmp_path, 1000)
    store.put(KEYS[0], entry())
    assert all(path.exists() for path in theirs) and KEYS[0] in names(tmp_path)


def test_a_directory_that_may_not_be_read_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    store = ContentStore(0, tmp_path, 10_000, heard.append)

    def refused(*_arguments: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    assert store.get(KEYS[0], SHAPES) is None and store.get(KEYS[1], SHAPES) is None
    assert len(heard) == 1 and "cannot be read" in heard[0]


def test_a_disk_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    store = ContentStore(10_000, tmp_path, 10_000, heard.append)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filmstrip.cache.store.save_file", full)
    store.put(KEYS[0], entry())
    store.put(KEYS[1], entry())
    assert len(heard) == 1 and "No space left" in heard[0]
    assert store.get(KEYS[1], SHAPES) is not None  # memory goes on
    assert [*tmp_path.iterdir()] == []


def test_an_entry_of_somebody_else_is_used_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ContentStore(0, tmp_path, 10_000).put(KEYS[0], entry())

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "not yours")

    monkeypatch.setattr("filmstrip.cache.store.os.utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    heard: list[str] = []
    assert ContentStore(0, tmp_path, 10_000, heard.append).get(KEYS[0], SHAPES) is not None
    assert not heard
    (tmp_path / f"{KEYS[0]}.safetensors").write_bytes(b"damaged")
    assert ContentStore(0, tmp_path, 10_000, heard.append).get(KEYS[0], SHAPES) is None
    assert "damaged" in heard[0]


def test_bad_places_and_keys(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FilmstripError, match="cannot be a cache directory"):
        ContentStore(0, tmp_path / "file" / "below", 10)
    with pytest.raises(FilmstripError, match="not a key"):
        ContentStore(0, tmp_path, 10_000).put("../outside", entry())
