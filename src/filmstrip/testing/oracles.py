"""The reference implementation, transformers, behind a few functions. The only module that imports it."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from filmstrip.testing.tiny import random_tensor


def reference_config(config: dict[str, Any]) -> Any:
    """`VideoLlavaConfig` as transformers reads the content of a `config.json`."""
    return VideoLlavaConfig.from_dict(dict(config))


def reference_model(config: dict[str, Any], *, seed: int = 0) -> Any:
    """A float32 `VideoLlavaForConditionalGeneration` in eval mode, every weight random (norms and biases too)."""
    generator = torch.Generator().manual_seed(seed)
    model = VideoLlavaForConditionalGeneration(reference_config(config)).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_tensor(name, tuple(parameter.shape), generator))
    return model


def load_reference(directory: Path, *, dtype: torch.dtype | str = torch.float32, attention: str = "sdpa") -> Any:
    """Load `directory` with transformers. Raises `AssertionError` if a key is missing, unexpected or mismatched.

    Temporal-attention keys, which transformers' port does not have, may be unexpected.
    """
    model, info = VideoLlavaForConditionalGeneration.from_pretrained(
        directory, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    unexpected = [key for key in info["unexpected_keys"] if ".temporal_" not in key]
    problems = {"missing": list(info["missing_keys"]), "unexpected": unexpected}
    problems["mismatched"] = list(info["mismatched_keys"])
    if any(problems.values()):
        raise AssertionError(f"transformers did not load {directory.name} cleanly: {problems}")
    return model.eval()


def reference_tokenizer(directory: Path) -> Any:
    """The checkpoint's tokenizer as transformers builds it."""
    return AutoTokenizer.from_pretrained(directory)


def reference_image_processor(directory: Path) -> Any:
    """The checkpoint's image processor as transformers builds it (Pillow, no torchvision needed)."""
    return AutoImageProcessor.from_pretrained(directory)


def reference_processor(directory: Path) -> Any:
    """The checkpoint's whole processor; transformers 5.23 needs torchvision for it."""
    return AutoProcessor.from_pretrained(directory)
