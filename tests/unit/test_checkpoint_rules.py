"""Layout tables: total over every published key, one-to-one, and recognised by names alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from filmstrip.checkpoint.layouts import FAMILY_LAYOUTS, LAYOUTS, get_layout, layouts_of
from filmstrip.checkpoint.rules import WITHOUT_LEADING_ONE, Drop, Layout, Mapped, Rule, detect_layout
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.config.model import FAMILIES
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.models.weightless import build_meta
from filmstrip.testing.original import original_state
from filmstrip.testing.tiny import rename_state, tiny_hf_config, tiny_shapes

TABLES = [(family, name) for family, layouts in FAMILY_LAYOUTS.items() for name in layouts]
HF_LAYOUTS = ("A", "B", "C", "D")


def keys_of(layout: str, temporal_frames: int = 3) -> list[str]:
    """Every key of a Video-LLaVA checkpoint in a layout, from the test helpers' own tables."""
    if layout == "P":
        return list(original_state(frames=temporal_frames))
    shapes = tiny_shapes(tiny_hf_config(), temporal_frames=temporal_frames)
    return list(rename_state({name: torch.empty(0) for name in shapes}, layout))  # type: ignore[arg-type]


def draw_config(family: str, draw: Callable[[Any], Any]) -> ModelConfig | TextConfig | VisionConfig:
    """A random small model of a family."""
    heads = draw(st.sampled_from([2, 4]))
    text = TextConfig(
        vocab_size=draw(st.integers(10, 40)),
        hidden_size=8 * heads,
        intermediate_size=draw(st.integers(1, 40)),
        num_layers=draw(st.sampled_from([1, 2, 11])),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([1, 2])),
        head_dim=8,
        tie_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    vision = VisionConfig(
        hidden_size=16,
        intermediate_size=draw(st.integers(1, 40)),
        num_layers=draw(st.sampled_from([2, 3, 11])),
        num_heads=2,
        image_size=28,
        patch_size=draw(st.sampled_from([7, 14])),
        temporal_attention=draw(st.booleans()),
        temporal_frames=draw(st.integers(1, 4)),
    )
    if family in ("llama", "clip"):
        return text if family == "llama" else vision
    still = VisionConfig(**(vars(vision) | {"temporal_attention": False}))
    if family == "video-llava":
        return ModelConfig(text=text, image_tower=still, video_tower=vision)
    tiled = {"image_grids": ((28, 56), (56, 28)), "aggregation": "strided-pool"} if family != "llava" else {}
    return ModelConfig(
        family=family,  # type: ignore[arg-type]
        text=text,
        image_tower=still,
        video_tower=still,
        shared_towers=True,
        video_class_token=False,
        **tiled,  # type: ignore[arg-type]
    )


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Values for every parameter once, each of its own; a tower that serves both kinds of media is the image tower."""
    return {
        name: torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape) + number
        for number, (name, parameter) in enumerate(model.named_parameters())
    }


@pytest.mark.parametrize(("family", "name"), TABLES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_to_disk_and_back_is_the_identity(family: str, name: str, data: st.DataObject) -> None:
    """For every table: each parameter of a model has exactly one place, and names and tensors survive both ways."""
    layout = get_layout(name, family)
    state = state_of(build_meta(draw_config(family, data.draw)))
    on_disk = {}
    for canonical, tensor in state.items():
        place = layout.from_canonical(canonical)
        assert place.canonical == canonical and place.disk not in on_disk
        on_disk[place.disk] = place.transform.from_canonical(tensor)
    again = {}
    for key, tensor in on_disk.items():
        mapped = layout.to_canonical(key)
        assert isinstance(mapped, Mapped) and mapped.disk == key
        assert mapped.transform.canonical_shape(tuple(tensor.shape)) == tuple(state[mapped.canonical].shape)
        again[mapped.canonical] = mapped.transform.to_canonical(tensor)
    assert list(again) == list(state)
    assert all(torch.equal(again[canonical], tensor) for canonical, tensor in state.items())
    assert detect_layout(on_disk, [layout], "x") is layout


@pytest.mark.parametrize(("family", "name"), TABLES)
def test_a_table_is_recognised_among_those_of_its_family(family: str, name: str) -> None:
    text, vision = TextConfig(num_layers=2), VisionConfig(num_layers=2, temporal_attention=True)
    config: ModelConfig | TextConfig | VisionConfig = text if family == "llama" else vision
    if family in FAMILIES:
        shared = family != "video-llava"
        config = ModelConfig(text=text, image_tower=vision, video_tower=vision, shared_towers=shared)
    layout = get_layout(name, family)
    keys = [layout.from_canonical(canonical).disk for canonical, _ in build_meta(config).named_parameters()]
    assert detect_layout(keys, layouts_of(family).values(), "x") is layout
    with pytest.raises(CheckpointError, match=r"x: 1 of \d+ tensors do not belong .*'optimizer.step'"):
        detect_layout([*keys, "optimizer.step"], layouts_of(family).values(), "x")


def test_every_family_of_models_has_tables() -> None:
    assert set(FAMILIES) < set(FAMILY_LAYOUTS)
    assert all(set(HF_LAYOUTS) <= set(FAMILY_LAYOUTS[family]) for family in FAMILIES)


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
@pytest.mark.parametrize("temporal_frames", [0, 3])
def test_detection(name: str, temporal_frames: int) -> None:
    assert detect_layout(keys_of(name, temporal_frames), LAYOUTS.values(), "x").name == name


def test_the_family_decides_what_a_name_means() -> None:
    """`model.` is the wrapper in B and C, the decoder in P and in a plain LLaMA; a sister's names are not ours."""
    key = "model.layers.0.self_attn.q_proj.weight"
    for name, prefix in (("P", "text_tower."), ("causal", "")):
        mapped = get_layout(name, "llama" if name == "causal" else "video-llava").to_canonical(key)
        assert isinstance(mapped, Mapped) and mapped.canonical == f"{prefix}blocks.0.attention.q_proj.weight"
    assert get_layout("C").to_canonical(key) is None
    for name in HF_LAYOUTS:
        newline = get_layout(name, "llava-next-video").from_canonical("image_newline").disk
        assert newline == ("model.image_newline" if name in "BC" else "image_newline")
        assert get_layout(name, "llava").to_canonical(newline) is None
        tower = get_layout(name, "llava").from_canonical("image_tower.class_embedding").disk
        assert "vision_tower." in tower and get_layout(name).to_canonical(tower) is None


def test_a_whole_clip_is_used_for_its_vision_tower_alone() -> None:
    layout = get_layout("model", "clip")
    for key in ("text_model.encoder.layers.11.mlp.fc1.bias", "text_projection.weight", "logit_scale"):
        drop = layout.to_canonical(key)
        assert isinstance(drop, Drop) and drop.why.startswith("CLIP's ")
    assert layout.to_canonical("text_model.encoder.layers.11.lora.weight") is None


def test_a_layout_in_its_place_within_a_larger_model() -> None:
    placed = get_layout("model", "clip").placed("video_tower.")
    mapped = placed.to_canonical("vision_model.encoder.layers.3.temporal_embedding")
    assert isinstance(mapped, Mapped) and mapped.canonical == "video_tower.blocks.3.temporal.embedding"
    assert placed.from_canonical(mapped.canonical) == mapped


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
    with pytest.raises(ConfigError, match="unknown family of layouts 'bert'"):
        get_layout("A", "bert")
    with pytest.raises(CheckpointError, match="no place for the parameter 'nothing'"):
        LAYOUTS["A"].from_canonical("nothing")
