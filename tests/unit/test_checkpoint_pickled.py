"""Pickled weights: read when they hold tensors and nothing else; nothing in them ever runs."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from filmstrip.checkpoint import pickled
from filmstrip.checkpoint.files import TensorReader, open_tensors
from filmstrip.checkpoint.pickled import load_pickled, read_pickled_header
from filmstrip.errors import CheckpointError
from filmstrip.testing.tiny import write_json

WEIGHT = torch.arange(35, dtype=torch.float32).reshape(5, 7)
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(WEIGHT),
    "tied": WEIGHT,
    "part": torch.arange(20)[4:8],
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "eight": torch.tensor([0.5, 1.0]).to(torch.float8_e4m3fn),
    "truth": torch.tensor([True, False]),
}


def fails(path: Path) -> str:
    """The one line with which a file is refused, by both readers."""
    lines = set()
    for read in (read_pickled_header, load_pickled):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        lines.add(str(caught.value))
    assert len(lines) == 1
    line = lines.pop()
    assert "\n" not in line and path.name in line and len(line) < 500
    return line


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def archive(path: Path, pickle_bytes: bytes, records: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """A file as `torch.save` builds it, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", pickle_bytes)
        for key, raw in (records or {}).items():
            file.writestr(f"archive/data/{key}", raw)
        file.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("content", [TENSORS, OrderedDict(TENSORS)])
def test_reads_what_torch_wrote(tmp_path: Path, content: Any) -> None:
    path = save(tmp_path / "pytorch_model.bin", content)
    header, raw = read_pickled_header(path), path.read_bytes()
    assert list(header) == list(TENSORS)
    for name, tensor in TENSORS.items():
        info = header[name]
        assert (info.shape, info.path, info.end - info.begin) == (tensor.shape, path, tensor.nbytes)
        stored = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        assert raw[info.begin : info.end] == bytes(stored.tolist()), f"{name} does not lie where the header says"
    reader = TensorReader(open_tensors(tmp_path))
    for name, tensor in TENSORS.items():
        for read in (reader.read, reader.read_copy):
            assert read(name).dtype == tensor.dtype and torch.equal(read(name).float(), tensor.float())
    assert reader.read("a").data_ptr() == reader.read("a").data_ptr(), "values should come from the memory map"


def test_the_state_of_a_module(tmp_path: Path) -> None:
    """Its OrderedDict carries an attribute with versions, which is pickled as well."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    header = read_pickled_header(save(tmp_path / "m.bin", module.state_dict()))
    assert list(header) == list(module.state_dict())


def write_shards(directory: Path, weight_map: dict[str, Any]) -> None:
    save(directory / "one.bin", {"a": TENSORS["a"]})
    save(directory / "two.bin", {"b": TENSORS["b"]})
    write_json(directory / "pytorch_model.bin.index.json", {"weight_map": weight_map})


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.bin", "b": "two.bin"})
    reader = TensorReader(open_tensors(tmp_path))
    assert torch.equal(reader.read("a"), TENSORS["a"]) and torch.equal(reader.read("b"), TENSORS["b"])


@pytest.mark.parametrize("target", ["../one.bin", "/etc/one.bin", "sub/one.bin", ".one.bin", "C:one.bin", 7, None])
def test_an_index_cannot_point_outside(tmp_path: Path, target: Any) -> None:
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "inside" / "sub"):
        save(place / "one.bin", TENSORS)
    write_shards(tmp_path / "inside", {"a": target, "b": "two.bin"})
    with pytest.raises(CheckpointError, match=r"only \.bin files of this directory are allowed"):
        open_tensors(tmp_path / "inside")


def test_an_index_names_its_own_format_only(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors", "b": "two.bin"})
    with pytest.raises(CheckpointError, match=r"only \.bin files"):
        open_tensors(tmp_path)


def test_safetensors_win_and_the_rest_is_said(tmp_path: Path) -> None:
    save(tmp_path / "pytorch_model.bin", {"a": torch.zeros(1)})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    files = open_tensors(tmp_path)
    assert TensorReader(files).read("a").item() == 1
    assert files.warnings == (
        f"{tmp_path} has both model.safetensors and pytorch_model.bin; the first was read, as transformers does",
    )


class Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def attacks(target: Path) -> dict[str, bytes]:
    """Pickles that would make a directory, by protocol and instruction."""
    found = {f"protocol {number}": pickle.dumps({"a": Touch(target)}, number) for number in range(6)}
    command = f"mkdir {target}".encode()
    found["GLOBAL and REDUCE"] = b"cos\nsystem\n(V" + command + b"\ntR."
    found["INST"] = b"(V" + command + b"\nios\nsystem\n."
    found["a state that is set"] = b"ccollections\nOrderedDict\n)R(cos\nsystem\ndb."
    found["behind the end"] = pickle.dumps({}, 2) + b"cos\nsystem\n(V" + command + b"\ntR."
    return found


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, attack: str) -> None:
    target = tmp_path / "ran"
    raw = attacks(target)[attack]
    path = archive(tmp_path / "pytorch_model.bin", raw)
    if attack == "behind the end":  # never reached; what stands before is an empty dictionary
        assert load_pickled(path) == {}
    else:
        assert "nothing is executed" in fails(path) or "is not read" in fails(path)
    path.write_bytes(raw)  # and as a bare pickle, the format before PyTorch 1.6
    assert "before PyTorch 1.6" in fails(path)
    assert not target.exists()
    assert attack.startswith("protocol") is False or _runs(raw, target), "the attack would not have worked anyway"


def _runs(raw: bytes, target: Path) -> bool:
    pickle.loads(raw)
    return target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"step": 3}, "holds int under 'step'"),
        ({"state_dict": {"a": torch.ones(1)}}, "holds dict under 'state_dict'"),
        ([torch.ones(1)], "holds list, not a dictionary"),
        (torch.ones(1), "holds Tensor, not a dictionary"),
        ({3: torch.ones(1)}, "under '3', which is no name"),
        ({"a": torch.ones(2, 3).t()}, "stored transposed"),
        ({"a": torch.ones(2).to_sparse()}, "refers to torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "refers to torch.ComplexFloatStorage"),
        (torch.nn.Linear(1, 1), "refers to torch.nn.modules.linear.Linear"),
        ({"a": bytearray(8)}, "nothing is executed"),
    ],
)
def test_anything_but_tensors_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    assert words in fails(save(tmp_path / "m.bin", content))


def test_the_old_format_cannot_be_mapped(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bin", TENSORS, _use_new_zipfile_serialization=False)
    assert "a copy in safetensors format is needed" in fails(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"")
    assert "0 bytes" in fails(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "Git-LFS pointer" in fails(path)
    archive(path, pickle.dumps({}, 2), method=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as file:  # what TorchScript adds
        file.writestr("archive/constants.pkl", pickle.dumps((), 2))
    assert "not a dictionary of tensors saved by torch.save" in fails(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "x")
    assert "not a dictionary of tensors" in fails(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_pickled(tmp_path / "absent.bin")


def test_sizes_are_bounded_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = archive(tmp_path / "bomb.bin", b"." + b"\0" * 10**6, method=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000 and "is compressed" in fails(bomb)
    path = save(tmp_path / "m.bin", TENSORS)
    monkeypatch.setattr(pickled, "MAX_PICKLE_BYTES", 100)
    assert "its pickle is larger than 100 bytes" in fails(path)
    monkeypatch.setattr(pickled, "MAX_TENSORS", 3)
    assert "at most 3 are accepted" in fails(path)


class Storage:
    """Stands for a storage of `numel` floats under key 0 while a tensor of one's own making is pickled."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


class Claim:
    """Pickles as a tensor of a shape on a storage that may have another size."""

    def __init__(self, storage: Storage, shape: tuple[int, ...]) -> None:
        self.arguments: tuple[Any, ...] = (storage, 0, shape, (1,) * len(shape), False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    """Writes storages as `torch.save` does."""

    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", value.numel) if isinstance(value, Storage) else None


def claiming(path: Path, numel: int, shape: tuple[int, ...]) -> Path:
    """A file with one record of four floats and one tensor that claims a storage of `numel` and a shape."""
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Claim(Storage(numel), shape)})
    return archive(path, buffer.getvalue(), {"0": struct.pack("<4f", 1, 2, 3, 4)})


def test_an_honest_claim_is_read(tmp_path: Path) -> None:
    assert load_pickled(claiming(tmp_path / "m.bin", 4, (4,)))["a"].tolist() == [1, 2, 3, 4]
    assert read_pickled_header(tmp_path / "m.bin")["a"].shape == (4,)


@pytest.mark.parametrize(
    ("numel", "shape"), [(10**12, (10**12,)), (4, (10**12,)), (4, (5,)), (4, (-4,)), (-1, (4,)), (10**6, (4,))]
)
def test_a_tensor_cannot_be_larger_than_its_record(tmp_path: Path, numel: int, shape: tuple[int, ...]) -> None:
    path = claiming(tmp_path / "m.bin", numel, shape)
    with pytest.raises(CheckpointError) as caught:
        read_pickled_header(path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bin", {"a": TENSORS["a"]})
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        fails(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_reads_the_same_or_fails_clearly(data: st.DataObject, tmp_path_factory: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"a": TENSORS["a"], "b": TENSORS["b"]}, buffer)
    raw = bytearray(buffer.getvalue())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "m.bin"
    path.write_bytes(raw)
    try:
        header = read_pickled_header(path)
        tensors = load_pickled(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    for name, info in header.items():
        stored = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        assert bytes(raw[info.begin : info.end]) == bytes(stored.tolist())


EVIL = b"cos\nsystem\n(Vtrue\ntR."


def zipped(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in entries:
            file.writestr(name, raw)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("evil_first", [True, False])
@pytest.mark.parametrize(
    ("evil", "words"),
    [
        ("x/DATA.PKL", "twice"),  # PyTorch finds records without regard to case
        ("x/data.pkl", "twice"),
        ("x/Data/0", "twice"),
        ("y/data.pkl", "one directory"),
        ("X/data.pkl", "twice"),
        ("data.pkl", "one directory"),
    ],
)
def test_no_second_pickle_hides_behind_the_first(tmp_path: Path, evil: str, words: str, evil_first: bool) -> None:
    entries = [("x/data.pkl", pickle.dumps({}, 2)), ("x/data/0", b"\0" * 4), ("x/version", b"3\n")]
    entries.insert(0 if evil_first else len(entries), (evil, EVIL))
    assert words in fails(zipped(tmp_path / "m.bin", entries))


def test_a_pickle_in_another_place_is_none(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.bin", [("x/sub/data.pkl", pickle.dumps({}, 2)), ("x/version", b"3\n")])
    assert "not a dictionary of tensors" in fails(path)


SIZE = b"\x8a\x08" + (2**40).to_bytes(8, "little")
STORAGE = b"ctorch.storage\nUntypedStorage\n"


@pytest.mark.parametrize(
    "instructions",
    [
        STORAGE + SIZE + b"\x85R.",
        STORAGE + b"q\x000" + b"h\x00" + SIZE + b"\x85R.",  # from the memo
        STORAGE + b"q\x00Va\n\x86q\x01h\x00" + SIZE + b"\x85R.",
        STORAGE + b"Va\n0" + SIZE + b"\x85R.",  # a text that is taken away again
        STORAGE + b"(" + SIZE + b"tR.",
        STORAGE + b"2" + SIZE + b"\x85R.",
        STORAGE + b")\x81.",
        STORAGE + b".",
    ],
)
def test_a_storage_is_never_called(tmp_path: Path, instructions: bytes) -> None:
    """Calling it would allocate as many bytes as the file likes, here 2^40."""
    assert "torch.save does not" in fails(archive(tmp_path / "m.bin", b"\x80\x02" + instructions))


def test_storages_that_tensors_share_are_read(tmp_path: Path) -> None:
    """The second mention of a storage takes its type and its key from the memo."""
    whole = torch.tensor([0.5, 1.0, 2.0]).to(torch.float8_e4m3fn)
    path = save(tmp_path / "m.bin", {"a": whole, "b": whole[1:], "c": whole[:2], "d": whole.clone()})
    assert load_pickled(path)["b"].float().tolist() == [1, 2] and len(read_pickled_header(path)) == 4
