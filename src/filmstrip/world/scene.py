"""What a clip contains, as plain numbers. A scene is drawn at any size and knows the truth about itself.

Lengths and positions are fractions of the frame's edge, x to the right, y downwards. An image is a scene of one frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from filmstrip.world.facts import OPPOSITE, Medium, Motion

BackgroundKind = Literal["plain", "gradient", "texture", "photo"]
RGB = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Background:
    """The ground behind the shapes; it does not move.

    `low` and `high` are the two greys a gradient or texture runs between (a plain ground is `low`); a photograph is
    blended with `low`. `seed` fixes the angle of a gradient, the cells of a texture or the crop of photograph `photo`.
    """

    kind: BackgroundKind
    low: RGB
    high: RGB
    seed: int = 0
    photo: int = 0


@dataclass(frozen=True)
class Shape:
    """One shape: what it is, where it goes and when it is there.

    `size` is the edge of the square that holds it. It is visible in frames `first_frame <= f < end_frame` and passes
    the points of `path` at even intervals while visible, straight on in between. `rgb` is the drawn colour (0..255).
    """

    shape: str
    colour: str
    size: float
    motion: Motion
    path: tuple[Point, ...]
    first_frame: int
    end_frame: int
    rgb: RGB

    @property
    def name(self) -> str:
        """The words that single it out in its scene, e.g. `red star`."""
        return f"{self.colour} {self.shape}"

    def position(self, frame: int) -> Point:
        """Centre (x, y) at `frame`, which must be one of the frames it is visible in."""
        steps = max(self.end_frame - 1 - self.first_frame, 1)
        # Whole numbers up to the last division, so that a reversed path gives the same numbers exactly.
        leg, past = divmod((len(self.path) - 1) * (frame - self.first_frame), steps)
        (x0, y0), (x1, y1) = self.path[leg], self.path[leg + 1 if past else leg]
        return (x0 * (steps - past) + x1 * past) / steps, (y0 * (steps - past) + y1 * past) / steps

    def visible(self, frame: int) -> bool:
        """Whether the shape is there at `frame`."""
        return self.first_frame <= frame < self.end_frame


@dataclass(frozen=True)
class Scene:
    """Shapes on a background over `num_frames` frames; later shapes are drawn over earlier ones."""

    shapes: tuple[Shape, ...]
    background: Background
    num_frames: int

    @property
    def medium(self) -> Medium:
        """`picture` for one frame, else `video`."""
        return "picture" if self.num_frames == 1 else "video"

    def appears_last(self) -> Shape | None:
        """The shape that comes in after all others, or None if several do."""
        return _only(self.shapes, max(shape.first_frame for shape in self.shapes))

    def appears_first(self) -> Shape | None:
        """The shape that is there before all others, or None if several are."""
        return _only(self.shapes, min(shape.first_frame for shape in self.shapes))


def _only(shapes: Sequence[Shape], first_frame: int) -> Shape | None:
    found = [shape for shape in shapes if shape.first_frame == first_frame]
    return found[0] if len(found) == 1 < len(shapes) else None


def reverse(scene: Scene) -> Scene:
    """The scene of the same frames in opposite order: drawn, it equals the drawn clip reversed, byte for byte."""
    shapes = tuple(
        replace(
            shape,
            motion=OPPOSITE[shape.motion],
            path=shape.path[::-1],
            first_frame=scene.num_frames - shape.end_frame,
            end_frame=scene.num_frames - shape.first_frame,
        )
        for shape in scene.shapes
    )
    return replace(scene, shapes=shapes)
