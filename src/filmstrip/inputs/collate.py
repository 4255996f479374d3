"""Several prompts as one batch: left padding, and pixels in the order the model consumes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from filmstrip.errors import PromptError
from filmstrip.inputs.plan import PromptPlan
from filmstrip.inputs.processor import Prompt
from filmstrip.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class Batch:
    """Model input. Features are consumed in the order of batch row, then position in the prompt (sheet 3.4).

    `pixel_values_images` are the tiles of all images one after another (N = I unless the model cuts images up);
    `image_sizes`, each image's height and width in pixels, stay on the CPU: they only decide shapes.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    pixel_values_images: Float[Tensor, "N C Y X"] | None
    pixel_values_videos: Float[Tensor, "V F C Y X"] | None
    plans: tuple[PromptPlan, ...]
    image_sizes: Int[Tensor, "I 2"] | None = None

    @property
    def media(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Pixels of images and of videos, and the images' sizes: what `VideoLlava.embed` takes after the ids."""
        return self.pixel_values_images, self.pixel_values_videos, self.image_sizes

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on another device; pixels (not ids) also in another dtype."""
        images, videos = self.pixel_values_images, self.pixel_values_videos
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            pixel_values_images=None if images is None else images.to(device, dtype),
            pixel_values_videos=None if videos is None else videos.to(device, dtype),
        )


def collate(prompts: Sequence[Prompt], pad_id: int) -> Batch:
    """Stack prompts; shorter ones are padded on the left, where generation does not continue.

    Rows may have any media or none. Raises `PromptError` for no prompts at all, and when videos have unequal frame
    counts or sizes, which one tensor cannot hold.
    """
    if not prompts:
        raise PromptError("a batch needs at least one prompt")
    longest = max(len(prompt.plan.input_ids) for prompt in prompts)
    input_ids_BT = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        length = len(prompt.plan.input_ids)
        input_ids_BT[row, longest - length :] = torch.tensor(prompt.plan.input_ids, dtype=torch.long)
        attention_mask_BT[row, longest - length :] = 1
    _check_equal_shapes(prompts)
    images = [pixels for prompt in prompts for pixels in prompt.pixels_images]
    videos = [pixels for prompt in prompts for pixels in prompt.pixels_videos]
    return Batch(
        input_ids_BT,
        attention_mask_BT,
        torch.cat(images) if images else None,
        torch.stack(videos) if videos else None,
        tuple(prompt.plan for prompt in prompts),
        torch.tensor([size for prompt in prompts for size in prompt.image_sizes]) if images else None,
    )


def _check_equal_shapes(prompts: Sequence[Prompt]) -> None:
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for row, prompt in enumerate(prompts):
        for kind, group in (("image", prompt.pixels_images), ("video", prompt.pixels_videos)):
            for index, pixels in enumerate(group):
                shape = tuple(pixels.shape[1:] if kind == "image" else pixels.shape)  # images may differ in tiles
                name = f"{kind} {index} of prompt {row}"
                reference, expected = first.setdefault(kind, (name, shape))
                if shape == expected:
                    continue
                if kind == "video" and shape[1:] == expected[1:]:
                    raise PromptError(
                        f"videos of one batch need equal frame counts: {reference} has {expected[0]} frames, "
                        f"{name} has {shape[0]}; sample the same number from each, or ask them one at a time"
                    )
                raise PromptError(
                    f"{kind}s of one batch need equal sizes: {reference} is {expected}, {name} is {shape}"
                )
