"""Video-LLaVA (Lin et al. 2023): two vision towers, one projector, one text tower. Composition only."""

from typing import cast

import torch
from torch import nn

from filmstrip.cache import KVCache
from filmstrip.config import MediaKind, ModelConfig
from filmstrip.config.checks import require_choice
from filmstrip.errors import PromptError
from filmstrip.models.aggregate import AGGREGATIONS
from filmstrip.models.decoder import Decoder
from filmstrip.models.fusion import fuse
from filmstrip.models.projector import Projector
from filmstrip.models.taps import Taps, tap
from filmstrip.models.vision import VisionTower
from filmstrip.ops.attention import ATTENTION_BACKENDS, AttentionBackend
from filmstrip.ops.masks import causal_mask, token_positions
from filmstrip.shapes import Float, Int, Tensor


class VideoLlava(nn.Module):
    """Images and clips become visual tokens, take their places in the prompt, and LLaMA reads on.

    With `config.shared_towers` both names are the same module.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = VisionTower(config.image_tower)
        self.video_tower = self.image_tower if config.shared_towers else VisionTower(config.video_tower)
        self.projector = Projector(config)
        self.text_tower = Decoder(config.text)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values_images: Float[Tensor, "I C Y X"] | None = None,
        pixel_values_videos: Float[Tensor, "V F C Y X"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Logits of every position.

        `input_ids` hold one placeholder per visual token. `attention_mask` is 1 for tokens and 0 for padding (on the
        left); positions count real tokens only. Raises `PromptError` when placeholders and media disagree.
        """
        x_BTD = self.embed(input_ids, pixel_values_images, pixel_values_videos, taps)
        hidden_BTD = self.decode(x_BTD, attention_mask, taps=taps)
        return tap(taps, "logits", self.text_tower.logits(hidden_BTD))

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values_images: Float[Tensor, "I C Y X"] | None = None,
        pixel_values_videos: Float[Tensor, "V F C Y X"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Token embeddings with visual tokens in their places."""
        config = self.config
        images = None if pixel_values_images is None else self.encode_images(pixel_values_images, taps)
        videos = None if pixel_values_videos is None else self.encode_videos(pixel_values_videos, taps)
        x_BTD = self.text_tower.token_embedding(self._look_up_ids(input_ids))
        x_BTD = fuse(x_BTD, input_ids, images, config.image_token_id, "image")
        x_BTD = fuse(x_BTD, input_ids, videos, config.video_token_id, "video")
        return tap(taps, "embeddings", x_BTD)

    def decode(
        self,
        x_BTD: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        cache: KVCache | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the text tower on embeddings; returns hidden states after the final norm.

        `attention_mask` covers all S slots: those in the cache and the T new ones. The cache is not advanced.
        """
        batch, length, _ = x_BTD.shape
        past = 0 if cache is None else cache.length
        if attention_mask is None:
            positions_BT = torch.arange(past, past + length, device=x_BTD.device).expand(batch, -1)
        else:
            positions_BT = token_positions(attention_mask)[:, past:]
        mask = causal_mask(attention_mask, length, past + length, x_BTD.device)
        return self.text_tower(x_BTD, positions_BT, mask, cache, taps)

    def encode_images(self, pixels_MCYX: Float[Tensor, "I C Y X"], taps: Taps | None = None) -> Float[Tensor, "I R D"]:
        """Projected visual tokens of images."""
        return self._encode(pixels_MCYX[:, None], "image", taps)

    def encode_videos(
        self, pixels_MFCYX: Float[Tensor, "V F C Y X"], taps: Taps | None = None
    ) -> Float[Tensor, "V R D"]:
        """Projected visual tokens of clips, frame after frame."""
        return self._encode(pixels_MFCYX, "video", taps)

    def set_attention(self, backend: str) -> None:
        """Choose the attention implementation of every tower: the fused kernel or the written-out one.

        Raises `ConfigError` for another name.
        """
        require_choice("attention backend", backend, ATTENTION_BACKENDS)
        for tower in (self.image_tower, self.video_tower, self.text_tower):
            tower.backend = cast(AttentionBackend, backend)

    def _encode(self, pixels_MFCYX: Tensor, kind: MediaKind, taps: Taps | None) -> Float[Tensor, "M R D"]:
        tower = self.image_tower if kind == "image" else self.video_tower
        x_MFPE = tower(pixels_MFCYX, self.config.select_layers, taps, f"{kind}_tower")
        if not self.config.keeps_class_token(kind):
            x_MFPE = x_MFPE[:, :, 1:]
        x_MFPE = tap(taps, f"{kind}_tower.selected", x_MFPE)
        visual_MRD = self.projector(AGGREGATIONS[self.config.aggregation](x_MFPE))
        return tap(taps, f"projector.{kind}", visual_MRD)

    def _look_up_ids(self, input_ids: Tensor) -> Int[Tensor, "B T"]:
        """Ids for the embedding table: placeholders are overwritten anyway and may lie past the vocabulary."""
        vocab_size = self.text_tower.config.vocab_size
        is_placeholder = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        if bool(((input_ids < 0) | (input_ids >= vocab_size)).logical_and(~is_placeholder).any()):
            raise PromptError(f"a token id lies outside the vocabulary of {vocab_size}")
        return input_ids.masked_fill(is_placeholder, 0)
