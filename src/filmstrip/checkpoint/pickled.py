"""Weights that `torch.save` pickled (`pytorch_model*.bin`): read without executing anything, mapped, bounded.

Such a file is a zip archive: `<name>/data.pkl` is a pickle that describes tensors, `<name>/data/<key>` are their
bytes, stored as they are. A pickle is a program, so before PyTorch sees it every name that it refers to is checked
against the few that a dictionary of tensors needs; then `torch.load` runs with `weights_only=True` (its own
interpreter, which imports nothing) and `mmap=True` (values stay on disk).
"""

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from filmstrip.checkpoint.header import DTYPES, MAX_TENSORS, TensorInfo
from filmstrip.checkpoint.json_file import LFS_POINTER
from filmstrip.errors import CheckpointError
from filmstrip.links import require_inside
from filmstrip.shapes import Tensor

MAX_PICKLE_BYTES = 64 * 2**20  # the description of a 7B checkpoint takes a few hundred kB

_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STORAGES = {
    "torch.storage UntypedStorage",
    *(
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
# All that the pickle of a `state_dict` refers to; torch.load itself would allow more.
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",  # of the 8-bit dtypes
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    *_STORAGES,
    *(f"torch {name}" for name in ("float8_e4m3fn", "float8_e5m2")),
}
_FOREIGN = {"INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "POP", "POP_MARK", "DUP"}  # never in what torch.save writes
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


def load_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` by name, on the CPU and backed by the memory map (no copy).

    Raises `CheckpointError`, one line, for a file that is damaged, of the format before PyTorch 1.6 (it cannot be
    mapped), compressed, or that holds or refers to anything but tensors. Nothing in it is executed.
    """
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes raise whatever they like
        # Around the reason PyTorch puts a page of advice, the first of it to switch the protection off.
        reason = error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error
        raise CheckpointError(f"cannot read {path}: {_one_line(reason)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a dictionary of tensors")
    return {_name(path, name): _tensor(path, name, value) for name, value in content.items()}


def read_pickled_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes, shapes and places of the tensors in `path`; no value is read. Errors as `load_pickled`."""
    offsets = check_archive(path)
    tensors = load_pickled(path)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    places = sorted((pointer, size) for pointer, size in storages.items() if size)
    records = sorted((offset, size) for offset, size in offsets.items() if size)
    # The file is mapped as a whole, so addresses and places in the file differ by one number.
    base = places[0][0] - records[0][0] if places and records else 0
    if [(pointer - base, size) for pointer, size in places] != records:
        raise CheckpointError(f"{path}: its records are not those of its tensors; it is damaged or not a checkpoint")
    infos = {}
    for name, tensor in tensors.items():
        begin = tensor.data_ptr() - base if tensor.numel() else 0
        shape, size = tuple(tensor.shape), tensor.numel() * tensor.element_size()
        infos[name] = TensorInfo(name, _DTYPE_NAMES[tensor.dtype], shape, path, begin, begin + size)
    return infos


def check_archive(path: Path) -> dict[int, int]:
    """Hold the archive against its bounds before anything of it is interpreted; offset and size of each record.

    Raises `CheckpointError`, one line.
    """
    try:
        require_inside(path)
        with path.open("rb") as file:
            _check_start(path, file.read(len(LFS_POINTER)))
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                pickle_entry = _check_entries(path, entries)
                raw = archive.read(pickle_entry)
            # PyTorch has a zip reader of its own: what is checked must be what it is going to interpret.
            if torch._C.PyTorchFileReader(str(path)).get_record("data.pkl") != raw:
                raise CheckpointError(f"{path} can be read as two different archives; it is not a checkpoint")
            _check_pickle(path, raw)
            top = pickle_entry.filename.removesuffix("data.pkl")
            records = [entry for entry in entries if entry.filename.startswith(f"{top}data/")]
            return {_data_offset(path, file, entry): entry.file_size for entry in records}
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise CheckpointError(f"cannot read {path}: {_one_line(error)}") from error


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` where it came from")
    if not start.startswith(_ZIP_START):
        raise CheckpointError(
            f"{path} is a pickle from before PyTorch 1.6, which cannot be read safely, or not a checkpoint at all; "
            "a copy in safetensors format is needed"
        )


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The entry of the pickle. Entries must be stored plainly, so that sizes are what they say."""
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path} has {len(entries)} records; at most {MAX_TENSORS} are accepted")
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(f"{path} is compressed; torch.save never does that")
        if entry.header_offset + entry.file_size > size:
            raise CheckpointError(f"{path} is truncated: record {entry.filename[:80]!r} passes its end")
    if len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise CheckpointError(f"{path} has a record twice (PyTorch takes no notice of case); it is not a checkpoint")
    tops = {entry.filename.partition("/")[0] if "/" in entry.filename else "" for entry in entries}
    if len(tops) > 1:
        raise CheckpointError(f"{path} is not one directory of records, as torch.save writes it")
    pickles = [entry for entry in entries if entry.filename in {f"{top}/data.pkl" for top in tops}]
    if len(pickles) != 1 or any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path} is not a dictionary of tensors saved by torch.save")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: its pickle is larger than {MAX_PICKLE_BYTES} bytes, the limit for one")
    return pickles[0]


def _check_pickle(path: Path, raw: bytes) -> None:
    """Walk over the pickle's instructions, executing none, and refuse names that tensors do not need."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in ("GLOBAL", "INST") and argument not in _GLOBALS:
            raise CheckpointError(
                f"{path} refers to {str(argument)[:80].replace(' ', '.')}; only tensors are read, and nothing is "
                "executed"
            )
        if opcode.name in _FOREIGN:
            raise CheckpointError(f"{path} is pickled in a way that torch.save does not use; it is not read")
    _check_storages(path, raw)


def _check_storages(path: Path, raw: bytes) -> None:
    """Storage types may stand before the key of a record, as `torch.save` writes them, and nowhere else.

    `UntypedStorage(2**40)` would allocate. To be called, a type needs its arguments right above it on the stack; here
    a text is there, which only a tuple around both can remove (`_FOREIGN` has the instructions that could).
    """
    memo: dict[Any, str] = {}
    top = ""  # what the last instruction put on the stack, where it matters
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name in _PUTS:
            memo[argument] = top
            continue
        below, top = top, ""
        if opcode.name in _TEXTS:
            top = "text"
        elif opcode.name in _GETS:
            top = memo.get(argument, "")
        elif opcode.name == "GLOBAL" and argument in _STORAGES:
            top = "storage"
        if below == "storage" and top != "text":
            raise CheckpointError(f"{path} uses a storage as torch.save does not; it is not read")


def _data_offset(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin: behind its local header, whose length is in that header."""
    file.seek(entry.header_offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _ZIP_START:
        raise CheckpointError(f"{path}: record {entry.filename[:80]!r} is not where the archive says")
    return entry.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)


def _name(path: Path, name: Any) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{path} holds a tensor under {str(name)[:80]!r}, which is no name")
    return name


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    tensor = value.data if isinstance(value, nn.Parameter) else value
    if type(tensor) is not torch.Tensor:
        raise CheckpointError(
            f"{path} holds {type(value).__name__} under {name[:80]!r}; only a plain dictionary of tensors is read"
        )
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPE_NAMES or tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: tensor {name[:80]!r} is {tensor.dtype}, {tensor.layout}; not supported")
    if not tensor.is_contiguous():
        raise CheckpointError(f"{path}: tensor {name[:80]!r} is stored transposed; save it again with .contiguous()")
    return tensor


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
