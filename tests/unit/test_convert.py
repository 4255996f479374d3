"""Conversions: names, tensors, vocabulary, configuration; the same logits before and after; what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from filmstrip.api import load
from filmstrip.checkpoint.atomic import require_apart
from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.convert_vocabulary import extend_vocabulary, with_mean_rows
from filmstrip.checkpoint.files import TensorReader, open_tensors
from filmstrip.checkpoint.read import read_any, read_checkpoint
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.testing.original import write_original_checkpoint
from filmstrip.testing.tiny import (
    tiny_hf_config,
    tiny_sister_config,
    tiny_vocabulary_size,
    write_json,
    write_tiny_checkpoint,
)
from filmstrip.text.tokenizer import Tokenizer

VOCABULARY = tiny_vocabulary_size()
State = dict[str, torch.Tensor]


def run(source: Path, destination: Path, max_shard_bytes: int = 10**9, **options: Any) -> Path:
    write_output(convert(source, ConvertOptions(**options)), destination, WriteOptions(max_shard_bytes))
    return destination


def state_of(directory: Path) -> State:
    files = open_tensors(directory)
    reader = TensorReader(files)
    return {name: reader.read(name) for name in files.tensors}


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


@pytest.fixture
def original(tmp_path: Path) -> Path:
    write_original_checkpoint(tmp_path / "original")
    return tmp_path / "original"


def logits(directory: Path, preset: str | None = None) -> torch.Tensor:
    """Of a prompt with an image, a video and words, the placeholders at the model's own ids."""
    model = load(directory, preset=preset, quiet=True).model
    config = model.config
    generator = torch.Generator().manual_seed(1)
    image_tokens, frame_tokens = (config.tokens_per_frame(kind) for kind in ("image", "video"))
    ids = [1, 300, 301, *[config.image_token_id] * image_tokens, 302]
    ids += [config.video_token_id or 0] * (3 * frame_tokens) + [303, 304]
    size = config.image_tower.image_size
    with torch.inference_mode():
        return model(
            torch.tensor([ids]),
            torch.randn((1, 3, size, size), generator=generator),
            torch.randn((1, 3, 3, size, size), generator=generator),
        )


# ------------------------------------------------------------------------------------------- the original and hf


def test_the_original_and_back_is_the_identity(original: Path, tmp_path: Path) -> None:
    first = state_of(original)
    hf = run(original, tmp_path / "hf")
    back = run(hf, tmp_path / "back", to="pku")
    assert_same(first, state_of(back))
    for kind in ("image_tower", "video_tower"):
        ours, theirs = (json.loads((d / kind / "config.json").read_text())["vision_config"] for d in (back, original))
        assert {key: theirs[key] for key in ours if key in theirs} == {key: ours[key] for key in ours if key in theirs}
    assert read_checkpoint(back).config == read_checkpoint(original).config
    texts = ("what is this", " the red\nsquare é", "</s><s>")
    before, after = (Tokenizer.from_directory(directory) for directory in (original, back))
    assert [before.encode(text).ids for text in texts] == [after.encode(text).ids for text in texts]
    assert (before.vocab_size, before.special_tokens) == (after.vocab_size, after.special_tokens)


def test_hf_to_the_original_and_back_changes_the_added_rows_alone(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    first = write_tiny_checkpoint(source, temporal_frames=3)
    write_json(
        source / "config.json", tiny_hf_config() | {"filmstrip": {"temporal_attention": True, "temporal_frames": 3}}
    )
    output = convert(source, ConvertOptions(to="pku"))
    assert output.dropped_rows == 448 - VOCABULARY
    back = run(run(source, tmp_path / "pku", to="pku"), tmp_path / "back", layout="C")
    second = state_of(back)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        rows = VOCABULARY if name in ("lm_head.weight", "model.language_model.embed_tokens.weight") else None
        assert torch.equal(tensor[:rows], second[name][:rows]), name
    before, after = (Tokenizer.from_directory(directory) for directory in (source, back))
    for text in ("what is <image> this", "<video>", "<pad> a"):
        assert before.encode(text).ids == after.encode(text).ids


def test_a_chat_template_that_does_not_come_back_is_noted_both_ways(tmp_path: Path) -> None:
    """The original has none, so what is written on the way back is the family's."""
    write_tiny_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ 'mine' }}")
    there = convert(tmp_path / "hf", ConvertOptions(to="pku"))
    assert any("chat template is left out" in note for note in there.notes)
    write_output(there, tmp_path / "pku", WriteOptions())
    back = convert(tmp_path / "pku", ConvertOptions())
    assert any("chat template written is the family's own" in note for note in back.notes)
    assert b"mine" not in back.files["chat_template.jinja"]
    assert "chat template written" in back.files["README.md"].decode()


@pytest.mark.parametrize("preset", ["original", "transformers"])
def test_the_logits_are_the_same(original: Path, tmp_path: Path, preset: str) -> None:
    """Both presets: with temporal attention and without; rows beyond the old vocabulary apart."""
    hf = run(original, tmp_path / "hf")
    again = run(hf, tmp_path / "again", to="pku")
    first = logits(original, preset)
    assert torch.equal(first, logits(hf, preset)[..., :VOCABULARY])
    assert torch.equal(first, logits(again, preset))


def test_temporal_attention_makes_the_difference(original: Path) -> None:
    with_it, without = (logits(original, preset) for preset in ("original", "transformers"))
    assert float((with_it - without).abs().max()) > 0.01


def test_temporal_attention_is_left_out_by_name(original: Path, tmp_path: Path) -> None:
    output = convert(original, ConvertOptions(without=("temporal-attention",)))
    stored = sum(tensor.numel() for name, tensor in state_of(original).items() if ".temporal_" in name)
    assert output.left_out == {"temporal-attention": stored} and stored > 0
    plain = run(original, tmp_path / "plain", without=("temporal-attention",))
    assert not any("temporal" in name for name in state_of(plain))
    checkpoint = read_checkpoint(plain)
    assert checkpoint.extras.preset == "transformers" and checkpoint.temporal_frames is None
    assert torch.equal(logits(original, "transformers"), logits(plain)[..., :VOCABULARY])
    kept = read_checkpoint(run(original, tmp_path / "kept"))
    assert kept.extras.preset == "original" and kept.temporal_frames == 3


def test_temporal_attention_left_out_of_hf(original: Path, tmp_path: Path) -> None:
    hf = run(original, tmp_path / "hf")
    plain = run(hf, tmp_path / "plain", without=("temporal-attention",))
    again = run(original, tmp_path / "again", without=("temporal-attention",))
    assert_same(state_of(plain), state_of(again))
    assert read_checkpoint(plain).config == read_checkpoint(again).config
    assert read_checkpoint(plain).extras.preset == "transformers"


def test_added_rows_are_the_mean_and_never_the_most_likely(original: Path, tmp_path: Path) -> None:
    output = convert(original, ConvertOptions())
    hf = run(original, tmp_path / "hf")
    checkpoint = read_checkpoint(hf)
    assert checkpoint.config.text.vocab_size == 448 and output.added_rows == 448 - VOCABULARY
    ids = (checkpoint.config.image_token_id, checkpoint.config.video_token_id, checkpoint.config.pad_token_id)
    assert ids == (VOCABULARY, VOCABULARY + 1, VOCABULARY + 2)
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        matrix = state_of(hf)[name]
        mean = matrix[:VOCABULARY].double().mean(0).float()
        assert torch.equal(matrix[VOCABULARY:], mean.expand(448 - VOCABULARY, -1))
    assert int(logits(hf).argmax(-1).max()) < VOCABULARY
    card = (hf / "README.md").read_text()
    assert "&lt;image>, &lt;video>, &lt;pad>" in card and "mean of the old" in card


def test_the_mean_of_many_rows_is_summed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.randn((10_000, 8), generator=generator) + 1000).bfloat16()
    grown = with_mean_rows(matrix, 10_003)
    assert torch.equal(grown[:10_000], matrix)
    assert torch.equal(grown[10_000:], matrix.double().mean(0).bfloat16().expand(3, -1))


@pytest.mark.parametrize(("towers", "pickled"), [("inside", False), ("both", False), ("main", True), ("inside", True)])
def test_towers_in_their_own_directories_and_pickles_are_gathered(tmp_path: Path, towers: Any, pickled: bool) -> None:
    state = write_original_checkpoint(tmp_path / "original", towers=towers, pickled=pickled)
    output = convert(tmp_path / "original", ConvertOptions(to="pku"))
    assert ("the checkpoint itself holds this tower" in output.left_out) == (towers == "both")
    assert_same(state, state_of(run(tmp_path / "original", tmp_path / "gathered", to="pku")))
    read_checkpoint(tmp_path / "gathered")
    write_original_checkpoint(tmp_path / "plain")
    assert_same(state_of(run(tmp_path / "original", tmp_path / "a")), state_of(run(tmp_path / "plain", tmp_path / "b")))


# ------------------------------------------------------------------------------------------------ hf to hf


@pytest.mark.parametrize("target", "ABCD")
@pytest.mark.parametrize("source", "AC")
def test_every_layout_becomes_every_other(tmp_path: Path, source: Any, target: Any) -> None:
    write_tiny_checkpoint(tmp_path / "source", layout=source)
    write_tiny_checkpoint(tmp_path / "expected", layout=target)
    out = run(tmp_path / "source", tmp_path / "out", layout=target)
    assert_same(state_of(out), state_of(tmp_path / "expected"))
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        assert json.loads((out / name).read_text()) == json.loads((tmp_path / "expected" / name).read_text())
    assert load(out, quiet=True).origin.layout == target


def test_the_source_s_layout_stays_when_none_is_asked_for(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "source", layout="B")
    out = run(tmp_path / "source", tmp_path / "out", max_shard_bytes=50_000)
    assert len(list(out.glob("model-*.safetensors"))) > 5
    assert_same(state_of(out), state_of(tmp_path / "source"))


def test_a_new_dtype_is_in_weights_and_configuration(tmp_path: Path) -> None:
    config = tiny_hf_config(text_torch_dtype="float16", text_dtype="float16")
    write_tiny_checkpoint(tmp_path / "source", config)
    out = run(tmp_path / "source", tmp_path / "out", dtype=torch.bfloat16)
    written = json.loads((out / "config.json").read_text())
    assert (
        written["torch_dtype"] == written["text_config"]["torch_dtype"] == written["text_config"]["dtype"] == "bfloat16"
    )
    first, second = state_of(tmp_path / "source"), state_of(out)
    assert_same({name: tensor.bfloat16() for name, tensor in first.items()}, second)


def test_settings_unknown_here_and_the_card_of_the_source_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tiny_checkpoint(source, tiny_hf_config() | {"my_note": {"deep": [1]}, "_name_or_path": "x"})
    (source / "README.md").write_text("---\nlicense: llama2\n---\n# Theirs\n")
    (source / "LICENSE").write_text("terms")
    (source / "optimizer.pt").write_bytes(b"not carried")
    out = run(source, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["my_note"] == {"deep": [1]}
    assert (out / "SOURCE_README.md").read_text().endswith("# Theirs\n") and (out / "LICENSE").read_text() == "terms"
    card = (out / "README.md").read_text()
    assert load(source, quiet=True).origin.weights_hash in card and "Video-LLaVA without temporal attention" in card
    assert not (out / "optimizer.pt").exists()


def test_a_tied_head_stored_twice_must_agree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    state = write_tiny_checkpoint(source, tiny_hf_config(tie_word_embeddings=True), layout="C")
    from safetensors.torch import save_file

    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    save_file(state, source / "model.safetensors")
    assert_same(state_of(run(source, tmp_path / "out")), state)
    state["lm_head.weight"][0, 0] += 1
    save_file(state, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="differ, but its configuration makes them one"):
        convert(source, ConvertOptions())


@pytest.mark.parametrize("family", ["llava", "llava_next_video"])
def test_sisters_are_converted_within_hf_alone(tmp_path: Path, family: Any) -> None:
    write_tiny_checkpoint(tmp_path / "source", tiny_sister_config(family))
    out = run(tmp_path / "source", tmp_path / "out", layout="C", dtype=torch.bfloat16)
    back = run(out, tmp_path / "back", layout="A", dtype=torch.float32)
    first, second = state_of(tmp_path / "source"), state_of(back)
    assert_same({name: tensor.bfloat16().float() for name, tensor in first.items()}, second)
    assert read_checkpoint(out).config == read_checkpoint(tmp_path / "source").config
    with pytest.raises(ConfigError, match=r"is LLaVA-.*; the original format is Video-LLaVA's alone"):
        convert(out, ConvertOptions(to="pku"))


def test_a_shared_tower_is_written_twice_for_the_original(tmp_path: Path) -> None:
    source = tmp_path / "source"
    state = write_tiny_checkpoint(source, layout="C")
    from safetensors.torch import save_file

    for name in list(state):
        if name.startswith("model.video_tower."):
            state[name] = state[name.replace("video_tower", "image_tower")].clone()
    save_file(state, source / "model.safetensors")
    write_json(source / "config.json", tiny_hf_config() | {"filmstrip": {"shared_towers": True}})
    output = convert(source, ConvertOptions(to="pku"))
    assert any("written twice" in note for note in output.notes)
    out = run(source, tmp_path / "out", to="pku")
    assert torch.equal(logits(out), logits(source)[..., :VOCABULARY])


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gguf"}, "unknown format 'gguf' \\(known: hf, pku\\)"),
        ({"layout": "E"}, "unknown checkpoint layout 'E' \\(known: A, B, C, D\\)"),
        ({"layout": "P"}, "unknown checkpoint layout 'P'"),
        ({"to": "pku", "layout": "A"}, "the original format has one layout"),
        ({"without": ("video",)}, "unknown part to leave out 'video'"),
        ({"without": ("tokenizer",)}, "of a GGUF file only"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_tiny_checkpoint(tmp_path / "source")
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "source", ConvertOptions(**options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multimodal_projector_bias": False}, "one kind of projector"),
        ({"projector_hidden_act": "gelu_new"}, "one kind of projector"),
        ({"vision_feature_layer": [-2, -1]}, "projects one hidden state"),
    ],
)
def test_what_the_original_cannot_describe(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_tiny_checkpoint(tmp_path / "source", tiny_hf_config(**changes))
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "source", ConvertOptions(to="pku"))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_an_incomplete_source_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    source = tmp_path / "source"
    state = write_tiny_checkpoint(source, layout="C")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unknown":
        state["model.language_model.layers.7.mlp.up_proj.weight"] = state[name].clone()
    else:
        state[name] = state[name][1:].clone()
    save_file(state, source / "model.safetensors")
    message = {"missing": "is missing", "unknown": "is not part of the model", "shape": "has shape"}[damage]
    with pytest.raises(CheckpointError, match=f"blocks.*up_proj.weight' {message}"):
        convert(source, ConvertOptions(layout="A"))


def test_temporal_attention_that_is_only_claimed_is_missing(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", tiny_hf_config() | {"filmstrip": {"temporal_attention": True}})
    with pytest.raises(CheckpointError, match=r"temporal.* is missing"):
        convert(tmp_path, ConvertOptions())
    assert not convert(tmp_path, ConvertOptions(without=("temporal-attention",))).left_out


def test_a_destination_around_the_source_is_refused(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "a" / "b")
    with pytest.raises(CheckpointError, match="lies inside"):
        require_apart(tmp_path / "a" / "b", tmp_path / "a")
    require_apart(tmp_path / "a" / "b", tmp_path / "c")


def test_a_checkpoint_can_be_converted_in_its_own_place(tmp_path: Path) -> None:
    first = write_tiny_checkpoint(tmp_path / "a", layout="C")
    output = convert(tmp_path / "a", ConvertOptions(dtype=torch.bfloat16))
    write_output(output, tmp_path / "a", WriteOptions(overwrite=True))
    assert_same({name: tensor.bfloat16() for name, tensor in first.items()}, state_of(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the embedding 100 rows"):
        extend_vocabulary(tmp_path, 100)


def test_rows_that_were_padding_are_taken_into_use(tmp_path: Path) -> None:
    """A text model whose embedding has more rows than its tokenizer has tokens."""
    write_original_checkpoint(tmp_path)
    vocabulary = extend_vocabulary(tmp_path, VOCABULARY + 10)
    assert (vocabulary.image_id, vocabulary.size, vocabulary.added) == (
        VOCABULARY,
        VOCABULARY + 10,
        ("<image>", "<video>"),
    )
    assert vocabulary.pad_id == 0  # its own, which is <unk>


def test_safetensors_are_written_for_transformers(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "a")
    with safe_open(run(tmp_path / "a", tmp_path / "b") / "model.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}
    assert read_any(tmp_path / "b").describe().startswith("Video-LLaVA")
