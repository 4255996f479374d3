"""LLaMA's `tokenizer.model`: read without the library, and damaged files are one line."""

import json
import struct
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.files import open_tensors
from filmstrip.diagnostics.doctor import diagnose
from filmstrip.errors import CheckpointError
from filmstrip.testing.original import write_original_checkpoint
from filmstrip.testing.tiny import write_json
from filmstrip.text.sentencepiece import SentencePieceModel, _read_model, sentencepiece_tokenizer
from filmstrip.text.tokenizer import Tokenizer

WORDS = ("the", "then", "hello", "in", "inn")
TEXTS = ("the inn", "then hello  the", " leading", "naïve café", "日本 👩‍👩‍👧", "", "hellothenin é", "a</s>b<s>")


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def pieces() -> list[tuple[str, float, int]]:
    found = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
    made = ["▁", *dict.fromkeys("".join(WORDS)), "é"]
    for word in WORDS:
        made += [f"▁{word}"[:end] for end in range(2, len(word) + 2)]
    return found + [(piece, -float(rank), 1) for rank, piece in enumerate(dict.fromkeys(made))]


def model_file(kind: int = 2, charsmap: bytes = b"", prefix_space: bool = True, entries: Any = None) -> bytes:
    """A `tokenizer.model` written by hand from the published schema; a default type is left out, as protobuf does."""
    raw = b""
    for piece, score, of_kind in pieces() if entries is None else entries:
        raw += message(
            1,
            message(1, piece.encode())
            + b"\x15"
            + struct.pack("<f", score)
            + (b"" if of_kind == 1 else b"\x18" + varint(of_kind)),
        )
    trainer = b"\x18" + varint(kind) + message(1, b"corpus.txt") + varint(35 << 3) + b"\x01" + varint(40 << 3) + b"\x00"
    normalizer = message(1, b"identity") + message(2, charsmap) + varint(3 << 3) + varint(int(prefix_space))
    return raw + message(2, trainer) + message(3, normalizer)


def reference(text: str, prefix_space: bool = True) -> list[int]:
    """SentencePiece's BPE: join the neighbours whose union scores best, leftmost first; the rest is spelt in bytes."""
    ids = {piece: index for index, (piece, _, _) in enumerate(pieces())}
    scores = {piece: score for piece, score, kind in pieces() if kind == 1}
    text = text if text.startswith(" ") or not prefix_space or not text else f" {text}"
    symbols = list(text.replace(" ", "▁"))
    while True:
        joined = [(scores[a + b], -at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not joined:
            break
        at = -max(joined)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    spelt = [[ids[s]] if s in ids else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [token_id for part in spelt for token_id in part]


def write(directory: Path, raw: bytes, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.model").write_bytes(raw)
    if config:
        write_json(directory / "tokenizer_config.json", config)
    return directory


def test_tokens_are_sentencepiece_s(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write(tmp_path, model_file(), tokenizer_class="LlamaTokenizer"))
    for text in TEXTS[:-1]:
        assert tokenizer.encode(text, add_special=False).ids == reference(text), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.removeprefix(" ")
    assert tokenizer.encode("the").ids == [1, *reference("the")]
    assert tokenizer.encode("</s>", add_special=False).ids == [2]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="then hlo é☃", max_size=24))
def test_on_any_text(text: str) -> None:
    import tokenizers

    content = sentencepiece_tokenizer(model_file(), {"add_bos_token": False}, Path("x"))
    assert tokenizers.Tokenizer.from_str(json.dumps(content)).encode(text).ids == reference(text)


def test_flags(tmp_path: Path) -> None:
    plain = Tokenizer.from_directory(write(tmp_path / "a", model_file(prefix_space=False)))
    assert plain.encode("the", add_special=False).ids == reference("the", prefix_space=False) != reference("the")
    around = Tokenizer.from_directory(write(tmp_path / "b", model_file(), add_bos_token=False, add_eos_token=True))
    assert around.encode("the").ids == [*reference("the"), 2]


def test_a_tokenizer_json_wins(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path)
    before = Tokenizer.from_directory(tmp_path).vocab_size
    write(tmp_path, model_file())
    assert Tokenizer.from_directory(tmp_path).vocab_size == before


def test_an_original_checkpoint_with_nothing_else_is_converted(tmp_path: Path) -> None:
    """As the published one is: a slow tokenizer's files only. The converted one has tokenizer.json and placeholders."""
    write_original_checkpoint(tmp_path / "original")
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / "original" / name).unlink()
    write(tmp_path / "original", model_file(), tokenizer_class="LlamaTokenizer", pad_token="<unk>", legacy=False)
    found = {finding.code for finding in diagnose(tmp_path / "original").findings if finding.severity != "note"}
    assert not {code for code in found if code.startswith("tokenizer")}, found
    write_output(convert(tmp_path / "original", ConvertOptions()), tmp_path / "hf", WriteOptions())
    tokenizer = Tokenizer.from_directory(tmp_path / "hf")
    first = len(pieces())
    assert [tokenizer.token_to_id(t) for t in ("<image>", "<video>", "<pad>")] == [first, first + 1, first + 2]
    assert open_tensors(tmp_path / "hf").tensors["language_model.lm_head.weight"].shape[0] == 408  # rows were free
    output = convert(tmp_path / "hf", ConvertOptions(to="pku"))
    assert (output.dropped_rows, output.tensors["lm_head.weight"].shape[0]) == (0, 408)
    assert tokenizer.encode("the<video>in").ids == [
        1,
        *reference("the"),
        first + 1,
        *reference("in", prefix_space=False),
    ]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no pieces"),
        (b"sp", "not a SentencePiece model"),
        (model_file(kind=1), "only BPE without a normalisation table"),
        (model_file(charsmap=b"\x01\x02"), "only BPE without a normalisation table"),
        (model_file(entries=[("a", 0.0, 1), ("a", 0.0, 1)]), "one twice"),
        (model_file(entries=[("a" * 600, 0.0, 1)]), "longer than 512 characters"),
        (model_file()[:-1], "it ends early"),
        (b"\x0a" + b"\xff" * 12, "a number is too long"),
        (b"\x0b\x00", "unknown wire type 3"),
        (message(1, message(1, b"\xff\xfe")), "not a SentencePiece model"),
        (message(1, message(2, b"xy")), "not a SentencePiece model"),
    ],
    ids=range(11),
)
def test_damaged_files_are_one_line(tmp_path: Path, raw: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        Tokenizer.from_directory(write(tmp_path, raw))
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.builds(lambda end: model_file()[:end], st.integers(0, 4000)))
def test_any_bytes_give_a_model_or_a_value_error(raw: bytes) -> None:
    with suppress(ValueError, struct.error):
        assert isinstance(_read_model(raw), SentencePieceModel)
