"""Layout tables: total over every published key, one-to-one, and recognised by names alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.checkpoint.layouts import LAYOUTS, get_layout
from filmstrip.checkpoint.rules import WITHOUT_LEADING_ONE, Drop, Layout, Mapped, Rule, detect_layout
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.models.video_llava import VideoLlava
from filmstrip.testing.tiny import rename_state, tiny_hf_config, tiny_shapes

TINY = ModelConfig(
    text=TextConfig(hidden_size=64, intermediate_size=112, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16),
    image_tower=VisionConfig(hidden_size=32, intermediate_size=64, num_layers=4, num_heads=4),
    video_tower=VisionConfig(hidden_size=32, intermediate_size=64, num_layers=4, num_heads=4, temporal_attention=True),
)


def keys_of(layout: str, temporal_frames: int = 3) -> list[str]:
    """Every key of a checkpoint in a layout, from the test helper's own table."""
    shapes = tiny_shapes(tiny_hf_config(), temporal_frames=temporal_frames)
    return list(rename_state({name: torch.empty(0) for name in shapes}, layout))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_round_trip(name: str) -> None:
    layout = LAYOUTS[name]
    keys = keys_of(name)
    mapped = [layout.to_canonical(key) for key in keys]
    assert all(isinstance(item, Mapped) for item in mapped)
    canonical = [item.canonical for item in mapped if isinstance(item, Mapped)]
    assert len(set(canonical)) == len(keys) == 176 + 44
    assert [layout.from_canonical(item).disk for item in canonical] == keys


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_parameter_of_the_model_has_a_place(name: str) -> None:
    with torch.device("meta"):
        model = VideoLlava(TINY)
    canonical = list(model.state_dict())
    disk = [LAYOUTS[name].from_canonical(item) for item in canonical]
    assert sorted(item.disk for item in disk) == sorted(keys_of(name))
    back = [LAYOUTS[name].to_canonical(item.disk) for item in disk]
    assert [item.canonical for item in back if isinstance(item, Mapped)] == canonical


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("temporal_frames", [0, 3])
def test_detection(name: str, temporal_frames: int) -> None:
    assert detect_layout(keys_of(name, temporal_frames), LAYOUTS.values(), "x").name == name


def test_old_buffers_are_dropped_with_a_reason() -> None:
    layout = LAYOUTS["A"]
    old = [
        "language_model.model.layers.11.self_attn.rotary_emb.inv_freq",
        "image_tower.vision_model.embeddings.position_ids",
        "video_tower.vision_model.embeddings.position_ids",
    ]
    for key in old:
        drop = layout.to_canonical(key)
        assert isinstance(drop, Drop) and "computed from the configuration" in drop.why
    assert detect_layout(keys_of("A") + old, LAYOUTS.values(), "x") is layout


def test_mixed_and_unknown_keys_are_named() -> None:
    keys = keys_of("C")
    mixed = [*keys, "language_model.model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"^x: 1 of 221 tensors .*layout \(C\): 'language_model.model.layers.0"):
        detect_layout(mixed, LAYOUTS.values(), "x")
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors.*'transformer.wte.weight'"):
        detect_layout(["transformer.wte.weight"], LAYOUTS.values(), "x")
    with pytest.raises(CheckpointError, match="no tensors"):
        detect_layout([], LAYOUTS.values(), "x")


@pytest.mark.parametrize(
    "key",
    [
        "model.language_model.layers.01.mlp.up_proj.weight",
        "model.language_model.layers.x.mlp.up_proj.weight",
        "model.language_model.layers.99999.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight.extra",
        "model.language_model.layers.0.mlp.up_projxweight",
        "x.model.language_model.norm.weight",
        "model.language_model.norm.weight\n",
    ],
)
def test_near_misses_do_not_match(key: str) -> None:
    assert LAYOUTS["C"].to_canonical(key) is None


SEGMENTS = sorted({segment for name in LAYOUTS for key in keys_of(name) for segment in key.split(".")})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_name_maps_back_to_itself_or_nowhere(data: st.DataObject) -> None:
    segments = data.draw(st.sampled_from(keys_of(data.draw(st.sampled_from(list(LAYOUTS)))))).split(".")
    segments[data.draw(st.integers(0, len(segments) - 1))] = data.draw(st.sampled_from(SEGMENTS))
    key = ".".join(segments)
    for layout in LAYOUTS.values():
        mapped = layout.to_canonical(key)
        if isinstance(mapped, Mapped):
            assert layout.from_canonical(mapped.canonical).disk == key


def test_the_frame_embedding_loses_its_leading_one_and_gets_it_back() -> None:
    stored = torch.randn(1, 3, 32)
    inside = WITHOUT_LEADING_ONE.to_canonical(stored)
    assert inside.shape == (3, 32)
    assert torch.equal(WITHOUT_LEADING_ONE.from_canonical(inside), stored)
    assert WITHOUT_LEADING_ONE.canonical_shape((1, 3, 32)) == (3, 32)
    assert WITHOUT_LEADING_ONE.canonical_shape((2, 3, 32)) is None


def test_a_table_that_is_not_invertible_is_refused() -> None:
    with pytest.raises(ValueError, match="used twice"):
        Layout("X", "x", (Rule("a.{i}", "b.{i}"), Rule("c.{i}", "b.{i}")))
    with pytest.raises(ValueError, match="wildcards of"):
        Layout("X", "x", (Rule("a.{i}", "b"),))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="unknown checkpoint layout 'Z'"):
        get_layout("Z")
    with pytest.raises(CheckpointError, match="no place for the parameter 'nothing'"):
        LAYOUTS["A"].from_canonical("nothing")
