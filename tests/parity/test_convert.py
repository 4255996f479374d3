"""What a conversion from the original's layout writes is what transformers loads, and it computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.api import load
from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.ops.masks import causal_mask
from filmstrip.testing.original import languagebind_config, write_original_checkpoint
from filmstrip.testing.tiny import tiny_vocabulary_size, write_json
from filmstrip.testing.tolerances import TOLERANCES
from filmstrip.text.tokenizer import Tokenizer

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")
processors = pytest.importorskip("filmstrip.oracle.processors")
VOCABULARY = tiny_vocabulary_size()


@pytest.fixture(params=["quick_gelu", "gelu"])
def original(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """With either activation in its towers, as only their own configurations say it."""
    directory = tmp_path / "original"
    write_original_checkpoint(directory)
    for tower, frames in (("image_tower", 0), ("video_tower", 3)):
        write_json(directory / tower / "config.json", languagebind_config(frames, hidden_act=request.param))
    return directory


@pytest.fixture
def converted(original: Path, tmp_path: Path) -> Path:
    write_output(convert(original, ConvertOptions()), tmp_path / "hf", WriteOptions())
    return tmp_path / "hf"


def inputs(image_id: int, video_id: int) -> dict[str, Any]:
    ids = [1, 300, *[image_id] * 4, 301, *[video_id] * 15, 302, 303]
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values_images": torch.randn((1, 3, 28, 28), generator=generator),
        "pixel_values_videos": torch.randn((1, 3, 3, 28, 28), generator=generator),
    }


def test_transformers_computes_what_the_original_does_without_temporal_attention(
    original: Path, converted: Path
) -> None:
    """Directly between the two: the original's layout in this program, the converted one in transformers."""
    model = load(original, preset="transformers", quiet=True).model
    reference = oracles.load_reference(converted)
    batch = inputs(VOCABULARY, VOCABULARY + 1)
    with torch.inference_mode():
        ours, theirs = model(**batch), reference(**batch).logits
    bound = TOLERANCES["activations, float32, other kernels"].bound
    torch.testing.assert_close(ours, theirs[..., :VOCABULARY], rtol=0, atol=bound)
    assert theirs.shape[-1] == 448 and int(theirs.argmax(-1).max()) < VOCABULARY


def test_the_tokenizer_knows_the_placeholders(converted: Path) -> None:
    theirs, ours = processors.reference_tokenizer(converted), load(converted, quiet=True).processor.tokenizer
    text = "USER: <video>\nwhat is <image> this ASSISTANT:"
    assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.convert_tokens_to_ids(["<image>", "<video>", "<pad>"]) == [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2]
    assert (theirs.pad_token, theirs.padding_side) == ("<pad>", "left")


def test_the_processor_files_are_read(converted: Path) -> None:
    assert processors.reference_image_processor(converted).crop_size["height"] == 28


@pytest.mark.parametrize("layout", "ABCD")
def test_every_layout_written_is_loaded(original: Path, tmp_path: Path, layout: str) -> None:
    options = ConvertOptions(layout=layout, without=("temporal-attention",))
    write_output(convert(original, options), tmp_path / layout, WriteOptions(max_shard_bytes=200_000))
    oracles.load_reference(tmp_path / layout)


@pytest.mark.parametrize("kind", ["llama", "llama-bpe", "gpt-2", "qwen2", "tekken"])
def test_a_gguf_tokenizer_is_what_transformers_makes_of_the_file(tmp_path: Path, kind: str) -> None:
    """Three readings of one vocabulary: transformers of the GGUF file, transformers and this program of the result."""
    helpers = pytest.importorskip("filmstrip.testing.gguf", reason="the library gguf is not installed")
    size = helpers.TINY.vocab_size
    metadata = helpers.sentencepiece_tokenizer(size) if kind == "llama" else helpers.byte_level_tokenizer(size, kind)
    metadata |= {"tokenizer.ggml.add_bos_token": kind == "llama"}
    file = helpers.write_gguf(tmp_path / "tiny.gguf", helpers.random_decoder(), tokenizer=metadata)
    write_output(convert(file, ConvertOptions()), tmp_path / "out", WriteOptions())
    source, theirs = oracles.reference_gguf_tokenizer(file), processors.reference_tokenizer(tmp_path / "out")
    ours = Tokenizer.from_directory(tmp_path / "out")
    for text in ("the then inn", "hello 1984's  thé\n\n日本 👩‍👩‍👧 don't", " leading", "HELLO World", "a\tb\r\nc", ""):
        expected = source(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert theirs(text)["input_ids"] == expected, text


def test_transformers_loads_a_converted_gguf(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    helpers = pytest.importorskip("filmstrip.testing.gguf", reason="the library gguf is not installed")
    decoder = helpers.random_decoder()
    file = helpers.write_gguf(tmp_path / "tiny.gguf", decoder)
    write_output(convert(file, ConvertOptions(dtype=torch.float32)), tmp_path / "out", WriteOptions())
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        mask = causal_mask(None, 12, 12, ids.device)
        ours = decoder.logits(decoder(decoder.token_embedding(ids), torch.arange(12)[None], mask))
        theirs = reference(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCES["activations, float32, other kernels"].bound)
