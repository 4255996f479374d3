"""The picture of an experiment: accuracy by group of families against visual tokens, prefill time and memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filmstrip.world import GROUPS

_MARKERS = "osD^vP*X<>"
_AXES: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("visual tokens of a clip", lambda costs: costs["visual_tokens"]),
    ("time of the prefill, by keep-all's", lambda costs: costs["prefill_ratio"]),
    ("memory of the prefill, MiB", lambda costs: costs["prefill_bytes"] / 2**20),
)


def plot_results(content: dict[str, Any], path: Path, note: Callable[[str], None]) -> bool:
    """Write a PNG with a row per group and a column per cost. Without matplotlib there is a note instead."""
    try:
        import matplotlib as mpl
    except ImportError:
        note(f"no {path.name}: matplotlib is not installed (pip install 'filmstrip[train]')")
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    variants = content["variants"]
    known = next(iter(variants.values()))["groups"]
    groups = [group for group in GROUPS if group in known]
    figure, grid = plt.subplots(
        len(groups),
        len(_AXES),
        figsize=(12, 2.4 * len(groups) + 0.8),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    handles: list[Any] = []
    for group, axes in zip(groups, grid, strict=True):
        for axis, (title, cost) in zip(axes, _AXES, strict=True):
            handles = [_point(axis, index, result, group, cost) for index, result in enumerate(variants.values())]
            constant = axis.axhline(100 * known[group]["constant"], color="0.5", linestyle="--", linewidth=1)
            axis.margins(x=0.08, y=0.2)
            axis.grid(alpha=0.3)
            if group == groups[-1]:
                axis.set_xlabel(title)
        axes[0].set_ylabel(f"{group}, %")
    names = [*variants, "best constant answer"]
    figure.legend([*handles, constant], names, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _point(axis: Any, index: int, result: dict[str, Any], group: str, cost: Callable[[dict[str, Any]], float]) -> Any:
    found = result["groups"][group]
    right = 100 * found["accuracy"]["ordered"]
    share, place = right / 100, cost(result["costs"])
    spread = 100 * (share * (1 - share) / found["questions"]) ** 0.5  # standard error, from the choice of clips alone
    look = {"fmt": _MARKERS[index % len(_MARKERS)], "color": f"C{index % 10}"}
    return axis.errorbar(place, right, yerr=spread, markersize=7, elinewidth=1, **look)[0]
