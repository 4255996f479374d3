"""The tokenizer in a GGUF file as the files of a Hugging Face directory.

A GGUF file holds the vocabulary, and of the way text is cut only a name: `tokenizer.ggml.model` is `llama`
(SentencePiece BPE with byte fallback) or `gpt2` (byte-level BPE), and for the latter `tokenizer.ggml.pre` names the
regular expressions that cut text before the merges apply. They are taken from llama.cpp (`src/llama-vocab.cpp`), which
took them from the models' own `tokenizer.json`.
"""

import json
from collections.abc import Mapping
from typing import Any

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.gguf import gguf_fields
from filmstrip.checkpoint.gguf_file import GgufFile
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.text.sentencepiece import NORMAL, sentencepiece_parts, tokenizer_content

_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ROLE_DEFAULTS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}  # of SentencePiece vocabularies, as in llama.cpp

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# Each expression is applied to the pieces that the one before it left.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = (
    {"default": _DEFAULT, "gpt-2": (_GPT2,), "tekken": (_TEKKEN,), "qwen2": (_QWEN2,)}
    | dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", _GPT2))
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (_LLAMA3,))
)
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a piece that is a token is not built by merges


def gguf_tokenizer_files(file: GgufFile, vocab_size: int) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, by name.

    Raises `ConfigError` for a kind of tokenizer that is not known here, `CheckpointError` for a vocabulary that is
    missing, larger than the embedding or contradicts itself.
    """
    fields = gguf_fields(file)
    kind = fields.choice("tokenizer.ggml.model", "(absent)", ("llama", "gpt2"))
    tokens = _texts(fields, "tokenizer.ggml.tokens")
    types = _numbers(fields, "tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not tokens or len(set(tokens)) < len(tokens) or len(types) != len(tokens):
        raise CheckpointError(f"{file.path}: the vocabulary is empty, names a token twice, or lacks types")
    if len(tokens) > vocab_size:
        raise CheckpointError(f"{file.path}: {len(tokens):,} tokens, but the embedding has {vocab_size:,} rows")
    roles = _roles(fields, tokens, _ROLE_DEFAULTS if kind == "llama" else {})
    parts = _sentencepiece(fields, tokens, types) if kind == "llama" else _byte_level(fields, tokens)
    add_bos = fields.boolean("tokenizer.ggml.add_bos_token", kind == "llama" or _pre(fields) in _WHOLE_WORDS_FIRST)
    add_eos = fields.boolean("tokenizer.ggml.add_eos_token", False)
    around = (roles.get("bos_token") if add_bos else None, roles.get("eos_token") if add_eos else None)
    tokenizer = tokenizer_content(tokens, types, parts, roles.values(), around)
    config: dict[str, Any] = roles | {
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.integer("llama.context_length", 2048),
        "tokenizer_class": "LlamaTokenizer" if kind == "llama" else "PreTrainedTokenizerFast",
    }
    if kind == "llama":
        config |= {"legacy": False, "add_prefix_space": _prefix_space(fields)}
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    contents = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    return {name: json.dumps(content, ensure_ascii=False, indent=2).encode() for name, content in contents.items()}


def _texts(fields: Fields, key: str) -> list[str]:
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{fields.where}: {key} is not a list of texts")
    return value


def _numbers(fields: Fields, key: str, default: list[Any]) -> list[Any]:
    value = fields.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or not all(isinstance(number, int | float) for number in value):
        raise ConfigError(f"{fields.where}: {key} is not a list of numbers")
    return value


def _roles(fields: Fields, tokens: list[str], defaults: Mapping[str, int]) -> dict[str, str]:
    found = {}
    for role, name in _ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in fields or role in defaults:
            found[role] = tokens[fields.integer(key, defaults.get(role, 0), low=0, high=len(tokens) - 1)]
    return found


def _prefix_space(fields: Fields) -> bool:
    return fields.boolean("tokenizer.ggml.add_space_prefix", True)


def _pre(fields: Fields) -> str:
    return str(fields.get("tokenizer.ggml.pre") or "default")


def _sentencepiece(fields: Fields, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = _numbers(fields, "tokenizer.ggml.scores", [])
    if len(scores) != len(tokens):
        raise ConfigError(f"{fields.where}: tokenizer.ggml.scores does not have one number for each token")
    return sentencepiece_parts(tokens, scores, types, fields.where, prefix_space=_prefix_space(fields))


def _byte_level(fields: Fields, tokens: list[str]) -> dict[str, Any]:
    pre = _pre(fields)
    if pre not in PRE_TOKENIZERS:
        raise fields.error(
            "tokenizer.ggml.pre",
            f"known: {', '.join(PRE_TOKENIZERS)}; without a tokenizer the weights can be converted alone",
        )
    merges = [merge.split(" ") for merge in _texts(fields, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ConfigError(f"{fields.where}: tokenizer.ggml.merges has an entry that is not two pieces")
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in PRE_TOKENIZERS[pre]
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS_FIRST,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
