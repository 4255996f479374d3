"""The pictures of an experiment: accuracy by group of families, or by family, against what it costs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filmstrip.world import FAMILIES, GROUPS

_MARKERS = "osD^vP*X<>"
_AXES: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("visual tokens of a clip", lambda costs: costs["visual_tokens"]),
    ("time of the prefill, by keep-all's", lambda costs: costs["prefill_ratio"]),
    ("memory of the prefill, MiB", lambda costs: costs["prefill_bytes"] / 2**20),
)


def plot_results(content: dict[str, Any], key: str, path: Path, note: Callable[[str], None]) -> bool:
    """Write a PNG with a row for each of the `groups` or `families` (`key`) and a column per cost.

    Without matplotlib there is a note instead.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        note(f"no {path.name}: matplotlib is not installed (pip install 'filmstrip[train]')")
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    variants = content["variants"]
    known = next(iter(variants.values()))[key]
    rows = [name for name in (GROUPS if key == "groups" else FAMILIES) if name in known]
    figure, grid = plt.subplots(
        len(rows),
        len(_AXES),
        figsize=(12, (2.4 if key == "groups" else 1.8) * len(rows) + 0.8),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    handles: list[Any] = []
    for row, axes in zip(rows, grid, strict=True):
        for axis, (title, cost) in zip(axes, _AXES, strict=True):
            points = [(result[key][row], float(cost(result["costs"]))) for result in variants.values()]
            handles = [_point(axis, index, found, place) for index, (found, place) in enumerate(points)]
            constant = axis.axhline(100 * known[row]["constant_by_phrasing"], color="0.5", linestyle="--", linewidth=1)
            axis.margins(x=0.08, y=0.2)
            axis.grid(alpha=0.3)
            if row == rows[-1]:
                axis.set_xlabel(title)
        axes[0].set_ylabel(f"{row}, %")
    names = [*variants, "best constant answer per phrasing"]
    figure.legend([*handles, constant], names, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _point(axis: Any, index: int, found: dict[str, Any], place: float) -> Any:
    share = found["accuracy"]["ordered"]
    spread = 100 * (share * (1 - share) / found["questions"]) ** 0.5  # standard error, from the choice of clips alone
    look = {"fmt": _MARKERS[index % len(_MARKERS)], "color": f"C{index % 10}"}
    return axis.errorbar(place, 100 * share, yerr=spread, markersize=7, elinewidth=1, **look)[0]
