"""A learned resampler: a fixed number of queries reads all tokens of a clip (Perceiver; Flamingo, Alayrac et al. 2022).

As in Flamingo, a learned vector per frame is added to the tokens, or the order of the frames would be lost, and the
queries read the tokens and each other. Places within a frame are in the tokens already: they come from a ViT.
"""

from dataclasses import replace

import torch
from torch import nn

from filmstrip.config import ModelConfig, VisionConfig
from filmstrip.config.checks import require
from filmstrip.models.vision import VisionAttention, VisionMLP
from filmstrip.ops.attention import AttentionBackend
from filmstrip.shapes import Float, Tensor


class ResamplerBlock(nn.Module):
    """Queries attend to the clip's tokens and themselves, then an MLP; both on normalised input, with a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.source_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(
        self, x_MRE: Float[Tensor, "M R E"], source: Float[Tensor, "M tokens E"], backend: AttentionBackend
    ) -> Float[Tensor, "M R E"]:
        """One layer."""
        queries = self.query_norm(x_MRE)
        read = torch.cat([self.source_norm(source), queries], dim=1)
        x_MRE = x_MRE + self.attention(queries, backend, read)
        return x_MRE + self.mlp(self.mlp_norm(x_MRE))


class Resampler(nn.Module):
    """The queries, the frame embedding, and blocks as wide and with as many heads as the video tower."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings, width = config.aggregation_settings, config.projector_input_size
        self.backend: AttentionBackend = "sdpa"
        self.queries = nn.Parameter(torch.zeros(settings.queries, width))
        self.frame_embedding = nn.Parameter(torch.zeros(settings.frames, width))
        block = replace(config.video_tower, hidden_size=width)
        self.blocks = nn.ModuleList(ResamplerBlock(block) for _ in range(settings.layers))
        self.final_norm = nn.LayerNorm(width, eps=block.layer_norm_eps)

    def forward(self, x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
        """One token per query. Raises `ConfigError` for more frames than the embedding has."""
        num_media, num_frames = x_MFPE.shape[:2]
        known = self.frame_embedding.shape[0]
        require(num_frames <= known, f"this model's resampler knows {known} frames, the clip has {num_frames}")
        source = (x_MFPE + self.frame_embedding[:num_frames, None]).flatten(1, 2)
        x_MRE = self.queries.expand(num_media, -1, -1)
        for block in self.blocks:
            x_MRE = block(x_MRE, source, self.backend)
        return self.final_norm(x_MRE)
