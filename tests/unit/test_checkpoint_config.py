"""config.json and generation_config.json: defaults of transformers, both spellings, and the way back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from filmstrip.checkpoint.defaults import GenerationDefaults, generation_values, read_generation_defaults
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_config import Extras, HfConfig, parse_config
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.config import ModelConfig, ProjectorConfig, RopeConfig, SamplingConfig, TextConfig, VisionConfig
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.testing.tiny import tiny_hf_config, write_json

# The official repository's file (reference sheet 1.1).
OFFICIAL: dict[str, Any] = {
    "architectures": ["VideoLlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "video_llava",
    "pad_token_id": 32002,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "bfloat16",
    "video_token_index": 32001,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


def parse(**overrides: Any) -> HfConfig:
    return parse_config(tiny_hf_config(**overrides), "config.json")


def one_line(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(**overrides)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("config.json")
    return str(caught.value)


def test_the_official_configuration_is_the_default_model() -> None:
    assert parse_config(OFFICIAL, "config.json").model == ModelConfig()


def test_class_defaults_of_transformers() -> None:
    nothing = parse_config({"model_type": "video_llava"}, "config.json").model
    assert nothing.image_tower == VisionConfig()
    assert (nothing.text.vocab_size, nothing.text.max_positions, nothing.text.rms_norm_eps) == (32_000, 2048, 1e-6)
    assert (nothing.image_token_id, nothing.video_token_id, nothing.pad_token_id) == (32_000, 32_001, 0)
    empty = parse_config({"model_type": "video_llava", "vision_config": {}}, "config.json").model.image_tower
    assert (empty.hidden_size, empty.intermediate_size, empty.num_layers) == (768, 3072, 12)
    assert (empty.num_heads, empty.patch_size, empty.image_size, empty.activation) == (12, 32, 224, "quick_gelu")


def test_null_means_absent() -> None:
    assert parse(text_num_key_value_heads=None).model.text.num_kv_heads == 4
    config = tiny_hf_config()
    config["text_config"] |= {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None}
    assert parse_config(config, "config.json").model.text.num_kv_heads == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, RopeConfig()),
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, RopeConfig(scaling="linear", factor=2.0)),
        (
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            RopeConfig(theta=7.0, scaling="dynamic", factor=2.0),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(theta=5e5)),
        ({"rope_theta": 9.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(theta=5e5)),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "dynamic", "factor": 3.0},
            },
            RopeConfig(scaling="linear", factor=2.0),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 5e5,
                }
            },
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64),
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4}},
            RopeConfig(1e4, "llama3", 8.0, 1.0, 4.0, 512),
        ),
    ],
)
def test_rope(text: dict[str, Any], expected: RopeConfig) -> None:
    assert parse(**{f"text_{key}": value for key, value in text.items()}).model.text.rope == expected


def test_both_spellings_of_placeholder_ids() -> None:
    named = parse(image_token_index=None, video_token_index=None, image_token_id=7, video_token_id=8).model
    assert (named.image_token_id, named.video_token_id) == (7, 8)


@pytest.mark.parametrize(("value", "expected"), [(-1, (-1,)), ([-2, -4], (-2, -4)), ([0, 4], (0, 4))])
def test_feature_layers(value: Any, expected: tuple[int, ...]) -> None:
    assert parse(vision_feature_layer=value).model.select_layers == expected


def test_tying_is_the_outer_flag_and_the_inner_one_where_that_is_absent() -> None:
    assert parse(tie_word_embeddings=True).model.text.tie_embeddings
    assert parse(text_tie_word_embeddings=True).model.text.tie_embeddings
    assert not parse(tie_word_embeddings=False, text_tie_word_embeddings=True).model.text.tie_embeddings


def test_the_filmstrip_section() -> None:
    section = {"temporal_attention": True, "temporal_frames": 4, "trained_frames": 4, "preset": "original"}
    parsed = parse(filmstrip=section)
    assert parsed.extras == Extras(True, 4, False, 4, "original")
    assert parsed.model.video_tower.temporal_attention and not parsed.model.image_tower.temporal_attention
    shared = parse(filmstrip={"shared_towers": True, "temporal_attention": True}).model
    assert shared.shared_towers and shared.image_tower == shared.video_tower


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model_type": "vipllava"}, "model_type is 'vipllava'; supported: video_llava, llava, llava_next_video"),
        ({"model_type": None}, "supported: video_llava"),
        ({"architectures": ["GPT2LMHeadModel"]}, "supported: VideoLlavaForConditionalGeneration"),
        ({"architectures": "VideoLlavaForConditionalGeneration"}, "architectures"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"text_config": 3}, "text_config is 3; expected an object"),
        ({"text_model_type": "mistral"}, "text_config: model_type is 'mistral'; supported: llama"),
        ({"text_sliding_window": 128}, "sliding_window is 128; only full attention"),
        ({"text_hidden_act": "relu6"}, "hidden_act is 'relu6'; supported:"),
        ({"text_hidden_act": ["silu"]}, "hidden_act"),
        ({"text_rope_scaling": {"type": "yarn", "factor": 2.0}}, "type is 'yarn'; supported: default"),
        ({"text_rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"text_rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'; expected a number"),
        ({"text_rope_scaling": {"type": "linear", "factor": 2.0, "beta\nfast": 1}}, r"'beta\nfast' is 1"),
        ({"text_rope_scaling": [1]}, "rope_scaling is [1]; expected an object"),
        ({"text_partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1"),
        ({"text_hidden_size": "64"}, "hidden_size is '64'"),
        ({"text_hidden_size": True}, "hidden_size is True"),
        ({"text_num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"text_num_hidden_layers": 0}, "num_hidden_layers"),
        ({"text_num_attention_heads": 5}, "num_attention_heads is 5"),
        ({"text_num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"text_attention_bias": "yes"}, "attention_bias is 'yes'; expected true or false"),
        ({"vision_model_type": "siglip_vision_model"}, "supported: clip_vision_model"),
        ({"vision_hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'"),
        ({"vision_image_size": [28, 30]}, "only squares"),
        ({"vision_patch_size": 99}, "does not fit"),
        ({"vision_feature_layer": 9}, "vision feature layer 9"),
        ({"vision_feature_layer": "last"}, "vision_feature_layer"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "cls"}, "supported: default, full"),
        ({"projector_hidden_act": "x" * 1000}, "supported:"),
        ({"video_token_index": tiny_hf_config()["image_token_index"]}, "share one token id"),
        ({"filmstrip": {"temporal": True}}, "temporal is True; unknown key (known: temporal_attention"),
        ({"filmstrip": {"temporal_frames": 0}}, "temporal_frames is 0"),
        ({"filmstrip": {"preset": "mine"}}, "preset is 'mine'; supported: original, transformers"),
        ({"filmstrip": True}, "filmstrip is True"),
    ],
)
def test_what_is_not_supported_is_named(overrides: dict[str, Any], words: str) -> None:
    message = one_line(**overrides)
    assert words in message and len(message) < 400


ROPES = [
    RopeConfig(),
    RopeConfig(theta=5e5, scaling="linear", factor=2.0),
    RopeConfig(scaling="dynamic", factor=2.0),
    RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64),
]


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("temporal", [False, True])
def test_written_and_read_back(rope: RopeConfig, shared: bool, temporal: bool) -> None:
    video = VisionConfig(32, 64, 4, 4, 28, 14, activation="gelu", temporal_attention=temporal, temporal_frames=5)
    model = ModelConfig(
        text=TextConfig(448, 64, 112, 3, 4, 2, 24, 512, 1e-6, "gelu", True, True, True, rope),
        image_tower=video if shared else replace(video, temporal_attention=False, temporal_frames=8),
        video_tower=video,
        shared_towers=shared,
        projector=ProjectorConfig("relu", bias=False),
        select_layers=(-1, 2),
        select_strategy="full",
        image_token_id=440,
        video_token_id=441,
        pad_token_id=442,
    )
    values = config_values(model, generation=GenerationDefaults(), dtype="float32", trained_frames=5, preset="original")
    parsed = parse_config(json.loads(json.dumps(values)), "config.json")
    assert parsed.model == model
    assert parsed.extras == Extras(temporal, 5, shared, 5, "original")


def test_what_the_format_cannot_say_is_an_error() -> None:
    model = ModelConfig(video_tower=VisionConfig(activation="gelu"))
    with pytest.raises(ConfigError, match="image and a video tower that differ"):
        config_values(model, generation=GenerationDefaults(), dtype="float32")


def read_generation(directory: Path, values: dict[str, Any] | None, **config: Any) -> GenerationDefaults:
    if values is not None:
        write_json(directory / "generation_config.json", values)
    return read_generation_defaults(directory, Fields(config, "config.json"))


def test_generation_defaults(tmp_path: Path) -> None:
    assert read_generation(tmp_path, None) == GenerationDefaults()
    text = {"bos_token_id": 5, "eos_token_id": [6, 7]}
    assert read_generation(tmp_path, None, pad_token_id=9, text_config=text) == GenerationDefaults(5, (6, 7), 9)
    assert read_generation(tmp_path, {"eos_token_id": 4, "pad_token_id": 3}, text_config=text).eos_ids == (4,)
    greedy = read_generation(tmp_path, {"temperature": 0.9, "top_p": 0.6})
    assert greedy.sampling == SamplingConfig(), "without do_sample these do not count"
    sampled = read_generation(tmp_path, {"do_sample": True, "temperature": 0.9, "max_new_tokens": 20}).sampling
    assert sampled == SamplingConfig(max_new_tokens=20, temperature=0.9, top_k=50)
    assert "num_beams to 4" in read_generation(tmp_path, {"num_beams": 4, "typical_p": 1.0}).warnings[0]


@pytest.mark.parametrize(
    "values", [{"eos_token_id": "x"}, {"eos_token_id": []}, {"temperature": "hot", "do_sample": True}]
)
def test_bad_generation_defaults(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        read_generation(tmp_path, values)
    assert "generation_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_generation_defaults_round_trip(tmp_path: Path) -> None:
    defaults = GenerationDefaults(1, (2, 3), 4, SamplingConfig(20, 0.7, 11, 0.9, 0.1, 1.2))
    assert read_generation(tmp_path, generation_values(defaults)) == defaults
    assert read_generation(tmp_path, generation_values(GenerationDefaults(pad_id=4))) == GenerationDefaults(pad_id=4)
