"""The page of an experiment's results, in Markdown: tables, the picture, and how to read them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

from filmstrip.training.evaluate import FamilyResult, markdown_table
from filmstrip.training.experiment.costs import ROWS
from filmstrip.world import FAMILIES, GROUPS

MIB = 2**20
Row = tuple[str, dict[str, Any]]
Pick = Callable[[dict[str, Any]], float]


def _right(condition: str) -> Pick:
    return lambda found: found["accuracy"][condition]


_CONSTANTS: dict[str, Pick] = {
    "*best constant*": lambda found: found["constant"],
    "*best constant per phrasing*": lambda found: found["constant_by_phrasing"],
}
# Each control's figure, and what is said above its table.
_CONTROLS: tuple[tuple[Pick, str], ...] = (
    (_right("first frame"), "The first frame alone, in the place of all. What is right here needed no second one."),
    (_right("shuffled"), "Frames shuffled. What an aggregation loses here, it knew from the order."),
    (_right("reversed"), "Frames reversed, scored by what is true of the clip as it was."),
    (lambda found: found["reversed_truth"], "The same answers, scored by what is true of the reversed clip."),
)


def results_page(content: dict[str, Any], plots: Mapping[str, str]) -> str:
    """The whole page; `plots` are the files of the pictures beside it, by `groups` and `families`."""
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
        *_picture(plots, "groups", "group of families"),
        "## What it learns",
        "Right answers, per cent, by group of families (`describe`: F1 of stated facts). `all` is the mean over "
        "families. The best constant answer needs no clip; that of each phrasing knows the question.",
        _accuracy(rows, _right("ordered"), _CONSTANTS),
        *(part for pick, text in _CONTROLS for part in (text, _accuracy(rows, pick))),
        "## By family",
        "Frames in order:",
        _families(rows),
        *_picture(plots, "families", "family"),
        "## Every control by family",
        *(part for row in rows for part in _controls(*row)),
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


def _picture(plots: Mapping[str, str], key: str, what: str) -> list[str]:
    if key not in plots:
        return []
    return [f"![Accuracy by {what} against visual tokens, prefill time and memory]({plots[key]})"]


def _accuracy(rows: Sequence[Row], pick: Pick, constants: Mapping[str, Pick] | None = None) -> str:
    """One row per variant, one column per group; `constants` are the same for all variants and come first."""
    groups = _known(rows, "groups", GROUPS)
    lines = [[name, *_percents(rows[0][1], groups, constant)] for name, constant in (constants or {}).items()]
    lines += [[name, *_percents(result, groups, pick)] for name, result in rows]
    return table(["aggregation", *groups, "all"], lines)


def _percents(result: dict[str, Any], groups: Sequence[str], pick: Pick) -> list[str]:
    return [f"{100 * pick(found):.1f}" for found in (*(result["groups"][group] for group in groups), result["all"])]


def _controls(name: str, result: dict[str, Any]) -> tuple[str, str]:
    """The table of `filmstrip.training.evaluate` for one variant, under its name; facts are not in it."""
    families = {family: FamilyResult(**found | {"facts": {}}) for family, found in result["families"].items()}
    return f"### {name}", markdown_table(families)


def _families(rows: Sequence[Row]) -> str:
    """One row per family, one column per variant."""
    families = _known(rows, "families", FAMILIES)
    first = rows[0][1]["families"]
    lines = [
        [
            family,
            str(first[family]["questions"]),
            *(f"{100 * pick(first[family]):.1f}" for pick in _CONSTANTS.values()),
            *(f"{100 * result['families'][family]['accuracy']['ordered']:.1f}" for _, result in rows),
        ]
        for family in families
    ]
    return table(["family", "questions", "best constant", "per phrasing", *(name for name, _ in rows)], lines)


def _known(rows: Sequence[Row], key: str, order: Iterable[str]) -> list[str]:
    return [name for name in order if name in rows[0][1][key]]


def _caveats(content: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What every run of this experiment must say about its numbers."""
    groups, about = rows[0][1]["groups"], content["about"]
    fewest = min(found["questions"] for found in groups.values())
    caveats = [
        f"One seed each. The standard error of a group's accuracy is up to {100 * sqrt(0.25 / fewest):.1f} points "
        "from the choice of clips alone; what another seed would change is not in it.",
        f"Compute is {about['compute']}, counted after the vision towers, {_towers(rows)}. An aggregation with fewer "
        "tokens gets more steps for it, and so sees more clips.",
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


def _towers(rows: Sequence[Row]) -> str:
    """Where the vision towers are from."""
    given = {result["recipe"]["model"]["towers"] for _, result in rows}
    if given == {None}:
        return "which are trained once for all"
    return f"which are those of {', '.join(f'`{name}`' for name in sorted(map(str, given)))}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
