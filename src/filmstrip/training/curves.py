"""Curves of a finished run from its logs, as one picture."""

import json
from pathlib import Path

import numpy as np

PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    "tower": (("patch_right", "patch: shape named right"), ("frame_right", "frame: shape of each colour right")),
    "language": (("right", "answer tokens right"), ("state_right", "motion of each colour right (auxiliary)")),
}


def plot_run(directory: Path, path: Path) -> None:
    """Write a PNG with one panel per stage: share of right predictions on training batches against samples seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.6), constrained_layout=True)
    for axis, (stage, series) in zip(axes, PANELS.items(), strict=True):
        log = [json.loads(line) for line in (directory / stage / "log.jsonl").read_text().splitlines()]
        for key, label in series:
            points = [(line["samples"], line[key]) for line in log if key in line]
            if points:
                samples, values = np.array(points).T
                axis.plot(samples / 1000, 100 * smooth(values), label=label, linewidth=1.6)
        axis.set(title=stage, xlabel="thousand samples seen", ylabel="%", ylim=(0, 101))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def smooth(values: np.ndarray, window: int = 25) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start), so that no point looks ahead."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
