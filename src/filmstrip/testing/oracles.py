"""The reference implementation, transformers, behind a few functions. The only module that imports it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from filmstrip.config import SamplingConfig
from filmstrip.testing.compare import Activations, HookPoint, record_hooks
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


def reference_activations(
    model: Any, points: Iterable[HookPoint], inputs: dict[str, torch.Tensor], *, attention: str = "sdpa"
) -> Activations:
    """Run the reference once and return what its modules held at `points`.

    `inputs` are its own argument names. Its forward numbers positions without regard to padding (its `generate` does
    not), so positions of a padded batch are passed explicitly: those of the real tokens of each row.
    """
    model.set_attn_implementation(attention)
    mask = inputs.get("attention_mask")
    positions = {} if mask is None else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.inference_mode(), record_hooks(model, points) as activations:
        model(**inputs, **positions, use_cache=False)
    return activations


def reference_generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """New token ids only, greedy unless `options` (of transformers' `GenerationConfig`) say otherwise."""
    with torch.inference_mode():
        ids: torch.Tensor = model.generate(**inputs, **{"do_sample": False, **options})
    return ids[:, inputs["input_ids"].shape[1] :]


def reference_filter(logits_BW: torch.Tensor, sampling: SamplingConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits as transformers' `generate` would have them before the draw, warpers in its order."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature not in (0.0, 1.0):
        steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    filtered_BW: torch.Tensor = steps(input_ids, logits_BW)
    return filtered_BW


def load_reference_gguf(file: Path) -> Any:
    """The causal language model in a GGUF file, dequantised to float32 by transformers' own reader.

    `from_pretrained(gguf_file=...)` does the same and wants the library accelerate for it, so its two steps are
    called here. Raises `RuntimeError` for a missing or unexpected tensor; only a tied head may be absent.
    """
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def reference_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file."""
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
