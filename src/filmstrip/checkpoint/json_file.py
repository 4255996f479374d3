"""JSON from outside: bounded in size, no duplicate keys, an object at the top, one line per error."""

import json
from pathlib import Path
from typing import Any

from filmstrip.errors import CheckpointError
from filmstrip.links import require_inside

MAX_JSON_BYTES = 16 * 2**20  # configurations are kilobytes, the index of a 7B checkpoint 112 kB
LFS_POINTER = b"version https://git-lfs"


class DuplicateKeyError(ValueError):
    """A JSON object names a key twice."""


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in `path`. Line ends may be CRLF; a byte-order mark is skipped.

    Raises `CheckpointError` if the file is missing, larger than `limit` bytes, or not one JSON object.
    """
    return parse_json(read_bounded(path, limit), str(path))


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; `CheckpointError` otherwise."""
    try:
        require_inside(path)
        if not path.is_file():
            raise CheckpointError(f"{path} is not there, or not a file")
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if raw.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")
    if len(raw) > limit:
        raise CheckpointError(f"{path} is larger than {limit} bytes, the limit for such a file")
    return raw


def parse_json(raw: bytes, source: str) -> dict[str, Any]:
    """The object that `raw` holds; `source` names it in the `CheckpointError` raised otherwise."""
    try:
        content = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse)
    except DuplicateKeyError as error:
        raise CheckpointError(f"{source} names the key {error.args[0]!r} twice") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{source} is not valid JSON: {error.msg} ({place})") from error
    except RecursionError as error:
        raise CheckpointError(f"{source} is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{source} is not valid JSON: a number is not acceptable") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} does not hold a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise DuplicateKeyError(key)
        content[key] = value
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(constant)
