"""Curves of a run from its logs, as one picture: losses above, shares of right predictions below."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from filmstrip.training.log import LOG_FILE, read_log

LABELS = {
    "loss": "loss",
    "answer": "answer tokens",
    "right": "answer tokens right",
    "state_right": "motion of each colour right (auxiliary)",
    "patch_right": "patch: shape named right",
    "frame_right": "frame: shape of each colour right",
}
LOSSES, SHARES = ("loss", "answer"), ("right", "state_right", "patch_right", "frame_right")


def plot_run(
    directory: Path, stages: Sequence[str], path: Path, note: Callable[[str], None] = lambda text: None
) -> None:
    """Write a PNG with one column per stage, against samples seen. Where it cannot be written, and without matplotlib,
    there is a note instead: the curves can be drawn again from the log.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        note(f"no {path.name}: matplotlib is not installed (pip install 'filmstrip[train]')")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(stages), figsize=(5.5 * len(stages), 6), constrained_layout=True, squeeze=False, sharex="col"
    )
    for column, stage in enumerate(stages):
        log = [line for line in read_log(directory / stage / LOG_FILE) if "loss" in line]
        _plot(axes[0][column], log, LOSSES, 1.0)
        _plot(axes[1][column], log, SHARES, 100.0)
        axes[0][column].set(title=stage, ylabel="loss")
        axes[1][column].set(xlabel="samples seen", ylabel="%", ylim=(0, 101))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        note(f"no {path.name}: {error.strerror or error}")
    plt.close(figure)


def _plot(axis: Any, log: Sequence[dict[str, Any]], names: Sequence[str], scale: float) -> None:
    for name in names:
        points = [(line["samples"], line[name]) for line in log if name in line]
        if points:
            samples, values = np.array(points).T
            axis.plot(samples, scale * smooth(values), label=LABELS[name], linewidth=1.6)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8)


def smooth(values: np.ndarray, window: int = 25) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start), so that no point looks ahead."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
