"""Against transformers: its checkpoints load here tensor by tensor, ours load there, and `export(load(x)) == x`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.checkpoint.load import LoadReport, load_weights
from filmstrip.checkpoint.read import Checkpoint, read_checkpoint
from filmstrip.media.transform import PixelSpec
from filmstrip.models.video_llava import VideoLlava
from filmstrip.testing.random_reference import reference_model
from filmstrip.testing.tiny import (
    DiskLayout,
    ProcessorLayout,
    rename_state,
    tiny_hf_config,
    tiny_state,
    write_tiny_checkpoint,
    write_tiny_tokenizer,
)

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")
processors = pytest.importorskip("filmstrip.oracle.processors", reason="transformers is not installed")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi-head": {"text_num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "own head width": {"text_head_dim": 24},
    "biases": {"text_attention_bias": True, "text_mlp_bias": True},
    "three layers, exact gelu": {"vision_num_hidden_layers": 3, "vision_hidden_act": "gelu"},
    "several feature layers": {"vision_feature_layer": [-2, -4], "vision_feature_select_strategy": "full"},
    "no projector bias": {"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
    "linear": {"text_rope_theta": 5e5, "text_rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"text_rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {
        "text_rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def load(directory: Path) -> tuple[VideoLlava, Checkpoint, LoadReport]:
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config())
    return model, checkpoint, load_weights(model, checkpoint)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [
        name for name in first if first[name].dtype != second[name].dtype or not torch.equal(first[name], second[name])
    ]
    assert not different


def landed(model: VideoLlava, reference: Any) -> None:
    """Spot checks by hand, one of each kind of tensor, so that a rule that swaps two names cannot hide."""
    text, theirs = model.text_tower, reference.model.language_model
    pairs = [
        (text.token_embedding.weight, theirs.embed_tokens.weight),
        (text.final_norm.weight, theirs.norm.weight),
        (text.lm_head.weight, reference.lm_head.weight),
        (model.projector.linear_1.weight, reference.model.multi_modal_projector.linear_1.weight),
        (model.projector.linear_2.weight, reference.model.multi_modal_projector.linear_2.weight),
    ]
    for ours, block in zip(text.blocks, theirs.layers, strict=True):
        pairs += [
            (ours.attention_norm.weight, block.input_layernorm.weight),
            (ours.mlp_norm.weight, block.post_attention_layernorm.weight),
        ]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            pairs.append((getattr(ours.attention, name).weight, getattr(block.self_attn, name).weight))
        for name in ("gate_proj", "up_proj", "down_proj"):
            pairs.append((getattr(ours.mlp, name).weight, getattr(block.mlp, name).weight))
    for tower, their in (
        (model.image_tower, reference.model.image_tower),
        (model.video_tower, reference.model.video_tower),
    ):
        pairs += [
            (tower.class_embedding, their.embeddings.class_embedding),
            (tower.patch_embedding.weight, their.embeddings.patch_embedding.weight),
            (tower.position_embedding.weight, their.embeddings.position_embedding.weight),
            (tower.pre_norm.weight, their.pre_layrnorm.weight),
            (tower.pre_norm.bias, their.pre_layrnorm.bias),
            (tower.post_norm.weight, their.post_layernorm.weight),
        ]
        for ours, block in zip(tower.blocks, their.encoder.layers, strict=True):
            pairs += [
                (ours.attention_norm.weight, block.layer_norm1.weight),
                (ours.attention_norm.bias, block.layer_norm1.bias),
                (ours.mlp_norm.weight, block.layer_norm2.weight),
                (ours.mlp.fc1.weight, block.mlp.fc1.weight),
                (ours.mlp.fc2.bias, block.mlp.fc2.bias),
            ]
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                pairs.append((getattr(ours.attention, name).weight, getattr(block.self_attn, name).weight))
                pairs.append((getattr(ours.attention, name).bias, getattr(block.self_attn, name).bias))
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_that_transformers_wrote(tmp_path: Path, name: str) -> None:
    reference = reference_model(tiny_hf_config(**VARIANTS[name]))
    reference.save_pretrained(tmp_path / "theirs")
    model, checkpoint, report = load(tmp_path / "theirs")
    assert report.ignored == () and report.layout == "D"
    assert report.parameters == sum(parameter.numel() for parameter in reference.parameters())
    landed(model, reference)
    out = save_checkpoint(model, tmp_path / "ours", Companions(), ExportOptions(layout="D"))
    assert_same(load_file(out / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors"))
    assert read_checkpoint(out).config == checkpoint.config
    assert_same(oracles.load_reference(out).state_dict(), reference.state_dict())


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
@pytest.mark.parametrize("frames", [0, 3])
def test_export_of_load_is_the_same_file_in_every_layout(tmp_path: Path, layout: DiskLayout, frames: int) -> None:
    section = {"temporal_attention": bool(frames), "temporal_frames": 3}
    config = tiny_hf_config(filmstrip=section)
    state = write_tiny_checkpoint(tmp_path / "source", config, layout=layout, temporal_frames=frames)
    model, _, report = load(tmp_path / "source")
    assert report.layout == layout and report.ignored == ()
    out = save_checkpoint(model, tmp_path / "out", Companions(), ExportOptions(layout=layout))
    assert_same(load_file(out / "model.safetensors"), load_file(tmp_path / "source" / "model.safetensors"))
    known = {name: tensor for name, tensor in state.items() if ".temporal_" not in name}
    for directory in (tmp_path / "source", out):
        assert_same(oracles.load_reference(directory).state_dict(), known)


@pytest.mark.parametrize("layout", ["A", "C"])
def test_shards_that_transformers_reads(tmp_path: Path, layout: DiskLayout) -> None:
    state = write_tiny_checkpoint(tmp_path / "source")
    model = load(tmp_path / "source")[0]
    options = ExportOptions(layout=layout, max_shard_bytes=150_000)
    out = save_checkpoint(model, tmp_path / "out", Companions(), options)
    assert (out / "model.safetensors.index.json").is_file()
    assert_same(oracles.load_reference(out).state_dict(), state)


def test_shards_that_transformers_wrote(tmp_path: Path) -> None:
    reference = reference_model(tiny_hf_config())
    reference.save_pretrained(tmp_path, max_shard_size=150_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    landed(load(tmp_path)[0], reference)


def test_half_precision(tmp_path: Path) -> None:
    reference = reference_model(tiny_hf_config()).to(torch.bfloat16)
    reference.save_pretrained(tmp_path / "theirs")
    model, _, report = load(tmp_path / "theirs")
    assert (report.dtype_on_disk, report.dtype) == ("bfloat16", "bfloat16")
    landed(model, reference)
    out = save_checkpoint(model, tmp_path / "ours", Companions())
    auto = oracles.load_reference(out, dtype="auto")
    assert auto.dtype == torch.bfloat16
    assert_same(auto.state_dict(), reference.state_dict())


@pytest.mark.parametrize(
    "name", ["plain", "own head width", "several feature layers", "linear", "dynamic", "llama3", "tied"]
)
def test_transformers_reads_our_config_as_it_reads_its_own(tmp_path: Path, name: str) -> None:
    source = tiny_hf_config(**VARIANTS[name])
    write_tiny_checkpoint(tmp_path / "source", source)
    out = save_checkpoint(load(tmp_path / "source")[0], tmp_path / "out", Companions())
    ours = oracles.reference_config(json.loads((out / "config.json").read_text())).to_dict()
    theirs = oracles.reference_config(source).to_dict()
    for config in (ours, theirs):
        config.pop("filmstrip", None)
        config["text_config"].pop("tie_word_embeddings")  # written for older releases; the outer flag decides in 5.x
    assert {**ours, "video_seq_length": 40, "image_seq_length": 4} == theirs


def test_class_defaults_are_those_of_transformers() -> None:
    from filmstrip.checkpoint.hf_config import parse_config

    for values in (
        {"model_type": "video_llava"},
        {"model_type": "video_llava", "vision_config": {}, "text_config": {}},
    ):
        theirs = oracles.reference_config(values)
        ours = parse_config(values, "config.json").model
        vision, text = theirs.vision_config, theirs.text_config
        assert (ours.image_tower.hidden_size, ours.image_tower.num_layers) == (
            vision.hidden_size,
            vision.num_hidden_layers,
        )
        assert (ours.image_tower.patch_size, ours.image_tower.image_size) == (vision.patch_size, vision.image_size)
        assert (ours.image_tower.num_heads, ours.image_tower.activation) == (
            vision.num_attention_heads,
            vision.hidden_act,
        )
        assert ours.image_tower.intermediate_size == vision.intermediate_size
        assert (ours.text.vocab_size, ours.text.max_positions) == (text.vocab_size, text.max_position_embeddings)
        assert (ours.text.rms_norm_eps, ours.text.head_dim) == (text.rms_norm_eps, text.head_dim)
        assert ours.text.rope.theta == text.rope_parameters["rope_theta"]


@pytest.mark.parametrize("processor", ["flat", "nested"])
def test_processor_and_tokenizer_files(tmp_path: Path, processor: ProcessorLayout) -> None:
    write_tiny_checkpoint(tmp_path / "source", processor=processor)
    model, checkpoint, _ = load(tmp_path / "source")
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    companions = Companions(
        files={name: (tmp_path / "source" / name).read_bytes() for name in names},
        pixels=checkpoint.processor.pixels,
        generation=checkpoint.generation,
        chat_template=checkpoint.processor.chat_template,
    )
    out = save_checkpoint(model, tmp_path / "out", companions)
    assert oracles.load_reference(out).generation_config.eos_token_id == 2
    before, after = (processors.reference_image_processor(directory) for directory in (tmp_path / "source", out))
    assert {**after.to_dict(), "processor_class": None} == {**before.to_dict(), "processor_class": None}
    text = "USER: <video>\nwhat is this? é ASSISTANT:"
    before, after = (processors.reference_tokenizer(directory) for directory in (tmp_path / "source", out))
    assert after(text).input_ids == before(text).input_ids
    assert (after.padding_side, after.pad_token_id) == ("left", checkpoint.config.pad_token_id)


def test_auto_processor(tmp_path: Path) -> None:
    """transformers 5.23 cannot build any Video-LLaVA processor without torchvision (its video processor needs it)."""
    pytest.importorskip("torchvision")
    write_tiny_checkpoint(tmp_path / "source")
    write_tiny_tokenizer(tmp_path / "tokenizer")
    model, checkpoint, _ = load(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    companions = Companions(files, PixelSpec(size=28, crop=28), chat_template=checkpoint.processor.chat_template)
    out = save_checkpoint(model, tmp_path / "out", companions)
    processor = processors.reference_processor(out)
    assert processor.patch_size == 14 and processor.chat_template == checkpoint.processor.chat_template
    batch = processor(text="USER: <video>\nwhat ASSISTANT:", videos=torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    assert (batch["input_ids"] == checkpoint.config.video_token_id).sum() == 2 * 5


def test_the_helper_agrees_with_transformers_about_names_and_shapes() -> None:
    for overrides in VARIANTS.values():
        config = tiny_hf_config(**overrides)
        theirs = reference_model(config).state_dict()
        if config.get("tie_word_embeddings"):
            theirs.pop("lm_head.weight")
        ours = tiny_state(config)
        assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert rename_state(ours, "C").keys() == ours.keys()
