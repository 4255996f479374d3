"""The vision tower: one CLIP ViT (Radford et al. 2021) for images and for videos.

A clip is encoded frame by frame. With `temporal_attention` every layer first lets each patch position attend over the
frames of its clip, as the original Video-LLaVA release does (LanguageBind's video encoder).
"""

from collections.abc import Sequence

import torch
from torch import nn

from filmstrip.config import VisionConfig
from filmstrip.config.checks import require
from filmstrip.models.taps import Taps, tap
from filmstrip.ops.activation import get_activation
from filmstrip.ops.attention import AttentionBackend, attention
from filmstrip.ops.masks import AttentionMask
from filmstrip.shapes import Float, Tensor


class VisionAttention(nn.Module):
    """Attention without a mask: every token of a row reads every other, or all of `source`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "rows tokens E"],
        backend: AttentionBackend,
        source: Float[Tensor, "rows read E"] | None = None,
    ) -> Float[Tensor, "rows tokens E"]:
        """Attend within each row; `source` is what is read where that is not `x` itself."""
        source = x if source is None else source
        q, k, v = (
            proj(read).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj, read in ((self.q_proj, x), (self.k_proj, source), (self.v_proj, source))
        )
        return self.out_proj(attention(q, k, v, AttentionMask(), backend).transpose(1, 2).flatten(2))


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip, separately for each patch position (and the class token).

    Equations of the original's `CLIPEncoderLayer` with `add_time_attn`: a learned vector per frame is added, and the
    residual is taken *after* that addition. A single frame gets no frame vector. `patches` is the tokens per frame.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(config.temporal_frames, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)

    def forward(self, x_MFPE: Float[Tensor, "M F P E"], backend: AttentionBackend) -> Float[Tensor, "M F P E"]:
        """Mix information across frames. Raises `ConfigError` for more frames than the embedding has."""
        num_media, num_frames = x_MFPE.shape[:2]
        require(
            num_frames <= self.embedding.shape[0],
            f"this video tower's temporal attention knows {self.embedding.shape[0]} frames, the clip has {num_frames}",
        )
        if num_frames > 1:
            x_MFPE = x_MFPE + self.embedding[:num_frames, None]
        over_time = x_MFPE.transpose(1, 2).flatten(0, 1)  # one row per patch position: (M*P, F, E)
        mixed = self.attention(self.norm(over_time), backend)
        return x_MFPE + mixed.unflatten(0, (num_media, -1)).transpose(1, 2)


class VisionMLP(nn.Module):
    """`fc2(act(fc1(x)))`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = get_activation(config.activation)

    def forward(self, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
        """Transform each token on its own."""
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(nn.Module):
    """Pre-norm encoder layer: (attention over time), attention over space, MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.temporal = TemporalAttention(config) if config.temporal_attention else None
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x_MFPE: Float[Tensor, "M F P E"], backend: AttentionBackend) -> Float[Tensor, "M F P E"]:
        """One layer."""
        if self.temporal is not None:
            x_MFPE = self.temporal(x_MFPE, backend)
        within_frame = self.attention_norm(x_MFPE).flatten(0, 1)  # one row per frame: (M*F, P, E)
        x_MFPE = x_MFPE + self.attention(within_frame, backend).view_as(x_MFPE)
        return x_MFPE + self.mlp(self.mlp_norm(x_MFPE))


class VisionTower(nn.Module):
    """Pixels to hidden states of the layers asked for.

    `post_norm` is part of every CLIP checkpoint; it feeds CLIP's pooled output, which this model does not use.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: AttentionBackend = "sdpa"
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.num_positions, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))
        self.post_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        pixels_MFCYX: Float[Tensor, "M F C Y X"],
        select_layers: Sequence[int] = (-2,),
        taps: Taps | None = None,
        name: str = "vision_tower",
    ) -> Float[Tensor, "M F P out"]:
        """Hidden states of `select_layers`, concatenated on the last axis; an image is a clip of one frame.

        Layer indices count hidden states: 0 is the normalised embedding, k the output of block k-1, negative ones
        count from the end. Blocks past the deepest selected state do not run. `name` is the tower's in taps and
        errors (one tower may serve images and videos). Raises `ConfigError` for pixels of another size.
        """
        wanted = self._state_indices(select_layers)
        x_MFPE = tap(taps, f"{name}.embeddings", self.embed(pixels_MFCYX, name))
        x_MFPE = tap(taps, f"{name}.hidden_states.0", self.pre_norm(x_MFPE))
        states = {0: x_MFPE}
        for index in range(1, max(wanted) + 1):
            x_MFPE = self.blocks[index - 1](x_MFPE, self.backend)
            x_MFPE = tap(taps, f"{name}.hidden_states.{index}", x_MFPE)
            if index in wanted:
                states[index] = x_MFPE
        return torch.cat([states[index] for index in wanted], dim=-1)

    def embed(self, pixels_MFCYX: Float[Tensor, "M F C Y X"], name: str = "vision_tower") -> Float[Tensor, "M F P E"]:
        """Cut each frame into patches, put the class token in front, add learned positions."""
        size, channels = self.config.image_size, self.config.num_channels
        require(
            tuple(pixels_MFCYX.shape[2:]) == (channels, size, size),
            f"the {name.replace('_', ' ')} takes {channels}x{size}x{size} pixels, "
            f"not {'x'.join(map(str, pixels_MFCYX.shape[2:]))}",
        )
        weight = self.patch_embedding.weight
        maps = self.patch_embedding(pixels_MFCYX.flatten(0, 1).to(weight.dtype))  # (M*F, E, rows, columns)
        patches_MFPE = maps.flatten(2).transpose(1, 2).unflatten(0, pixels_MFCYX.shape[:2])
        class_MF1E = self.class_embedding.expand(*patches_MFPE.shape[:2], 1, -1)
        return torch.cat([class_MF1E, patches_MFPE], dim=2) + self.position_embedding.weight

    def _state_indices(self, select_layers: Sequence[int]) -> list[int]:
        states = self.config.num_layers + 1
        for layer in select_layers:
            require(-states <= layer < states, f"hidden state {layer} is not among the tower's {states}")
        return [layer % states for layer in select_layers]
