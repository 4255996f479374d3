"""transformers behind a few functions: models, generation and sampling filters of the reference."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlavaForConditionalGeneration,
    LlavaNextVideoForConditionalGeneration,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    VideoLlavaForConditionalGeneration,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llava_next_video.modeling_llava_next_video import image_size_to_num_patches
from transformers.utils import logging

from filmstrip.config import SamplingConfig
from filmstrip.models.record import Activations, HookPoint, record_hooks

VERSION = transformers.__version__
MODELS: dict[str, Any] = {
    "video_llava": VideoLlavaForConditionalGeneration,
    "llava": LlavaForConditionalGeneration,
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
}


def reference_config(config: dict[str, Any]) -> Any:
    """The configuration that transformers makes of the content of a `config.json`, by its `model_type`."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))


def build_reference(config: dict[str, Any]) -> Any:
    """A float32 model of the family that `config` (the content of a `config.json`) names, in eval mode.

    Its weights are what transformers initialises them to. Under `torch.device("meta")` it holds none.
    """
    return MODELS[config["model_type"]](reference_config(config)).eval()


def load_reference(directory: Path, *, dtype: torch.dtype | str = torch.float32, attention: str = "sdpa") -> Any:
    """Load `directory` with transformers. Raises `AssertionError` if a key is missing, unexpected or mismatched.

    Temporal-attention keys, which transformers' port does not have, may be unexpected.
    """
    model_type = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    model, info = MODELS[model_type].from_pretrained(
        directory, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    unexpected = [key for key in info["unexpected_keys"] if ".temporal_" not in key]
    problems = {"missing": list(info["missing_keys"]), "unexpected": unexpected}
    problems["mismatched"] = list(info["mismatched_keys"])
    if any(problems.values()):
        raise AssertionError(f"transformers did not load {directory.name} cleanly: {problems}")
    return model.eval()


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


def reference_cache(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """A cache that holds the keys and values (B, K, S, H) of every layer, for `past_key_values`."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


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
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def reference_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file."""
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def widen(model: Any) -> Any:
    """The same model in float64, its normalisations too.

    transformers' RMSNorm computes in float32 whatever it is given, which would hide behind a rounding of 6e-8 what a
    float64 run is there to show. Its rotary tables stay float32, as ours do.
    """
    model = model.to(torch.float64)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)
    return model


def _rms_norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """`LlamaRMSNorm.forward` without its cast to float32."""
    scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)
    normalised: torch.Tensor = module.weight * (hidden * scale)
    return normalised


def tile_counts(image_sizes: torch.Tensor, directory: Path) -> list[int]:
    """Tiles that LLaVA-NeXT-Video cuts each image into, base tile included, by its (height, width) in `image_sizes`."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    return [
        int(image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size))
        for size in image_sizes
    ]


def quiet() -> None:
    """No progress bars and no advice from transformers on the terminal: a command has its own."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
