"""A contact sheet: the frames a model was shown, in order, with lines of text below."""

from collections.abc import Sequence

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
    sheet = Image.new("RGB", (width, height + 4 * _MARGIN + _LINE * (len(lines) + 1)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    x = _MARGIN
    for thumbnail, time in zip(thumbnails, times, strict=True):
        sheet.paste(thumbnail, (x, _MARGIN))
        pen.text((x, height + _MARGIN + 4), f"{time:.2f} s", fill=_FAINT, font=small)
        x += thumbnail.width + _MARGIN
    y = height + 2 * _MARGIN + _LINE
    for faint, strong in lines:
        pen.text((_MARGIN, y), faint, fill=_FAINT, font=font)
        pen.text((_MARGIN + pen.textlength(faint + "  ", font=font), y), strong, fill=_INK, font=font)
        y += _LINE
    return sheet


def _thumbnail(frame_YXC: np.ndarray, height: int) -> Image.Image:
    picture = Image.fromarray(frame_YXC)
    return picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.LANCZOS)
