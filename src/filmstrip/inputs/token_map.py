"""The token map: what stands where in a prompt, for `filmstrip ask --explain` and the run card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from filmstrip.inputs.plan import MediumTokens, PromptPlan, Span
from filmstrip.text.tokenizer import Tokenizer

# Longer texts are shown by their two ends.
_EXCERPT = 60


@dataclass(frozen=True)
class TokenMapRow:
    """One span: what it is, which text it comes from, how many tokens, the first and last position (inclusive)."""

    label: str
    source: str
    excerpt: str
    tokens: int
    first: int
    last: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def explain(plan: PromptPlan, tokenizer: Tokenizer) -> list[TokenMapRow]:
    """One row per span of the plan, in order."""
    return [
        TokenMapRow(
            label=span.label,
            source=span.source,
            excerpt=_excerpt(plan, span, tokenizer),
            tokens=span.num_tokens,
            first=span.start,
            last=span.end - 1,
        )
        for span in plan.spans
    ]


def to_dict(plan: PromptPlan) -> dict[str, Any]:
    """The token map without texts, as the run card keeps it."""
    return {
        "prompt_tokens": len(plan.input_ids),
        "visual_tokens": plan.visual_tokens,
        "spans": [
            {"label": span.label, "source": span.source, "first": span.start, "last": span.end - 1}
            for span in plan.spans
        ],
    }


def _detail(medium: MediumTokens, part: int | None) -> str:
    """What is shown after a medium's name: the time of a frame (or of all), or how an image lies on its tiles."""
    if part is None:
        return f" from {medium.times[0]:.2f} to {medium.times[-1]:.2f} s" if medium.times else ""
    if medium.kind == "video":
        return f" at {medium.times[part]:.2f} s" if part < len(medium.times) else ""
    if medium.tiling is None:
        return ""
    if part == 0:
        return " whole on one tile"
    grid = f"{medium.tiling.rows}x{medium.tiling.columns}"
    return f" on {grid} tiles, {medium.rows} rows of {medium.row_length - 1} and a newline"


def _excerpt(plan: PromptPlan, span: Span, tokenizer: Tokenizer) -> str:
    if span.kind is not None and span.medium is not None:
        medium = plan.media_of(span.kind)[span.medium]
        return f"{medium.name}{_detail(medium, span.frame)}".strip()
    text = tokenizer.decode(plan.input_ids[span.start : span.end], skip_special=False)
    if len(text) <= _EXCERPT:
        return text
    half = (_EXCERPT - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
