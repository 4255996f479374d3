"""The page of an experiment's results, in Markdown: tables, the picture, and how to read them."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from filmstrip.training.experiment.costs import ROWS
from filmstrip.world import GROUPS

MIB = 2**20
Row = tuple[str, dict[str, Any]]


def results_page(content: dict[str, Any], plot: str | None) -> str:
    """The whole page; `plot` is the file of the picture beside it, if there is one."""
    about = content["about"]
    rows: list[Row] = list(content["variants"].items())
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    parts = [
        "# Fusion: results",
        f"Made by `filmstrip experiment`: {len(rows)} ways from frames to visual tokens, trained from the same vision "
        f"towers by the same recipe at {about['compute']}, asked about {about['clips']} clips of the test split. "
        f"{versions}; {about['threads']} {'thread' if about['threads'] == 1 else 'threads'}.",
        "## What it costs",
        _costs(rows),
        *([f"![Accuracy by group of families against visual tokens, prefill time and memory]({plot})"] if plot else []),
        "## What it learns",
        "Right answers, per cent, by group of families (`describe`: F1 of stated facts). `all` is the mean over "
        "families. The best constant answer needs no clip.",
        _accuracy(rows, "ordered"),
        "The same clips with their frames shuffled. What an aggregation loses here, it knew from the order.",
        _accuracy(rows, "shuffled"),
        "By family, frames in order:",
        _families(rows),
        "## How to read this",
        "\n".join(f"- {line}" for line in _caveats(content, rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _costs(rows: Sequence[Row]) -> str:
    header = [
        "aggregation",
        "visual tokens",
        "parameters",
        "steps",
        "training TFLOPs",
        "minutes",
        "vision, ms (ratio)",
        "prefill, ms (ratio)",
        "prefill, MiB",
    ]
    lines = []
    for name, result in rows:
        costs = result["costs"]
        lines.append(
            [
                name,
                str(costs["visual_tokens"]),
                f"{result['parameters']:,}",
                f"{result['steps']:,}",
                f"{result['flops'] / 1e12:.3g}",
                f"{result['seconds'] / 60:.1f}",
                f"{1000 * costs['vision_seconds']:.1f} ({costs['vision_ratio']:.2f})",
                f"{1000 * costs['prefill_seconds']:.1f} ({costs['prefill_ratio']:.2f})",
                f"{costs['prefill_bytes'] / MIB:.1f}",
            ]
        )
    return table(header, lines)


def _accuracy(rows: Sequence[Row], condition: str) -> str:
    groups = _known(rows, "groups", list(GROUPS))
    header = ["aggregation", *groups, "all"]
    constant = rows[0][1]
    lines = [["*best constant*", *_percents(constant, groups, lambda result: result["constant"])]]
    for name, result in rows:
        lines.append([name, *_percents(result, groups, lambda found: found["accuracy"][condition])])
    return table(header, lines)


def _percents(result: dict[str, Any], groups: Sequence[str], pick: Callable[[dict[str, Any]], float]) -> list[str]:
    return [f"{100 * pick(found):.1f}" for found in (*(result["groups"][group] for group in groups), result["all"])]


def _families(rows: Sequence[Row]) -> str:
    """One row per family, one column per variant."""
    families = _known(rows, "families", [family for group in GROUPS.values() for family in group])
    first = rows[0][1]["families"]
    lines = [
        [
            family,
            str(first[family]["questions"]),
            f"{100 * first[family]['constant']:.1f}",
            *(f"{100 * result['families'][family]['accuracy']['ordered']:.1f}" for _, result in rows),
        ]
        for family in families
    ]
    return table(["family", "questions", "best constant", *(name for name, _ in rows)], lines)


def _known(rows: Sequence[Row], key: str, order: Sequence[str]) -> list[str]:
    return [name for name in order if name in rows[0][1][key]]


def _caveats(content: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What every run of this experiment must say about its numbers."""
    groups, about = rows[0][1]["groups"], content["about"]
    fewest = min(found["questions"] for found in groups.values())
    caveats = [
        f"One seed each. The standard error of a group's accuracy is up to {100 * sqrt(0.25 / fewest):.1f} points "
        "from the choice of clips alone; what another seed would change is not in it.",
        f"Compute is {about['compute']}, counted after the vision towers, which are trained once for all. An "
        "aggregation with fewer tokens gets more steps for it, and so sees more clips.",
        f"Times are medians of {about['rounds']} rounds of a batch of {ROWS} on one thread, ratios by "
        f"`{about['baseline']}` in the same round; memory is what the prefill allocates beside weights. Models this "
        "small are partly bound by what is not a product.",
        "The world is drawn and the model tiny, with 16 patches a frame. Nothing here says what a 7B model does on "
        "real video.",
    ]
    for kind, what in (("patches", "how each patch has moved"), ("frames", "what happens in each frame")):
        without = [name for name, result in rows if kind not in result["readings"]]
        if without and len(without) < len(rows):
            were = "was" if len(without) == 1 else "were"
            caveats.append(
                f"The auxiliary losses on {what} need tokens of single {kind}: {', '.join(without)} {were} trained "
                "without them."
            )
    return caveats


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
