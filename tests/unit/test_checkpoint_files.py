"""Damaged and hostile checkpoint files: each gives one clear line, and nothing else happens."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from filmstrip.checkpoint.files import TensorReader, is_plain_name, open_tensor_file, open_tensors
from filmstrip.checkpoint.header import read_header
from filmstrip.checkpoint.json_file import read_json
from filmstrip.diagnostics.bench.page_cache import cached_share, evict
from filmstrip.errors import CheckpointError, FilmstripError

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def raises_one_line(function: Any, *arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def raw_file(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = open_tensors(tmp_path)
    assert {name: info.shape for name, info in files.tensors.items()} == {"a": (2, 3), "b": (4,)}
    assert files.tensors["b"].dtype == "BF16"
    reader = TensorReader(files)
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in TENSORS.items())
    assert reader.read("a").data_ptr() == reader.read("a").data_ptr(), "values should come from the memory map"


def test_a_tensor_may_begin_anywhere(tmp_path: Path) -> None:
    """The format does not align tensors: here float32 begins on an odd byte, and on an even one after a long header."""
    value = torch.tensor([1.5, -2.0])
    for pad in range(4):
        name = "x" * pad
        header = {f"a{name}": entry(0, 1), "b": entry(1, 9, "F32", [2]), "c": entry(9, 9, "F32", [0, 3])}
        raw_file(tmp_path / "model.safetensors", header, b"\x07" + value.numpy().tobytes())
        reader = TensorReader(open_tensors(tmp_path))
        assert reader.read(f"a{name}").tolist() == [7]
        assert torch.equal(reader.read("b"), value)
        assert reader.read("c").shape == (0, 3)


def test_tensors_of_a_file_are_independent(tmp_path: Path) -> None:
    """Writing to one neither counts as writing to another, nor does it reach the file; each is as large as it looks."""
    save_file({"a": torch.ones(4, 4), "b": torch.ones(4)}, tmp_path / "model.safetensors")
    reader = TensorReader(open_tensors(tmp_path))
    a, b = (torch.nn.Parameter(reader.read(name)) for name in "ab")
    loss = (torch.ones(4, requires_grad=True) @ a).sum()
    with torch.no_grad():
        b.add_(1)
    loss.backward()
    assert (a._version, b._version) == (0, 1)
    assert [tensor.untyped_storage().nbytes() for tensor in (a, b)] == [64, 16]
    assert torch.equal(TensorReader(open_tensors(tmp_path)).read("b"), torch.ones(4))


def test_opening_tensors_reads_nothing(tmp_path: Path) -> None:
    """A checkpoint on a disk is there at once; its values are read when they are needed."""
    path = tmp_path / "model.safetensors"
    save_file({f"w{index}": torch.ones(2**20) for index in range(8)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that are not on the disk yet would stay
    try:
        evict([path])
    except FilmstripError:
        pytest.skip("this file system is in memory, or does not let go")
    reader = TensorReader(open_tensors(tmp_path))
    tensors = [reader.read(f"w{index}") for index in range(8)]
    assert cached_share(path) < 0.1
    assert all(tensor.sum() == 2**20 for tensor in tensors)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "model.safetensors"
    save_file(TENSORS, whole)
    raw = whole.read_bytes()
    for length in range(len(raw)):
        whole.write_bytes(raw[:length])
        raises_one_line(open_tensors, tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_header_byte_loads_the_same_or_fails_clearly(data: st.DataObject, tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    whole = directory / "model.safetensors"
    save_file(TENSORS, whole)
    raw = bytearray(whole.read_bytes())
    header_end = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    whole.write_bytes(raw)
    try:
        files = open_tensors(directory)
        for name in files.tensors:
            TensorReader(files).read(name)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456", "overlaps"),
        ({"a": entry(0, 4), "b": entry(5, 6)}, b"123456", "gap"),
        ({"a": entry(0, 4)}, b"123456", "after its last tensor"),
        ({"a": entry(0, 9)}, b"123456", "truncated"),
        ({"a": entry(0, 4, "F32", [2])}, b"1234", "needs 8 bytes"),
        ({"a": entry(0, 4, "F13")}, b"1234", "dtype 'F13'"),
        ({"a": entry(0, 4, shape=[-4])}, b"1234", "shape"),
        ({"a": entry(0, 4, shape=[2**70, 0])}, b"1234", "shape"),
        ({"a": entry(0, 0, shape=[0] * 99)}, b"", "shape"),
        ({"a": entry(4, 0, shape=[0])}, b"1234", "growing"),
        ({"a": {"dtype": "U8"}}, b"", "expected dtype"),
        ({"a": [1]}, b"", "expected dtype"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        ({"__metadata__": {"format": 3}}, b"", "__metadata__ is not a map of texts"),
        ({"__metadata__": {"a": {"b": "c"}}}, b"", "__metadata__ is not a map of texts"),
        ({"__metadata__": ["pt"]}, b"", "__metadata__ is not a map of texts"),
        ({"__metadata__": None}, b"", "__metadata__ is not a map of texts"),
        (b"{" + b"[" * 50, b"", "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, b"", "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", b"", "number"),
        (b'{"a": NaN}' + b" " * 40, b"", "number"),
        (b"{\xff}" + b" " * 40, b"", "UTF-8"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, data: bytes, word: str) -> None:
    path = raw_file(tmp_path / "model.safetensors", header, data)
    message = raises_one_line(read_header, path)
    assert word in message and path.name in message


@pytest.mark.parametrize("claim", [2**63, 10**9, 200, 0])
def test_header_length_lies(tmp_path: Path, claim: int) -> None:
    path = raw_file(tmp_path / "model.safetensors", {"a": entry(0, 4)}, b"1234", length=claim)
    raises_one_line(read_header, path)


@pytest.mark.parametrize("filling", [b"{},", b"[],", b"0,"])
def test_a_header_of_tiny_values_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filling: bytes
) -> None:
    """Parsed, it would take many times its size."""
    raw = b'{"a":[' + filling * (4 * 2**20) + b"0]}"
    path = raw_file(tmp_path / "model.safetensors", raw, b"")
    monkeypatch.setattr("filmstrip.checkpoint.header.parse_json", lambda *_: pytest.fail("it was parsed"))
    assert "too many entries" in raises_one_line(read_header, path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "0 bytes" in raises_one_line(open_tensors, tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "Git-LFS pointer" in raises_one_line(open_tensors, tmp_path)
    path.write_text("<!DOCTYPE html><html>not found</html>")
    assert "not a safetensors file" in raises_one_line(open_tensors, tmp_path)
    path.unlink()
    assert "neither" in raises_one_line(open_tensors, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "before PyTorch 1.6" in raises_one_line(open_tensors, tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "weights.pth")
    assert "pickles of other names are not opened" in raises_one_line(open_tensors, tmp_path)
    assert "not a directory" in raises_one_line(open_tensors, tmp_path / "nowhere")


def write_shards(directory: Path, weight_map: dict[str, Any]) -> None:
    save_file({"a": TENSORS["a"]}, directory / "one.safetensors")
    save_file({"b": TENSORS["b"]}, directory / "two.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    reader = TensorReader(open_tensors(tmp_path))
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "target",
    [
        "../one.safetensors",
        "/etc/one.safetensors",
        "sub/one.safetensors",
        "..\\one.safetensors",
        "C:one.safetensors",
        ".hidden.safetensors",
        "a\nb.safetensors",
        "one.bin",
        "",
        7,
        None,
        ["one.safetensors"],
    ],
)
def test_an_index_cannot_point_outside(tmp_path: Path, target: Any) -> None:
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file(TENSORS, inside / "sub" / "one.safetensors")
    write_shards(inside, {"a": target, "b": "two.safetensors"})
    assert "only .safetensors files of this directory" in raises_one_line(open_tensors, inside)


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "1 of 2 shards are missing, first three.safetensors"),
        ({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}, "'c' is not in two.safetensors"),
        ({"a": "two.safetensors", "b": "two.safetensors"}, "'a' is not in"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "'b', which"),
        ({}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, weight_map: Any, word: str) -> None:
    write_shards(tmp_path, weight_map)
    assert word in raises_one_line(open_tensors, tmp_path)


def test_one_file_wins_over_an_index_and_says_so(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert "has both" in open_tensors(tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "twice"),
        (b'{"a": ', "line 1"),
        (b'{"a": Infinity}', "number"),
        (b"\xff\xfe", "UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
    ],
)
def test_bad_json(tmp_path: Path, raw: bytes, word: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    assert word in raises_one_line(read_json, path)


def test_json_bounds_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n"a": 1\r\n}\r\n')
    assert read_json(path) == {"a": 1}
    assert "larger than 5 bytes" in raises_one_line(lambda: read_json(path, limit=5))
    assert "not there" in raises_one_line(read_json, tmp_path / "absent.json")
    assert "not a file" in raises_one_line(read_json, tmp_path)


def test_a_copy_does_not_come_from_the_map(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"], "empty": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    reader = TensorReader(open_tensors(tmp_path))
    assert torch.equal(reader.read_copy("a"), TENSORS["a"])
    assert reader.read_copy("a").data_ptr() != reader.read_copy("a").data_ptr()
    assert reader.read_copy("empty").shape == (0, 3)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert "the file is too short" in raises_one_line(reader.read_copy, "a")


def test_single_files_of_any_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "projector.safetensors")
    torch.save(TENSORS, tmp_path / "mm_projector.bin")
    for name in ("projector.safetensors", "mm_projector.bin"):
        files = open_tensor_file(tmp_path / name)
        assert torch.equal(TensorReader(files).read("a"), TENSORS["a"])
    for name in ("absent.bin", "projector.txt"):
        assert "neither a .safetensors nor a .bin" in raises_one_line(open_tensor_file, tmp_path / name)


def test_plain_names() -> None:
    assert is_plain_name("model-00001-of-00003.safetensors")
    assert not is_plain_name("x" * 300)
