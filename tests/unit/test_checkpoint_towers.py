"""Towers on their own: recognised, described, refused where they do not belong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.checkpoint.read import read_any, read_checkpoint
from filmstrip.checkpoint.tower_config import parse_vision_tower, tower_kind
from filmstrip.checkpoint.towers import TowerCheckpoint, load_text_tower, load_vision_tower, read_tower
from filmstrip.config import TextConfig, VisionConfig
from filmstrip.errors import ConfigError, FilmstripError
from filmstrip.models.weightless import build_meta
from filmstrip.testing.original import languagebind_config, write_original_checkpoint
from filmstrip.testing.tiny import tiny_hf_config, tiny_state, write_json, write_tiny_checkpoint


def one_line(call: Any, *arguments: Any) -> str:
    with pytest.raises(FilmstripError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_llama(directory: Path, prefix: str = "model.", **state: torch.Tensor) -> Path:
    """The text tower of the tiny model as a plain LLaMA; `__` in the names of additional tensors stands for a dot."""
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_hf_config()
    write_json(directory / "config.json", config["text_config"])
    inside = "model.language_model."
    tensors = {
        name.replace(inside, prefix): tensor
        for name, tensor in tiny_state(config).items()
        if name.startswith(inside) or name == "lm_head.weight"
    }
    save_file(tensors | {k.replace("__", "."): v for k, v in state.items()}, directory / "model.safetensors")
    return directory


@pytest.fixture
def video_tower(tmp_path: Path) -> Path:
    """A LanguageBind repository with temporal attention over three frames."""
    write_original_checkpoint(tmp_path / "whole", towers="inside")
    return tmp_path / "whole" / "video_tower"


def test_a_llama(tmp_path: Path) -> None:
    checkpoint = read_any(write_llama(tmp_path))
    assert isinstance(checkpoint, TowerCheckpoint) and isinstance(checkpoint.config, TextConfig)
    assert checkpoint.describe() == "LLaMA text tower, LlamaForCausalLM layout, float32, 159 k parameters"
    assert (checkpoint.temporal_frames, checkpoint.warnings, checkpoint.unused) == (None, (), ())
    tower, report = load_text_tower(tmp_path, dtype=torch.bfloat16)
    assert tower.lm_head.weight.dtype == torch.bfloat16 and not tower.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in tower.parameters())
    assert (report.dtype_on_disk, report.dtype, report.used) == ("float32", "bfloat16", 30)


def test_old_llama_files_hold_rotary_frequencies(tmp_path: Path) -> None:
    write_llama(tmp_path, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    assert load_text_tower(tmp_path)[1].reasons == {"old files store it; it is computed from the configuration": 1}


def test_a_head_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_llama(tmp_path, prefix="") / "model.safetensors"
    assert load_text_tower(tmp_path)[1].layout == "bare"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "lm_head.weight"}, path)
    assert "tensor 'lm_head.weight' is missing from the checkpoint" in one_line(load_text_tower, tmp_path)


def test_unknown_keys_are_errors(tmp_path: Path) -> None:
    write_llama(tmp_path, score__weight=torch.ones(1))
    assert "1 of 31 tensors do not belong to the LlamaForCausalLM layout: 'score.weight'" in one_line(
        read_tower, tmp_path
    )


def test_a_languagebind_video_tower(video_tower: Path) -> None:
    checkpoint = read_any(video_tower)
    assert isinstance(checkpoint, TowerCheckpoint) and isinstance(checkpoint.config, VisionConfig)
    assert checkpoint.temporal_frames == 3 and checkpoint.config.temporal_attention
    assert checkpoint.describe().startswith(
        "CLIP vision tower with temporal attention, CLIPModel layout, float32, 70.8 k"
    )
    tower, report = load_vision_tower(video_tower)
    assert tower.blocks[0].temporal is not None and report.dropped_temporal_parameters == 0
    assert {item.key for item in report.ignored} == {"text_model.final_layer_norm.weight", "logit_scale"}
    write_json(video_tower / "config.json", languagebind_config())
    _, without = load_vision_tower(video_tower)
    assert without.dropped_temporal_parameters == report.parameters - without.parameters == 17_536


def test_the_other_tower_is_refused(tmp_path: Path, video_tower: Path) -> None:
    assert "is not a text tower: CLIP vision tower with temporal" in one_line(load_text_tower, video_tower)
    assert "is not a vision tower: LLaMA text tower" in one_line(load_vision_tower, write_llama(tmp_path / "text"))
    write_tiny_checkpoint(tmp_path / "model")
    assert "model_type is 'video_llava'; supported as a tower" in one_line(read_tower, tmp_path / "model")
    assert "has no config.json" in one_line(read_tower, tmp_path)


def test_a_tower_is_no_multimodal_model(tmp_path: Path) -> None:
    message = one_line(read_checkpoint, write_llama(tmp_path))
    assert "is only a part of a model (LLaMA text tower, " in message and "`filmstrip assemble`" in message


def test_model_types() -> None:
    assert [tower_kind(name) for name in ("llama", "clip", "clip_vision_model", "LanguageBindVideo")] == [
        "text",
        "vision",
        "vision",
        "vision",
    ]
    assert [tower_kind(name) for name in ("video_llava", "mistral", None, 3, ["llama"])] == [None] * 5


def test_vision_configurations() -> None:
    """A whole CLIP's section, the older spelling of it, and a tower's own file; defaults are CLIPVisionConfig's."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
    large = parse_vision_tower({"model_type": "clip", "vision_config": sizes | {"patch_size": 14}}, "x")
    assert large == VisionConfig()
    old = {"vision_config": sizes, "vision_config_dict": {"patch_size": 14}}
    assert parse_vision_tower(old, "x") == large
    base = parse_vision_tower({"model_type": "clip_vision_model"}, "x")
    assert (base.hidden_size, base.patch_size, base.num_layers, base.activation) == (768, 32, 12, "quick_gelu")
    temporal = parse_vision_tower({"vision_config": {"add_time_attn": True, "num_frames": 8}}, "x")
    assert (temporal.temporal_attention, temporal.temporal_frames) == (True, 8)
    build_meta(temporal)
    for values, words in (
        ({"vision_config": {"add_time_attn": "yes"}}, "x, vision_config: add_time_attn is 'yes'"),
        ({"vision_config": 3}, "x: vision_config is 3; expected an object"),
        ({"vision_config": {"hidden_size": 10}}, "x: vision: width 10 does not divide into 12 heads"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_vision_tower(values, "x")
