"""Which tensors a directory holds: the same rules as `checkpoint.files`, but going on after every problem.

Nothing that is not a plain file name of the directory is opened, and no symbolic link that leads out of it, but for
those of the hub's cache to its blobs (`links`).
"""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.files import (
    INDEX_FILE,
    MAX_SHARDS,
    PICKLED_FILE,
    PICKLED_INDEX_FILE,
    WEIGHTS_FILE,
    is_plain_name,
)
from filmstrip.checkpoint.header import MAX_TENSORS, TensorInfo, read_entries, read_header
from filmstrip.checkpoint.json_file import LFS_POINTER, DuplicateKeyError, read_json
from filmstrip.checkpoint.pickled import read_pickled_header
from filmstrip.diagnostics.doctor.catalogue import Severity
from filmstrip.diagnostics.doctor.findings import Findings, counted, some
from filmstrip.errors import CheckpointError
from filmstrip.links import LinkError, leads_outside
from filmstrip.text.tokenizer_files import TOKENIZER_FILE

# A file with everything, an index of shards: the first that is here is the one that is read.
PICKLED = (PICKLED_FILE, PICKLED_INDEX_FILE)
PLACES = (WEIGHTS_FILE, INDEX_FILE, *PICKLED)
MAX_FILES = 10_000  # entries of a directory that are looked at
_SCANNED = (".json", ".safetensors", ".bin", ".model", ".jinja")


@dataclass
class Stored:
    """The tensors of a directory. `lost` are names that a file should hold that is absent or cannot be read.

    `cut` are tensors whose header is readable and whose values are not: past the end of a truncated file, or in one
    whose offsets overlap. `complete` is false when a file failed whose names are not known.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)
    complete: bool = True

    @property
    def readable(self) -> dict[str, TensorInfo]:
        """The tensors whose values can be read."""
        return {name: info for name, info in self.tensors.items() if name not in self.cut}

    def include(self, part: "Stored", prefix: str) -> None:
        """Add what another directory holds, under names that begin with `prefix`."""
        self.tensors |= {prefix + name: info for name, info in part.tensors.items()}
        self.cut |= {prefix + name for name in part.cut}
        self.files += part.files
        self.complete &= part.complete

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.end - info.begin for info in self.tensors.values())


def find_pointers(directory: Path, findings: Findings) -> None:
    """Report every file that is a Git-LFS pointer instead of itself."""
    first = _first_place(directory)
    pickles_matter = first in PICKLED
    for path in _plain_files(directory, _SCANNED):
        if leads_outside(path):
            continue  # whoever needs the file says so
        try:
            with path.open("rb") as file:
                pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        except OSError:
            continue
        if pointer:
            # tokenizer.model is read only without tokenizer.json, and pickles only without safetensors.
            other_tokenizer = path.suffix == ".model" and (directory / TOKENIZER_FILE).is_file()
            unread = other_tokenizer or (path.suffix == ".bin" and not pickles_matter)
            severity: Severity = "warning" if unread else "error"
            findings.add("lfs-pointer", path.name, "a Git-LFS pointer, not the file itself", severity=severity)


def survey(directory: Path, findings: Findings) -> Stored:
    """Read every header there is, and report what is wrong with files, index and headers."""
    stored = Stored()
    first = _first_place(directory)
    if first is None:
        findings.add("weights-missing", str(directory), f"neither {', '.join(PLACES[:-1])} nor {PLACES[-1]} is here")
        stored.complete = False
        return stored
    for other in PLACES[PLACES.index(first) + 1 :]:
        if (directory / other).is_file():
            # The hub often has one checkpoint in both formats.
            pickled = other in PICKLED and first not in PICKLED
            severity: Severity = "note" if pickled else "warning"
            what = f"{first} is here too, and is the one that is read and examined"
            findings.add("weights-twice", other, what, severity=severity)
    if first in (INDEX_FILE, PICKLED_INDEX_FILE):
        _survey_shards(stored, directory / first, findings)
    else:
        stored.files.append(directory / first)
        stored.complete = _add_file(stored, directory / first, findings)
    return stored


def _first_place(directory: Path) -> str | None:
    return next((name for name in PLACES if (directory / name).is_file()), None)


def _survey_shards(stored: Stored, index: Path, findings: Findings) -> None:
    suffix = ".bin" if index.name == PICKLED_INDEX_FILE else ".safetensors"
    weight_map = _weight_map(index, findings)
    if weight_map is None:
        stored.complete = False
        return
    promised: dict[str, list[str]] = defaultdict(list)
    for name, shard in weight_map.items():
        if is_plain_name(shard) and shard.endswith(suffix):
            promised[shard].append(name)
        else:
            what = f"tensor {name[:160]!r} is said to be in {str(shard)[:160]!r}"
            findings.add("index-entry-outside", index.name, what)
            stored.lost.add(name)
    if len(promised) > MAX_SHARDS:
        findings.add("index-damaged", index.name, f"it names {len(promised)} files; at most {MAX_SHARDS} are accepted")
        stored.complete = False
        return
    for shard, names in sorted(promised.items()):
        path = index.parent / shard
        if not path.is_file():
            findings.add("shard-missing", shard, f"not here; {counted(len(names), 'tensor')} of the index are in it")
            stored.lost.update(names)
            continue
        stored.files.append(path)
        if not _add_file(stored, path, findings, weight_map):
            stored.lost.update(names)
    _compare_with_index(stored, promised, findings)
    for path in _plain_files(index.parent, (suffix,)):
        if path.name not in promised and suffix == ".safetensors":  # .bin is the ending of much else
            findings.add("file-not-indexed", path.name, f"{index.name} does not name it")


def _weight_map(index: Path, findings: Findings) -> dict[str, Any] | None:
    if findings.about(index.name):
        return None
    try:
        weight_map = read_json(index).get("weight_map")
    except CheckpointError as error:
        add_unreadable("index-damaged", index, error, findings)
        return None
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > MAX_TENSORS:
        findings.add("index-damaged", index.name, "weight_map does not map tensors to files")
        return None
    return weight_map


def _compare_with_index(stored: Stored, promised: dict[str, list[str]], findings: Findings) -> None:
    """Report what the index places in a shard whose header does not have it."""
    for shard, names in promised.items():
        absent = [name for name in names if name not in stored.tensors and name not in stored.lost]
        if absent:
            stored.lost.update(absent)
            what = f"{counted(len(absent), 'tensor')} of the index not in it: {some(absent)}"
            findings.add("tensor-not-in-shard", shard, what)


def _add_file(stored: Stored, path: Path, findings: Findings, weight_map: dict[str, Any] | None = None) -> bool:
    """Add a file's tensors; false if it has none that can be known."""
    if findings.about(path.name):  # a Git-LFS pointer
        return False
    try:
        infos = _header(stored, path, findings)
    except CheckpointError as error:
        add_unreadable("file-damaged", path, error, findings)
        return False
    misplaced = []
    for name, info in infos.items():
        known = stored.tensors.get(name)
        if known is not None:
            what = f"{name} is in {known.path.name} too"
            findings.add("tensor-in-two-shards", path.name, what)
        elif weight_map is not None and weight_map.get(name) != path.name and name not in stored.lost:
            misplaced.append(name)
        if known is None or (weight_map or {}).get(name) == path.name:
            stored.tensors[name] = info
    if misplaced:
        what = f"{counted(len(misplaced), 'tensor')} that the index does not place here: {some(misplaced)}"
        findings.add("tensor-misplaced", path.name, what)
    return True


def _header(stored: Stored, path: Path, findings: Findings) -> dict[str, TensorInfo]:
    """The entries of a header; those of a file that is cut or overlaps are reported and kept."""
    try:
        return read_pickled_header(path) if path.suffix == ".bin" else read_header(path)
    except CheckpointError as error:
        if path.suffix == ".bin":
            raise
        header = read_entries(path)  # raises again when not even the entries can be had
        cut = [info.name for info in header.tensors.values() if info.end > header.size]
        if cut:
            whole = len(header.tensors) - len(cut)
            needed = max(info.end for info in header.tensors.values())
            what = (
                f"{header.size:,} of {needed:,} bytes are here; {whole} of {counted(len(header.tensors), 'tensor')} "
                f"are whole, cut are {some(cut)}"
            )
            findings.add("file-truncated", path.name, what)
            stored.cut.update(cut)
        else:
            findings.add("offsets-wrong", path.name, reason(error, path.parent))
            stored.cut.update(header.tensors)
        return header.tensors


def add_unreadable(code: str, path: Path, error: Exception, findings: Findings) -> None:
    """Report a file that a reader refused; a link that leads out and a key that is named twice have their own codes."""
    if isinstance(error, LinkError):
        code = "link-outside"
    elif isinstance(error.__cause__, DuplicateKeyError):
        code = "duplicate-key"
    findings.add(code, path.name, reason(error, path.parent))


def reason(error: Exception, directory: Path) -> str:
    """The message of a reader's error, with names of files in place of whole paths."""
    message = str(error).replace(f"{directory}/", "").removeprefix(f"{directory}: ").removeprefix(f"{directory} ")
    return " ".join(message.split())


def _plain_files(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    entries = sorted(islice(directory.iterdir(), MAX_FILES))
    return [path for path in entries if path.suffix in suffixes and is_plain_name(path.name) and path.is_file()]
