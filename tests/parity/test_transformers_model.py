"""Every named activation against transformers, on random checkpoints that transformers wrote."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.diagnostics.activations import Difference, compare
from filmstrip.models import VideoLlava
from filmstrip.models.record import Recorder
from filmstrip.ops.attention import AttentionBackend
from filmstrip.oracle.points import transformers_points
from filmstrip.testing.random_reference import reference_model
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint
from filmstrip.testing.tolerances import TOLERANCES
from tests.parity.batches import Inputs, make_inputs

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED_ROWS = ("titvt", "tttt", "iit", "tvvitttttt")


@dataclass(frozen=True)
class Case:
    rows: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)


# A covering set: every value of every axis at least once, and the pairs where one could hide the other's mistake.
CASES: dict[str, Case] = {
    "grouped heads, one image": Case(("tttitttt",)),
    "text only": Case(("tttttttt",)),
    "multi-head, tied, four images, last layer": Case(
        ("tiittiti",), {"text_num_key_value_heads": 4, "tie_word_embeddings": True, "vision_feature_layer": -1}
    ),
    "one key head, full, two images and two videos": Case(
        ("tivtvit",), {"text_num_key_value_heads": 1, "vision_feature_select_strategy": "full"}
    ),
    "linear, video": Case(("ttvtt",), {"text_rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "dynamic within the trained length": Case(
        ("tvttt",), {"text_rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    ),
    "dynamic past the trained length": Case(
        ("tvtviitt",),
        {"text_rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "text_max_position_embeddings": 16},
    ),
    "llama3, two videos, last layer": Case(
        ("ttvttv",), {"text_rope_scaling": LLAMA3, "vision_feature_layer": -1, "text_rope_theta": 5e5}
    ),
    "two layers, five blocks, default": Case(
        ("tivt",), {"vision_feature_layer": [-2, -5], "vision_num_hidden_layers": 5}
    ),
    "two layers, full, padded batch": Case(
        MIXED_ROWS,
        {
            "vision_feature_layer": [-2, -5],
            "vision_num_hidden_layers": 5,
            "vision_feature_select_strategy": "full",
        },
    ),
    "padded batch": Case(MIXED_ROWS),
    "padded batch, multi-head": Case(MIXED_ROWS, {"text_num_key_value_heads": 4}),
    "padded batch, llama3, tied": Case(MIXED_ROWS, {"text_rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "padded batch, text only": Case(("ttttttt", "tt", "tttt")),
    "own head width, biases, exact gelu towers, relu projector": Case(
        ("itvt", "tttt"),
        {
            "text_head_dim": 24,
            "text_attention_bias": True,
            "text_mlp_bias": True,
            "vision_hidden_act": "gelu",
            "projector_hidden_act": "relu",
            "multimodal_projector_bias": False,
        },
    ),
    "one positive layer, eps and theta": Case(
        ("tivt",),
        {
            "vision_feature_layer": 2,
            "vision_layer_norm_eps": 1e-3,
            "text_rms_norm_eps": 1e-3,
            "text_rope_theta": 100.0,
        },
    ),
}
HALF_CASES = ("grouped heads, one image", "two layers, full, padded batch", "padded batch, multi-head")


AnyModel = TypeVar("AnyModel", bound=VideoLlava)


def load(directory: Path, build: type[AnyModel] = VideoLlava) -> AnyModel:
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = build(checkpoint.model_config())
    load_weights(model, checkpoint)
    return model.eval()


BACKENDS: tuple[AttentionBackend, ...] = ("sdpa", "eager")


def differences(
    model: VideoLlava, reference: Any, inputs: Inputs, ours: AttentionBackend, theirs: AttentionBackend
) -> tuple[Difference, ...]:
    model.set_attention(ours)
    recorder = Recorder()
    with torch.inference_mode():
        model(**inputs.ours(), taps=recorder)
    points = transformers_points(model.config, inputs.kinds)
    held = oracles.reference_activations(reference, points, inputs.theirs(), attention=theirs)
    found = compare(recorder.activations, held, inputs.attention_mask)
    assert_complete(model, inputs, found)
    return found


def assert_complete(model: VideoLlava, inputs: Inputs, found: tuple[Difference, ...]) -> None:
    """Nothing named in `models.taps` is missing, and nothing is compared that is all zero."""
    text = [f"text_tower.hidden_states.{i}" for i in range(model.config.text.num_layers + 1)]
    expected = {
        *text,
        "embeddings",
        "text_tower.rotary.cos",
        "text_tower.rotary.sin",
        "text_tower.final_norm",
        "logits",
    }
    for kind in inputs.kinds:
        states = model.config.tower(kind).num_layers + 1
        deepest = max(layer % states for layer in model.config.select_layers)
        expected |= {f"{kind}_tower.hidden_states.{i}" for i in range(deepest + 1)}
        expected |= {f"{kind}_tower.embeddings", f"{kind}_tower.selected", f"projector.{kind}"}
        if kind == "video" and model.config.aggregation != "keep-all":
            expected.add("video_tower.aggregated")
    assert {item.site for item in found} == expected
    assert min(item.scale for item in found) > 0.5


def assert_within(found: tuple[Difference, ...], name: str) -> None:
    tolerance = TOLERANCES[name]
    measured = {item.site: item.relative if tolerance.relative else item.max_abs for item in found}
    too_far = {site: value for site, value in measured.items() if not value <= tolerance.bound}
    assert not too_far, f"past the bound of {tolerance.bound}: {too_far}"


def assert_backends_within(model: VideoLlava, reference: Any, inputs: Inputs, dtype: str) -> None:
    """All four pairs of attention backends; with the same one on both sides the bound is tighter."""
    for ours in BACKENDS:
        for theirs in BACKENDS:
            kernels = "same kernels" if ours == theirs else "other kernels"
            assert_within(differences(model, reference, inputs, ours, theirs), f"activations, {dtype}, {kernels}")


@pytest.mark.parametrize("name", CASES)
def test_every_activation(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    reference = reference_model(tiny_hf_config(**case.config))
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert_backends_within(model, reference, make_inputs(model.config, case.rows), "float32")


@pytest.mark.parametrize("name", HALF_CASES)
def test_every_activation_in_bfloat16(tmp_path: Path, name: str) -> None:
    """The reference is loaded in bfloat16: `.to(bfloat16)` on a built one rounds its rotary frequencies."""
    case = CASES[name]
    reference_model(tiny_hf_config(**case.config)).to(torch.bfloat16).save_pretrained(tmp_path)
    reference = oracles.load_reference(tmp_path, dtype=torch.bfloat16)
    model = load(tmp_path)
    assert model.text_tower.lm_head.weight.dtype == torch.bfloat16
    inputs = make_inputs(model.config, case.rows, dtype=torch.bfloat16)
    assert_backends_within(model, reference, inputs, "bfloat16")


def test_the_official_layout(tmp_path: Path) -> None:
    """Files under the hub's names, read by both from the disk."""
    write_tiny_checkpoint(tmp_path, layout="A", seed=3)
    model, reference = load(tmp_path), oracles.load_reference(tmp_path)
    assert_backends_within(model, reference, make_inputs(model.config, MIXED_ROWS), "float32")


# One weight moved by little, and the first site at which that can be seen.
PLANTED = {
    "image_tower.blocks.1.mlp.fc2.bias": "image_tower.hidden_states.2",
    "video_tower.position_embedding.weight": "video_tower.embeddings",
    "projector.linear_1.weight": "projector.image",
    "text_tower.blocks.2.attention.k_proj.weight": "text_tower.hidden_states.3",
    "text_tower.final_norm.weight": "text_tower.final_norm",
    "text_tower.lm_head.weight": "logits",
}


@pytest.mark.parametrize("parameter", PLANTED)
def test_a_planted_fault_is_found_where_it_is(tmp_path: Path, parameter: str) -> None:
    """The comparison can fail, names the right site first, and finds nothing before it."""
    write_tiny_checkpoint(tmp_path)
    model, reference = load(tmp_path), oracles.load_reference(tmp_path)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[:8] += 0.05
    found = differences(model, reference, make_inputs(model.config, MIXED_ROWS), "sdpa", "sdpa")
    bound = TOLERANCES["activations, float32, other kernels"].bound
    assert next(item.site for item in found if item.max_abs > bound) == PLANTED[parameter]
