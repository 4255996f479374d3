"""LLaVA's conversation files: JSON lists of records, read and checked one record at a time.

A record, as LLaVA and Video-LLaVA write it::

    {"id": "42", "video": "valley/0001.mp4",
     "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"}, {"from": "gpt", "value": "A dog runs."}]}

`image` and `video` are one file name or a list; the k-th `<image>` of the conversation stands for the k-th image. A
record without either is text alone.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.config import MediaKind
from filmstrip.errors import FilmstripError
from filmstrip.text.prompt import Role, Turn

MAX_DATA_BYTES = 8 * 2**30  # the largest published file of this kind has 1 GB
KINDS: tuple[MediaKind, ...] = ("image", "video")
PLACEHOLDERS: dict[MediaKind, str] = {"image": "<image>", "video": "<video>"}
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class DataError(FilmstripError):
    """A file of conversations, or one of its records, that cannot be used."""


@dataclass(frozen=True)
class RawRecord:
    """One record as it stands in the file. `number` counts from 0 within its file; `root` is where its media lie.

    `fault` says why a line could not be read; it has no `values` then.
    """

    values: Any
    number: int
    root: Path
    fault: str = ""

    @property
    def name(self) -> str:
        """The record's id, or its number."""
        given = self.values.get("id") if isinstance(self.values, dict) else None
        return str(given)[:200] if isinstance(given, str | int) else f"#{self.number}"

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """Which kinds of media it names."""
        return tuple(kind for kind in KINDS if isinstance(self.values, dict) and self.values.get(kind))


@dataclass(frozen=True)
class Record:
    """A record that was checked: its turns, and its media files by kind, in order."""

    turns: tuple[Turn, ...]
    media: tuple[tuple[MediaKind, Path], ...]


def read_records(files: Sequence[str | Path], media_root: str | Path | None = None) -> list[RawRecord]:
    """Every record of `files` (`.json`: a list; `.jsonl`: one record a line), unchecked.

    Media lie below `media_root`, or below each file's own directory. A line that is no JSON is a record that
    `parse_record` refuses. Raises `DataError` for a file that cannot be read, or has no sound line.
    """
    records: list[RawRecord] = []
    for file in map(Path, files):
        root = Path(media_root) if media_root is not None else file.parent
        if file.suffix == ".jsonl":
            records += _read_lines(file, root)
        else:
            records += [RawRecord(values, number, root) for number, values in enumerate(_read_list(file))]
    if not records:
        raise DataError(f"there is no record in {', '.join(map(str, files)) or 'no file'}")
    return records


def parse_record(raw: RawRecord, *, needs_answer: bool = True) -> Record:
    """Check a record. Raises `DataError` with the reason when it cannot be used; to learn from it `needs_answer`."""
    if raw.fault:
        raise DataError(raw.fault)
    if not isinstance(raw.values, dict):
        raise DataError("not an object")
    paths = {kind: _paths(raw, kind) for kind in KINDS}
    turns = _turns(raw.values.get("conversations"))
    if needs_answer and not any(turn.role == "assistant" and turn.text.strip() for turn in turns):
        raise DataError("there is no answer to learn from")
    media = tuple((kind, path) for kind in KINDS for path in paths[kind])
    require_placeholders([kind for turn in turns for kind in turn.media], media)
    return Record(tuple(turns), media)


def require_placeholders(placeholders: Sequence[MediaKind], media: Sequence[tuple[MediaKind, Path]]) -> None:
    """Raise `DataError` unless there is one placeholder for each file, by kind."""
    files = [kind for kind, _ in media]
    for kind in KINDS:
        marked, named = placeholders.count(kind), files.count(kind)
        if marked != named:
            raise DataError(
                f"placeholder mismatch: {marked} {PLACEHOLDERS[kind]} in the text, but {named} {kind} files"
            )


def make_turn(role: Role, text: str) -> Turn:
    """A user's placeholders, wherever they stand, go in front of the words, as in the original's training."""
    if role != "user":
        return Turn(role, text)
    media = [kind for kind in KINDS for _ in range(text.count(PLACEHOLDERS[kind]))]
    for placeholder in PLACEHOLDERS.values():
        text = text.replace(placeholder, "")
    return Turn(role, text.strip(), tuple(media))


def media_path(root: Path, name: Any) -> Path:
    """The file `name` below `root`. Raises `DataError` for a name that leads elsewhere, or to nothing."""
    if not isinstance(name, str) or not name:
        raise DataError(f"a media file is named {str(name)[:80]!r}")
    try:
        base = root.resolve()
        path = (base / name).resolve()
        inside = path.is_relative_to(base)
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"media file {name[:80]!r} cannot be opened: {error}") from error
    if not inside:
        raise DataError(f"media file {name[:80]!r} lies outside the media root")
    if not there:
        raise DataError(f"missing file {name[:200]!r}")
    return path


def estimated_length(raw: RawRecord, tokens: dict[MediaKind, int]) -> int:
    """Words and visual tokens of a record, roughly, for grouping; `tokens` are those of one image and one video."""
    if not isinstance(raw.values, dict):
        return 0
    turns = raw.values.get("conversations")
    words = 0
    if isinstance(turns, list):
        words = sum(len(str(turn.get("value", "")).split()) for turn in turns if isinstance(turn, dict))
    named = {kind: raw.values.get(kind) for kind in KINDS}
    return words + sum(
        tokens.get(kind, 0) * (len(value) if isinstance(value, list) else 1) for kind, value in named.items() if value
    )


def _paths(raw: RawRecord, kind: MediaKind) -> list[Path]:
    named = raw.values.get(kind)
    if named is None or named == "":
        return []
    return [media_path(raw.root, name) for name in (named if isinstance(named, list) else [named])]


def _turns(values: Any) -> list[Turn]:
    if not isinstance(values, list) or not values:
        raise DataError("there is no conversation")
    turns: list[Turn] = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("value"), str):
            raise DataError("a turn has no text")
        role = _ROLES.get(str(value.get("from")))
        if role is None:
            raise DataError(f"a turn is from {str(value.get('from'))[:40]!r}; known: {', '.join(_ROLES)}")
        turns.append(make_turn(role, value["value"]))
    spoken = [turn for turn in turns if turn.role != "system"]
    if spoken and spoken[0].role == "assistant":  # as in LLaVA: an opening line of the assistant's answers nothing
        turns.remove(spoken[0])
    return turns


def _read_lines(path: Path, root: Path) -> list[RawRecord]:
    records: list[RawRecord] = []
    with _readable(path), path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            values, fault = None, ""
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                fault = f"not valid JSON: line {line_number} of {path}: {str(error)[:100]}"
            records.append(RawRecord(values, len(records), root, fault))
    if records and all(record.fault for record in records):
        raise DataError(f"{path} has no line that is valid JSON; the first is {records[0].fault}")
    return records


def _read_list(path: Path) -> list[Any]:
    with _readable(path):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, list):
        raise DataError(f"{path} does not hold a list of records")
    return content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises `DataError` for a file that is too large, and for what goes wrong while the block reads it."""
    try:
        if path.stat().st_size > MAX_DATA_BYTES:
            raise DataError(f"{path} is larger than {MAX_DATA_BYTES} bytes, the limit for such a file")
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {str(error)[:100]}") from error
