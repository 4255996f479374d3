"""Counting parameters: the published totals, every parameter once, bytes in every precision."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.quantize import QuantizeOptions, quantized_output
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.checkpoint.resolve import resolve
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.diagnostics.model_source import find_model
from filmstrip.diagnostics.params import (
    Count,
    bytes_as,
    count_modules,
    count_parameters,
    fold_layers,
    kind_of,
    quantised_bytes,
    quantised_layers,
)
from filmstrip.errors import ConfigError
from filmstrip.models.weightless import build_meta
from filmstrip.testing.original import write_original_checkpoint
from filmstrip.training.tiny import TINY

PUBLISHED = ModelConfig()


def test_the_published_model_has_the_totals_of_the_reference_sheet() -> None:
    """Sheet 1.3: parameters and tensors of every component, bytes in 16 and 32 bit."""
    report = count_parameters(build_meta(PUBLISHED))
    assert {name: (count.parameters, count.tensors) for name, count in report.components.items()} == {
        "video_tower": (303_179_776, 391),
        "image_tower": (303_179_776, 391),
        "projector": (20_979_712, 4),
        "text_tower": (6_607_605_760, 290),
        "text_tower.lm_head": (131_334_144, 1),
    }
    assert (report.total.parameters, report.total.tensors) == (7_366_279_168, 1077)
    assert report.bytes_as["bfloat16"] == 14_732_558_336
    assert report.bytes_as["float32"] == 29_465_116_672


def test_temporal_attention_of_the_original_is_a_kind_of_its_own() -> None:
    """Sheet 2.5: 101,007,360 parameters in 11 tensors of each of 24 layers."""
    config = replace(PUBLISHED, video_tower=VisionConfig(temporal_attention=True))
    count = count_parameters(build_meta(config)).kinds["temporal attention"]
    assert (count.parameters, count.tensors) == (101_007_360, 264)


def _with_tiles() -> ModelConfig:
    tower = VisionConfig(image_size=336)
    return replace(PUBLISHED, image_tower=tower, video_tower=tower, image_grids=((336, 672),), video_class_token=False)


@pytest.mark.parametrize(
    "config",
    [PUBLISHED, TINY, TINY.text, TINY.image_tower, _with_tiles()],
    ids=["7b", "tiny", "text", "vision", "tiles"],
)
def test_every_parameter_is_in_one_component_one_kind_and_one_layer(
    config: ModelConfig | TextConfig | VisionConfig,
) -> None:
    model = build_meta(config)
    report = count_parameters(model)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert report.total == Count(expected, len(list(model.parameters())), expected)
    for counts in (report.components.values(), report.kinds.values(), count_modules(model).values()):
        assert sum(counts, Count()) == report.total
    assert sum((layer.each for layer in report.layers), Count()) == report.total
    folded = fold_layers(report.layers)
    assert sum(layer.number * layer.each.parameters for layer in folded) == expected


def test_equal_layers_are_folded_and_unequal_ones_are_not() -> None:
    labels = [layer.label for layer in fold_layers(count_parameters(build_meta(TINY)).layers)]
    assert "text_tower.blocks.0–5" in labels and "image_tower.blocks.0–3" in labels
    model = build_meta(TINY)
    model.text_tower.blocks[1].mlp.up_proj = nn.Linear(128, 353, bias=False, device="meta")  # type: ignore[union-attr,index]
    labels = [layer.label for layer in fold_layers(count_parameters(model).layers)]
    assert [label for label in labels if label.startswith("text_tower.blocks")] == [
        "text_tower.blocks.0",
        "text_tower.blocks.1",
        "text_tower.blocks.2–5",
    ]


def test_tied_and_shared_weights_count_once_and_are_named() -> None:
    text = replace(TINY.text, tie_embeddings=True)
    config = replace(TINY, text=text, shared_towers=True)
    report = count_parameters(build_meta(config))
    assert set(report.shared) == {"video_tower", "text_tower.lm_head"}
    apart = count_parameters(build_meta(replace(config, shared_towers=False, text=replace(text, tie_embeddings=False))))
    tower = report.components["image_tower"].parameters
    assert apart.total.parameters - report.total.parameters == tower + text.vocab_size * text.hidden_size
    assert apart.shared == ()


def test_frozen_parameters_are_told_apart() -> None:
    model = build_meta(TINY)
    model.image_tower.requires_grad_(False)  # type: ignore[union-attr]
    report = count_parameters(model)
    assert report.components["image_tower"].trainable == 0
    assert report.total.frozen == report.components["image_tower"].parameters
    assert report.components["projector"].frozen == 0


def test_a_parameter_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="of no known kind"):
        kind_of("text_tower.mystery")


def test_quantised_bytes_count_codes_and_scales() -> None:
    """320 inputs are five groups of 64, or ten of 32: 20 outputs have 100 scales, or 200."""
    model = nn.Sequential(nn.Linear(320, 20, device="meta"))
    sizes = {"int8": 20 * 320 + 100 * 2, "int4": 20 * 160 + 200 * 2}
    for precision, size in sizes.items():
        (layer,) = quantised_layers(model, precision)
        assert quantised_bytes(layer) == size
        assert bytes_as(model, precision) == size + 20 * 2  # the bias stays in 16 bit
    assert quantised_layers(nn.Sequential(nn.Linear(301, 20, device="meta")), "int8") == []


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_that_quantising_writes(tmp_path: Path, bits: int) -> None:
    source = tmp_path / "half"
    write_output(convert(resolve("tiny"), ConvertOptions(dtype=torch.bfloat16)), source, WriteOptions())
    output = quantized_output(source, QuantizeOptions(bits=bits))
    assert output.nbytes == bytes_as(build_meta(read_checkpoint(source).config), f"int{bits}")


def test_an_original_configuration_under_another_name_is_not_mistaken_for_its_neighbour(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path / "model")
    other = tmp_path / "model" / "other.json"
    other.write_text((tmp_path / "model" / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"other\.json is of the original release"):
        find_model(str(other))
