"""The model with `generate`: what users hold as `assistant.model`."""

import torch

from filmstrip.config import SamplingConfig
from filmstrip.errors import PromptError
from filmstrip.generation.loop import TokenLoop
from filmstrip.generation.step import new_cache
from filmstrip.models import VideoLlava
from filmstrip.shapes import Float, Int, Tensor


class VideoLlavaForGeneration(VideoLlava):
    """`VideoLlava` and a loop over it. `eos_token_ids` are set by whoever loads a checkpoint."""

    eos_token_ids: tuple[int, ...] = ()

    def generate(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values_images: Float[Tensor, "N C Y X"] | None = None,
        pixel_values_videos: Float[Tensor, "V F C Y X"] | None = None,
        attention_mask: Int[Tensor, "B T"] | None = None,
        image_sizes: Int[Tensor, "I 2"] | None = None,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Int[Tensor, "B new"]:
        """New token ids of every row, prompt not included, at most `max_new_tokens`.

        A row that ended earlier is filled up with its EOS id. Prompts of different lengths are padded on the left
        and `attention_mask` says where. Media are given as to `forward`. Raises `ConfigError` for a sampling value out
        of range, `PromptError` for an empty prompt, one padded on the right, or placeholders and media that disagree.
        """
        if input_ids.numel() == 0:
            raise PromptError("the prompt is empty")
        sampling = SamplingConfig(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
        with torch.inference_mode():
            x_BTD = self.embed(input_ids, pixel_values_images, pixel_values_videos, image_sizes)
        cache = new_cache(self, input_ids.shape[0], input_ids.shape[1] + max_new_tokens)
        loop = TokenLoop(
            self, cache, x_BTD, input_ids, sampling, eos_ids=self.eos_token_ids, attention_mask=attention_mask
        )
        return torch.stack(list(loop), dim=1)
