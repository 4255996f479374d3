"""This program's own variant of a checkpoint: models that no plain Hugging Face format can describe.

Transformers would load such a model without a word and compute something else: what it does not know it ignores. So the
variant has names of its own, `filmstrip_video_llava` for `video_llava`, which transformers refuses; what differs from
the plain family stands in the section `filmstrip` of `config.json`. Everything else is as in the plain format.
"""

from typing import Any

from filmstrip.checkpoint.fields import Fields
from filmstrip.config import AggregationSettings, ModelConfig
from filmstrip.config.aggregation import AGGREGATIONS, SETTINGS_OF

PREFIX = "filmstrip_"
ARCHITECTURE_PREFIX = "Filmstrip"


def differences(model: ModelConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """The keys of the section `filmstrip` that tell `model` from its plain family, whose fields are `plain`."""
    found: dict[str, Any] = {}
    if model.aggregation != plain["aggregation"]:
        settings = model.aggregation_settings.used_by(model.aggregation)
        found["aggregation"] = {"name": model.aggregation, **settings}
    if model.video_class_token != plain["video_class_token"]:
        found["video_class_token"] = model.video_class_token
    return found


def reasons(found: dict[str, Any]) -> str:
    """`differences` in words."""
    words = []
    if "aggregation" in found:
        words.append(f"frames are aggregated by {found['aggregation']['name']!r}")
    if "video_class_token" in found:
        words.append(f"class tokens of videos are {'kept' if found['video_class_token'] else 'dropped'}")
    return " and ".join(words)


def read_differences(section: Fields | None) -> dict[str, Any]:
    """The inverse of `differences`: fields of `ModelConfig`. Raises `ConfigError` naming the key that is wrong."""
    fields: dict[str, Any] = {}
    if section is None:
        return fields
    if "video_class_token" in section:
        fields["video_class_token"] = section.boolean("video_class_token", True)
    aggregation = section.section("aggregation")
    if aggregation is None:
        return fields
    name = aggregation.choice("name", "(absent)", AGGREGATIONS)
    known = SETTINGS_OF.get(name, ())
    for key in aggregation:
        if key != "name" and key not in known:
            raise aggregation.error(key, f"settings of {name!r}: {', '.join(known) or 'none'}")
    default = AggregationSettings()
    settings = {key: aggregation.integer(key, getattr(default, key)) for key in known}
    return fields | {"aggregation": name, "aggregation_settings": AggregationSettings(**settings)}
