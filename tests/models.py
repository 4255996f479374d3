"""Small random models of ours, for tests that need no reference."""

from dataclasses import replace

import torch
from torch import nn

from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.generation import VideoLlavaForGeneration

TEXT = TextConfig(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=112,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=512,
)
VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_layers=4, num_heads=4, image_size=28, patch_size=14, temporal_frames=3
)
GOLDEN = ModelConfig(
    text=TEXT, image_tower=VISION, video_tower=VISION, image_token_id=190, video_token_id=191, pad_token_id=192
)
TEMPORAL = replace(GOLDEN, video_tower=replace(VISION, temporal_attention=True))


def random_model(config: ModelConfig = GOLDEN, seed: int = 0) -> VideoLlavaForGeneration:
    """A model whose weights are large enough that every part moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = VideoLlavaForGeneration(config).eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data = noise + 1.0 if is_norm_weight(model, parameter) else noise
    return model


def is_norm_weight(model: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether a parameter scales a normalisation layer."""
    names = (name for name, candidate in model.named_parameters() if candidate is parameter)
    return any("norm" in name and name.endswith("weight") for name in names)
