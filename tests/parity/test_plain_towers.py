"""Plain LLaMA and CLIP checkpoints that transformers wrote, loaded as towers, compute what transformers computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from filmstrip.checkpoint.read import read_any
from filmstrip.checkpoint.towers import TowerCheckpoint, load_text_tower, load_vision_tower, read_tower
from filmstrip.models.decoder import Decoder
from filmstrip.ops.masks import causal_mask

# Both sides compute in float32 with other kernels and orders of sums (measured: below 2e-6).
TOLERANCE = 2e-5
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 16,
}


def scatter(model: Any) -> Any:
    """Weights large enough that every part of the model moves the result."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def logits_of(tower: Decoder, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    mask = causal_mask(None, ids.shape[1], ids.shape[1], ids.device)
    return tower.logits(tower(tower.token_embedding(ids), positions, mask))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        {"head_dim": 12, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ],
)
def test_llama(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = scatter(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT | changes)))
    reference.save_pretrained(tmp_path)
    tower, report = load_text_tower(tmp_path)
    ids = torch.tensor([[1, 7, 3, 9, 30, 2], [4, 4, 8, 49, 0, 11]])
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(tower, ids), reference(ids).logits, atol=TOLERANCE, rtol=0)
    assert report.description.startswith("LLaMA text tower, LlamaForCausalLM layout, float32, ")
    assert report.parameters == sum(parameter.numel() for parameter in reference.parameters())
    assert report.ignored == () and report.layout == "causal"


def test_a_decoder_saved_without_its_head(tmp_path: Path) -> None:
    """`LlamaModel` has none: with tied embeddings that is whole, without it is said."""
    reference = scatter(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT | {"tie_word_embeddings": True})))
    reference.model.save_pretrained(tmp_path)
    tower, report = load_text_tower(tmp_path)
    ids = torch.tensor([[1, 7, 3, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(tower, ids), reference(ids).logits, atol=TOLERANCE, rtol=0)
    assert report.layout == "bare"


@pytest.mark.parametrize(
    ("kind", "layout", "activation"),
    [("whole", "model", "quick_gelu"), ("vision", "vision", "gelu"), ("projecting", "model", "quick_gelu")],
)
def test_clip(tmp_path: Path, kind: str, layout: str, activation: str) -> None:
    vision = transformers.CLIPVisionConfig(**VISION | {"hidden_act": activation})
    if kind == "whole":
        text = TEXT | {"num_key_value_heads": None, "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 1}
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision.to_dict(), text_config=text))
        reference = scatter(model).vision_model
    else:
        model = scatter(
            transformers.CLIPVisionModel(vision)
            if kind == "vision"
            else transformers.CLIPVisionModelWithProjection(vision)
        )
        reference = model
    model.save_pretrained(tmp_path)
    tower, report = load_vision_tower(tmp_path)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(pixels, output_hidden_states=True).hidden_states
        for index, state in enumerate(expected):
            torch.testing.assert_close(tower(pixels[:, None], [index])[:, 0], state, atol=TOLERANCE, rtol=0)
    assert report.layout == layout
    assert report.description.startswith(
        f"CLIP vision tower, {'CLIPModel' if layout == 'model' else 'CLIPVisionModel'}"
    )
    dropped = sum(item.parameters for item in report.ignored)
    assert dropped + report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all("CLIP's " in reason for reason in report.reasons)


def test_towers_are_told_apart_by_their_configuration(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(tmp_path / "text")
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "vision")
    for kind in ("text", "vision"):
        checkpoint = read_any(tmp_path / kind)
        assert isinstance(checkpoint, TowerCheckpoint) and checkpoint.kind == kind
        assert checkpoint.describe() == read_tower(tmp_path / kind).describe()
        stored = sum(info.numel for info in checkpoint.files.tensors.values())
        assert sum(parameter.numel() for parameter in checkpoint.build_meta().parameters()) == stored
