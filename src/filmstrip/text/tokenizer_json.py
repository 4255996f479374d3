"""What transformers 5 changes in a `tokenizer.json` before it uses it, written as an edit of that file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from filmstrip.errors import CheckpointError
from filmstrip.text.sentencepiece import llama_tokenizer_parts
from filmstrip.text.tokenizer_files import TokenizerFiles


def prepare_tokenizer_json(files: TokenizerFiles, special_tokens: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text for `tokenizers.Tokenizer.from_str`, and special tokens to add behind the vocabulary.

    A LLaMA tokenizer gets its normaliser, pre-tokeniser and decoder rebuilt from the `legacy` and `add_prefix_space`
    flags, as transformers 5.23 `LlamaTokenizer` does; what `tokenizer.json` stores for them is ignored.
    Raises `CheckpointError`.
    """
    path = files.directory / "tokenizer.json"
    original = files.tokenizer
    _check_post_processor(original.get("post_processor"), str(path))
    edited = dict(original)
    if files.is_llama:
        edited |= _llama_parts(original, files.config, str(path))
    named = list(dict.fromkeys([*special_tokens.values(), *files.extra_special]))
    entries = []
    for token in files.added_tokens:
        entry = token.to_json()
        if files.is_llama and token.content in named:
            entry["special"] = True
        entries.append(entry)
    vocabulary = _vocabulary(original)
    for token in files.added_tokens:
        known = vocabulary.get(token.content)
        if known is not None and known != token.id:
            raise CheckpointError(
                f"{files.directory}: added token {token.content!r} has id {token.id} in {token.origin}, "
                f"but id {known} in the vocabulary of tokenizer.json"
            )
    edited["added_tokens"] = entries
    listed = {token.content for token in files.added_tokens}
    new_special = [content for content in named if content not in listed]
    unchanged = edited == original
    text = files.raw["tokenizer.json"].decode("utf-8-sig") if unchanged else json.dumps(edited, ensure_ascii=False)
    return text, new_special


def _vocabulary(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    return vocab if isinstance(vocab, dict) else {}


def _llama_parts(tokenizer: Mapping[str, Any], config: Mapping[str, Any], path: str) -> dict[str, Any]:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise CheckpointError(f"{path}: a LlamaTokenizer needs a BPE model, not {kind!r}")
    return llama_tokenizer_parts(
        model.get("vocab", {}),
        model.get("merges", []),
        prefix_space=config.get("add_prefix_space") is not False,
        legacy=bool(config.get("legacy") or False),
    )


def _check_post_processor(part: object, path: str) -> None:
    """A template that names an undefined token makes the library abort at the first encoding: refuse it here."""
    if not isinstance(part, dict):
        return
    processors = part.get("processors")
    for inner in processors if isinstance(processors, list) else []:
        _check_post_processor(inner, path)
    if part.get("type") != "TemplateProcessing":
        return
    defined = part.get("special_tokens")
    pieces = part.get("single")
    for piece in pieces if isinstance(pieces, list) else []:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        known = isinstance(name, str) and isinstance(defined, dict) and name in defined
        if name is not None and not known:
            raise CheckpointError(f"{path}: the post-processor uses the token {name!r} without defining it")
