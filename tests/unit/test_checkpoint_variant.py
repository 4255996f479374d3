"""Checkpoints of models with another aggregation: written as a variant of our own, read back, never as plain."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.checkpoint.hf_config_write import require_plain
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import Checkpoint, read_checkpoint
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.params import count_parameters
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.models.video_llava import VideoLlava
from filmstrip.oracle.reference import reference_config
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint
from tests.models import GOLDEN, random_model
from tests.unit.test_aggregation import CONFIGS

# A configuration on disk has no frames of a temporal attention that is not there.
TOWER = replace(GOLDEN.image_tower, temporal_frames=8)
OWN = {
    name: replace(config, image_tower=TOWER, video_tower=TOWER)
    for name, config in CONFIGS.items()
    if name != "keep-all"
}


def read(directory: Path) -> tuple[VideoLlava, Checkpoint]:
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = VideoLlava(checkpoint.config)
    load_weights(model, checkpoint)
    return model, checkpoint


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_saved_and_loaded_is_the_same(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    first = save_checkpoint(model, tmp_path / "first", Companions())
    again, checkpoint = read(first)
    assert checkpoint.config == config
    assert config.aggregation in checkpoint.describe()
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())
    second = save_checkpoint(again, tmp_path / "second", Companions())
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_the_resampler_has_a_place_in_every_layout(layout: str, tmp_path: Path) -> None:
    model = random_model(OWN["resampler"])
    save_checkpoint(model, tmp_path / "x", Companions(), ExportOptions(layout=layout))
    again, checkpoint = read(tmp_path / "x")
    assert checkpoint.layout.name == layout
    assert torch.equal(again.state_dict()["aggregation.queries"], model.state_dict()["aggregation.queries"])


def test_a_plain_model_is_written_as_ever(tmp_path: Path) -> None:
    values = config_of(GOLDEN, tmp_path)
    assert values["model_type"] == "video_llava"
    assert not {"aggregation", "video_class_token"} & set(values["filmstrip"])
    require_plain(GOLDEN, "x")


def config_of(config: ModelConfig, folder: Path) -> dict[str, Any]:
    content = json.loads(
        (save_checkpoint(random_model(config), folder / "x", Companions()) / "config.json").read_text()
    )
    assert isinstance(content, dict)
    return content


def test_the_section_says_what_differs_and_transformers_refuses_it(tmp_path: Path) -> None:
    values = config_of(OWN["resampler"], tmp_path / "resampler")
    assert (values["model_type"], values["architectures"]) == (
        "filmstrip_video_llava",
        ["FilmstripVideoLlavaForConditionalGeneration"],
    )
    assert values["filmstrip"]["aggregation"] == {"name": "resampler", "queries": 6, "layers": 2, "frames": 8}
    assert values["video_seq_length"] == 6
    with pytest.raises(KeyError, match="filmstrip_video_llava"):
        reference_config(values)
    pooled = config_of(OWN["strided-pool"], tmp_path / "pooled")
    assert pooled["filmstrip"]["aggregation"] == {"name": "strided-pool"}
    assert pooled["filmstrip"]["video_class_token"] is False


@pytest.mark.parametrize("to", ["hf", "pku"])
def test_export_to_a_plain_format_is_refused(to: str, tmp_path: Path) -> None:
    save_checkpoint(random_model(OWN["mean-frames"]), tmp_path / "x", Companions())
    with pytest.raises(ConfigError, match="frames are aggregated by 'mean-frames', which neither"):
        convert(tmp_path / "x", ConvertOptions(to=to))
    save_checkpoint(random_model(OWN["strided-pool"]), tmp_path / "y", Companions())
    with pytest.raises(ConfigError, match="by 'strided-pool' and class tokens of videos are dropped"):
        convert(tmp_path / "y", ConvertOptions(to=to))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "mean"}, r"filmstrip, aggregation: name is 'mean'; supported: keep-all, mean-frames"),
        ({"queries": 3}, "aggregation: name is None; supported"),
        ({"name": "resampler", "kept": 3}, "aggregation: kept is 3; settings of 'resampler': queries, layers, frames"),
        ({"name": "resampler", "queries": -1}, "aggregation: queries is -1; expected a whole number"),
        ({"name": "resampler", "frames": 5000}, "aggregation frames must be a whole number up to 4096"),
        ({"name": "token-merging", "kept": 500}, "can keep 2 to"),
        ([], "aggregation is \\[\\]; expected an object"),
    ],
)
def test_a_section_that_is_wrong_is_named(section: Any, message: str, tmp_path: Path) -> None:
    config = tiny_hf_config()
    config["filmstrip"] = {"aggregation": section}
    write_tiny_checkpoint(tmp_path, config)
    with pytest.raises(ConfigError, match=message):
        read_checkpoint(tmp_path)


def test_a_checkpoint_without_the_resampler_s_weights_is_refused(tmp_path: Path) -> None:
    config = tiny_hf_config()
    config["filmstrip"] = {"aggregation": {"name": "resampler"}}
    write_tiny_checkpoint(tmp_path, config)
    with pytest.raises(CheckpointError, match=r"'aggregation\.blocks\.0\.attention\.k_proj\.bias'"):
        read(tmp_path)


def test_parameters_are_counted_as_the_aggregation_s() -> None:
    report = count_parameters(random_model(OWN["resampler"]))
    assert report.components["aggregation"] == report.kinds["aggregation"]
    assert report.components["aggregation"].parameters > 6 * 32 + 8 * 32
