"""How the tokens of a clip's frames become the clip's visual tokens: the known ways by name, and their settings."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from filmstrip.config.checks import require, require_positive

AggregationName = Literal[
    "keep-all",
    "mean-frames",
    "temporal-spatial-pool",
    "strided-pool",
    "resampler",
    "class-token",
    "token-merging",
]
AGGREGATIONS: tuple[str, ...] = get_args(AggregationName)
POOL_STRIDE = 2  # of `strided-pool`: squares of 2 by 2 patches become one token

# Which settings an aggregation reads; the others have none.
SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "resampler": ("queries", "layers", "frames"),
    "token-merging": ("kept",),
}
_MOST = {"queries": 65_536, "layers": 1000, "frames": 4096, "kept": 65_536}


def _setting(default: int, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class AggregationSettings:
    """Settings of the aggregations that have any (`SETTINGS_OF`)."""

    queries: int = _setting(32, "resampler: learned queries, each of which becomes one visual token")
    layers: int = _setting(2, "resampler: blocks of cross-attention")
    frames: int = _setting(8, "resampler: length of its frame embedding, the longest clip that it can read")
    kept: int = _setting(8, "token-merging: tokens that are left of each frame")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            require_positive(f"aggregation {item.name}", value)
            most = _MOST[item.name]
            require(
                type(value) is int and value <= most, f"aggregation {item.name} must be a whole number up to {most}"
            )

    def used_by(self, aggregation: str) -> dict[str, int]:
        """The settings that `aggregation` reads, by name."""
        return {name: getattr(self, name) for name in SETTINGS_OF.get(aggregation, ())}

    def require_used_by(self, aggregation: str) -> None:
        """Raise `ConfigError` for a setting that was changed and that `aggregation` does not read."""
        changed = [item.name for item in fields(self) if getattr(self, item.name) != item.default]
        unused = [name for name in changed if name not in SETTINGS_OF.get(aggregation, ())]
        known = ", ".join(SETTINGS_OF.get(aggregation, ())) or "none"
        require(not unused, f"the aggregation {aggregation!r} has no setting {', '.join(unused)} (it has: {known})")
