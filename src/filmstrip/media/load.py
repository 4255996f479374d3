"""One way in for any medium: image or video, decided by content and not by the file's name."""

from pathlib import Path

from filmstrip.media.animation import PILLOW_ANIMATIONS, read_animation
from filmstrip.media.clip import Clip
from filmstrip.media.decode import read_video
from filmstrip.media.image import identify_image, read_image
from filmstrip.media.limits import DEFAULT_LIMITS, MediaLimits
from filmstrip.media.sample import FrameSelection


def load_media(path: str | Path, selection: FrameSelection, limits: MediaLimits = DEFAULT_LIMITS) -> Clip:
    """Read an image as a clip of one frame, or the chosen frames of a video or animation.

    An animated GIF, PNG or WebP is a video, one with a single frame an image. Raises `MediaError` (one line that
    names the file) for anything that is neither or is above the limits.
    """
    path = Path(path)
    content, name = identify_image(path, limits) or ("other", "")
    if content == "animation" and name in PILLOW_ANIMATIONS:
        return read_animation(path, selection, limits)
    if content != "image":
        return read_video(path, selection, limits)
    frame_YXC = read_image(path, limits)
    return Clip(
        path=str(path),
        kind="image",
        frames=frame_YXC[None],
        times=(0.0,),
        indices=(0,),
        total_frames=1,
        duration=0.0,
    )
