"""A SentencePiece model file (`tokenizer.model`, as LLaMA's first releases have it) as the content of `tokenizer.json`.

The file is one protocol buffer, `ModelProto` of google/sentencepiece `src/sentencepiece_model.proto`; the few fields
that say what a BPE tokenizer does are read here, bounded and without the library. Only BPE with an identity normaliser
is built, which is what LLaMA, Vicuna and Mistral have.
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmstrip.errors import CheckpointError

SPACE_MARK = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces, here and in GGUF files
MAX_PIECE = 512  # characters
MAX_PIECES = 2**20
Around = tuple[str | None, str | None]  # the tokens put before and after a text

_BPE = 2  # TrainerSpec.model_type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass
class SentencePieceModel:
    """The pieces of a vocabulary with their scores and kinds, and the settings that a BPE tokenizer depends on."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = 1
    prefix_space: bool = True
    has_charsmap: bool = False


def sentencepiece_tokenizer(raw: bytes, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content of the `tokenizer.json` that `raw`, the bytes of a `tokenizer.model`, stands for.

    `config` is the content of `tokenizer_config.json`: it says whether BOS (yes, if it is silent) and EOS (no) are put
    around a text. Raises `CheckpointError`, one line, for a file that is damaged or another kind of tokenizer.
    """
    try:
        model = _read_model(raw)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model ({error})") from error
    if not model.pieces or len(set(model.pieces)) < len(model.pieces):
        raise CheckpointError(f"{path}: not a SentencePiece model (no pieces, or one twice)")
    if model.kind != _BPE or model.has_charsmap:
        raise CheckpointError(
            f"{path}: only BPE without a normalisation table is read; save it once as tokenizer.json with "
            "transformers' fast tokenizer"
        )
    parts = sentencepiece_parts(model.pieces, model.scores, model.types, str(path), prefix_space=model.prefix_space)
    bos = "<s>" if config.get("add_bos_token", True) and "<s>" in model.pieces else None
    eos = "</s>" if config.get("add_eos_token", False) and "</s>" in model.pieces else None
    special = [piece for piece in ("<unk>", "<s>", "</s>") if piece in model.pieces]
    return tokenizer_content(model.pieces, model.types, parts, special, (bos, eos))


def tokenizer_content(
    tokens: Sequence[str], types: Sequence[int], parts: Mapping[str, Any], special: Collection[str], around: Around
) -> dict[str, Any]:
    """A whole `tokenizer.json`: the model's `parts`, control and user-defined tokens, and what stands around a text."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types, set(special)),
        **parts,
        "post_processor": _template(around, tokens),
    }


def sentencepiece_parts(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], source: str, *, prefix_space: bool
) -> dict[str, Any]:
    """Model, pre-tokeniser and decoder of a SentencePiece BPE vocabulary. `CheckpointError` for endless pieces."""
    if any(len(token) > MAX_PIECE for token in tokens):
        raise CheckpointError(f"{source}: a piece of the vocabulary is longer than {MAX_PIECE} characters")
    ids = {token: index for index, token in enumerate(tokens)}
    made = {token: scores[index] for token, index in ids.items() if types[index] in (NORMAL, USER_DEFINED)}
    merges = [list(pair) for pair in merges_from_scores(made, ids)]
    return llama_tokenizer_parts(ids, merges, prefix_space=prefix_space, legacy=False)


def llama_tokenizer_parts(vocab: Any, merges: Any, *, prefix_space: bool, legacy: bool) -> dict[str, Any]:
    """Normaliser, pre-tokeniser, decoder and model of a LLaMA `tokenizer.json`, as transformers 5.23 builds them."""
    scheme = "never" if not prefix_space else ("always" if legacy else "first")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE_MARK,
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def merges_from_scores(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary, which stores none: every split of a piece into two, best first.

    SentencePiece joins, of all neighbours whose union is a piece, the pair with the highest score; as a list of merges
    that is all pairs in order of the score of what they make. Equal scores are ordered as transformers does it.
    """
    found = []
    for piece, score in scores.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = sorted(
            (split for split in splits if split[0] in ids and split[1] in ids), key=lambda s: (ids[s[0]], ids[s[1]])
        )
        found += [(score, *split) for split in known]
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _added_tokens(tokens: Sequence[str], types: Sequence[int], special: Collection[str]) -> list[dict[str, Any]]:
    """The tokens that are matched whole before text is cut: control tokens, and what users defined."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind == CONTROL or token in special}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) or token in special
    ]


def _template(around: Around, tokens: Sequence[str]) -> dict[str, Any] | None:
    """The post-processor that puts BOS before and EOS after a text."""
    before, after = around
    if before is None and after is None:
        return None

    def piece(sequence: str, type_id: int) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if before is not None:
            entries.insert(0, {"SpecialToken": {"id": before, "type_id": type_id}})
        if after is not None:
            entries.append({"SpecialToken": {"id": after, "type_id": type_id}})
        return entries

    special = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in around if token}
    return {
        "type": "TemplateProcessing",
        "single": piece("A", 0),
        "pair": piece("A", 0) + piece("B", 1),
        "special_tokens": special,
    }


def _read_model(raw: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            piece, score, kind = _read_piece(value)
            model.pieces.append(piece)
            model.scores.append(score)
            model.types.append(kind)
            if len(model.pieces) > MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES} pieces")
        elif number == 2 and isinstance(value, bytes):
            model.kind = next((int(found) for key, found in _fields(value) if key == 3), model.kind)
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            model.has_charsmap = bool(normalizer.get(2))
            model.prefix_space = bool(normalizer.get(3, 1))
    return model


def _read_piece(raw: bytes) -> tuple[str, float, int]:
    piece, score, kind = "", 0.0, NORMAL
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            piece = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    return piece, score, kind


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message by number: varints as integers, everything else as its bytes. Raises `ValueError`."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(raw, position)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(raw, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if length > len(raw) - position:
            raise ValueError("it ends early")
        yield tag >> 3, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    value = 0
    for index in range(10):
        if position + index >= len(raw):
            raise ValueError("it ends early")
        byte = raw[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, position + index + 1
    raise ValueError("a number is too long")
