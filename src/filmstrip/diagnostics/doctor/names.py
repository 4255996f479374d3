"""The stored parameters against the model: missing, unexpected, stored twice, of another shape or dtype."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from filmstrip.checkpoint.header import DTYPES, WEIGHT_DTYPES, TensorInfo, dtype_name
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.rules import SCALES, TEMPORAL, Mapped
from filmstrip.diagnostics.doctor.findings import Findings, counted, some
from filmstrip.diagnostics.doctor.recognise import Matched
from filmstrip.diagnostics.doctor.weights import Stored
from filmstrip.kernels import SCALE_DTYPE
from filmstrip.models.wide import count_weights

POSITION_TABLE = "position_embedding.weight"
HEAD = "lm_head.weight"
HEADLESS = layouts_of("llama")["bare"]  # transformers' `LlamaModel`, the decoder without its head


@dataclass(frozen=True)
class Expected:
    """The parameters of the model that the configuration describes.

    `shapes` has every name; `owner` gives the first name of the parameter behind it, which tied weights and shared
    towers have in common. `integers` are the dtypes of quantised weights, `count` is the number of weights, shared ones
    once.
    """

    shapes: Mapping[str, tuple[int, ...]]
    owner: Mapping[str, str]
    integers: Mapping[str, torch.dtype]
    count: int

    @classmethod
    def of(cls, model: nn.Module) -> "Expected":
        """All parameters of a model, which may be on the meta device."""
        first: dict[nn.Parameter, str] = {}
        shapes, owner = {}, {}
        for name, value in model.named_parameters(remove_duplicate=False):
            shapes[name] = tuple(value.shape)
            owner[name] = first.setdefault(value, name)
        integers = {name: value.dtype for name, value in model.named_parameters() if not value.is_floating_point()}
        return cls(shapes, owner, integers, count_weights(model))


def compare_parameters(stored: Stored, matched: Matched, expected: Expected | None, findings: Findings) -> None:
    """Hold names, shapes and dtypes against the model; without one (configuration unusable), dtypes alone."""
    _check_dtypes(stored, matched, {} if expected is None else expected.integers, findings)
    if expected is None or matched.layout is None or not (matched.entries or matched.lost):
        return
    sources: dict[str, list[str]] = defaultdict(list)
    unexpected, temporal = [], []
    for name, entry in matched.entries.items():
        if entry.canonical in expected.shapes:
            sources[entry.canonical].append(name)
            _check_shape(name, stored.tensors[name], entry, expected, findings)
        elif TEMPORAL in entry.canonical:
            temporal.append(name)
        else:
            unexpected.append(name)
    if unexpected:
        what = f"{counted(len(unexpected), 'tensor')} that config.json has no place for: {some(unexpected)}"
        findings.add("tensors-unexpected", "tensors", what)
    if temporal:
        count = sum(stored.tensors[name].numel for name in temporal)
        what = f"temporal attention is stored ({counted(count, 'parameter')} in {counted(len(temporal), 'tensor')})"
        findings.add("temporal-unused", "video_tower", f"{what} and not used")
    for canonical, names in sources.items():
        if len(names) > 1:
            findings.add("parameter-stored-twice", canonical, f"stored as {' and as '.join(sorted(names))}")
    if stored.complete:
        _check_missing(matched, expected, sources, findings)


def _check_dtypes(stored: Stored, matched: Matched, integers: Mapping[str, torch.dtype], findings: Findings) -> None:
    by_dtype: dict[str, list[str]] = defaultdict(list)
    for name, entry in matched.entries.items():
        dtype = stored.tensors[name].dtype
        wanted = SCALE_DTYPE if entry.canonical.endswith(f".{SCALES}") else integers.get(entry.canonical)
        if wanted is None:
            by_dtype[dtype].append(name)
        elif DTYPES[dtype] != wanted:  # of a quantised layer
            findings.add("dtype-unsupported", name, f"stored as {dtype}, its manifest asks for {dtype_name(wanted)}")
    for dtype, names in sorted(by_dtype.items()):
        if dtype not in WEIGHT_DTYPES:
            findings.add("dtype-unsupported", dtype, f"{counted(len(names), 'tensor')} stored so: {some(names)}")
    known = {dtype: by_dtype[dtype] for dtype in WEIGHT_DTYPES if dtype in by_dtype}
    if len(known) > 1:
        rarest = min(known, key=lambda dtype: len(known[dtype]))
        shares = ", ".join(f"{counted(len(names), 'tensor')} in {dtype}" for dtype, names in known.items())
        findings.add("dtypes-mixed", "tensors", f"{shares}; in {rarest} are {some(known[rarest])}")


def _check_missing(
    matched: Matched,
    expected: Expected,
    sources: Mapping[str, list[str]],
    findings: Findings,
) -> None:
    assert matched.layout is not None
    here = {expected.owner[name] for name in (*sources, *matched.lost) if name in expected.owner}
    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(expected.owner.values()) - here):
        if name.split(".")[0] in matched.elsewhere:
            continue
        parts["temporal" if TEMPORAL in name else name.split(".")[0]].append(name)
    for part, missing in parts.items():
        places = [matched.layout.from_canonical(name).disk for name in missing]
        if part == "temporal":
            findings.add("temporal-missing", "video_tower", f"{counted(len(missing), 'tensor')}: {some(places)}")
            continue
        if matched.layout is HEADLESS and missing == [HEAD]:
            findings.add("head-missing", HEAD, f"the {matched.layout.title} has none, and it is not tied")
            continue
        of_part = len({owner for owner in expected.owner.values() if owner.split(".")[0] == part})
        whole = "all " if len(missing) == of_part else ""
        findings.add("tensors-missing", part, f"{whole}{counted(len(missing), 'tensor')} of {part}: {some(places)}")


def _check_shape(name: str, info: TensorInfo, entry: Mapped, expected: Expected, findings: Findings) -> None:
    shape = expected.shapes[entry.canonical]
    if entry.transform.canonical_shape(info.shape) == shape:
        return
    on_disk = tuple(entry.transform.from_canonical(torch.empty(shape, device="meta")).shape)
    what = f"shape {info.shape}, the model of config.json has {on_disk}"
    if entry.canonical.endswith(POSITION_TABLE) and len(info.shape) == 2 and info.shape[0] != shape[0]:
        findings.add("position-table", name, f"{what}: {_grid(info.shape[0])} stored, {_grid(shape[0])} configured")
    else:
        findings.add("shape-differs", name, what)


def _grid(rows: int) -> str:
    """Rows of a position table as the patch grid they stand for."""
    side = round(max(rows - 1, 0) ** 0.5)
    return f"{side} x {side} patches and the class token" if side * side == rows - 1 else f"{rows} rows, no square"
