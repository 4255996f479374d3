"""`ModelConfig` to the `config.json` that transformers loads: the inverse of `hf_config`."""

from dataclasses import replace
from typing import Any

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.hf_config import Extras
from filmstrip.checkpoint.hf_sisters import FORMAT_OF_FAMILY
from filmstrip.checkpoint.variant import ARCHITECTURE_PREFIX, PREFIX, differences, reasons
from filmstrip.config import ModelConfig, RopeConfig, TextConfig, VisionConfig
from filmstrip.config.checks import require


def config_values(
    model: ModelConfig,
    *,
    generation: GenerationDefaults,
    dtype: str,
    trained_frames: int = 8,
    preset: str | None = None,
    copied_towers: bool | None = None,
) -> dict[str, Any]:
    """The content of `config.json`; `dtype` is torch's name for it (`float32`).

    Spelt the way transformers 4.41 and all later ones read (the class that reads it is that of `model.family`). A model
    with another aggregation than its family's, or other class tokens, is written as this program's own variant, which
    transformers refuses (`variant`). Raises `ConfigError` for a model that neither can describe: two towers of
    different configurations, say.
    """
    family = FORMAT_OF_FAMILY[model.family]
    video = model.video_tower
    plain = replace(video, temporal_attention=False, temporal_frames=model.image_tower.temporal_frames)
    same = model.image_tower in (plain, video)
    require(same, "config.json has one vision_config; an image and a video tower that differ cannot be written")
    plain_fields = family.plain_fields(model)
    grids = plain_fields["image_grids"]
    require(
        model.image_grids == grids,
        f"the config.json of {model.title} cannot describe a model whose image_grids is {model.image_grids!r}",
    )
    own = differences(model, plain_fields)
    takes_videos = model.video_token_id is not None
    require(
        takes_videos == (family.video_token_id is not None) and (model.shared_towers or not family.one_tower),
        f"the config.json of {model.title} cannot describe this choice of towers and media",
    )
    extras = Extras(
        temporal_attention=video.temporal_attention,
        temporal_frames=video.temporal_frames,
        shared_towers=model.shared_towers,
        trained_frames=trained_frames,
        preset=preset,
        copied_towers=copied_towers,
    )
    layers = model.select_layers
    videos = {
        "video_token_index": model.video_token_id,
        "video_seq_length": model.clip_tokens(trained_frames),
    }
    return {
        "architectures": [ARCHITECTURE_PREFIX + family.architecture if own else family.architecture],
        "model_type": PREFIX + family.model_type if own else family.model_type,
        "torch_dtype": dtype,
        "image_token_index": model.image_token_id,
        **(videos if takes_videos else {}),
        "pad_token_id": model.pad_token_id,
        "projector_hidden_act": model.projector.activation,
        "multimodal_projector_bias": model.projector.bias,
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": model.select_strategy,
        "image_seq_length": model.tokens_per_frame("image"),
        **family.write_settings(model),
        "tie_word_embeddings": model.text.tie_embeddings,
        "text_config": text_values(model.text, generation),
        "vision_config": vision_values(video),
        "filmstrip": {key: value for key, value in vars(extras).items() if value is not None} | own,
    }


def require_plain(model: ModelConfig, where: str) -> None:
    """Raise `ConfigError`, with the reason, for a model that only this program's own variant can describe."""
    own = differences(model, FORMAT_OF_FAMILY[model.family].plain_fields(model))
    require(
        not own,
        f"{where} cannot be exported to a plain format: {reasons(own)}, which neither transformers nor the original "
        "release can compute; `Assistant.save` writes filmstrip's own variant",
    )


def text_values(text: TextConfig, generation: GenerationDefaults) -> dict[str, Any]:
    """The content of `text_config`, which is also most of a plain LLaMA's `config.json`."""
    eos = list(generation.eos_ids)
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": text.activation,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.rms_norm_eps,
        "attention_bias": text.attention_bias,
        "mlp_bias": text.mlp_bias,
        "tie_word_embeddings": text.tie_embeddings,
        "rope_theta": text.rope.theta,
        "bos_token_id": generation.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
    }
    if text.rope.scaling != "default":
        values["rope_scaling"] = _rope_values(text.rope)
    return values


def _rope_values(rope: RopeConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        values["low_freq_factor"] = rope.low_freq_factor
        values["high_freq_factor"] = rope.high_freq_factor
        values["original_max_position_embeddings"] = rope.original_max_positions
    return values


def vision_values(vision: VisionConfig) -> dict[str, Any]:
    """The content of `vision_config`."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "num_channels": vision.num_channels,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.activation,
        "layer_norm_eps": vision.layer_norm_eps,
    }
