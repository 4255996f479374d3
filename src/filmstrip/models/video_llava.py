"""Video-LLaVA (Lin et al. 2023) and its sisters: vision towers, one projector, one text tower. Composition only.

LLaVA-1.5 (Liu et al. 2023) and LLaVA-NeXT-Video (Zhang et al. 2024) are the same parts with one tower for everything;
what they do differently (pooled frames, tiled images) are fields of the configuration.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from filmstrip.cache import KVCache
from filmstrip.config import MediaKind, ModelConfig
from filmstrip.config.checks import require_choice
from filmstrip.config.tiles import Tiling, tile_image
from filmstrip.errors import PromptError
from filmstrip.models.aggregate import make_aggregation
from filmstrip.models.compiler import require_compiler
from filmstrip.models.decoder import Decoder
from filmstrip.models.fusion import fuse
from filmstrip.models.projector import Projector
from filmstrip.models.resampler import Resampler
from filmstrip.models.taps import Taps, tap
from filmstrip.models.tiles import join_tiles
from filmstrip.models.vision import VisionTower
from filmstrip.ops.attention import ATTENTION_BACKENDS, AttentionBackend
from filmstrip.ops.masks import causal_mask, token_positions
from filmstrip.shapes import Float, Int, Tensor


class VideoLlava(nn.Module):
    """Images and clips become visual tokens, take their places in the prompt, and LLaMA reads on.

    With `config.shared_towers` both names are the same module. `image_newline` stands at the end of every row of an
    image that is cut into tiles; without `config.image_grids` there is none. `compiled` says that steps of decoding go
    through `torch.compile` (`compile_towers`); `kv_dtype` is the precision of keys and values that are kept, where that
    is not the arithmetic's; `wide_steps` says that steps of decoding may work in float32 where the weights, and all
    other arithmetic, have 16 bits.
    """

    compiled = False
    kv_dtype: torch.dtype | None = None
    wide_steps = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = VisionTower(config.image_tower)
        self.video_tower = self.image_tower if config.shared_towers else VisionTower(config.video_tower)
        self.aggregation = make_aggregation(config)
        self.projector = Projector(config)
        self.image_newline = nn.Parameter(torch.zeros(config.text.hidden_size)) if config.image_grids else None
        self.text_tower = Decoder(config.text)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values_images: Float[Tensor, "N C Y X"] | None = None,
        pixel_values_videos: Float[Tensor, "V F C Y X"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        image_sizes: Int[Tensor, "I 2"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Logits of every position.

        `input_ids` hold one placeholder per visual token. `pixel_values_images` are the tiles of all images, one after
        another (N = I images, unless the model cuts images up; then `image_sizes`, each image's height and width before
        any resizing, say which tiles are whose). `attention_mask` is 1 for tokens and 0 for padding (on the left);
        positions count real tokens only. Raises `PromptError` when placeholders and media disagree.
        """
        x_BTD = self.embed(input_ids, pixel_values_images, pixel_values_videos, image_sizes, taps)
        hidden_BTD = self.decode(x_BTD, attention_mask, taps=taps)
        return tap(taps, "logits", self.text_tower.logits(hidden_BTD))

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values_images: Float[Tensor, "N C Y X"] | None = None,
        pixel_values_videos: Float[Tensor, "V F C Y X"] | None = None,
        image_sizes: Int[Tensor, "I 2"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Token embeddings with visual tokens in their places."""
        if pixel_values_videos is not None and self.config.video_token_id is None:
            raise PromptError(f"{self.config.title} takes images only, but pixels of videos were given")
        x_BTD = self.text_tower.token_embedding(self._look_up_ids(input_ids))
        images = None if pixel_values_images is None else self.image_tokens(pixel_values_images, image_sizes, taps)
        videos = None if pixel_values_videos is None else self.encode_videos(pixel_values_videos, taps)
        # Not through `fuse`: a second name for the embeddings would keep them while they are copied.
        x_BTD = fuse(x_BTD, input_ids, images, self.config.image_token_id, "image")
        if self.config.video_token_id is not None:
            x_BTD = fuse(x_BTD, input_ids, videos, self.config.video_token_id, "video")
        return tap(taps, "embeddings", x_BTD)

    def fuse(
        self,
        input_ids: Int[Tensor, "B T"],
        images: Sequence[Float[Tensor, "_ D"]] | Float[Tensor, "I _ D"] | None = None,
        videos: Sequence[Float[Tensor, "_ D"]] | Float[Tensor, "V _ D"] | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Token embeddings with visual tokens, those of each medium, in their places."""
        x_BTD = self.text_tower.token_embedding(self._look_up_ids(input_ids))
        x_BTD = fuse(x_BTD, input_ids, images, self.config.image_token_id, "image")
        if self.config.video_token_id is not None:
            x_BTD = fuse(x_BTD, input_ids, videos, self.config.video_token_id, "video")
        return tap(taps, "embeddings", x_BTD)

    def decode(
        self,
        x_BTD: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        cache: KVCache | None = None,
        taps: Taps | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B out D"]:
        """Run the text tower on embeddings; returns hidden states after the final norm, of all or the `last` positions.

        `attention_mask` covers all S slots: those in the cache and the T new ones. The cache is not advanced.
        """
        batch, length, _ = x_BTD.shape
        past = 0 if cache is None else cache.length
        if attention_mask is None:
            positions_BT = torch.arange(past, past + length, device=x_BTD.device).expand(batch, -1)
        else:
            positions_BT = token_positions(attention_mask)[:, past:]
        mask = causal_mask(attention_mask, length, past + length, x_BTD.device)
        return self.text_tower(x_BTD, positions_BT, mask, cache, taps, last)

    def encode_images(self, pixels_NCYX: Float[Tensor, "N C Y X"], taps: Taps | None = None) -> Float[Tensor, "N R D"]:
        """Projected visual tokens of images, or of the tiles they were cut into."""
        x_MFPE = self._select(self.image_tower, pixels_NCYX[:, None], "image", taps)
        return tap(taps, "projector.image", self.projector(x_MFPE.flatten(1, 2)))

    def encode_videos(
        self, pixels_MFCYX: Float[Tensor, "V F C Y X"], taps: Taps | None = None
    ) -> Float[Tensor, "V R D"]:
        """Projected visual tokens of clips: those of each frame in order, then those of all frames together."""
        x_MFPE = self._select(self.video_tower, pixels_MFCYX, "video", taps)
        x_MRE = self.aggregation(x_MFPE)
        if self.config.aggregation != "keep-all":  # otherwise it is what was selected
            x_MRE = tap(taps, "video_tower.aggregated", x_MRE)
        return tap(taps, "projector.video", self.projector(x_MRE))

    def set_attention(self, backend: str) -> None:
        """Choose the attention implementation of every tower: the fused kernel or the written-out one.

        Raises `ConfigError` for another name.
        """
        require_choice("attention backend", backend, ATTENTION_BACKENDS)
        for tower in (self.image_tower, self.video_tower, self.text_tower):
            tower.backend = cast(AttentionBackend, backend)
        if isinstance(self.aggregation, Resampler):
            self.aggregation.backend = cast(AttentionBackend, backend)

    def compile_towers(self) -> None:
        """Let `torch.compile` make the blocks of the vision towers and steps of decoding faster, from the next use on.

        The first of each size then takes from seconds to a minute. On a GPU steps of decoding become CUDA graphs.
        Raises `ConfigError` where there is no compiler for it.
        """
        require_compiler(self.text_tower.token_embedding.weight.device)
        self.compiled = True
        for tower in {self.image_tower, self.video_tower}:
            for block in tower.blocks:
                block.compile()

    def _select(
        self, tower: VisionTower, pixels_MFCYX: Tensor, kind: MediaKind, taps: Taps | None
    ) -> Float[Tensor, "M F P E"]:
        """The chosen layers of a tower, with class tokens or without."""
        x_MFPE = tower(pixels_MFCYX, self.config.select_layers, taps, f"{kind}_tower")
        if not self.config.keeps_class_token(kind):
            x_MFPE = x_MFPE[:, :, 1:]
        return tap(taps, f"{kind}_tower.selected", x_MFPE)

    def image_tokens(
        self, pixels_NCYX: Float[Tensor, "N C Y X"], image_sizes: Int[Tensor, "I 2"] | None, taps: Taps | None = None
    ) -> Sequence[Float[Tensor, "_ D"]] | Float[Tensor, "N R D"]:
        """The visual tokens of each image: its one tile's, or those of all its tiles in reading order."""
        if self.image_newline is None:
            return self.encode_images(pixels_NCYX, taps)
        tilings = self._tilings(image_sizes, pixels_NCYX.shape[0])
        groups = torch.split(self.encode_images(pixels_NCYX, taps), [tiling.num_tiles for tiling in tilings])
        return [join_tiles(*image, self.image_newline) for image in zip(groups, tilings, strict=True)]

    def _tilings(self, image_sizes: Int[Tensor, "I 2"] | None, num_tiles: int) -> list[Tiling]:
        """How each image was cut. Raises `PromptError` unless that makes `num_tiles` tiles in all."""
        config = self.config
        if image_sizes is None:
            raise PromptError(f"{config.title} cuts images into tiles and needs their sizes (image_sizes)")
        if bool((image_sizes < 1).any()):
            raise PromptError("an image's size (image_sizes) is below one pixel")
        tilings = [
            tile_image((height, width), config.image_grids, config.image_tower.image_size)
            for height, width in image_sizes.tolist()
        ]
        counts = [tiling.num_tiles for tiling in tilings]
        if sum(counts) != num_tiles:
            raise PromptError(
                f"images of these sizes have {' + '.join(map(str, counts))} tiles, but there are {num_tiles}"
            )
        return tilings

    def _look_up_ids(self, input_ids: Tensor) -> Int[Tensor, "B T"]:
        """Ids for the embedding table: placeholders are overwritten anyway and may lie past the vocabulary."""
        vocab_size = self.text_tower.config.vocab_size
        is_placeholder = torch.zeros_like(input_ids, dtype=torch.bool)
        for placeholder_id in self.config.placeholder_ids.values():
            is_placeholder |= input_ids == placeholder_id
        if bool(((input_ids < 0) | (input_ids >= vocab_size)).logical_and(~is_placeholder).any()):
            raise PromptError(f"a token id lies outside the vocabulary of {vocab_size}")
        return input_ids.masked_fill(is_placeholder, 0)
