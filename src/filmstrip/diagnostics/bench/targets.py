"""What the numbers are to be: the targets of this program, and how what was measured stands to them.

Notes are kept here by hand, and shown where a target is missed: why, and what was tried.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from filmstrip.diagnostics.bench.peer import LLAMA, OURS
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.startup import FIRST_ANSWER
from filmstrip.diagnostics.bench.workloads import WORKLOADS

Verdict = Literal["met", "stretch met", "missed", "not measured"]


@dataclass(frozen=True)
class Target:
    """A row of the page and what its ratio should be: `least`, and better still `stretch`; `share` of the limit.

    With `base`, another workload of the same model, the ratio is that of our own tokens a second. With `stretch_peer`
    the stretch is that program's speed, called `stretch_said`.
    """

    title: str
    size: str
    dtype: str
    workload: str
    least: float | None = None
    stretch: float | None = None
    share: float | None = None
    base: str = ""
    stretch_peer: str = ""
    stretch_said: str = ""
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """A target and what was measured: the ratio, its spread, the share of the limit; the ratio to `stretch_peer`."""

    target: Target
    verdict: Verdict
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    share: float | None = None
    to_peer: float | None = None


_TRIED_ROWS = (
    "Tried: four rows of a matrix side by side (four fifths of the speed of one after the other, which is what runs "
    "now), asking memory for what comes next 1 to 16 kB ahead (4 to 8 are best), weights in pages of 2 MB (a few per "
    "cent)."
)
_BY_MEMORY = (
    "each step reads all weights, and the share of the limit says what is left to gain; where transformers too comes "
    f"near the limit, no program can be much faster. {_TRIED_ROWS}"
)
_BY_PRODUCTS = (
    "nearly all of it is the same products of PyTorch's in both programs. Tried: chunks of 512, 1,024 and 2,100 tokens "
    "(no difference)."
)
_BY_NATIVE_STEPS = (
    "the target is for processors on which PyTorch's 16-bit products of one row run far below the speed of memory; "
    f"where they do not, less than the target is left between transformers and the limit. {_TRIED_ROWS}"
)
_BY_NATIVE_PROMPT = (
    "the target is for processors that multiply 16-bit matrices at an eighth of their float32 rate; where they do it "
    "natively, both programs use the same products (60 % of the time) and the same attention of PyTorch's (30 %). "
    "Tried: products in float32 through the buffer of widened weights (a fifth of the rate there, so not chosen), "
    "chunks of 256 to 2,100 tokens (no difference)."
)
_BY_WIDENING = (
    "each number is widened to float32 before it is used; with integer products (activations rounded to 8 bits too) it "
    "would be faster, and answers would change. Tried: one row times eight vectors instead of two times four (a third "
    "slower)."
)
_BY_IMPORT = (
    "importing PyTorch is about 60 % of our time; the rest is this program's own modules (a fifth), the weights and "
    "the clip."
)
_F16, _Q8 = "llama.cpp f16's rate", "llama.cpp q8_0's rate"
_BY_COMPILER = (
    "the products, which are most of a step, stay as they are. Blocks are compiled one by one. Tried: the model as one "
    "graph, and `max-autotune` (both 2 % slower)."
)


def _decoding(title: str, size: str, dtype: str, least: float, **more: object) -> list[Target]:
    """A target for decoding, at both contexts."""
    return [
        Target(f"decode at {context}, {title}", size, dtype, f"decode-{context}", least, **more)  # type: ignore[arg-type]
        for context in (64, 2100)
    ]


TARGETS = (
    *_decoding("embedded model, float32", "tiny", "float32", 2.0, stretch=2.5),
    *_decoding("S, float32", "S", "float32", 2.0, stretch=2.5),
    *_decoding("M, float32", "M", "float32", 1.5, stretch=1.8, share=0.8, note=_BY_MEMORY),
    *_decoding("M, bfloat16", "M", "bfloat16", 2.2, stretch_peer=LLAMA, stretch_said=_F16, note=_BY_NATIVE_STEPS),
    *_decoding("M, float16", "M", "float16", 2.2, stretch_peer=LLAMA, stretch_said=_F16, note=_BY_NATIVE_STEPS),
    *_decoding("M, int8, over bfloat16", "M", "int8", 3.5, stretch_peer=LLAMA, stretch_said=_Q8, note=_BY_NATIVE_STEPS),
    Target("prefill, M, bfloat16", "M", "bfloat16", "prefill", 6.0, 8.0, note=_BY_NATIVE_PROMPT),
    Target("prefill, M, float32", "M", "float32", "prefill", 1.1, 1.2, share=0.85, note=_BY_PRODUCTS),
    Target("second question, same video, M, float32", "M", "float32", "second", 20.0, 30.0),
    Target(FIRST_ANSWER, "tiny", "float32", FIRST_ANSWER, 3.0, note=_BY_IMPORT),
    Target("training step, S", "S", "float32", "train", 1.25),
    Target("training step, S, compiled", "S", "float32", "train-compiled", stretch=1.4, note=_BY_COMPILER),
    *(
        Target(f"batch-8 decode against batch-1, M, {of}", "M", of, "decode-64x8", 4, 6, base="decode-64", note=note)
        for of, note in (("float32", ""), ("bfloat16", ""), ("int8", _BY_WIDENING))
    ),
)


def judge(rows: Iterable[Row], targets: Iterable[Target] = TARGETS) -> list[Judgement]:
    """Every target beside what was measured."""
    known = {(row.size, row.dtype, row.workload): row for row in rows}
    return [_judge(target, known) for target in targets]


def _judge(target: Target, rows: dict[tuple[str, str, str], Row]) -> Judgement:
    row = rows.get((target.size, target.dtype, _name(target.workload)))
    if row is None:
        return Judgement(target, "not measured")
    base = rows.get((target.size, target.dtype, _name(target.base)))
    ratio, ratios = (row.ratio(), row.ratios()) if not target.base else _growth(row, base)
    if ratio is None:
        return Judgement(target, "not measured", share=row.share)
    spread = (min(ratios), max(ratios)) if ratios else None
    to_peer = row.ratio(target.stretch_peer) if target.stretch_peer else None
    return Judgement(target, _verdict(target, ratio, row.share, to_peer), ratio, spread, row.share, to_peer)


def _growth(row: Row, base: Row | None) -> tuple[float | None, list[float]]:
    """Our tokens a second over those of another row, and over all pairs of samples."""
    ours, other = row.rate(OURS), None if base is None else base.rate(OURS)
    if base is None or not ours or not other:
        return None, []
    more = row.tokens / base.tokens
    pairs = [more * slow / fast for slow in base.seconds(OURS) for fast in row.seconds(OURS)]
    return ours / other, pairs


def _verdict(target: Target, ratio: float, share: float | None, to_peer: float | None) -> Verdict:
    if target.share is not None and (share is None or share < target.share):
        return "missed"
    if target.stretch is not None and ratio >= target.stretch:
        return "stretch met"
    if target.least is None or ratio < target.least:
        return "missed"
    return "stretch met" if to_peer is not None and to_peer >= 1 else "met"


def _name(workload: str) -> str:
    """How rows call a workload."""
    return WORKLOADS[workload].name if workload in WORKLOADS else workload
