"""What scenes are sampled from: one dataclass, and the presets."""

from dataclasses import dataclass
from typing import get_args

from filmstrip.config.checks import require, require_choice
from filmstrip.world.facts import TICKS
from filmstrip.world.scene import Plot

PLOTS_BY_WEIGHT: tuple[str, ...] = (
    *("plain", "arrivals", "speed", "recolour", "bounces"),
    *("events", "events"),
    *("camera", "camera", "camera"),
)
"""Every plot, as often as it comes: what is harder to learn comes more often."""


@dataclass(frozen=True)
class SceneOptions:
    """What scenes are sampled from. Sizes and displacements are fractions of the frame's edge.

    `staggered_share` is the share of clips of several shapes that have an order of appearance; in the others each
    shape comes late or leaves early with probability `timed_share`. `same_colour_share` is the share of scenes in
    which two shapes may have one colour. `travel` bounds the displacement of a moving shape while it is visible.
    `plots` is what clips are about, drawn evenly; a name given twice comes twice as often, and `camera` only where
    there are photographs. `varied_size_share` is the share of scenes of several shapes whose sizes clearly
    differ, where no plot asks for others; the others are between the bounds of `size`.
    """

    num_frames: int = TICKS
    max_shapes: int = 3
    size: tuple[float, float] = (0.24, 0.34)
    travel: tuple[float, float] = (0.36, 0.60)
    staggered_share: float = 0.0
    timed_share: float = 0.3
    same_colour_share: float = 0.25
    num_photos: int = 0
    plots: tuple[str, ...] = PLOTS_BY_WEIGHT
    varied_size_share: float = 0.5

    def __post_init__(self) -> None:
        require(1 <= self.max_shapes <= 4, f"a scene has 1 to 4 shapes, not {self.max_shapes}")
        require(0.05 <= self.size[0] <= self.size[1] <= 0.4, f"shape sizes must lie within 0.05..0.4, not {self.size}")
        fits = 0.1 <= self.travel[0] <= self.travel[1] <= 1 - self.size[1]
        require(fits, f"travel {self.travel} does not fit a frame with shapes of size {self.size}")
        share = self.varied_size_share
        require(0 <= share <= 1, f"varied_size_share must lie within 0..1, is {share}")
        for plot in self.plots:
            require_choice("plot", plot, get_args(Plot))
        require(bool(self.plots), "a world needs at least one plot")
        require(self.num_photos > 0 or set(self.plots) != {"camera"}, "the plot 'camera' needs photographs")
        require(self.num_photos >= 0, f"num_photos must not be negative, is {self.num_photos}")


CLIPS = SceneOptions()
"""The world's clips. `dataclasses.replace(CLIPS, num_photos=...)` adds photographs, and with them the camera."""

STILLS = SceneOptions(num_frames=1, max_shapes=4)
"""The world's pictures."""
