"""LLaVA-1.5 and LLaVA-NeXT-Video on disk: what transformers wrote loads here, what is written here loads there."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from filmstrip.api import load as load_assistant
from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.checkpoint.hf_config import parse_config
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.models import VideoLlava
from filmstrip.testing.random_reference import reference_model
from filmstrip.testing.tiny import DiskLayout, ProcessorLayout, tiny_shapes, tiny_sister_config, write_tiny_checkpoint

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")
processors = pytest.importorskip("filmstrip.oracle.processors", reason="transformers is not installed")

Sister = Literal["llava", "llava_next_video"]
SISTERS: tuple[Sister, ...] = ("llava", "llava_next_video")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases, own head width": {"text_attention_bias": True, "text_mlp_bias": True, "text_head_dim": 24},
    "two layers, no projector bias": {"vision_feature_layer": [-2, -4], "multimodal_projector_bias": False},
    "linear": {"text_rope_theta": 5e5, "text_rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "exact gelu": {"vision_hidden_act": "gelu", "vision_num_hidden_layers": 3},
}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sister", SISTERS)
def test_there_and_back(tmp_path: Path, sister: Sister, name: str) -> None:
    """transformers writes, we load and write, and both files and transformers' own reading of them agree."""
    reference = reference_model(tiny_sister_config(sister, **VARIANTS[name]))
    reference.save_pretrained(tmp_path / "theirs")
    checkpoint = read_checkpoint(tmp_path / "theirs")
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config())
    report = load_weights(model, checkpoint)
    assert report.ignored == () and report.layout == "D"
    assert report.parameters == sum(parameter.numel() for parameter in reference.parameters())
    out = save_checkpoint(model, tmp_path / "ours", Companions(trained_frames=32), ExportOptions(layout="D"))
    assert_same(load_file(out / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors"))
    assert read_checkpoint(out).config == checkpoint.config
    assert_same(oracles.load_reference(out).state_dict(), reference.state_dict())


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
@pytest.mark.parametrize("sister", SISTERS)
def test_export_of_load_is_the_same_file_in_every_layout(tmp_path: Path, sister: Sister, layout: DiskLayout) -> None:
    state = write_tiny_checkpoint(tmp_path / "source", tiny_sister_config(sister), layout=layout)
    checkpoint = read_checkpoint(tmp_path / "source")
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config())
    assert load_weights(model, checkpoint).layout == layout
    options = ExportOptions(layout=layout, max_shard_bytes=300_000)
    out = save_checkpoint(model, tmp_path / "out", Companions(), options)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1
    written = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert_same(written, load_file(tmp_path / "source" / "model.safetensors"))
    assert_same(oracles.load_reference(out).state_dict(), state)


@pytest.mark.parametrize("sister", SISTERS)
def test_the_helper_agrees_with_transformers_about_names_and_shapes(sister: Sister) -> None:
    config = tiny_sister_config(sister)
    theirs = {name: tuple(tensor.shape) for name, tensor in reference_model(config).state_dict().items()}
    assert tiny_shapes(config) == theirs


@pytest.mark.parametrize("name", ["plain", "tied", "linear"])
@pytest.mark.parametrize("sister", SISTERS)
def test_transformers_reads_our_config_as_it_reads_its_own(tmp_path: Path, sister: Sister, name: str) -> None:
    source = tiny_sister_config(sister, **VARIANTS[name])
    write_tiny_checkpoint(tmp_path / "source", source)
    out = load_assistant(tmp_path / "source", quiet=True).save(tmp_path / "out")
    ours = oracles.reference_config(json.loads((out / "config.json").read_text())).to_dict()
    theirs = oracles.reference_config(source).to_dict()
    for config in (ours, theirs):
        config.pop("filmstrip", None)
        config["text_config"].pop("tie_word_embeddings")
    assert ours == theirs


@pytest.mark.parametrize("sister", SISTERS)
@pytest.mark.parametrize("sections", [{}, {"vision_config": {}, "text_config": {}}], ids=str)
def test_class_defaults_are_those_of_transformers(sister: Sister, sections: dict[str, Any]) -> None:
    # Grids are whole tiles: the default ones would not fit a tower of 224 pixels, where transformers fails later.
    grids = {"image_grid_pinpoints": [[224, 448]]} if sections and sister == "llava_next_video" else {}
    values = {"model_type": sister, **sections, **grids}
    theirs, ours = oracles.reference_config(values), parse_config(values, "config.json").model
    vision, text = theirs.vision_config, theirs.text_config
    tower = ours.image_tower
    if sections:  # CLIP's own defaults: a tower of 32-pixel patches
        assert (vision.patch_size, vision.image_size) == (32, 224)
    assert (tower.hidden_size, tower.num_layers, tower.num_heads) == (
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
    )
    assert (tower.patch_size, tower.image_size, tower.activation) == (
        vision.patch_size,
        vision.image_size,
        vision.hidden_act,
    )
    assert (ours.text.vocab_size, ours.text.rms_norm_eps) == (text.vocab_size, text.rms_norm_eps)
    assert ours.image_token_id == theirs.image_token_index
    assert ours.video_token_id == getattr(theirs, "video_token_index", None)
    assert [list(grid) for grid in ours.image_grids] == getattr(theirs, "image_grid_pinpoints", [])
    assert ours.select_layers == (theirs.vision_feature_layer,)


@pytest.mark.parametrize("processor", ["flat", "nested"])
@pytest.mark.parametrize("sister", SISTERS)
def test_processor_and_tokenizer_files(tmp_path: Path, sister: Sister, processor: ProcessorLayout) -> None:
    write_tiny_checkpoint(tmp_path / "source", tiny_sister_config(sister), processor=processor)
    out = load_assistant(tmp_path / "source", quiet=True).save(tmp_path / "out")
    before, after = (processors.reference_image_processor(directory) for directory in (tmp_path / "source", out))
    assert {**after.to_dict(), "processor_class": None} == {**before.to_dict(), "processor_class": None}
    text = "USER: <image>\nwhat is this? é ASSISTANT:"
    before, after = (processors.reference_tokenizer(directory) for directory in (tmp_path / "source", out))
    assert after(text).input_ids == before(text).input_ids
    assert after.pad_token_id == read_checkpoint(out).config.pad_token_id
    first, second = (read_checkpoint(directory).processor for directory in (tmp_path / "source", out))
    assert (first.pixels, first.chat_template, second.warnings) == (second.pixels, second.chat_template, ())


def test_transformers_answers_as_we_do_from_what_was_saved(tmp_path: Path) -> None:
    """LLaVA-1.5 whole: saved here, then processor, model and generation there."""
    write_tiny_checkpoint(tmp_path / "source", tiny_sister_config("llava"))
    out = load_assistant(tmp_path / "source", quiet=True).save(tmp_path / "out")
    assistant = load_assistant(out, quiet=True)
    image = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8).numpy()
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    answer = assistant.ask(path, "what is this", max_new_tokens=12)
    processor = processors.reference_processor(out)
    inputs = processor(text=[answer.prompt.rendered.text], images=[image], return_tensors="pt")
    reference = oracles.load_reference(out)
    theirs = oracles.reference_generate(reference, dict(inputs), max_new_tokens=12)[0].tolist()
    assert theirs == list(answer.token_ids)
