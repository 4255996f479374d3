"""The published key layouts of Video-LLaVA, one table each (reference sheet 2.1 to 2.5).

==  ==============================================================================
A   the official hub file; transformers before 4.52
B   transformers 4.52 until CLIP lost its `vision_model.` level in 5.x
C   transformers 5 in memory, and saves of a model loaded from C
D   transformers 5 `save_pretrained` of a model that was never loaded from disk
==  ==============================================================================

The towers of all four may carry the original release's temporal attention, which transformers' port ignores.
"""

from filmstrip.checkpoint.rules import WITHOUT_LEADING_ONE, Drop, Layout, Rule
from filmstrip.config.checks import require_choice

_BLOCK = "encoder.layers.{i}."
_RECOMPUTED = "old files store it; it is computed from the configuration"

# Names inside a CLIP tower, without the tower's prefix: disk, canonical.
TOWER = (
    Rule("embeddings.class_embedding", "class_embedding"),
    Rule("embeddings.patch_embedding.weight", "patch_embedding.weight"),
    Rule("embeddings.position_embedding.weight", "position_embedding.weight"),
    Rule("pre_layrnorm.{p}", "pre_norm.{p}"),  # misspelt in OpenAI's first release, and ever since
    Rule("post_layernorm.{p}", "post_norm.{p}"),
    Rule(f"{_BLOCK}layer_norm1.{{p}}", "blocks.{i}.attention_norm.{p}"),
    Rule(f"{_BLOCK}layer_norm2.{{p}}", "blocks.{i}.mlp_norm.{p}"),
    *(
        Rule(f"{_BLOCK}self_attn.{x}_proj.{{p}}", f"blocks.{{i}}.attention.{x}_proj.{{p}}")
        for x in ("q", "k", "v", "out")
    ),
    *(Rule(f"{_BLOCK}mlp.{x}.{{p}}", f"blocks.{{i}}.mlp.{x}.{{p}}") for x in ("fc1", "fc2")),
    Rule(f"{_BLOCK}temporal_embedding", "blocks.{i}.temporal.embedding", WITHOUT_LEADING_ONE),
    Rule(f"{_BLOCK}temporal_layer_norm1.{{p}}", "blocks.{i}.temporal.norm.{p}"),
    *(
        Rule(f"{_BLOCK}temporal_attn.{x}_proj.{{p}}", f"blocks.{{i}}.temporal.attention.{x}_proj.{{p}}")
        for x in ("q", "k", "v", "out")
    ),
)
TOWER_DROPS = (Drop("embeddings.position_ids", _RECOMPUTED),)

# Names inside a LLaMA decoder, lm_head apart.
TEXT = (
    Rule("embed_tokens.weight", "token_embedding.weight"),
    Rule("norm.weight", "final_norm.weight"),
    Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.attention_norm.weight"),
    Rule("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.mlp_norm.weight"),
    *(Rule(f"layers.{{i}}.self_attn.{x}_proj.{{p}}", f"blocks.{{i}}.attention.{x}_proj.{{p}}") for x in "qkvo"),
    *(Rule(f"layers.{{i}}.mlp.{x}_proj.{{p}}", f"blocks.{{i}}.mlp.{x}_proj.{{p}}") for x in ("gate", "up", "down")),
)
TEXT_DROPS = (
    Drop("layers.{i}.self_attn.rotary_emb.inv_freq", _RECOMPUTED),
    Drop("rotary_emb.inv_freq", _RECOMPUTED),
    Drop("rotary_emb.original_inv_freq", _RECOMPUTED),
)

PROJECTOR = (Rule("linear_1.{p}", "linear_1.{p}"), Rule("linear_2.{p}", "linear_2.{p}"))


def under(rules: tuple[Rule, ...], disk: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a component, with the prefixes it has in a whole checkpoint."""
    return tuple(Rule(disk + rule.disk, canonical + rule.canonical, rule.transform) for rule in rules)


def drops_under(drops: tuple[Drop, ...], disk: str) -> tuple[Drop, ...]:
    """The drops of a component, with the prefix it has in a whole checkpoint."""
    return tuple(Drop(disk + drop.disk, drop.why) for drop in drops)


def _video_llava(name: str, title: str, *, text: str, lm_head: str, outer: str, tower: str) -> Layout:
    """A layout of the four: prefix of the decoder, the head, the wrapper, and the level inside each tower."""
    towers = ("image_tower.", "video_tower.")
    return Layout(
        name,
        title,
        rules=(
            *under(TEXT, text, "text_tower."),
            Rule(f"{lm_head}weight", "text_tower.lm_head.weight"),
            *(rule for prefix in towers for rule in under(TOWER, f"{outer}{prefix}{tower}", prefix)),
            *under(PROJECTOR, f"{outer}multi_modal_projector.", "projector."),
        ),
        drops=(
            *drops_under(TEXT_DROPS, text),
            *(drop for prefix in towers for drop in drops_under(TOWER_DROPS, f"{outer}{prefix}{tower}")),
        ),
    )


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _video_llava(
            "A",
            "hub layout (A)",
            text="language_model.model.",
            lm_head="language_model.lm_head.",
            outer="",
            tower="vision_model.",
        ),
        _video_llava(
            "B",
            "transformers 4.52 layout (B)",
            text="model.language_model.",
            lm_head="lm_head.",
            outer="model.",
            tower="vision_model.",
        ),
        _video_llava(
            "C",
            "transformers 5 layout (C)",
            text="model.language_model.",
            lm_head="lm_head.",
            outer="model.",
            tower="",
        ),
        _video_llava(
            "D",
            "transformers 5 fresh-save layout (D)",
            text="language_model.model.",
            lm_head="language_model.lm_head.",
            outer="",
            tower="",
        ),
    )
}


def get_layout(name: str) -> Layout:
    """Look a layout up by its id. Raises `ConfigError` naming the known ones."""
    require_choice("checkpoint layout", name, LAYOUTS)
    return LAYOUTS[name]
