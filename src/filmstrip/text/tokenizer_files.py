"""Reading the files of a tokenizer, which come from outside: sizes are bounded and shapes are checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filmstrip.errors import CheckpointError
from filmstrip.links import require_inside
from filmstrip.text.sentencepiece import sentencepiece_tokenizer

TOKENIZER_FILE = "tokenizer.json"
FILE_NAMES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SENTENCEPIECE_FILE = "tokenizer.model"

# The largest published tokenizer.json files (256k entries with merges) take about 35 MB.
MAX_FILE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class FileToken:
    """An added token as a file states it. `origin` is the file, for messages."""

    content: str
    id: int
    special: bool
    origin: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    def to_json(self) -> dict[str, Any]:
        """The entry of `tokenizer.json`'s `added_tokens`."""
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return {"id": self.id, "content": self.content} | {flag: getattr(self, flag) for flag in flags}


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files of one directory and their raw bytes."""

    directory: Path
    raw: Mapping[str, bytes]
    tokenizer: dict[str, Any]
    config: dict[str, Any]
    special_map: dict[str, Any]
    added_map: dict[str, Any]

    @cached_property
    def is_llama(self) -> bool:
        """Whether transformers 5 would rebuild this tokenizer as its `LlamaTokenizer`.

        It does so for that class name, unless the file is byte-level BPE (LLaMA 3 checkpoints that carry the old name).
        """
        name = str(self.config.get("tokenizer_class") or "").removesuffix("Fast")
        return name == "LlamaTokenizer" and b'"ByteLevel"' not in self.raw["tokenizer.json"]

    @cached_property
    def added_tokens(self) -> tuple[FileToken, ...]:
        """Added tokens of all files by id; raises `CheckpointError` when two files disagree about an id.

        For a rebuilt LLaMA tokenizer the flags of `tokenizer_config.json` win over those of `tokenizer.json`,
        otherwise it is the other way round (transformers 5 adds them in these orders, and the first one stays).
        """
        own = self._entries(self.tokenizer.get("added_tokens") or [], "tokenizer.json")
        config = self._config_entries()
        ranked = config + own if self.is_llama and "added_tokens_decoder" in self.config else own + config
        by_content: dict[str, FileToken] = {}
        by_id: dict[int, FileToken] = {}
        for token in ranked:
            known = by_content.setdefault(token.content, token)
            holder = by_id.setdefault(token.id, token)
            if known.id != token.id or holder.content != token.content:
                other = known if known.id != token.id else holder
                raise CheckpointError(
                    f"{self.directory}: added tokens clash: {other.content!r} has id {other.id} in {other.origin}, "
                    f"{token.content!r} has id {token.id} in {token.origin}"
                )
        return tuple(sorted(by_content.values(), key=lambda token: token.id))

    @cached_property
    def extra_special(self) -> tuple[str, ...]:
        """Special tokens without a role: `additional_special_tokens`, in newer files `extra_special_tokens`."""
        found: list[str] = []
        for source in (self.config, self.special_map):
            for key in ("extra_special_tokens", "additional_special_tokens"):
                value = source.get(key) or []
                found += [token_text(item) for item in (value.values() if isinstance(value, dict) else value)]
        return tuple(dict.fromkeys(text for text in found if text))

    def _config_entries(self) -> list[FileToken]:
        decoder = self.config.get("added_tokens_decoder")
        if decoder is not None:
            if not isinstance(decoder, dict):
                raise CheckpointError(f"{self.directory}/tokenizer_config.json: added_tokens_decoder is not an object")
            entries = [
                {**(entry if isinstance(entry, dict) else {"content": entry}), "id": _id_of_key(key)}
                for key, entry in decoder.items()
            ]
            return self._entries(entries, "tokenizer_config.json")
        roles = {
            token_text(value)
            for source in (self.config, self.special_map)
            for key, value in source.items()
            if key.endswith("_token")
        } | set(self.extra_special)
        entries = [
            {"content": content, "id": token_id, "special": content in roles, "normalized": content not in roles}
            for content, token_id in self.added_map.items()
        ]
        return self._entries(entries, "added_tokens.json")

    def _entries(self, entries: Any, origin: str) -> list[FileToken]:
        tokens = []
        try:
            for entry in entries:
                content, token_id = entry["content"], entry["id"]
                # An id is a whole number as it stands: 1.9 is none, and neither is 1e999 (infinity).
                if (
                    type(token_id) is not int
                    or not 0 <= token_id < 2**31
                    or not isinstance(content, str)
                    or not content
                ):
                    raise ValueError(f"entry {str(content)[:80]!r} with id {repr(token_id)[:20]}")
                special = bool(entry.get("special", False))
                token = FileToken(
                    content=content,
                    id=token_id,
                    special=special,
                    origin=origin,
                    single_word=bool(entry.get("single_word", False)),
                    lstrip=bool(entry.get("lstrip", False)),
                    rstrip=bool(entry.get("rstrip", False)),
                    normalized=bool(entry.get("normalized", not special)),
                )
                tokens.append(token)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.directory / origin}: added tokens cannot be read ({error})") from error
        return tokens


def _id_of_key(key: str) -> int | str:
    """The id that a key of `added_tokens_decoder` spells; the key itself, to be refused, if it spells none."""
    return int(key) if re.fullmatch("[0-9]{1,10}", key) else key


def token_text(value: object) -> str:
    """The spelling of a token given as text or as an `AddedToken` object; empty for anything else."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the four files; a `tokenizer.json` that is not there is made from LLaMA's `tokenizer.model`.

    Raises `CheckpointError`, also when there is neither.
    """
    raw = {name: _read_bytes(directory / name) for name in FILE_NAMES if (directory / name).is_file()}
    parsed = {name: parse_object(data, directory / name) for name, data in raw.items()}
    if "tokenizer.json" not in raw:
        path = directory / SENTENCEPIECE_FILE
        if not path.is_file():
            raise CheckpointError(f"{directory}: there is no tokenizer.json and no {SENTENCEPIECE_FILE}")
        content = sentencepiece_tokenizer(_read_bytes(path), parsed.get("tokenizer_config.json", {}), path)
        raw["tokenizer.json"] = json.dumps(content, ensure_ascii=False).encode()
        parsed["tokenizer.json"] = content
    return TokenizerFiles(
        directory=directory,
        raw=raw,
        tokenizer=parsed["tokenizer.json"],
        config=parsed.get("tokenizer_config.json", {}),
        special_map=parsed.get("special_tokens_map.json", {}),
        added_map=parsed.get("added_tokens.json", {}),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        require_inside(path)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {size} bytes is more than the {MAX_FILE_BYTES} a tokenizer file may have")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object (any line ends, with or without byte order mark). Raises `CheckpointError`."""
    try:
        parsed = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: a JSON object was expected, not {type(parsed).__name__}")
    return parsed
