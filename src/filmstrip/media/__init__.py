"""Media: a file becomes frames (`load_media`), frames become pixels (`filmstrip.media.transform.to_pixels`).

Everything here but `transform` works without torch, so listing, sampling and drawing frames stay quick to start.
"""

from filmstrip.media.clip import Clip, pixel_hash
from filmstrip.media.decode import read_video
from filmstrip.media.image import read_image
from filmstrip.media.limits import DEFAULT_LIMITS, MediaLimits
from filmstrip.media.load import load_media
from filmstrip.media.sample import FrameSelection, select_frames

__all__ = [
    "DEFAULT_LIMITS",
    "Clip",
    "FrameSelection",
    "MediaLimits",
    "load_media",
    "pixel_hash",
    "read_image",
    "read_video",
    "select_frames",
]
