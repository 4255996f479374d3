"""Streaming equals decoding the whole, for every decoder and any stop strings."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from filmstrip.testing.tiny import write_tiny_tokenizer
from filmstrip.text import TextStream, Tokenizer
from filmstrip.text.detokenize import (
    ByteFallbackDetokenizer,
    ByteLevelDetokenizer,
    WindowDetokenizer,
    make_detokenizer,
)
from filmstrip.text.stream import first_stop


def build(directory: Path, name: str) -> Tokenizer:
    if name == "sentencepiece":
        write_tiny_tokenizer(directory)
    elif name == "byte-level":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = ["<s>", "</s>", *alphabet, "Ġa", "Ġb", "ðŁ", "ab"]
        backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("Ġ", "a"), ("a", "b")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["<s>", "</s>"])
        backend.add_tokens(["new line", "日本"])
        backend.save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        backend = Backend(
            models.WordLevel({word: i for i, word in enumerate(["<unk>", "a", "b", "日本", "c."])}, "<unk>")
        )
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        if name == "metaspace":
            backend = Backend(models.BPE({piece: i for i, piece in enumerate(["▁", "▁a", "b", "▁日", "▁▁"])}, []))
            backend.decoder = decoders.Metaspace()
        backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    names = ("sentencepiece", "byte-level", "metaspace", "words")
    return {name: build(tmp_path_factory.mktemp(name), name) for name in names}


def test_each_decoder_gets_its_detokenizer(tokenizers: dict[str, Tokenizer]) -> None:
    kinds = {name: type(make_detokenizer(tokenizer)) for name, tokenizer in tokenizers.items()}
    assert kinds == {
        "sentencepiece": ByteFallbackDetokenizer,
        "byte-level": ByteLevelDetokenizer,
        "metaspace": WindowDetokenizer,
        "words": WindowDetokenizer,
    }


def streamed(
    tokenizer: Tokenizer, ids: list[int], stops: list[str], skip_special: bool = True
) -> tuple[list[str], bool, int]:
    """Pieces, whether a stop string ended them, and how many ids that took."""
    stream = TextStream(tokenizer, stops, skip_special=skip_special)
    pieces, used = [], 0
    for token_id in ids:
        if not stream.stopped:
            used += 1
        pieces.append(stream.push(token_id))
    pieces.append(stream.finish())
    return pieces, stream.stopped, used


def whole(tokenizer: Tokenizer, ids: list[int], stops: list[str], skip_special: bool = True) -> tuple[str, bool]:
    """Decode everything, then cut before the stop string that is complete first."""
    text = tokenizer.decode(ids, skip_special=skip_special)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop and stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(data=st.data(), name=st.sampled_from(["sentencepiece", "byte-level", "metaspace", "words"]), skip=st.booleans())
@settings(max_examples=250, deadline=None)
def test_streamed_equals_whole(tokenizers: dict[str, Tokenizer], data: st.DataObject, name: str, skip: bool) -> None:
    tokenizer = tokenizers[name]
    size = tokenizer.vocab_size
    common = [i for word in ("▁", "▁the", " ", "Ġa", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x0A>", "<0x20>", "</s>",
                           "ð", "Ł", "a", "Ċ")
              if (i := tokenizer.token_to_id(word)) is not None]  # fmt: skip
    some = st.integers(0, size - 1)
    ids = data.draw(st.lists(st.sampled_from(common) | some if common else some, max_size=30))
    text = tokenizer.decode(ids, skip_special=skip)
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 4))
    cut_out = places.map(lambda place: text[place[0] : place[0] + place[1]])
    stops = data.draw(st.lists(cut_out | st.text(st.sampled_from("a th</s>\n"), max_size=4), max_size=3))
    pieces, stopped, used = streamed(tokenizer, ids, stops, skip)
    assert ("".join(pieces), stopped) == whole(tokenizer, ids[:used], stops, skip)
    # And no later than it could: where decoding is clean, a stop string is seen with the token that completes it.
    for end in range(used):
        text = tokenizer.decode(ids[:end], skip_special=skip)
        assert "\ufffd" in text or not any(stop in text for stop in stops if stop)


@pytest.mark.parametrize("stop", ["\n", "\n\n", "e\n", "\n\n\n", " \n"])
def test_a_stop_string_of_byte_tokens_ends_at_once(tokenizers: dict[str, Tokenizer], stop: str) -> None:
    tokenizer = tokenizers["sentencepiece"]
    newline = tokenizer.token_to_id("<0x0A>")
    assert newline is not None
    before = tokenizer.encode("the ☃ the" if "e" in stop else "the ☃ ", add_special=False).ids
    ids = [*before, *[newline] * 20]
    pieces, stopped, used = streamed(tokenizer, ids, [stop, "never"])
    assert stopped and used == len(before) + stop.count("\n")
    assert ("".join(pieces), stopped) == whole(tokenizer, ids, [stop])


def test_a_stop_string_in_a_run_that_is_spoilt_already_is_none(tokenizers: dict[str, Tokenizer]) -> None:
    """The whole run decodes to U+FFFD, so the newline in it never was text."""
    tokenizer = tokenizers["sentencepiece"]
    names = ("▁the", "<0xE2>", "<0x0A>", "<0x0A>", "▁the", "<0x0A>", "▁the")
    ids = [i for name in names if (i := tokenizer.token_to_id(name)) is not None]
    assert len(ids) == len(names)
    pieces, stopped, used = streamed(tokenizer, ids, ["\n"])
    assert ("".join(pieces), stopped, used) == ("the\ufffd\ufffd\ufffd the", True, 6)


def test_a_run_of_bytes_without_a_stop_string_is_text_as_a_whole(tokenizers: dict[str, Tokenizer]) -> None:
    """Valid so far is not certain: without a stop string in it, a run waits for its end."""
    tokenizer = tokenizers["sentencepiece"]
    ids = [i for name in ("<0x0A>", "<0x0A>", "<0xFF>") if (i := tokenizer.token_to_id(name)) is not None]
    assert streamed(tokenizer, ids, ["x\n"])[0] == ["", "", "", "\ufffd\ufffd\ufffd"]


@pytest.mark.parametrize("name", ["sentencepiece", "byte-level"])
def test_no_piece_splits_a_character(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    text = "the 👩‍👩‍👧 é日本"
    ids = tokenizer.encode(text, add_special=False).ids
    pieces, _, _ = streamed(tokenizer, ids, [])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 3


def test_text_that_may_begin_a_stop_string_is_held_back(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    stream = TextStream(tokenizer, ["</s>", "USER:"])
    ids = tokenizer.encode("a<b</U<USER:x", add_special=False).ids
    assert [stream.push(i) for i in ids] == ["a", "", "<b", "", "", "</", "U", "<", "", "", "", "", ""]
    assert stream.stopped
    assert stream.stop_string == "USER:"
    assert stream.push(5) == stream.finish() == ""


def test_held_text_comes_out_at_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    stream = TextStream(tokenizer, ["USER:"])
    pieces = [stream.push(i) for i in tokenizer.encode("b USE", add_special=False).ids]
    assert "".join(pieces) == "b "
    assert stream.finish() == "USE"
    assert not stream.stopped


def test_first_stop_is_the_one_completed_first() -> None:
    assert first_stop("abcd", ["abcd", "bc"]) == (1, "bc")
    assert first_stop("abc", ["bc", "abc"]) == (0, "abc")
    assert first_stop("abc", ["x"]) is None


@pytest.mark.parametrize("name", ["sentencepiece", "byte-level", "words"])
def test_cost_per_token_does_not_grow(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    stream = TextStream(tokenizer, ["never seen"])
    token = next(i for word in ("▁the", "Ġa", "a") if (i := tokenizer.token_to_id(word)) is not None)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(2000):
            stream.push(token)
        seconds.append(time.perf_counter() - start)
    # Decoding everything each time would make the third part five times as slow as the first; a busy machine, not.
    assert seconds[2] < 3 * seconds[0] + 0.05
