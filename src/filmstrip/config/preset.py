"""Presets: the named choices in which programs called "Video-LLaVA" differ.

The original release and the transformers port sample other frames, resize differently, phrase the prompt
differently, and only one of them has temporal attention. Each difference is one field here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from filmstrip.config.checks import require_choice

FrameSampler = Literal["uniform-inclusive", "uniform-exclusive", "fps", "times", "indices"]
ImageTransform = Literal["clip-pil-bicubic", "languagebind", "languagebind-pad", "languagebind-random-flip"]
PromptStyle = Literal["vicuna-v1", "vicuna-v1-no-system", "hf-plain", "chat-template"]

FRAME_SAMPLERS: tuple[str, ...] = get_args(FrameSampler)
IMAGE_TRANSFORMS: tuple[str, ...] = get_args(ImageTransform)
PROMPT_STYLES: tuple[str, ...] = get_args(PromptStyle)


@dataclass(frozen=True)
class Preset:
    """One whole program: which frames, which pixels, which words, and whether frames see each other.

    `split_at_media` tokenises the text between media piece by piece, as the original does; with a LLaMA tokenizer each
    piece then begins with a space token.
    """

    name: str
    frame_sampler: FrameSampler
    image_transform: ImageTransform
    prompt: PromptStyle
    temporal_attention: bool
    split_at_media: bool = False

    def __post_init__(self) -> None:
        require_choice("frame sampler", self.frame_sampler, FRAME_SAMPLERS)
        require_choice("image transform", self.image_transform, IMAGE_TRANSFORMS)
        require_choice("prompt style", self.prompt, PROMPT_STYLES)


PRESETS: dict[str, Preset] = {
    # PKU-YuanGroup/Video-LLaVA, without the random flip of its video transform.
    "original": Preset("original", "uniform-inclusive", "languagebind", "vicuna-v1", True, split_at_media=True),
    # huggingface/transformers `VideoLlavaForConditionalGeneration` and its documentation's recipe. The checkpoint's
    # own chat template wins over `hf-plain` when there is one; loading decides and says so.
    "transformers": Preset(
        "transformers", "uniform-exclusive", "clip-pil-bicubic", "hf-plain", temporal_attention=False
    ),
}


def get_preset(name: str) -> Preset:
    """Look a preset up by name. Raises `ConfigError` naming the known ones."""
    require_choice("preset", name, PRESETS)
    return PRESETS[name]
