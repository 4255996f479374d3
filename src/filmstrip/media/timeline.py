"""The frames of a moving medium in time, and the clip that is made of the chosen ones. Knows no decoder."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from filmstrip.errors import MediaError
from filmstrip.media.clip import Clip
from filmstrip.media.limits import MediaLimits
from filmstrip.media.sample import FrameSelection, select_frames


@dataclass
class Timeline:
    """When every frame is shown, and what had to be noted on the way there.

    `times` are seconds from the first shown frame, ascending. `pts` are the same in the stream's own unit and
    `keyframes` the keyframes' among them; both are empty when the file was decoded in order instead of indexed.
    """

    times: list[float]
    duration: float
    pts: list[int] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def number_of(self, stamp: int | None) -> int | None:
        """Number of the frame shown at `stamp` (in `pts`), None when the index has no such frame."""
        if stamp is None:
            return None
        number = bisect_left(self.pts, stamp)
        return number if number < len(self.pts) and self.pts[number] == stamp else None

    def keyframe_before(self, number: int) -> tuple[int, int]:
        """(time stamp, number) of the keyframe to decode from for frame `number`.

        Frames that precede a keyframe on screen but follow it in the file (open groups of pictures) need the
        keyframe before, so it is looked up by presentation time. A keyframe that an edit list hides has the number
        of the first shown frame after it.
        """
        stamp = self.keyframes[bisect_right(self.keyframes, self.pts[number]) - 1]
        return stamp, bisect_left(self.pts, stamp)

    def choose(self, path: Path, selection: FrameSelection, limits: MediaLimits) -> list[int]:
        """Frame numbers of the selection, in its order. Raises `MediaError` that names the file."""
        try:
            return select_frames(selection, self.times, self.duration, limits.max_frames)
        except MediaError as error:
            raise MediaError(f"{path}: {error}") from error

    def clip(
        self, path: Path, selection: FrameSelection, chosen: Sequence[int], frames: Mapping[int, NDArray[np.uint8]]
    ) -> Clip:
        """Assemble the chosen frames, `frames` by number; a repeat nobody asked for is warned about."""
        warnings = list(self.warnings)
        total = len(self.times)
        if len(set(chosen)) < len(chosen) and selection.sampler != "indices":
            warnings.append(f"the clip has {total} frames, {len(chosen)} were taken: some are repeated")
        return Clip(
            path=str(path),
            kind="video",
            frames=np.stack([frames[number] for number in chosen]),
            times=tuple(self.times[number] for number in chosen),
            indices=tuple(chosen),
            total_frames=total,
            duration=self.duration,
            warnings=tuple(warnings),
        )
