"""Configurations refuse what contradicts itself, in one line that says what to do, and derive sizes correctly."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, get_args

import jaxtyping
import pytest

from filmstrip.config import (
    PRESETS,
    ModelConfig,
    Preset,
    RopeConfig,
    SamplingConfig,
    TextConfig,
    VisionConfig,
    get_preset,
)
from filmstrip.config.checks import require_choice
from filmstrip.config.model import SELECT_STRATEGIES, SelectStrategy
from filmstrip.config.preset import (
    FRAME_SAMPLERS,
    IMAGE_TRANSFORMS,
    PROMPT_STYLES,
    FrameSampler,
    ImageTransform,
    PromptStyle,
)
from filmstrip.config.text import ROPE_SCALINGS, RopeScaling
from filmstrip.errors import ConfigError, FilmstripError

INFINITE = (float("inf"), float("nan"), 10**400)
SAMPLING_ERRORS = {
    "max_new_tokens": (0, -3, 1_000_001, 10**19, 2.5, "many", True, None),
    "temperature": (-0.1, "hot", True, None, *INFINITE),
    "top_k": (-1, 1.5, "few"),
    "top_p": (0.0, -0.5, 1.01, "most", *INFINITE),
    "min_p": (-0.01, 1.5, "least", *INFINITE),
    "repetition_penalty": (0.0, -1.0, "strong", *INFINITE),
    "seed": (1.5, "one", True),
    "stop_strings": (("",), ("a", ""), "stop", (1,), None, 5),
}


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in SAMPLING_ERRORS.items() for v in values])
def test_sampling_out_of_range(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the tests' type checks
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert name in message or "stop string" in message


def test_what_must_be_finite_is_called_so() -> None:
    for name in ("temperature", "repetition_penalty"):
        with pytest.raises(ConfigError, match=f"{name} must be a finite number, not nan"):
            SamplingConfig(**{name: float("nan")})


@pytest.mark.parametrize(
    "value",
    [
        {"top_p": 1.0},
        {"top_k": 0},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"temperature": 0},
        {"seed": 0},
        {"max_new_tokens": 10**6},
    ],
)
def test_sampling_edges_are_allowed(value: dict[str, Any]) -> None:
    SamplingConfig(**value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextConfig(num_heads=6, num_kv_heads=4), "6 heads cannot share 4 key/value heads evenly"),
        (lambda: TextConfig(head_dim=15), "needs an even head width, not 15"),
        (lambda: TextConfig(num_layers=0), "text num_layers must be a number above zero, not 0"),
        (lambda: TextConfig(vocab_size=True), "text vocab_size must be a number above zero, not True"),
        (lambda: TextConfig(max_positions=-1), "text max_positions"),
        (lambda: VisionConfig(hidden_size=100, num_heads=16), "width 100 does not divide into 16 heads"),
        (lambda: VisionConfig(image_size=8, patch_size=14), "a patch of 14 pixels does not fit an image of 8"),
        (lambda: VisionConfig(temporal_frames=0), "vision temporal_frames"),
        (lambda: RopeConfig(factor=0), "rope factor must be a number above zero, not 0"),
        (lambda: RopeConfig(theta=-1.0), "rope theta"),
        (
            lambda: RopeConfig(scaling="llama3", low_freq_factor=4, high_freq_factor=4, original_max_positions=9),
            "high_freq_factor 4 is not above low_freq_factor 4",
        ),
        (lambda: ModelConfig(select_layers=(25,)), "vision feature layer 25 is not among the image tower's 25"),
        (lambda: get_preset("orignal"), "did you mean 'original'?"),
    ],
)
def test_contradictions(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FilmstripError)


@pytest.mark.parametrize(
    ("choices", "known"),
    [
        (RopeScaling, ROPE_SCALINGS),
        (SelectStrategy, SELECT_STRATEGIES),
        (FrameSampler, FRAME_SAMPLERS),
        (ImageTransform, IMAGE_TRANSFORMS),
        (PromptStyle, PROMPT_STYLES),
    ],
)
def test_choices_and_their_types_agree(choices: Any, known: tuple[str, ...]) -> None:
    """A value outside is refused by the type checker here and by `require_choice` where none runs."""
    assert get_args(choices) == known


def test_an_unknown_choice_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        require_choice("rope scaling", "linaer", ROPE_SCALINGS)
    known = "known: default, linear, dynamic, llama3"
    assert str(caught.value) == f"unknown rope scaling 'linaer' ({known}); did you mean 'linear'?"
    with pytest.raises(ConfigError) as caught:
        require_choice("rope scaling", "yarn", ROPE_SCALINGS)
    assert str(caught.value) == f"unknown rope scaling 'yarn' ({known})"


@pytest.mark.parametrize(
    "config", [ModelConfig(), TextConfig(), VisionConfig(), RopeConfig(), SamplingConfig(), PRESETS["original"]]
)
def test_configurations_are_values(config: Any) -> None:
    """Frozen, equal by content, usable as keys."""
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, None)
    assert replace(config) == config
    assert hash(replace(config)) == hash(config)


def test_sizes_of_the_published_model() -> None:
    """Reference sheet 0 and 5.3: 256 tokens an image, 257 a frame, 2056 a clip of eight."""
    config = ModelConfig()
    assert (config.image_tower.patches_per_side, config.image_tower.num_positions) == (16, 257)
    assert config.tokens_per_frame("image") == 256
    assert 8 * config.tokens_per_frame("video") == 2056
    assert config.projector_input_size == 1024


def test_strategy_and_layers_change_the_sizes() -> None:
    config = ModelConfig(select_strategy="full", select_layers=(-2, -5, 3))
    assert config.tokens_per_frame("image") == config.tokens_per_frame("video") == 257
    assert config.projector_input_size == 3 * 1024
    assert config.keeps_class_token("image")


def test_a_remainder_of_pixels_is_not_covered() -> None:
    assert VisionConfig(image_size=30, patch_size=14).num_patches == 4


def test_towers_may_differ_except_in_width() -> None:
    small = replace(VisionConfig(), image_size=112, num_layers=6)
    config = ModelConfig(video_tower=small)
    assert config.tower("video") is small
    assert config.tokens_per_frame("video") == 65


def test_presets_differ_in_every_named_choice() -> None:
    """They are whole programs; one that shared a choice would make a mixture look pure."""
    original, transformers = PRESETS["original"], PRESETS["transformers"]
    for field in fields(Preset):
        assert getattr(original, field.name) != getattr(transformers, field.name)
    assert {name: preset.name for name, preset in PRESETS.items()} == {name: name for name in PRESETS}
