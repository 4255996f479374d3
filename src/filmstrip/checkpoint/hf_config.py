"""`config.json` of Hugging Face's Video-LLaVA and its sisters to `ModelConfig` (reference sheets 1.1 and 9).

A key that is absent means the class default of transformers, and those differ from this package's: a `vision_config`
that is present starts from `CLIPVisionConfig` (768 wide, patch 32), one that is missing from the family's own
(ViT-L/14; see `hf_sisters`). What the format has no key for stands in a section `filmstrip`.
"""

from dataclasses import dataclass
from typing import Any, cast

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.hf_sisters import Format, format_of
from filmstrip.checkpoint.variant import read_differences
from filmstrip.config import PRESETS, ModelConfig, ProjectorConfig, RopeConfig, TextConfig, VisionConfig
from filmstrip.config.model import SELECT_STRATEGIES, SelectStrategy
from filmstrip.config.text import ROPE_SCALINGS, RopeScaling
from filmstrip.errors import ConfigError
from filmstrip.ops.activation import ACTIVATIONS

MAX_LAYERS = 1000
MAX_FRAMES = 4096

_UNSUPPORTED = {"quantization_config": "quantised weights are not supported"}
_UNSUPPORTED_TEXT = _UNSUPPORTED | {
    "sliding_window": "only full attention is supported",
    "num_local_experts": "only a dense MLP is supported",
}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"}
_ROPE_KEYS |= {"original_max_position_embeddings", "partial_rotary_factor"}


@dataclass(frozen=True)
class Extras:
    """The `filmstrip` section: what Hugging Face's format does not say about a model (`variant` reads the rest of it).

    `trained_frames` is the number of frames per clip in training; `preset` names the one the checkpoint is meant for.
    `copied_towers` says that the video tower began as a copy of the image tower (None: nothing is known).
    """

    temporal_attention: bool = False
    temporal_frames: int = 8
    shared_towers: bool = False
    trained_frames: int = 8
    preset: str | None = None
    copied_towers: bool | None = None


@dataclass(frozen=True)
class HfConfig:
    """All that is read from `config.json`."""

    model: ModelConfig
    extras: Extras
    values: Fields


def parse_config(values: dict[str, Any], where: str) -> HfConfig:
    """Translate the content of a `config.json`; `where` names the file in errors.

    Raises `ConfigError` naming the key for another architecture, a value of the wrong kind, or a key that would
    change the computation in a way not supported here.
    """
    fields = Fields(values, where)
    family = format_of(fields)
    fields.refuse(_UNSUPPORTED)
    extras = _extras(fields.section("filmstrip"), family)
    text = fields.section("text_config") or Fields({}, f"{where}, text_config")
    try:
        model = _model(fields, text, extras, family)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error
    return HfConfig(model, extras, fields)


def _model(fields: Fields, text: Fields, extras: Extras, family: Format) -> ModelConfig:
    section = fields.section("vision_config")
    vision = family.vision if section is None else read_vision(section)
    temporal = VisionConfig(
        **(vars(vision) | {"temporal_attention": extras.temporal_attention, "temporal_frames": extras.temporal_frames})
    )
    strategy = fields.choice("vision_feature_select_strategy", "default", SELECT_STRATEGIES)
    shared = family.one_tower or extras.shared_towers
    return ModelConfig(
        family=family.family,
        text=read_text(text, _tie(fields, text, family)),
        image_tower=temporal if shared else vision,
        video_tower=temporal,
        shared_towers=shared,
        projector=ProjectorConfig(
            activation=fields.choice("projector_hidden_act", "gelu", ACTIVATIONS),
            bias=fields.boolean("multimodal_projector_bias", True),
        ),
        select_layers=_select_layers(fields),
        select_strategy=cast(SelectStrategy, strategy),
        image_token_id=_token_id(fields, "image", family.image_token_id),
        video_token_id=None if family.video_token_id is None else _token_id(fields, "video", family.video_token_id),
        pad_token_id=read_pad_id(fields, text),
        **(family.settings(fields) | read_differences(fields.section("filmstrip"))),
    )


def _tie(fields: Fields, text: Fields, family: Format) -> bool:
    """Whether the head is the token embedding: the outer flag, and the inner one where that is absent or joins in."""
    inner = text.boolean("tie_word_embeddings", False)
    if "tie_word_embeddings" not in fields:
        return inner
    return fields.boolean("tie_word_embeddings", False) or (family.inner_tie and inner)


def _token_id(fields: Fields, kind: str, default: int) -> int:
    """`image_token_index` on disk, `image_token_id` where an attribute's newer name was saved."""
    index, alias = f"{kind}_token_index", f"{kind}_token_id"
    return fields.integer(index if index in fields else alias, default, low=0)


def read_pad_id(fields: Fields, text: Fields) -> int:
    """The padding id of a whole file or of its text section; 0 where neither has one."""
    pad = fields.optional_integer("pad_token_id")
    if pad is None:
        pad = text.optional_integer("pad_token_id", low=-1)  # LLaMA files say -1 for "none"
    return pad if pad is not None and pad >= 0 else 0


def _select_layers(fields: Fields) -> tuple[int, ...]:
    value = fields.get("vision_feature_layer")
    layers = value if isinstance(value, list) else [-2 if value is None else value]
    if not 0 < len(layers) <= MAX_LAYERS or not all(type(layer) is int for layer in layers):
        raise fields.error("vision_feature_layer", "expected a whole number or a list of them")
    return tuple(layers)


def read_vision(fields: Fields) -> VisionConfig:
    """A section like transformers' `CLIPVisionConfig`, with that class's defaults. Raises `ConfigError`."""
    fields.choice("model_type", "clip_vision_model", ("clip_vision_model",))
    fields.refuse(_UNSUPPORTED)
    return VisionConfig(
        hidden_size=fields.integer("hidden_size", 768),
        intermediate_size=fields.integer("intermediate_size", 3072),
        num_layers=fields.integer("num_hidden_layers", 12, high=MAX_LAYERS),
        num_heads=fields.integer("num_attention_heads", 12),
        image_size=_side(fields, "image_size", 224),
        patch_size=_side(fields, "patch_size", 32),
        num_channels=fields.integer("num_channels", 3, high=3, low=3),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        activation=fields.choice("hidden_act", "quick_gelu", ACTIVATIONS),
    )


def _side(fields: Fields, key: str, default: int) -> int:
    """A square's side, given as a number or as two equal ones."""
    value = fields.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise fields.error(key, "only squares are supported")
        fields = Fields({key: value[0]}, fields.where)
    return fields.integer(key, default, high=16_384)


def read_text(fields: Fields, tie_embeddings: bool) -> TextConfig:
    """A section like transformers' `LlamaConfig`, with that class's defaults. Raises `ConfigError`."""
    fields.choice("model_type", "llama", ("llama",))
    fields.refuse(_UNSUPPORTED_TEXT)
    hidden_size = fields.integer("hidden_size", 4096)
    num_heads = fields.integer("num_attention_heads", 32)
    max_positions = fields.integer("max_position_embeddings", 2048)
    if "head_dim" not in fields and hidden_size % num_heads:
        raise fields.error("num_attention_heads", f"hidden_size {hidden_size} does not divide by it")
    return TextConfig(
        vocab_size=fields.integer("vocab_size", 32_000),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 11_008),
        num_layers=fields.integer("num_hidden_layers", 32, high=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        max_positions=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=fields.choice("hidden_act", "silu", ACTIVATIONS),
        tie_embeddings=tie_embeddings,
        attention_bias=fields.boolean("attention_bias", False),
        mlp_bias=fields.boolean("mlp_bias", False),
        rope=_rope(fields, max_positions),
    )


def _rope(text: Fields, max_positions: int) -> RopeConfig:
    """`rope_theta` beside `rope_scaling` (before transformers 5) or both inside `rope_parameters` (since).

    Where both objects are present `rope_scaling` wins, and a theta inside wins over one outside, as in transformers.
    """
    rope = text.section("rope_scaling" if text.get("rope_scaling") else "rope_parameters")
    rope = rope or Fields({}, text.where)
    unknown = [key for key in rope if key not in _ROPE_KEYS]
    if unknown:
        raise rope.error(unknown[0], f"supported keys: {', '.join(sorted(_ROPE_KEYS))}")
    for fields in (rope, text):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.error("partial_rotary_factor", "only 1 is supported")
    theta = (rope if "rope_theta" in rope else text).number("rope_theta", 10_000.0)
    scaling = cast(RopeScaling, rope.choice("rope_type" if "rope_type" in rope else "type", "default", ROPE_SCALINGS))
    if scaling == "default":
        return RopeConfig(theta=theta)
    factor = rope.required_number("factor", f"rope scaling {scaling!r}")
    if scaling != "llama3":
        # transformers reads no original length for `dynamic`: max_position_embeddings is the trained length there.
        return RopeConfig(theta=theta, scaling=scaling, factor=factor)
    return RopeConfig(
        theta=theta,
        scaling=scaling,
        factor=factor,
        low_freq_factor=rope.required_number("low_freq_factor", "rope scaling 'llama3'"),
        high_freq_factor=rope.required_number("high_freq_factor", "rope scaling 'llama3'"),
        original_max_positions=rope.integer("original_max_position_embeddings", max_positions),
    )


def _extras(fields: Fields | None, family: Format) -> Extras:
    default = Extras(trained_frames=family.trained_frames)
    if fields is None:
        return default
    known = [*Extras.__dataclass_fields__, "aggregation", "video_class_token"]
    for key in fields:
        if key not in known:
            raise fields.error(key, f"unknown key (known: {', '.join(known)})")
    return Extras(
        temporal_attention=fields.boolean("temporal_attention", False),
        temporal_frames=fields.integer("temporal_frames", default.temporal_frames, high=MAX_FRAMES),
        shared_towers=fields.boolean("shared_towers", False),
        trained_frames=fields.integer("trained_frames", default.trained_frames, high=MAX_FRAMES),
        preset=fields.choice("preset", "", PRESETS) if "preset" in fields else None,
        copied_towers=fields.boolean("copied_towers", False) if "copied_towers" in fields else None,
    )
