"""The published key layouts of each family, one table each (reference sheet 2.1 to 2.5 and 9).

=====================  =============================================================================
Video-LLaVA and its sisters LLaVA-1.5 and LLaVA-NeXT-Video
A                      the official hub files; transformers before 4.52
B                      transformers 4.52 until CLIP lost its `vision_model.` level in 5.x
C                      transformers 5 in memory, and saves of a model loaded from C
D                      transformers 5 `save_pretrained` of a model that was never loaded from disk
P                      the original PKU release of Video-LLaVA: LLaMA's own names, the rest beside it
LLaMA (and Vicuna)
causal                 `LlamaForCausalLM`: the decoder under `model.`, and the output head
bare                   `LlamaModel`: the decoder's names without a prefix (a head only if it is tied)
CLIP (and LanguageBind)
model                  `CLIPModel`, `CLIPVisionModel` before transformers 5: the tower under `vision_model.`
vision                 `CLIPVisionModel` since transformers 5: the tower's names without a prefix
=====================  =============================================================================

Which family's tables a checkpoint is matched against is decided by its `config.json`; the sisters differ from
Video-LLaVA in the tower's name (one `vision_tower` for everything) and by `image_newline`. Every tower may carry the
original release's temporal attention, which transformers' port ignores. `aggregation.` is this program's own variant
(`variant`): a checkpoint whose frames are aggregated by something that learns.
"""

from filmstrip.checkpoint.layout_parts import (
    AGGREGATION,
    CLIP_DROPS,
    PROJECTOR,
    SEQUENTIAL_PROJECTOR,
    TEXT,
    TEXT_DROPS,
    TOWER,
    TOWER_DROPS,
    drops_under,
    under,
)
from filmstrip.checkpoint.rules import Layout, Rule
from filmstrip.config.checks import require_choice

_HEAD = "text_tower.lm_head.weight"
# Name of the tower on disk, in the model. One tower that serves both kinds of media is the image tower here.
_TWO_TOWERS = (("image_tower", "image_tower"), ("video_tower", "video_tower"))
_ONE_TOWER = (("vision_tower", "image_tower"),)
_Towers = tuple[tuple[str, str], ...]


def _multimodal(
    name: str,
    title: str,
    towers: _Towers,
    newline: bool,
    *,
    text: str,
    lm_head: str,
    outer: str,
    inner: str,
) -> Layout:
    """A layout of transformers: prefix of the decoder, the head, the wrapper, and the level inside each tower."""
    places = [(f"{outer}{disk}.{inner}", f"{canonical}.") for disk, canonical in towers]
    return Layout(
        name,
        title,
        rules=(
            *under(TEXT, text, "text_tower."),
            Rule(f"{lm_head}weight", _HEAD),
            *(rule for disk, canonical in places for rule in under(TOWER, disk, canonical)),
            *under(PROJECTOR, f"{outer}multi_modal_projector.", "projector."),
            *under(AGGREGATION, f"{outer}aggregation.", "aggregation."),
            *((Rule(f"{outer}image_newline", "image_newline"),) if newline else ()),
        ),
        drops=(
            *drops_under(TEXT_DROPS, text),
            *(drop for disk, _ in places for drop in drops_under(TOWER_DROPS, disk)),
        ),
    )


def _transformers_layouts(towers: _Towers, *, newline: bool = False) -> tuple[Layout, ...]:
    """Layouts A to D of a family."""
    old = {"text": "language_model.model.", "lm_head": "language_model.lm_head.", "outer": ""}
    new = {"text": "model.language_model.", "lm_head": "lm_head.", "outer": "model."}
    return (
        _multimodal("A", "hub layout (A)", towers, newline, **old, inner="vision_model."),
        _multimodal("B", "transformers 4.52 layout (B)", towers, newline, **new, inner="vision_model."),
        _multimodal("C", "transformers 5 layout (C)", towers, newline, **new, inner=""),
        _multimodal("D", "transformers 5 fresh-save layout (D)", towers, newline, **old, inner=""),
    )


# `model.` is the decoder here, and the wrapper in B and C.
_ORIGINAL = Layout(
    "P",
    "original PKU layout (P)",
    rules=(
        *under(TEXT, "model.", "text_tower."),
        Rule("lm_head.weight", _HEAD),
        *under(TOWER, "model.image_tower.image_tower.", "image_tower."),
        *under(TOWER, "model.video_tower.video_tower.", "video_tower."),
        *under(SEQUENTIAL_PROJECTOR, "model.mm_projector.", "projector."),
    ),
    drops=(
        *drops_under(TEXT_DROPS, "model."),
        *drops_under(TOWER_DROPS, "model.image_tower.image_tower."),
        *drops_under(TOWER_DROPS, "model.video_tower.video_tower."),
    ),
)

# Canonical names of a tower on its own are those of `models.decoder.Decoder` and `models.vision.VisionTower`.
_LLAMA = (
    Layout(
        "causal",
        "LlamaForCausalLM layout",
        rules=(*under(TEXT, "model.", ""), Rule("lm_head.weight", "lm_head.weight")),
        drops=drops_under(TEXT_DROPS, "model."),
    ),
    Layout(
        "bare",
        "LlamaModel layout",
        rules=(*TEXT, Rule("lm_head.weight", "lm_head.weight")),
        drops=TEXT_DROPS,
    ),
)
_CLIP = (
    Layout(
        "model",
        "CLIPModel layout",
        rules=under(TOWER, "vision_model.", ""),
        drops=(*drops_under(TOWER_DROPS, "vision_model."), *CLIP_DROPS),
    ),
    Layout("vision", "CLIPVisionModel layout", rules=TOWER, drops=TOWER_DROPS),
)


def _by_name(*layouts: Layout) -> dict[str, Layout]:
    return {layout.name: layout for layout in layouts}


FAMILY_LAYOUTS: dict[str, dict[str, Layout]] = {
    "video-llava": _by_name(*_transformers_layouts(_TWO_TOWERS), _ORIGINAL),
    "llava": _by_name(*_transformers_layouts(_ONE_TOWER)),
    "llava-next-video": _by_name(*_transformers_layouts(_ONE_TOWER, newline=True)),
    "llama": _by_name(*_LLAMA),
    "clip": _by_name(*_CLIP),
}
LAYOUTS = FAMILY_LAYOUTS["video-llava"]


def layouts_of(family: str) -> dict[str, Layout]:
    """The layouts of a family by id. Raises `ConfigError` naming the known families."""
    require_choice("family of layouts", family, FAMILY_LAYOUTS)
    return FAMILY_LAYOUTS[family]


def get_layout(name: str, family: str = "video-llava") -> Layout:
    """Look a family's layout up by its id. Raises `ConfigError` naming the known ones."""
    layouts = layouts_of(family)
    require_choice("checkpoint layout", name, layouts)
    return layouts[name]
