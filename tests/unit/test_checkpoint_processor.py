"""Processor files in both layouts, chat templates from every place, contradictions named."""

import json
from pathlib import Path
from typing import Any

import pytest

from filmstrip.checkpoint.hf_config import parse_config
from filmstrip.checkpoint.hf_processor import ProcessorFiles, processor_values, read_processor_files
from filmstrip.config import ModelConfig
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.media.transform import PixelSpec
from filmstrip.testing.tiny import CHAT_TEMPLATE, ProcessorLayout, tiny_hf_config, write_json, write_tiny_processor

MODEL: ModelConfig = parse_config(tiny_hf_config(), "config.json").model
TINY_SPEC = PixelSpec(size=28, crop=28)


def read_flat(directory: Path, **image: Any) -> ProcessorFiles:
    values = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | image
    write_json(directory / "preprocessor_config.json", values)
    return read_processor_files(directory, MODEL)


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_both_layouts_say_the_same(tmp_path: Path, layout: ProcessorLayout) -> None:
    write_tiny_processor(tmp_path, tiny_hf_config(), layout)
    assert read_processor_files(tmp_path, MODEL) == ProcessorFiles(TINY_SPEC, CHAT_TEMPLATE)


def test_the_nested_layout_wins(tmp_path: Path) -> None:
    write_tiny_processor(tmp_path, tiny_hf_config(), "nested")
    write_json(tmp_path / "preprocessor_config.json", {"size": 999})
    assert read_processor_files(tmp_path, MODEL).pixels == TINY_SPEC


def test_numbers_of_old_files_and_switched_off_steps(tmp_path: Path) -> None:
    old = read_flat(tmp_path, size=30, crop_size=28, image_mean=0.5, image_std=[0.1, 0.2, 0.3], do_normalize=False)
    expected = PixelSpec(30, 28, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), do_normalize=False)
    assert old.pixels == expected


def test_nothing_there(tmp_path: Path) -> None:
    files = read_processor_files(tmp_path, MODEL)
    assert files.pixels == TINY_SPEC and files.chat_template is None
    assert "no preprocessor_config.json" in files.warnings[0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"resample": 2}, "resample is 2"),
        ({"size": {"height": 28, "width": 28}}, "one size under shortest_edge"),
        ({"size": {"shortest_edge": 28, "longest_edge": 40}}, "one size under shortest_edge"),
        ({"crop_size": {"height": 28, "width": 30}}, "one size under height and width"),
        ({"crop_size": 30, "size": 30}, "crops to 30 pixels, the vision tower takes 28"),
        ({"image_mean": [0.5, 0.5]}, "R, G, B"),
        ({"image_mean": ["a", 0, 0]}, "expected a number"),
        ({"image_std": 0}, "above zero"),
        ({"rescale_factor": 0}, "rescale factor"),
        ({"do_resize": 1}, "true or false"),
        ({"do_pad": True}, "padding is not supported"),
        ({"image_processor_type": "SiglipImageProcessor"}, "supported: VideoLlavaImageProcessor"),
        ({"size": 10**9}, "whole number"),
    ],
)
def test_transforms_that_are_not_supported(tmp_path: Path, image: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_flat(tmp_path, **image)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_videos_transformed_otherwise_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "video_preprocessor_config.json", {"size": 28, "crop_size": 28, "image_mean": 0.5})
    with pytest.raises(ConfigError, match=r"video_preprocessor_config.json: mean is \(0.5, 0.5, 0.5\) for videos"):
        read_flat(tmp_path)


def test_contradictions_with_the_configuration_are_told(tmp_path: Path) -> None:
    write_json(tmp_path / "processor_config.json", {"patch_size": 16, "vision_feature_select_strategy": "default"})
    assert read_flat(tmp_path).warnings == (
        f"{tmp_path / 'processor_config.json'}: patch_size is 16, config.json means 14; config.json is used",
    )


def test_chat_template_places(tmp_path: Path) -> None:
    def template() -> str | None:
        return read_flat(tmp_path).chat_template

    assert template() is None
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "1"})
    assert template() == "1"
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "2"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert template() == "2"
    write_json(tmp_path / "processor_config.json", {"chat_template": "3"})
    assert template() == "3"
    write_json(tmp_path / "chat_template.json", {"chat_template": "4"})
    assert template() == "4"
    (tmp_path / "chat_template.jinja").write_bytes(b"5\r\n6")
    assert template() == "5\n6"


def test_bad_chat_templates(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    for raw in (b"\xff\xfe\xff", b"x" * (2**20 + 1)):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError) as caught:
            read_flat(tmp_path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()
    write_json(tmp_path / "chat_template.json", {"chat_template": {"tool": "x"}})
    with pytest.raises(ConfigError, match="named 'default'"):
        read_flat(tmp_path)


def test_written_and_read_back(tmp_path: Path) -> None:
    spec = PixelSpec(30, 28, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 1 / 127.5, do_normalize=False)
    for name, values in processor_values(spec, MODEL).items():
        (tmp_path / name).write_text(json.dumps(values))
    assert read_processor_files(tmp_path, MODEL) == ProcessorFiles(spec)
