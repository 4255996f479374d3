"""GGUF: the container is bounded, values equal the library's, and the model is the one that was written."""

import json
import struct
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmstrip.checkpoint import gguf_file
from filmstrip.checkpoint.convert_gguf import gguf_output
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.gguf import gguf_dtype, gguf_text_config
from filmstrip.checkpoint.gguf_file import read_gguf
from filmstrip.checkpoint.gguf_tokenizer import PRE_TOKENIZERS
from filmstrip.config import RopeConfig
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError
from filmstrip.ops.rope import inverse_frequencies
from filmstrip.text.sentencepiece import merges_from_scores
from filmstrip.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="the library gguf is not installed")
helpers = pytest.importorskip("filmstrip.testing.gguf")
Kind = gguf.GGMLQuantizationType
QUANTISED_BY_THE_LIBRARY = (Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return helpers.write_gguf(path, helpers.random_decoder())


def converted(path: Path, directory: Path, **options: Any) -> Path:
    write_output(gguf_output(path, **options), directory, WriteOptions())
    return directory


def test_everything_is_read_as_the_library_reads_it(plain: Path) -> None:
    ours, theirs = read_gguf(plain), gguf.GGUFReader(plain)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata) == set(fields)
    for key, value in fields.items():
        assert ours.metadata[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        values = ours.lazy(tensor.name, torch.float32).read()
        assert values.shape == tuple(reversed(tensor.shape.tolist()))
        torch.testing.assert_close(values, torch.from_numpy(np.array(tensor.data)), rtol=0, atol=0)


def test_a_float32_is_the_decimal_that_was_meant(plain: Path) -> None:
    assert gguf_text_config(read_gguf(plain)).rms_norm_eps == 1e-5


@pytest.mark.parametrize("kind", QUANTISED_BY_THE_LIBRARY, ids=lambda kind: kind.name)
def test_quantised_values_chunk_by_chunk(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "CHUNK_ELEMENTS", 7 * 64)  # 7 rows at a time: 320 and 96 do not divide by it
    file = read_gguf(helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), kind=kind))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file.path).tensors}
    for name in ("token_embd.weight", "blk.1.ffn_down.weight", "blk.0.attn_norm.weight"):
        expected = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        torch.testing.assert_close(
            file.lazy(name, torch.float32).read(), torch.from_numpy(expected.copy()), rtol=0, atol=0
        )
        assert file.lazy(name, torch.bfloat16).read().dtype == torch.bfloat16


def one_tensor(path: Path, kind: Any, rows: int, columns: int) -> np.ndarray:
    """A file with one tensor of random blocks; returns them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = helpers.random_blocks(kind, rows, columns // block * size)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return blocks


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_kinds_that_the_library_can_only_read(tmp_path: Path, kind: Any) -> None:
    blocks = one_tensor(tmp_path / "x.gguf", kind, 6, 512)
    values = read_gguf(tmp_path / "x.gguf").lazy("x", torch.float32).read()
    assert values.shape == (6, 512)
    torch.testing.assert_close(
        values, torch.from_numpy(gguf.dequantize(blocks, kind).copy()), rtol=0, atol=0, equal_nan=True
    )


def test_a_kind_that_nothing_can_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("counts", np.zeros((4, 4), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'counts' is stored as I32, which cannot be read"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, Kind.F32),
        ({"tie_embeddings": True}, Kind.F32),
        ({"attention_bias": True, "mlp_bias": True}, Kind.F32),
        ({"num_kv_heads": 4, "head_dim": 8}, Kind.F32),
        ({"rope": RopeConfig(theta=50_000.0, scaling="linear", factor=2.5)}, Kind.F32),
        ({}, Kind.Q8_0),
    ],
    ids=["plain", "tied", "biases", "narrow heads", "linear", "Q8_0"],
)
def test_the_converted_model_is_the_one_that_was_written(tmp_path: Path, changes: dict[str, Any], kind: Any) -> None:
    """Names, row order and configuration: the same logits; quantised ones near them."""
    from filmstrip.checkpoint.towers import load_text_tower

    config = replace(helpers.TINY, **changes)
    decoder = helpers.random_decoder(config)
    extra: dict[str, Any] = {
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
    }
    if config.rope.scaling == "linear":
        extra |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": config.rope.factor}
    path = helpers.write_gguf(tmp_path / "x.gguf", decoder, kind=kind, extra=extra)
    loaded, report = load_text_tower(converted(path, tmp_path / "out", dtype=torch.float32))
    assert loaded.config == config
    assert report.dtype == "float32"
    for (name, ours), (other, theirs) in zip(loaded.state_dict().items(), decoder.state_dict().items(), strict=True):
        bound = 0.0 if kind == Kind.F32 else 0.02
        assert name == other
        torch.testing.assert_close(ours, theirs, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Kind.F32, torch.float32), (Kind.BF16, torch.bfloat16), (Kind.F16, torch.float16), (Kind.Q4_1, torch.float16)],
)
def test_the_dtype_when_none_is_asked_for(tmp_path: Path, kind: Any, expected: torch.dtype) -> None:
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), kind=kind)
    assert gguf_dtype(read_gguf(path)) == expected
    config = json.loads((converted(path, tmp_path / "out") / "config.json").read_text())
    assert config["torch_dtype"] == str(expected).removeprefix("torch.")


def test_the_scaling_of_llama_3_is_recognised_by_its_divisors(tmp_path: Path) -> None:
    rope = RopeConfig(
        theta=500_000.0,
        scaling="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    config = replace(helpers.TINY, rope=rope, max_positions=131_072)
    plain, scaled = (inverse_frequencies(r, 16, 131_072)[0] for r in (RopeConfig(theta=rope.theta), rope))
    decoder = helpers.random_decoder(config)
    path = helpers.write_gguf(tmp_path / "x.gguf", decoder, rope_factors=plain / scaled)
    assert gguf_text_config(read_gguf(path)) == config
    assert json.loads((converted(path, tmp_path / "out") / "config.json").read_text())["rope_scaling"]["factor"] == 32.0
    odd = helpers.write_gguf(tmp_path / "odd.gguf", decoder, rope_factors=torch.linspace(1, 9, 8))
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight is not the rotary scaling of Llama 3"):
        read_and_configure(odd)


def read_and_configure(path: Path) -> Any:
    return gguf_text_config(read_gguf(path))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"general.architecture": "qwen2"}, r"'general.architecture' is 'qwen2'; supported: llama"),
        ({"llama.expert_count": 8}, r"'llama.expert_count' is 8; only a dense MLP"),
        ({"llama.rope.scaling.type": "yarn"}, r"'llama.rope.scaling.type' is 'yarn'; supported: none, linear"),
        (
            {"llama.rope.dimension_count": 8},
            r"'llama.rope.dimension_count' is 8; expected a whole number from 16 to 16",
        ),
        ({"llama.block_count": None}, r"'llama.block_count' is None; expected a whole number"),
        ({"llama.block_count": 3}, r"'blocks.2[^']*' is missing"),
        ({"llama.block_count": 1}, r"'blocks.1[^']*' is not part of the model"),
        ({"llama.feed_forward_length": 128}, r"has shape \(96, 64\), its configuration asks for \(128, 64\)"),
        ({"llama.attention.head_count_kv": [2, 2]}, r"head_count_kv' is \[2, 2\]; expected a whole number"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, r"layer_norm_rms_epsilon is missing"),
        ({"tokenizer.ggml.model": "t5"}, r"'tokenizer.ggml.model' is 't5'; supported: llama, gpt2"),
        ({"tokenizer.ggml.pre": "martian"}, r"'tokenizer.ggml.pre' is 'martian'; known: default"),
        ({"tokenizer.ggml.bos_token_id": 4000}, r"bos_token_id' is 4000"),
        ({"tokenizer.ggml.merges": ["abc"]}, r"merges has an entry that is not two pieces"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, r"names a token twice"),
        ({"tokenizer.ggml.tokens": 3}, r"tokens is not a list of texts"),
        ({"tokenizer.ggml.token_type": 7}, r"token_type is not a list of numbers"),
        ({"tokenizer.ggml.token_type": ["a", "b"]}, r"token_type is not a list of numbers"),
        ({"tokenizer.ggml.token_type": [1, 2]}, r"lacks types"),
        ({"tokenizer.ggml.model": "llama"}, r"scores does not have one number for each token"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": ["x"]}, r"scores is not a list of numbers"),
        ({"llama.rope.freq_base": float("nan")}, r"a metadata value is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, r"a metadata value is inf"),
    ],
)
def test_what_is_not_a_llama_is_refused_by_name(tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), extra=extra)
    with pytest.raises(FilmstripError, match=message) as caught:
        gguf_output(path)
    assert "\n" not in str(caught.value)


def test_a_strange_tokenizer_can_be_left_out(tmp_path: Path) -> None:
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), extra={"tokenizer.ggml.pre": "martian"})
    output = gguf_output(path, tokenizer=False)
    assert "tokenizer.json" not in output.files and output.notes == ("the tokenizer is left out",)


# ---------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_of(tmp_path: Path, metadata: dict[str, Any], **options: Any) -> Tokenizer:
    config = replace(helpers.TINY, vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    tmp_path.mkdir(exist_ok=True)
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(config), tokenizer=metadata, **options)
    return Tokenizer.from_directory(converted(path, tmp_path / "tokenizer"))


TEXTS = ("the inn", "then hello  the", " leading", "naïve café", "日本 👩‍👩‍👧", "in\n\n1984's the", "", "hellothenin é")


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_text_comes_back(tmp_path: Path, pre: str) -> None:
    tokenizer = tokenizer_of(tmp_path, helpers.byte_level_tokenizer(320, pre))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("<|end|>the").ids[0] == 0  # control tokens are matched whole
    assert tokenizer.special_tokens["eos_token"] == "<|end|>"


def test_digits_are_cut_as_the_pre_tokenizer_says(tmp_path: Path) -> None:
    """`1 9` is a merge; only a pre-tokenizer that leaves digits together lets it apply."""
    pieces = {}
    for pre in ("smollm", "gpt-2", "llama-bpe"):
        tokenizer = tokenizer_of(tmp_path / pre, helpers.byte_level_tokenizer(320, pre))
        pieces[pre] = [tokenizer.id_to_token(token_id) for token_id in tokenizer.encode("1984", add_special=False).ids]
    assert pieces == {"smollm": ["1", "9", "8", "4"], "gpt-2": ["19", "8", "4"], "llama-bpe": ["19", "8", "4"]}


def sentencepiece_by_score(text: str, metadata: dict[str, Any]) -> list[int]:
    """llama.cpp's `llm_tokenizer_spm`: join the neighbours whose union scores best, leftmost first, until none is left;
    what is no token then is spelt in bytes. A text that begins with a space gets no second one, as in transformers."""
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = metadata["tokenizer.ggml.scores"]
    symbols = list((text if text.startswith(" ") else f" {text}").replace(" ", "▁") if text else "")
    while True:
        pairs = [(scores[ids[a + b]], -at, at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
        if not pairs:
            break
        at = max(pairs)[2]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    spelt = [[ids[s]] if s in ids else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [token_id for part in spelt for token_id in part]


def test_sentencepiece_equals_the_algorithm_of_llama_cpp(tmp_path: Path) -> None:
    metadata = helpers.sentencepiece_tokenizer(320)
    tokenizer = tokenizer_of(tmp_path, metadata)
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False).ids == sentencepiece_by_score(text, metadata), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.removeprefix(" ")
    assert tokenizer.encode("the").ids[0] == tokenizer.bos_id == 1
    assert tokenizer.encode("the</s>").ids[-1] == tokenizer.eos_id == 2


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("spm"), helpers.sentencepiece_tokenizer(320))


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="then hlo é☃", max_size=24))
def test_sentencepiece_equals_it_on_any_text(sentencepiece: Tokenizer, text: str) -> None:
    metadata = helpers.sentencepiece_tokenizer(320)
    assert sentencepiece.encode(text, add_special=False).ids == sentencepiece_by_score(text, metadata)


def test_merges_are_ordered_by_the_score_of_what_they_make() -> None:
    ids = {"a": 0, "b": 1, "ab": 2, "abb": 3, "bb": 4}
    assert merges_from_scores({"ab": -2.0, "abb": -3.0, "bb": -1.0}, ids) == [
        ("b", "b"),
        ("a", "b"),
        ("ab", "b"),
        ("a", "bb"),
    ]


def test_prefix_space_bos_and_eos_follow_the_file(tmp_path: Path) -> None:
    flags = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = tokenizer_of(
        tmp_path, helpers.sentencepiece_tokenizer(320) | flags | {"tokenizer.ggml.add_eos_token": True}
    )
    ids = tokenizer.encode("the").ids
    assert tokenizer.id_to_token(ids[0]) != "▁the" and ids[-1] == 2 and ids[0] != 1


def test_the_chat_template_and_all_ends_of_text_are_carried(tmp_path: Path) -> None:
    extra = {"tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.eot_token_id": 5}
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), extra=extra)
    directory = converted(path, tmp_path / "out")
    assert json.loads((directory / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [0, 5]


# -------------------------------------------------------------------------------------------------------- hostile files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file"),
        (b"not a gguf file at all", "is not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"GGUF", "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF of version 1; supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "ends early"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(8), "not UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61), "claims 2,305"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**61), "claims 2,305"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "array of type 9"),
    ],
)
def test_a_file_that_lies_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


def test_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.gguf"):
        with pytest.raises(CheckpointError, match="cannot read"):
            read_gguf(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(
    plain: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = plain.read_bytes()
    end = data.draw(st.one_of(st.integers(0, 2000), st.integers(0, len(content) - 33)))
    path = tmp_path_factory.mktemp("cut") / "x.gguf"
    path.write_bytes(content[:end])
    with pytest.raises(CheckpointError):
        read_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_gives_an_error_or_a_model(
    plain: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes of metadata replaced at random: whatever comes, it is a `FilmstripError` or an `Output`."""
    content = bytearray(plain.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 1200), st.integers(0, 16_000)))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(content)
    try:
        output = gguf_output(path)
    except FilmstripError as error:
        assert "\n" not in str(error)
    else:
        assert output.tensors


def test_without_the_library_the_line_says_what_to_install(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'filmstrip\[gguf\]'"):
        read_gguf(plain)


def test_un_permuted_rows_rotate_as_neighbours_did() -> None:
    """Scores of llama.cpp's order under its own rotation equal those of ours under half rotation."""
    from filmstrip.checkpoint.gguf import half_rotation
    from filmstrip.ops.rope import apply_rotary, rotary_tables

    heads, width, length = 2, 8, 5
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads * width, 16, generator=generator) for _ in range(2))
    x = torch.randn(length, 16, generator=generator)
    cos, sin = rotary_tables(inverse_frequencies(RopeConfig(), width, 64), torch.arange(length)[None], torch.float32)

    def neighbours(projected: torch.Tensor) -> torch.Tensor:
        c, s = (table[:, None, :, : width // 2].repeat_interleave(2, -1) for table in (cos, sin))
        turned = torch.stack([-projected[..., 1::2], projected[..., ::2]], dim=-1).flatten(-2)
        return projected * c + turned * s

    def project(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).view(1, length, heads, width).transpose(1, 2)

    theirs = neighbours(project(query)) @ neighbours(project(key)).transpose(-1, -2)
    q, k = (apply_rotary(project(half_rotation(weight, heads)), cos, sin) for weight in (query, key))
    torch.testing.assert_close(q @ k.transpose(-1, -2), theirs)
    q_wrong, k_wrong = (apply_rotary(project(weight), cos, sin) for weight in (query, key))
    assert float((q_wrong @ k_wrong.transpose(-1, -2) - theirs).abs().max()) > 1


def header_with_array(key: bytes, kind: int, count: int, size: int) -> bytes:
    """A file of one metadata entry, an array of zeros."""
    return (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IIQ", 9, kind, count) + bytes(size + 32)
    )


@pytest.mark.parametrize(("kind", "width"), [(0, 1), pytest.param(8, 8, marks=pytest.mark.slow)])
def test_an_array_that_no_one_asks_for_takes_no_memory(tmp_path: Path, kind: int, width: int) -> None:
    (tmp_path / "x.gguf").write_bytes(header_with_array(b"k", kind, 2**18, 2**18 * width))
    tracemalloc.start()
    metadata = read_gguf(tmp_path / "x.gguf").metadata
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert metadata == {"k": gguf_file.UnreadArray(2**18)} and peak < 2**18


def test_an_array_of_too_many_pieces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(header_with_array(b"tokenizer.ggml.scores", 0, 2**20 + 1, 2**20 + 1))
    with pytest.raises(CheckpointError, match="claims 1,048,577 values"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 4.0),
    ],
)
def test_a_factor_counts_unless_the_scaling_is_said_to_be_none(
    tmp_path: Path, settings: dict[str, Any], factor: float | None
) -> None:
    path = helpers.write_gguf(tmp_path / "x.gguf", helpers.random_decoder(), extra=settings)
    scaling = json.loads((converted(path, tmp_path / "out") / "config.json").read_text()).get("rope_scaling")
    assert (scaling or {}).get("factor") == factor
