"""Read animations that FFmpeg cannot (animated WebP and AVIF) through Pillow, as videos."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from filmstrip.errors import MediaError
from filmstrip.media.clip import Clip
from filmstrip.media.image import image_to_rgb, open_image
from filmstrip.media.limits import DEFAULT_LIMITS, MediaLimits, check_clip
from filmstrip.media.sample import FrameSelection
from filmstrip.media.timeline import Timeline

PILLOW_ANIMATIONS: tuple[str, ...] = ("WEBP", "AVIF")


def read_animation(path: Path, selection: FrameSelection, limits: MediaLimits = DEFAULT_LIMITS) -> Clip:
    """Decode the chosen frames of an animated WebP or AVIF: once through for the times, once to collect.

    Raises `MediaError` as `read_video` does.
    """
    timeline = _time_frames(path, limits)
    chosen = timeline.choose(path, selection, limits)
    wanted = sorted(set(chosen))
    frames: dict[int, NDArray[np.uint8]] = {}
    with open_image(path, limits) as image:
        if image is None:
            raise MediaError(f"{path}: the file changed while it was read")
        check_clip(path, len(chosen), image.width, image.height, limits)
        for number in wanted:
            image.seek(number)
            frames[number] = image_to_rgb(image)
    return timeline.clip(path, selection, chosen, frames)


def _time_frames(path: Path, limits: MediaLimits) -> Timeline:
    with open_image(path, limits) as image:
        count = getattr(image, "n_frames", 0)
        if image is None or count == 0:
            raise MediaError(f"{path}: is not an animation")
        if count > limits.max_scanned_frames:
            raise MediaError(f"{path}: has more than {limits.max_scanned_frames:,} frames, the limit; cut it first")
        times, end = [], 0.0
        for number in range(count):
            image.seek(number)
            image.load()  # the duration is known only after decoding
            times.append(end)
            end += float(image.info.get("duration", 0)) / 1000
    return Timeline(times, end)
