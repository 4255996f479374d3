"""Which frames the command line asks for."""

from dataclasses import replace
from typing import TYPE_CHECKING

from filmstrip.config.checks import require, require_choice
from filmstrip.config.preset import FRAME_SAMPLERS
from filmstrip.errors import ConfigError

if TYPE_CHECKING:
    from filmstrip.media.sample import FrameSelection


def frame_selection(
    default: "FrameSelection", sampler: str | None, frames: int | None, fps: float | None, at: str | None
) -> "FrameSelection":
    """The model's own selection with the user's changes. Raises `ConfigError` for options that do not fit together."""
    if sampler is not None:
        require_choice("frame sampler", sampler, FRAME_SAMPLERS)
    if fps is not None:
        sampler = sampler or "fps"
    require(
        frames is None or sampler not in ("fps", "times", "indices"),
        f"--frames goes with the uniform samplers, not with {sampler}",
    )
    require(fps is None or sampler == "fps", f"--fps goes with --sampler fps, not {sampler}")
    require(sampler != "fps" or fps is not None, "--sampler fps needs --fps")
    require(at is None or sampler in ("times", "indices"), "--at goes with --sampler times or --sampler indices")
    require(at is not None or sampler not in ("times", "indices"), f"--sampler {sampler} needs --at")
    changes: dict[str, object] = {}
    if sampler is not None:
        changes["sampler"] = sampler
    if frames is not None:
        changes["num_frames"] = frames
    if fps is not None:
        changes["fps"] = fps
    if at is not None:
        changes[str(sampler)] = _numbers(at, float if sampler == "times" else int)
    return replace(default, **changes)  # type: ignore[arg-type]


def _numbers(text: str, kind: type[float] | type[int]) -> tuple[float, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--at takes comma-separated numbers, not {text!r}") from error
