"""The values of every tensor, streamed: NaN and infinity, zeros where there should be none, copies.

Files are read, not mapped: memory stays at one block, and a file that shrinks meanwhile is an error, not a crash.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch

from filmstrip.checkpoint.header import DTYPES, WEIGHT_DTYPES, TensorInfo
from filmstrip.diagnostics.doctor.findings import Findings, counted
from filmstrip.diagnostics.doctor.recognise import Matched
from filmstrip.diagnostics.doctor.weights import Stored
from filmstrip.errors import CheckpointError

BLOCK_BYTES = 4 * 2**20
MAX_OPEN_FILES = 64

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Content:
    """What the values of a tensor are, `checksum` (CRC-32) of its bytes included.

    `low` and `high` are NaN if any value is. `bad` counts NaN and infinities, `first_bad` is the flat index of the
    first. `zero_blocks` counts blocks of `BLOCK_BYTES` that are all zero.
    """

    low: float
    high: float
    bad: int
    first_bad: int
    zero_blocks: int
    checksum: int

    @property
    def all_zero(self) -> bool:
        """Whether every value is zero."""
        return self.low == self.high == 0

    @property
    def constant(self) -> bool:
        """Whether all values are one number."""
        return self.low == self.high


class BlockReader:
    """Reads tensors block by block into one buffer; each block is valid until the next one is read."""

    def __init__(self) -> None:
        self._buffer = bytearray(BLOCK_BYTES)
        self._open: dict[Path, FileIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "BlockReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def blocks(self, info: TensorInfo) -> Iterator[memoryview]:
        """The bytes of a tensor, `BLOCK_BYTES` at a time. Raises `CheckpointError` when they cannot be read."""
        try:
            file = self._file(info.path)
            for begin in range(info.begin, info.end, BLOCK_BYTES):
                view = memoryview(self._buffer)[: min(BLOCK_BYTES, info.end - begin)]
                file.seek(begin)
                _fill(file, view, info)
                yield view
        except OSError as error:
            raise CheckpointError(f"cannot read {info.path}: {error.strerror or error}") from error

    def _file(self, path: Path) -> FileIO:
        if path not in self._open:
            if len(self._open) >= MAX_OPEN_FILES:
                self._stack.close()
                self._open.clear()
            self._open[path] = self._stack.enter_context(FileIO(path))
        return self._open[path]


def _fill(file: FileIO, view: memoryview, info: TensorInfo) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise CheckpointError(f"{info.path} ends inside tensor {info.name!r}")
        done += count


def read_contents(
    stored: Stored, matched: Matched, findings: Findings, on_progress: Progress | None = None
) -> dict[str, Content]:
    """Read every floating-point tensor that is loaded, once. A tensor that cannot be read is a finding."""
    infos = {
        name: info
        for name, info in stored.readable.items()
        if info.dtype in WEIGHT_DTYPES and info.numel and (matched.layout is None or name in matched.entries)
    }
    total, done = sum(info.end - info.begin for info in infos.values()), 0
    contents: dict[str, Content] = {}
    with BlockReader() as reader:
        for name, info in sorted(infos.items(), key=lambda item: (str(item[1].path), item[1].begin)):
            try:
                contents[name] = _content(info, reader)
            except CheckpointError as error:
                findings.add("values-unreadable", name, str(error))
            done += info.end - info.begin
            if on_progress is not None:
                on_progress(done, total)
    return contents


def _content(info: TensorInfo, reader: BlockReader) -> Content:
    low, high = float("inf"), float("-inf")
    bad, first_bad, zero_blocks, checksum, done = 0, -1, 0, 0, 0
    for view in reader.blocks(info):
        values = torch.frombuffer(view, dtype=DTYPES[info.dtype])
        smallest, largest = (float(value) for value in torch.aminmax(values))
        if not np.isfinite(smallest) or not np.isfinite(largest):
            where = (~torch.isfinite(values)).nonzero()
            first_bad = first_bad if bad else done // values.itemsize + int(where[0])
            bad += len(where)
        low, high = _least(low, smallest), -_least(-high, -largest)
        zero_blocks += smallest == largest == 0 and len(view) == BLOCK_BYTES
        checksum = zlib.crc32(view, checksum)
        done += len(view)
    return Content(low, high, bad, first_bad, zero_blocks, checksum)


def _least(first: float, second: float) -> float:
    """The smaller number; NaN if either is."""
    return float(np.minimum(first, second))


def check_values(stored: Stored, matched: Matched, contents: dict[str, Content], findings: Findings) -> None:
    """Report NaN, infinities, and zeros or constants where training leaves none."""
    for name, content in contents.items():
        info = stored.tensors[name]
        role = matched.entries[name].canonical if name in matched.entries else name
        if content.bad:
            place = list(np.unravel_index(content.first_bad, info.shape)) if info.shape else []
            at = ", ".join(str(int(number)) for number in place)
            what = f"{content.bad:,} of {counted(info.numel, 'value')} are NaN or infinite, the first at [{at}]"
            findings.add("not-finite", name, what)
        elif content.all_zero:
            _report_zero(name, role, info, findings)
        elif content.constant and len(info.shape) > 1 and info.numel > 1:
            findings.add("constant", name, f"all {info.numel:,} values are {content.low:g}")
        elif content.zero_blocks and not _is_table(role):
            size = content.zero_blocks * BLOCK_BYTES
            findings.add("zero-block", name, f"{size:,} of {info.end - info.begin:,} bytes are runs of zeros")


def _report_zero(name: str, role: str, info: TensorInfo, findings: Findings) -> None:
    if role.endswith((".bias", "temporal.embedding", "temporal_embedding")):
        return  # biases and the frame embedding start at zero, and may stay there
    added = ".temporal." in role and role.endswith("out_proj.weight")
    findings.add("starts-at-zero" if added else "all-zero", name, f"all {info.numel:,} values are zero")


def _is_table(role: str) -> bool:
    """Vocabularies are padded with rows that may be zero."""
    return role.endswith(("token_embedding.weight", "lm_head.weight"))


def same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes. Raises `CheckpointError` when one cannot be read."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with BlockReader() as one, BlockReader() as other:
        pairs = zip(one.blocks(first), other.blocks(second), strict=True)
        return all(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)) for a, b in pairs)
