"""Which module of transformers' ports holds which of our sites (`models.taps`): a table; it imports none of them."""

from collections.abc import Iterator, Sequence

from filmstrip.config import MediaKind, ModelConfig
from filmstrip.models.record import HookPoint

_PROJECTOR = "model.multi_modal_projector"
_TEXT = "model.language_model"


def transformers_points(config: ModelConfig, kinds: Sequence[MediaKind]) -> tuple[HookPoint, ...]:
    """Where transformers 5's `...ForConditionalGeneration` of the model's family holds each of our sites.

    `kinds` are the kinds of media in the call: its one projector, and a tower that serves both, run for images first,
    then for videos.
    """
    in_order: tuple[MediaKind, ...] = ("image", "video")
    points: list[HookPoint] = []
    for call, kind in enumerate(kind for kind in in_order if kind in kinds):
        points += _vision_points(config, kind, call)
    points += [HookPoint("embeddings", _TEXT, "input", argument="inputs_embeds")]
    points += [HookPoint("text_tower.rotary.cos", f"{_TEXT}.rotary_emb", item=0)]
    points += [HookPoint("text_tower.rotary.sin", f"{_TEXT}.rotary_emb", item=1)]
    points += [HookPoint("text_tower.hidden_states.0", f"{_TEXT}.layers.0", "input")]
    points += [
        HookPoint(f"text_tower.hidden_states.{layer + 1}", f"{_TEXT}.layers.{layer}")
        for layer in range(config.text.num_layers)
    ]
    points += [HookPoint("text_tower.final_norm", f"{_TEXT}.norm"), HookPoint("logits", "lm_head")]
    return tuple(points)


def _vision_points(config: ModelConfig, kind: MediaKind, call: int) -> Iterator[HookPoint]:
    """From the pixels of one kind to its projected tokens; `call` counts the kinds that ran before."""
    tower = f"{kind}_tower"
    theirs, tower_call = ("model.vision_tower", call) if config.shared_towers else (f"model.{tower}", 0)
    yield HookPoint(f"{tower}.embeddings", f"{theirs}.embeddings", call=tower_call)
    yield HookPoint(f"{tower}.hidden_states.0", f"{theirs}.pre_layrnorm", call=tower_call)
    for layer in range(config.tower(kind).num_layers):
        yield HookPoint(f"{tower}.hidden_states.{layer + 1}", f"{theirs}.encoder.layers.{layer}", call=tower_call)
    if kind == "video" and config.aggregation != "keep-all":
        yield HookPoint(f"{tower}.selected", "model.vision_resampler", "input")
        yield HookPoint(f"{tower}.aggregated", _PROJECTOR, "input", call)
    else:
        yield HookPoint(f"{tower}.selected", _PROJECTOR, "input", call)
    yield HookPoint(f"projector.{kind}", _PROJECTOR, "output", call)
