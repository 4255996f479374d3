"""Read videos with PyAV: which frames there are, and the pixels of a few of them.

Two ways give the same pixels. The quick one demultiplexes the file once without decoding, which tells every frame's
presentation time and where the keyframes are, then decodes only from the keyframe before each chosen frame. It checks
each decoded frame against that index and gives up at the first surprise. The slow one decodes everything twice, first
to learn the times, then to collect; it is for containers without timestamps or seeking, codecs whose packets are not
frames, and damaged files, of which it uses what decodes. Neither holds more frames than were asked for.

Only container formats on a list are opened and only from the local disk, since FFmpeg would otherwise follow
playlists to other files and hosts. Pixels of a non-square shape are left as stored, as every reference does.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from numpy.typing import NDArray

from filmstrip.errors import MediaError
from filmstrip.media.clip import Clip
from filmstrip.media.limits import DEFAULT_LIMITS, MediaLimits, check_clip, check_file, check_size
from filmstrip.media.sample import FrameSelection, frame_gap
from filmstrip.media.timeline import Timeline

__all__ = ["Clip", "read_video"]

CONTAINERS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,gif,apng,h264,hevc,m4v,flv,asf,ogg,ivf,obu"  # FFmpeg's demuxer names
)
# One packet is one shown frame in these codecs, so that counting packets counts frames.
FRAME_PER_PACKET = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9", "mjpeg", "png", "prores", "ffv1"})
# Containers whose header states the duration; the others' is FFmpeg's estimate.
DURATION_IN_HEADER = ("mov", "matroska", "avi")
DEFAULT_RATE = 25.0
# Besides FFmpeg's errors PyAV raises Python's own on damaged files, IndexError for a stream that appears midway.
READ_ERRORS = (av.FFmpegError, IndexError, ValueError, OverflowError)

Frame = NDArray[np.uint8]


def read_video(path: Path, selection: FrameSelection, limits: MediaLimits = DEFAULT_LIMITS) -> Clip:
    """Decode the chosen frames of a video, upright, as uint8 RGB.

    A clip with fewer frames than asked for repeats some, and says so in `warnings`; so do damage, a header that
    announces more than there is, and missing timestamps. Raises `MediaError` (one line that names the file) for a
    file that is missing, no video, has no decodable frame or is above the limits, and for a time or frame number
    outside the clip.
    """
    check_file(path, limits)
    timeline = index_packets(path, limits)
    if timeline is not None:
        chosen = timeline.choose(path, selection, limits)
        keeper = decode_by_seeking(path, timeline, chosen, limits)
        if keeper is not None:
            timeline.warnings += keeper.warnings()
            return timeline.clip(path, selection, chosen, keeper.frames)
    timeline = time_all_frames(path, limits)
    chosen = timeline.choose(path, selection, limits)
    keeper = decode_in_order(path, chosen, limits)
    timeline.warnings += keeper.warnings()
    return timeline.clip(path, selection, chosen, keeper.frames)


def index_packets(path: Path, limits: MediaLimits) -> Timeline | None:
    """Learn every frame's time from the packets, without decoding; None when that cannot be relied on."""
    container, stream = _open(path, limits)
    pts: list[int] = []
    keyframes: list[int] = []
    last, last_duration = None, 0
    with container:
        if stream.codec_context.name not in FRAME_PER_PACKET:
            return None
        try:
            for count, packet in enumerate(container.demux(stream)):
                _check_scanned(path, count, limits)
                if packet.size == 0:
                    continue
                if packet.pts is None or packet.is_corrupt:
                    return None
                if packet.is_keyframe:
                    keyframes.append(packet.pts)
                if packet.is_discard:
                    continue
                pts.append(packet.pts)
                if last is None or packet.pts >= last:
                    last, last_duration = packet.pts, packet.duration or 0
        except READ_ERRORS:
            return None
        pts.sort()
        keyframes.sort()
        if (
            not pts
            or not keyframes
            or keyframes[0] > pts[0]
            or any(one == other for one, other in itertools.pairwise(pts))
        ):
            return None
        unit = float(stream.time_base)
        times = [(stamp - pts[0]) * unit for stamp in pts]
        duration = times[-1] + (last_duration * unit or frame_gap(times) or _nominal_gap(stream))
        warnings = _header_warnings(container, stream, len(pts), duration)
    return Timeline(times, duration, pts, keyframes, warnings)


def decode_by_seeking(
    path: Path, timeline: Timeline, chosen: Sequence[int], limits: MediaLimits
) -> "FrameKeeper | None":
    """Decode the chosen frames, seeking only forwards and only over whole groups of pictures.

    Every decoded frame must be the one that the index announces, and the next one after the last; None otherwise.
    """
    container, stream = _open(path, limits)
    stream.thread_type = "AUTO"
    keeper = FrameKeeper(path, len(chosen), limits)
    with container:
        try:
            decoded = container.decode(stream)
            position = -1
            for target in sorted(set(chosen)):
                keyframe, start = timeline.keyframe_before(target)
                if start > position + 1:
                    container.seek(keyframe, stream=stream)
                    decoded = container.decode(stream)
                    position = -1
                for frame in decoded:
                    number = timeline.number_of(frame.pts)
                    if number is None or not position < number <= max(start, position + 1):
                        return None
                    if frame.is_corrupt and number >= start:
                        return None
                    position = number
                    if number == target:
                        keeper.keep(number, frame)
                        break
                if position != target:
                    return None
        except READ_ERRORS:
            return None
    return keeper


def time_all_frames(path: Path, limits: MediaLimits) -> Timeline:
    """Decode the whole file, keeping the times and no frame. Raises `MediaError` when nothing decodes."""
    container, stream = _open(path, limits)
    stamps: list[int | None] = []
    last_duration = 0
    decoder = OrderedDecoder(path, container, stream, limits)
    with container:
        for frame in decoder:
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
        if not stamps:
            raise MediaError(f"{path}: no frame of the video can be decoded; the file is damaged or cut off")
        gap = _nominal_gap(stream)
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) == len(stamps):
            ascending = np.maximum.accumulate(np.asarray(known, dtype=np.int64))
            times = [float(time) for time in (ascending - ascending[0]) * float(stream.time_base)]
            duration = times[-1] + (last_duration * float(stream.time_base) or frame_gap(times) or gap)
        else:
            times = [number * gap for number in range(len(stamps))]
            duration = len(stamps) * gap
        warnings = decoder.warnings(len(stamps))
        if not warnings:
            warnings = _header_warnings(container, stream, len(stamps), duration)
        if len(known) < len(stamps):
            warnings.append(f"the stream has no timestamps; {1 / gap:g} frames a second are assumed")
    return Timeline(times, duration, warnings=warnings)


def decode_in_order(path: Path, chosen: Sequence[int], limits: MediaLimits) -> "FrameKeeper":
    """Decode from the start and keep the chosen frames."""
    container, stream = _open(path, limits)
    keeper = FrameKeeper(path, len(chosen), limits)
    with container:
        places = iter(sorted(set(chosen)))
        target = next(places, None)
        for number, frame in enumerate(OrderedDecoder(path, container, stream, limits)):
            if number == target:
                keeper.keep(number, frame)
                target = next(places, None)
            if target is None:
                return keeper
    raise MediaError(f"{path}: the video changed while it was read")


class OrderedDecoder:
    """Every frame that decodes, in presentation order; what does not is counted and skipped."""

    def __init__(self, path: Path, container: Any, stream: Any, limits: MediaLimits) -> None:
        self.path = path
        self.container = container
        self.stream = stream
        self.limits = limits
        self.shown_packets = 0
        self.failures = 0
        self.patched = 0
        # Frame threads would report an error late and lose the frames that were decoded beside it.
        stream.thread_type = "SLICE"

    def __iter__(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        for count in itertools.count():
            _check_scanned(self.path, count, self.limits)
            try:
                packet = next(packets, None)
            except READ_ERRORS:
                self.failures += 1
                packet = None
            if packet is not None and packet.size and not packet.is_discard:
                self.shown_packets += 1
            try:
                frames = self.stream.decode(packet)
            except av.EOFError:
                return
            except READ_ERRORS:
                self.failures += 1
                frames = []
            for frame in frames:
                self.patched += bool(frame.is_corrupt)
                yield frame
            if packet is None:
                return

    def warnings(self, total: int) -> list[str]:
        """What was lost, for `total` frames decoded."""
        missing = self.shown_packets - total if self.stream.codec_context.name in FRAME_PER_PACKET else 0
        lines = []
        if self.failures or missing > 0:
            announced = f" of {self.stream.frames} announced" if self.stream.frames > total else ""
            lines.append(f"the file is damaged or cut off: {total}{announced} frames could be decoded")
        if self.patched:
            lines.append(f"{self.patched} of {total} frames are damaged, parts of their pictures are guessed")
        return lines


class FrameKeeper:
    """The chosen frames as upright RGB arrays of one size, within the limits."""

    def __init__(self, path: Path, count: int, limits: MediaLimits) -> None:
        self.path = path
        self.count = count
        self.limits = limits
        self.frames: dict[int, Frame] = {}
        self.scaled = 0
        self.size: tuple[int, int] | None = None

    def keep(self, number: int, frame: Any) -> None:
        """Convert one frame and store it under its number. A frame of another size is scaled to the first one's."""
        if self.size is None:
            self.size = (frame.width, frame.height)
            check_size(self.path, frame.width, frame.height, self.limits)
            check_clip(self.path, self.count, frame.width, frame.height, self.limits)
        self.scaled += (frame.width, frame.height) != self.size
        try:
            self.frames[number] = upright(frame_to_rgb(frame, *self.size), frame)
        except READ_ERRORS as error:
            raise MediaError(f"{self.path}: pixels of format {frame.format.name} cannot be converted") from error

    def warnings(self) -> list[str]:
        """What had to be changed about the frames."""
        if not self.scaled or self.size is None:
            return []
        width, height = self.size
        return [f"the picture changes its size: {self.scaled} of the frames were scaled to {width}x{height}"]


def frame_to_rgb(frame: Any, width: int, height: int) -> Frame:
    """A decoded frame as uint8 RGB (Y, X, 3); transparency (GIF, APNG) is blended over white as for images."""
    if not any(component.is_alpha for component in frame.format.components) and not frame.format.has_palette:
        rgb: Frame = frame.to_ndarray(format="rgb24", width=width, height=height)
        return rgb
    rgba = frame.to_ndarray(format="rgba", width=width, height=height).astype(np.uint16)
    alpha = rgba[..., 3:]
    blended: Frame = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return blended


def upright(pixels_YXC: Frame, frame: Any) -> Frame:
    """Apply the display matrix: quarter turns and mirrors (other angles go to the nearest quarter turn).

    The matrix sends a stored pixel (x, y) to (a x + c y, b x + d y) on the screen, y pointing down.
    """
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return pixels_YXC
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), dtype=np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels_YXC = pixels_YXC.transpose(1, 0, 2)
        across, down = c, b
    if across < 0:
        pixels_YXC = pixels_YXC[:, ::-1]
    if down < 0:
        pixels_YXC = pixels_YXC[::-1]
    return np.ascontiguousarray(pixels_YXC)


def _open(path: Path, limits: MediaLimits) -> tuple[Any, Any]:
    """Open a container and its first video stream that is no cover picture; frame size checked."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path.resolve()), options=options, metadata_errors="ignore")
    except READ_ERRORS as error:
        raise MediaError(f"{path}: is not an image or video that can be read") from error
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        container.close()
        raise MediaError(f"{path}: has no video stream")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        container.close()
        raise MediaError(f"{path}: there is no decoder for its video stream")
    try:
        if context.width and context.height:
            check_size(path, context.width, context.height, limits)
    except MediaError:
        container.close()
        raise
    # The decoder's own bound: a stream may announce a small frame and switch to a large one.
    context.options = {"max_pixels": str(limits.max_pixels)}
    return container, stream


def _header_warnings(container: Any, stream: Any, total: int, duration: float) -> list[str]:
    """Compare what the header announces with what is there."""
    family = container.format.name.split(",")[0]
    if family == "avi" and stream.frames > total:
        return [f"the header announces {stream.frames} frames, there are {total}"]
    if family == "gif" and not _gif_is_complete(Path(container.name)):
        return [f"the file is cut off: {total} frames are left"]
    if family not in DURATION_IN_HEADER:
        return []
    announced = 0.0
    if stream.duration:
        announced = float(stream.duration * stream.time_base)
    elif container.duration:
        announced = container.duration / av.time_base
    if announced > duration + max(1.0, duration * 0.05):
        return [f"the header announces {announced:.1f} s, the pictures end after {duration:.1f} s"]
    return []


def _gif_is_complete(path: Path) -> bool:
    """Whether a GIF ends with its trailer byte; FFmpeg does not tell a cut one from a whole one."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip(b"\0").endswith(b";")


def _nominal_gap(stream: Any) -> float:
    rate = stream.guessed_rate or stream.average_rate
    return 1.0 / float(rate) if rate else 1.0 / DEFAULT_RATE


def _check_scanned(path: Path, count: int, limits: MediaLimits) -> None:
    if count >= limits.max_scanned_frames:
        raise MediaError(f"{path}: has more than {limits.max_scanned_frames:,} frames, the limit; cut it first")
