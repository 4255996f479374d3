"""Names inside the parts that every layout is made of: a CLIP tower, a LLaMA decoder, a projector (sheet 2.1, 2.5)."""

from filmstrip.checkpoint.rules import WITHOUT_LEADING_ONE, Drop, Rule

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

# The aggregation that learns, `models.resampler`: on disk as in the model, because no other program has it.
_RESAMPLER_BLOCK = "blocks.{i}."
AGGREGATION = tuple(
    Rule(name, name)
    for name in (
        "queries",
        "frame_embedding",
        "final_norm.{p}",
        *(f"{_RESAMPLER_BLOCK}{norm}.{{p}}" for norm in ("query_norm", "source_norm", "mlp_norm")),
        *(f"{_RESAMPLER_BLOCK}attention.{x}_proj.{{p}}" for x in ("q", "k", "v", "out")),
        *(f"{_RESAMPLER_BLOCK}mlp.{x}.{{p}}" for x in ("fc1", "fc2")),
    )
)

PROJECTOR = (Rule("linear_1.{p}", "linear_1.{p}"), Rule("linear_2.{p}", "linear_2.{p}"))
# The original release's projector is a `Sequential` with the activation in place 1.
SEQUENTIAL_PROJECTOR = (Rule("0.{p}", "linear_1.{p}"), Rule("2.{p}", "linear_2.{p}"))

# What a whole CLIP (or LanguageBind) checkpoint holds besides its vision tower.
_CLIP_TEXT_BLOCK = "text_model.encoder.layers.{i}."
_TEXT_SIDE = "CLIP's text model; only the vision tower is built"
_JOINT_SPACE = "CLIP's projection into the space shared with text; the tower's hidden states are used"
CLIP_DROPS = (
    Drop("text_model.embeddings.position_ids", _TEXT_SIDE),
    Drop("text_model.embeddings.token_embedding.weight", _TEXT_SIDE),
    Drop("text_model.embeddings.position_embedding.weight", _TEXT_SIDE),
    Drop("text_model.final_layer_norm.{p}", _TEXT_SIDE),
    *(Drop(f"{_CLIP_TEXT_BLOCK}self_attn.{x}_proj.{{p}}", _TEXT_SIDE) for x in ("q", "k", "v", "out")),
    *(Drop(f"{_CLIP_TEXT_BLOCK}{x}.{{p}}", _TEXT_SIDE) for x in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")),
    Drop("visual_projection.weight", _JOINT_SPACE),
    Drop("text_projection.weight", _JOINT_SPACE),
    Drop("logit_scale", _JOINT_SPACE),
)


def under(rules: tuple[Rule, ...], disk: str, canonical: str) -> tuple[Rule, ...]:
    """The rules of a component, with the prefixes it has in a whole checkpoint."""
    return tuple(Rule(disk + rule.disk, canonical + rule.canonical, rule.transform) for rule in rules)


def drops_under(drops: tuple[Drop, ...], disk: str) -> tuple[Drop, ...]:
    """The drops of a component, with the prefix it has in a whole checkpoint."""
    return tuple(Drop(disk + drop.disk, drop.why) for drop in drops)
