"""The tokenizer's files: hostile, corrupt and contradictory ones give one clear line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from filmstrip.errors import CheckpointError, PromptError
from filmstrip.testing.tiny import tiny_vocabulary_size, write_tiny_tokenizer
from filmstrip.text import Tokenizer
from filmstrip.text import tokenizer_files as files_module

SIZE = tiny_vocabulary_size()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_tokenizer(tmp_path)
    return tmp_path


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_attributes(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, SIZE + 2)
    assert tokenizer.vocab_size == SIZE + 3
    assert tokenizer.model_max_length == 512
    assert tokenizer.add_bos
    assert not tokenizer.add_eos
    assert tokenizer.warnings == ()
    assert set(tokenizer.files) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert tokenizer.files["tokenizer.json"] == (directory / "tokenizer.json").read_bytes()
    assert tokenizer.token_to_id("<video>") == SIZE + 1
    assert tokenizer.id_to_token(SIZE + 1) == "<video>"
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_token(10**9) is None
    assert tokenizer.id_to_token(-1) is None


def test_offsets_point_into_the_text(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    text = "USER: é <video>\nwhat"
    encoded = tokenizer.encode(text)
    pieces = [(tokenizer.id_to_token(i), text[a:b]) for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)]
    assert pieces[0] == ("<s>", "")
    assert pieces[1][1] == "USER"
    assert ("<video>", "<video>") in pieces
    assert [piece for piece in pieces if piece[1] == "é"] == [("<0xC3>", "é"), ("<0xA9>", "é")]


def test_crlf_and_byte_order_mark(directory: Path) -> None:
    expected = Tokenizer.from_directory(directory).encode("what is this").ids
    for path in directory.glob("*.json"):
        text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text)
    assert Tokenizer.from_directory(directory).encode("what is this").ids == expected


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json and no tokenizer\.model$"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"sp")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"model": 3}', b"[" * 100_000], ids=repr
)
def test_corrupt_tokenizer_json(directory: Path, content: bytes) -> None:
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: ") as caught:
        Tokenizer.from_directory(directory)
    assert "\n" not in str(caught.value)


def test_file_size_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(CheckpointError, match="more than the 100"):
        Tokenizer.from_directory(directory)


def entry(token_id: int, content: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"id": token_id, "content": content, **flags}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer.json", lambda c: c["added_tokens"].append(entry(5000, "<gap>")), "'<gap>' is said to have id 5000"),
        ("tokenizer.json", lambda c: c["added_tokens"].append(entry(1, "<clash>")), "clash: '<s>' has id 1"),
        ("tokenizer.json", lambda c: c["added_tokens"].append(entry(7, "USER")), "'USER'|clash"),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": "x", "content": "y"}), "cannot be read"),
        ("tokenizer.json", lambda c: c["added_tokens"].append(entry(-4, "<n>")), "cannot be read"),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": 1.9, "content": "y"}), "id 1.9"),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": True, "content": "y"}), "id True"),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": "3", "content": "y"}), "id '3'"),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": float("inf"), "content": "y"}), "id inf"),
        ("added_tokens.json", lambda c: c.update({"<new>": 1.9}), "id 1.9"),
        *(
            ("tokenizer_config.json", lambda c, key=key: c.update(added_tokens_decoder={key: entry(0, "<n>")}), "id '")
            for key in ("1.9", "-1", " 1", "1_0", "", "x", "\u0663", "9" * 5000)
        ),
        ("tokenizer.json", lambda c: c["model"].update(type="WordLevel"), "needs a BPE model, not 'WordLevel'"),
        ("tokenizer.json", lambda c: c["post_processor"].update(special_tokens={}), "uses the token '<s>'"),
        ("tokenizer.json", lambda c: c["model"]["merges"].append(["q", "nope"]), "not a usable tokenizer"),
        ("tokenizer_config.json", lambda c: c.update(added_tokens_decoder=[1]), "not an object"),
        (
            "tokenizer_config.json",
            lambda c: c.update(added_tokens_decoder={str(SIZE): entry(0, "<other>")}),
            f"'<other>' has id {SIZE} in tokenizer_config.json, '<image>' has id {SIZE} in tokenizer.json",
        ),
        ("added_tokens.json", lambda c: c.update({"<new>": SIZE + 40}), f"said to have id {SIZE + 40}"),
        ("added_tokens.json", lambda c: c.update({"<video>": SIZE}), "'<video>' has id"),
    ],
)
def test_contradictions_name_the_token(
    directory: Path, name: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(directory / name, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_directory(directory)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_unicode(directory: Path) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        Tokenizer.from_directory(directory).encode("a \ud800 lone surrogate")


def test_truncation_and_padding_in_the_file_are_ignored(directory: Path) -> None:
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(
        directory / "tokenizer.json",
        lambda c: c.update(padding=padding | {"pad_type_id": 0, "pad_token": "<unk>"}, truncation=truncation),
    )
    assert len(Tokenizer.from_directory(directory).encode("what is this video").ids) == 5


def test_an_id_that_overflows(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"id": 0,', '"id": 1e999,', 1))
    assert "1e999" in path.read_text()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: added tokens cannot be read .*id inf") as caught:
        files_module.read_tokenizer_files(directory).added_tokens  # noqa: B018 (a property that raises)
    assert "\n" not in str(caught.value)
