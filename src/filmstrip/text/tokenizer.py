"""The tokenizer of a Hugging Face checkpoint directory, on library `tokenizers` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from filmstrip.errors import CheckpointError, PromptError
from filmstrip.text.tokenizer_files import TokenizerFiles, read_tokenizer_files, token_text
from filmstrip.text.tokenizer_json import prepare_tokenizer_json

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# `model_max_length` of a tokenizer that was saved without one is a number around 1e30.
_NO_LIMIT = 1_000_000_000


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, the range of characters it came from; added tokens such as BOS have (0, 0)."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Text to token ids and back, equal to what transformers' `AutoTokenizer` builds from the same directory.

    `files` holds the raw bytes the tokenizer was read from, for export. `warnings` says what in them is unusual.
    """

    def __init__(self, backend: Any, files: TokenizerFiles, special_tokens: Mapping[str, str]) -> None:
        self._backend = backend
        self.files: dict[str, bytes] = dict(files.raw)
        self.special_tokens: dict[str, str] = dict(special_tokens)
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id = self._role_id("bos_token")
        self.eos_id = self._role_id("eos_token")
        self.pad_id = self._role_id("pad_token")
        self.unk_id = self._role_id("unk_token")
        limit = files.config.get("model_max_length")
        self.model_max_length: int | None = int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None
        self.special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        decoder = backend.decoder
        self.decoder_spec: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
        self.prefix_ids, self.suffix_ids = self._added_around_text()
        self.add_bos: bool = self.bos_id is not None and self.bos_id in self.prefix_ids
        self.add_eos: bool = self.eos_id is not None and self.eos_id in self.suffix_ids
        self.warnings: tuple[str, ...] = self._flag_warnings(files.config)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Read `tokenizer.json` and its companions.

        Companions (each optional): `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.
        Raises `CheckpointError` when a file is missing, corrupt or contradicts another about a token's id.
        """
        files = read_tokenizer_files(Path(directory))
        special_tokens = _special_tokens(files)
        text, new_special = prepare_tokenizer_json(files, special_tokens)
        path = files.directory / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare `Exception` for anything wrong in the file
            raise CheckpointError(f"{path}: not a usable tokenizer ({error})") from error
        _check_added_ids(backend, files, path)
        backend.add_special_tokens(
            [tokenizers.AddedToken(content, special=True, normalized=False) for content in new_special]
        )
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(files.config.get("split_special_tokens", False))
        return cls(backend, files, special_tokens)

    def encode(self, text: str, *, add_special: bool = True) -> Encoded:
        """Tokenise one text as a whole.

        Special tokens written in the text (`</s>`, `<video>`) are recognised, as transformers does by default.
        `add_special` puts BOS (and EOS, if the checkpoint says so) around it. Raises `PromptError` for text that is
        not valid Unicode.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special)
        except (TypeError, UnicodeEncodeError) as error:
            raise PromptError("the prompt contains bytes that are not valid Unicode text") from error
        return Encoded(list(encoding.ids), [tuple(offset) for offset in encoding.offsets])

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Turn ids into text; ids outside the vocabulary give nothing, as in transformers."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def token_to_id(self, token: str) -> int | None:
        """The id of a token spelt exactly so, or None."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def id_to_token(self, token_id: int) -> str | None:
        """The spelling of a token in the vocabulary, or None."""
        found = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return None if found is None else str(found)

    def _role_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.token_to_id(token)

    def _added_around_text(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids the post-processor puts before and after any text."""
        encoding = self._backend.encode("a", add_special_tokens=True)
        added = [i for i, flag in enumerate(encoding.special_tokens_mask) if flag]
        if len(added) == len(encoding.ids):
            return tuple(encoding.ids), ()
        first_text = next(i for i, flag in enumerate(encoding.special_tokens_mask) if not flag)
        before = tuple(encoding.ids[i] for i in added if i < first_text)
        after = tuple(encoding.ids[i] for i in added if i > first_text)
        return before, after

    def _flag_warnings(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Flags that transformers 5 ignores when there is a `tokenizer.json`, where they contradict it."""
        states = (("add_bos_token", self.add_bos), ("add_eos_token", self.add_eos))
        return tuple(
            f"tokenizer_config.json says {flag} {str(config[flag]).lower()}, but tokenizer.json's post-processor "
            "decides (as in transformers 5) and does the opposite"
            for flag, state in states
            if isinstance(config.get(flag), bool) and config[flag] != state
        )


def _special_tokens(files: TokenizerFiles) -> dict[str, str]:
    """Role to token, from `tokenizer_config.json`, then (old directories) `special_tokens_map.json`, then defaults."""
    found: dict[str, str] = {}
    if files.is_llama:
        found.update(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    sources = [files.config]
    if "added_tokens_decoder" not in files.config:
        sources.append(files.special_map)
    for source in sources:
        for key, value in source.items():
            if not key.endswith("_token"):
                continue
            text = token_text(value)
            if text:
                found[key] = text
            elif value is None and key in ROLES:
                found.pop(key, None)
    return found


def _check_added_ids(backend: Any, files: TokenizerFiles, path: Path) -> None:
    """Every added token must have got the id its file promises: another id means a gap or a clash."""
    for token in files.added_tokens:
        got = backend.token_to_id(token.content)
        if got != token.id:
            raise CheckpointError(
                f"{path}: added token {token.content!r} is said to have id {token.id} ({token.origin}), but it follows "
                f"the vocabulary at id {got}; the ids of added tokens must continue the vocabulary without a gap"
            )
