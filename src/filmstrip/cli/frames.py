"""Frames in the terminal, two pixels per character."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text


def show_frames(frames_FYXC: np.ndarray, columns: int = 22) -> None:
    """Draw frames side by side on standard output, two pixels per character, as many rows as it takes.

    Nothing where there is no terminal, or one without colours: there every frame would be the same block.
    """
    console = Console(highlight=False)
    if not console.is_terminal or console.no_color or console.color_system is None:
        return
    per_row = max(1, (console.width + 1) // (columns + 1))
    for start in range(0, len(frames_FYXC), per_row):
        blocks = [_half_blocks(frame_YXC, columns) for frame_YXC in frames_FYXC[start : start + per_row]]
        for lines in zip(*blocks, strict=True):
            console.print(Text(" ").join(lines))
        console.print()


def _half_blocks(frame_YXC: np.ndarray, columns: int) -> list[Text]:
    height = max(2, round(frame_YXC.shape[0] * columns / frame_YXC.shape[1] / 2) * 2)
    small = np.asarray(Image.fromarray(frame_YXC).resize((columns, height), Image.Resampling.BOX))
    lines = []
    for top, bottom in zip(small[::2], small[1::2], strict=True):
        line = Text()
        for upper, lower in zip(top.tolist(), bottom.tolist(), strict=True):
            line.append("▀", Style(color=_rgb(upper), bgcolor=_rgb(lower)))
        lines.append(line)
    return lines


def _rgb(pixel: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*pixel)
