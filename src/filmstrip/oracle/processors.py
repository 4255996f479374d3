"""transformers' way from files and a question to tensors: media, image processors, tokenizer, placeholder expansion.

Its whole processors want torchvision (for their video half). The pieces that do not are used alone, so that images,
ids and expansion are transformers' own everywhere; videos are where torchvision is installed. Code that a checkpoint
brings along is never run: transformers would ask for leave on the terminal if it were not told so.
"""

import importlib.util
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaNextVideoProcessor,
    LlavaProcessor,
    VideoLlavaProcessor,
)
from transformers.image_utils import load_image

from filmstrip.shapes import Float, Tensor, UInt8

PROCESSORS: dict[str, Any] = {
    "video_llava": VideoLlavaProcessor,
    "llava": LlavaProcessor,
    "llava_next_video": LlavaNextVideoProcessor,
}
# What the documentation of every model here shows where a checkpoint brings no chat template.
PLAIN_PROMPT = "USER: {media}{question} ASSISTANT:"


def reference_tokenizer(directory: Path) -> Any:
    """The checkpoint's tokenizer as transformers builds it."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def reference_image_processor(directory: Path) -> Any:
    """The checkpoint's image processor as transformers builds it (Pillow, no torchvision needed)."""
    return AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)


def reference_processor(directory: Path) -> Any:
    """The checkpoint's whole processor; transformers 5.23 needs torchvision for it."""
    return AutoProcessor.from_pretrained(directory, trust_remote_code=False)


def has_video_processor() -> bool:
    """Whether transformers' video processors can run here."""
    return importlib.util.find_spec("torchvision") is not None


def reference_image(path: Path) -> UInt8[np.ndarray, "one Y X C"]:
    """An image as `transformers.image_utils.load_image` opens it: RGB, upright, with an axis for its one frame."""
    return np.asarray(load_image(str(path)))[None]


def reference_frames(path: Path, count: int) -> tuple[UInt8[np.ndarray, "F Y X C"], tuple[int, ...], int]:
    """Frames of a video by the recipe of transformers' documentation: PyAV, every k-th frame from the first.

    Returns RGB frames, their numbers, and how many frames the video has. They are counted by
    decoding, since headers lie; the numbers are `arange(count) * total // count`, as `sample_frames` in transformers.
    """
    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0))
    chosen = [int(number) for number in np.arange(count) * total // count]
    found: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in chosen:
                found[number] = frame.to_ndarray(format="rgb24")
    return np.stack([found[number] for number in chosen]), tuple(chosen), total


def reference_video_pixels(directory: Path, frames_FYXC: UInt8[np.ndarray, "F Yin Xin C"]) -> Float[Tensor, "F C Y X"]:
    """One clip through transformers' video processor. Needs torchvision."""
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False).video_processor
    clip = torch.from_numpy(np.ascontiguousarray(frames_FYXC)).permute(0, 3, 1, 2)
    pixels: Tensor = processor(clip, return_tensors="pt")["pixel_values_videos"][0]
    return pixels


def reference_image_inputs(processor: Any, images_YXC: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Images through the checkpoint's image processor: `pixel_values`, and `image_sizes` where it cuts tiles."""
    found = dict(processor(images=list(images_YXC), return_tensors="pt"))
    if "pixel_values_images" in found:  # the older name, which Video-LLaVA's processor still prefers
        found["pixel_values"] = found.pop("pixel_values_images")
    return found


class Expansion:
    """A family's own rule for repeating placeholders, without the rest of its processor.

    Its settings come from `processor_config.json`; where that is absent, the processor class has defaults, but not all
    of them: `image` and `video` raise `ValueError` when there is no patch size.
    """

    def __init__(self, directory: Path, model_type: str, image_processor: Any, image_token: str, video_token: str):
        self._processor = PROCESSORS[model_type].__new__(PROCESSORS[model_type])
        file = directory / "processor_config.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for name, parameter in inspect.signature(PROCESSORS[model_type].__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                setattr(self._processor, name, stored.get(name, parameter.default))
        self._processor.image_processor = image_processor
        self._processor.image_token, self._processor.video_token = image_token, video_token

    def image(self, inputs: dict[str, Tensor], index: int) -> str:
        """What stands for the image at `index`."""
        self._require_patch_size()
        text: str = self._processor.replace_image_token(inputs, index)
        return text

    def video(self, pixels_FCYX: Float[Tensor, "F C Y X"]) -> str:
        """What stands for a clip."""
        self._require_patch_size()
        text: str = self._processor.replace_video_token({"pixel_values_videos": pixels_FCYX[None].numpy()}, 0)
        return text

    def _require_patch_size(self) -> None:
        if self._processor.patch_size is None:
            raise ValueError("processor_config.json sets no patch_size, for which its class has no default")
