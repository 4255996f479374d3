"""A contact sheet: the frames a model was shown, in order, with lines of text below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _LINE = 12, 24
_PAPER, _INK, _FAINT = (252, 252, 250), (28, 28, 32), (120, 120, 128)


def contact_sheet(
    frames_FYXC: np.ndarray, times: Sequence[float], lines: Sequence[tuple[str, str]], height: int = 150
) -> Image.Image:
    """Frames side by side at `height` pixels with their times, then one row per pair of (faint, strong) text."""
    thumbnails = [_thumbnail(frame_YXC, height) for frame_YXC in frames_FYXC]
    width = _MARGIN + sum(thumbnail.width + _MARGIN for thumbnail in thumbnails)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    rows = [row for faint, strong in lines for row in _wrap(faint, strong, font, width - 2 * _MARGIN)]
    sheet = Image.new("RGB", (width, height + 4 * _MARGIN + _LINE * (len(rows) + 1)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    x = _MARGIN
    for thumbnail, time in zip(thumbnails, times, strict=True):
        sheet.paste(thumbnail, (x, _MARGIN))
        pen.text((x, height + _MARGIN + 4), f"{time:.2f} s", fill=_FAINT, font=small)
        x += thumbnail.width + _MARGIN
    y = height + 2 * _MARGIN + _LINE
    for indent, faint, strong in rows:
        pen.text((_MARGIN, y), faint, fill=_FAINT, font=font)
        pen.text((_MARGIN + indent, y), strong, fill=_INK, font=font)
        y += _LINE
    return sheet


def _wrap(faint: str, strong: str, font: Any, width: float) -> list[tuple[float, str, str]]:
    """Lines of (indent of the strong text, faint text, strong text) that fit `width`; a single word may stick out."""
    indent = font.getlength(faint + "  ")
    lines, line = [], ""
    for word in strong.split():
        longer = f"{line} {word}".strip()
        if line and indent + font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    return [(indent, faint if index == 0 else "", text) for index, text in enumerate(lines)]


def _thumbnail(frame_YXC: np.ndarray, height: int) -> Image.Image:
    picture = Image.fromarray(frame_YXC)
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
