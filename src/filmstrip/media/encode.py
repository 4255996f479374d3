"""Write frames as a video file. Used for drawn clips; reading is `filmstrip.media.decode`."""

from pathlib import Path

import av
import numpy as np

from filmstrip.errors import MediaError

# `cpu-independent`: without it the encoder's quickest code gives, now and then, another file for the same frames.
_OPTIONS = {"crf": "16", "preset": "fast", "x264-params": "cpu-independent=1"}


def write_video(path: Path, frames_FYXC: np.ndarray, fps: int = 8) -> None:
    """Encode uint8 RGB frames (F, Y, X, 3) as H.264 in the container that the file's ending names. The same frames give
    the same file.

    Edges must be even, as the codec's colour subsampling asks. Raises `MediaError` when the file cannot be written.
    """
    height, width = frames_FYXC.shape[1:3]
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options=_OPTIONS)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame_YXC in frames_FYXC:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_YXC), "rgb24")))
            container.mux(stream.encode())
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot write a video here ({error})") from error
