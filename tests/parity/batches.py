"""Random model inputs written as short strings, for the parity tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from filmstrip.config import MediaKind, ModelConfig

NUM_FRAMES = 3
# (height, width) of the images of a model that cuts images into tiles, in turn: every shape of grid of the tiny models.
SIZES = ((90, 60), (60, 130), (200, 210), (300, 40), (33, 250), (8, 300), (56, 112), (17, 16))


@dataclass(frozen=True)
class Inputs:
    """One call of a model: our argument names."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    pixel_values_images: torch.Tensor | None
    pixel_values_videos: torch.Tensor | None
    image_sizes: torch.Tensor | None = None

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        images: tuple[MediaKind, ...] = () if self.pixel_values_images is None else ("image",)
        return images if self.pixel_values_videos is None else (*images, "video")

    def ours(self) -> dict[str, torch.Tensor | None]:
        return dict(vars(self))

    def theirs(self) -> dict[str, torch.Tensor]:
        """Under transformers' names, without what is absent."""
        renamed = {"pixel_values_images": "pixel_values"}
        return {renamed.get(name, name): value for name, value in vars(self).items() if value is not None}


def make_inputs(
    config: ModelConfig, rows: Sequence[str], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Inputs:
    """One row per string: `t` is a random text token, `i` an image, `v` a clip of three frames; left padding.

    Images that are cut into tiles have the sizes of `SIZES`, in turn.
    """
    images, videos = (sum(row.count(letter) for row in rows) for letter in "iv")
    sizes = [SIZES[index % len(SIZES)] for index in range(images)] if config.image_grids else []
    lengths = iter([config.tokens_per_image(size) for size in sizes])
    generator = torch.Generator().manual_seed(seed)
    tokens: list[list[int]] = []
    for row in rows:
        ids: list[int] = []
        for letter in row:
            if letter == "t":
                ids += torch.randint(3, min(config.placeholder_ids.values()), (1,), generator=generator).tolist()
            elif letter == "i":
                ids += [config.image_token_id] * next(lengths, config.tokens_per_frame("image"))
            else:
                ids += [config.placeholder_ids["video"]] * (NUM_FRAMES * config.tokens_per_frame("video"))
        tokens.append(ids)
    longest = max(len(ids) for ids in tokens)
    padded = [[config.pad_token_id] * (longest - len(ids)) + ids for ids in tokens]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in tokens]
    tiles = sum(config.tiling(size).num_tiles for size in sizes) if sizes else images
    side = config.image_tower.image_size
    # Drawn always, so that the pixels of a kind do not depend on what else is in the batch.
    image_pixels = torch.randn(max(tiles, 1), 3, side, side, generator=generator).to(dtype)
    video_pixels = torch.randn(max(videos, 1), NUM_FRAMES, 3, side, side, generator=generator).to(dtype)
    return Inputs(
        torch.tensor(padded),
        None if len(rows) == 1 else torch.tensor(mask),
        image_pixels if images else None,
        video_pixels if videos else None,
        torch.tensor(sizes) if sizes else None,
    )
