"""What a clip contains, as plain numbers. A scene is drawn at any size and knows the truth about itself.

Lengths and positions are fractions of the frame's edge, x to the right, y downwards. An image is a scene of one frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from filmstrip.world.camera import Camera, reverse_camera
from filmstrip.world.facts import OPPOSITE, EventKind, Medium, Motion

BackgroundKind = Literal["plain", "gradient", "texture", "photo"]
Plot = Literal["plain", "arrivals", "speed", "recolour", "events", "bounces", "camera"]
RGB = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Background:
    """The ground behind the shapes; it does not move (see `Scene.camera` for one that does).

    `low` and `high` are the two greys a gradient or texture runs between (a plain ground is `low`); a photograph is
    blended with `low`. `seed` fixes the angle of a gradient, the cells of a texture or the crop of photograph `photo`.
    """

    kind: BackgroundKind
    low: RGB
    high: RGB
    seed: int = 0
    photo: int = 0


@dataclass(frozen=True)
class Recolour:
    """A change of colour: `colour` and `rgb` hold from `frame` on."""

    frame: int
    colour: str
    rgb: RGB


@dataclass(frozen=True)
class Event:
    """What happens to a shape at frames `start <= f < end`, or, where these are equal, just before `start`."""

    kind: EventKind
    start: int
    end: int


@dataclass(frozen=True)
class Shape:
    """One shape: what it is, where it goes and when it is there.

    `size` is the edge of the square that holds it. It is visible in frames `first_frame <= f < end_frame`, but for
    those of `gap` (first, end), and passes the points of `path` at even intervals, straight on in between; a path of
    one point per frame goes any way. `rgb` is the drawn colour (0..255), up to `recolour` if it has one.

    What it does beyond `motion`: `laps` is how often one that goes `around` does so in a clip, `bounces` how often one
    that moves from wall to wall turns at one, `event` what happens to it.
    """

    shape: str
    colour: str
    size: float
    motion: Motion
    path: tuple[Point, ...]
    first_frame: int
    end_frame: int
    rgb: RGB
    recolour: Recolour | None = None
    event: Event | None = None
    gap: tuple[int, int] | None = None
    laps: int = 0
    bounces: int | None = None

    @property
    def name(self) -> str:
        """The words that single it out in its scene, e.g. `red star`; its first colour, if it has two."""
        return f"{self.colour} {self.shape}"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it goes by in the course of the clip."""
        return tuple(f"{colour} {self.shape}" for colour in self.colours)

    @property
    def colours(self) -> tuple[str, ...]:
        """The name of every colour it has in the course of the clip."""
        return (self.colour,) if self.recolour is None else (self.colour, self.recolour.colour)

    @property
    def known_as(self) -> str:
        """The name that holds throughout: without the colour for a shape that changes it."""
        return self.name if self.recolour is None else self.shape

    def position(self, frame: int) -> Point:
        """Centre (x, y) at `frame`, which must be one of the frames it is visible in."""
        steps = max(self.end_frame - 1 - self.first_frame, 1)
        # Whole numbers up to the last division, so that a reversed path gives the same numbers exactly.
        leg, past = divmod((len(self.path) - 1) * (frame - self.first_frame), steps)
        (x0, y0), (x1, y1) = self.path[leg], self.path[leg + 1 if past else leg]
        return (x0 * (steps - past) + x1 * past) / steps, (y0 * (steps - past) + y1 * past) / steps

    def visible(self, frame: int) -> bool:
        """Whether the shape is there at `frame`."""
        away = self.gap is not None and self.gap[0] <= frame < self.gap[1]
        return self.first_frame <= frame < self.end_frame and not away

    def colour_at(self, frame: int) -> str:
        """Its colour's name at `frame`."""
        return self.colour if self.recolour is None or frame < self.recolour.frame else self.recolour.colour

    def rgb_at(self, frame: int) -> RGB:
        """Its drawn colour at `frame`."""
        return self.rgb if self.recolour is None or frame < self.recolour.frame else self.recolour.rgb


@dataclass(frozen=True)
class Scene:
    """Shapes on a background over `num_frames` frames; later shapes are drawn over earlier ones.

    `plot` says what the clip is about: which questions it was made for, and what a description of it tells. With a
    `camera`, the ground is what it sees of the photographs, and shapes stay where they are in the picture.
    """

    shapes: tuple[Shape, ...]
    background: Background
    num_frames: int
    plot: Plot = "plain"
    camera: Camera | None = None

    @property
    def medium(self) -> Medium:
        """`picture` for one frame, else `video`."""
        return "picture" if self.num_frames == 1 else "video"

    def appears_last(self) -> Shape | None:
        """The shape that comes in after all others, or None if several do."""
        return _only(self.shapes, max((shape.first_frame for shape in self.shapes), default=0))

    def appears_first(self) -> Shape | None:
        """The shape that is there before all others, or None if several are."""
        return _only(self.shapes, min((shape.first_frame for shape in self.shapes), default=0))

    def events(self) -> list[Shape]:
        """The shapes to which something happens, in the order in which it does."""
        timed = [(shape.event.start, place) for place, shape in enumerate(self.shapes) if shape.event is not None]
        return [self.shapes[place] for _, place in sorted(timed)]


def _only(shapes: Sequence[Shape], first_frame: int) -> Shape | None:
    found = [shape for shape in shapes if shape.first_frame == first_frame]
    return found[0] if len(found) == 1 < len(shapes) else None


def reverse(scene: Scene) -> Scene:
    """The scene of the same frames in opposite order: drawn, it equals the drawn clip reversed, byte for byte."""
    shapes = tuple(_reverse_shape(shape, scene.num_frames) for shape in scene.shapes)
    camera = None if scene.camera is None else reverse_camera(scene.camera, scene.num_frames)
    return replace(scene, shapes=shapes, camera=camera)


def _reverse_shape(shape: Shape, num_frames: int) -> Shape:
    backwards = replace(
        shape,
        motion=OPPOSITE[shape.motion],
        path=shape.path[::-1],
        first_frame=num_frames - shape.end_frame,
        end_frame=num_frames - shape.first_frame,
    )
    if shape.recolour is not None:
        change = Recolour(num_frames - shape.recolour.frame, shape.colour, shape.rgb)
        backwards = replace(backwards, colour=shape.recolour.colour, rgb=shape.recolour.rgb, recolour=change)
    if shape.gap is not None:
        backwards = replace(backwards, gap=(num_frames - shape.gap[1], num_frames - shape.gap[0]))
    if shape.event is not None:
        event = Event(shape.event.kind, num_frames - shape.event.end, num_frames - shape.event.start)
        backwards = replace(backwards, event=event)
    return backwards
