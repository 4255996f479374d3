"""Pretraining of the embedded model's vision tower on drawn stills, with labels only a drawn picture can have.

Real towers come pretrained on image-text pairs. This one is taught what covers each patch, in which colour, and where
exactly the shape's centre lies, finer than a patch: direction of motion is a comparison of positions across frames,
and a tower that only knows *what* it sees leaves it at chance. The class token learns the same for the whole frame.

Where a camera moves over a photograph there is no shape to find again. So the tower also sees frames of such clips, and
its features of one frame and the next must tell, patch by patch, how the ground has moved (`FlowHead`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from filmstrip.models.vision import VisionTower
from filmstrip.shapes import Bool, Float, Int, Tensor
from filmstrip.training.batches import IGNORE, DrawnBatch, frames_to_pixels
from filmstrip.training.motion import NUM_CELLS, NUM_COLOURS, mean_l1, motion_labels, patch_content
from filmstrip.world import (
    CLIPS,
    COLOUR_NAMES,
    SHAPES,
    STILLS,
    Scene,
    SceneOptions,
    augment_clip,
    augment_stills,
    dense_labels,
    draw_clip,
    draw_stills,
    sample_clip,
    sample_still,
    training_rng,
)

NUM_SHAPES = len(SHAPES)
_STILLS_PER_CLIP = 8  # so many stills of a batch come with one clip of a moving camera
_CLIP_FRAMES = 4  # of which so many frames are used


@dataclass(frozen=True)
class StillBatch(DrawnBatch):
    """Stills with their labels; class 0 is "nothing there".

    `patch_*` say what covers most of each patch, where its centre lies from the patch's, in patches, and how large it
    is, of the frame's edge. `frame_*`
    say, for every colour, which shape has it (IGNORE if several do) and where its centre lies (0 to 1). `clips` are
    frames in a row under a moving camera, `flow` how each patch's content has moved since the frame before
    (`motion.MotionLabels`); there are none without photographs.
    """

    pixels: Float[Tensor, "B C Y X"]
    patch_shape: Int[Tensor, "B patches"]
    patch_colour: Int[Tensor, "B patches"]
    patch_offset: Float[Tensor, "B patches 2"]
    patch_extent: Float[Tensor, "B patches"]
    frame_shape: Int[Tensor, "B colours"]
    frame_centre: Float[Tensor, "B colours 2"]
    clips: Float[Tensor, "M F C Y X"] | None = None
    flow: Float[Tensor, "M F patches 2"] | None = None
    flow_counts: Bool[Tensor, "M F patches"] | None = None

    def __len__(self) -> int:
        """Number of stills."""
        return self.pixels.shape[0]

    @property
    def tokens(self) -> int:
        """Patches that are read."""
        return self.patch_shape.numel()


class StillBatches:
    """`batch(number)` draws one batch; picklable, so that workers can make batches."""

    def __init__(self, seed: int, size: int, patch_size: int, batch_size: int, photos: Sequence[np.ndarray]) -> None:
        self.seed, self.size, self.patch_size, self.batch_size = seed, size, patch_size, batch_size
        self.photos = list(photos)
        self.options = replace(STILLS, num_photos=len(self.photos))
        self.camera = replace(CLIPS, num_photos=len(self.photos), plots=("camera",)) if self.photos else None

    def __call__(self, number: int) -> StillBatch:
        """Draw batch `number`."""
        rng = training_rng(1, number, self.seed)
        scenes = [sample_still(rng, self.options) for _ in range(self.batch_size)]
        frames = augment_stills(draw_stills(scenes, self.size, self.photos), rng)
        patches = dense_labels([(scene, 0) for scene in scenes], self.patch_size, self.size)
        whole = [colour_labels(scene, 0) for scene in scenes]
        batch = StillBatch(
            frames_to_pixels(frames),
            torch.from_numpy(patches.shape),
            torch.from_numpy(patches.colour),
            torch.from_numpy(patches.offset),
            torch.from_numpy(patches.extent),
            torch.from_numpy(np.stack([shapes for shapes, _ in whole])),
            torch.from_numpy(np.stack([centres for _, centres in whole])),
        )
        return batch if self.camera is None else self._with_clips(batch, self.camera, rng)

    def _with_clips(self, batch: StillBatch, camera: SceneOptions, rng: np.random.Generator) -> StillBatch:
        clips, scenes, starts = [], [], []
        for _ in range(max(1, self.batch_size // _STILLS_PER_CLIP)):
            scene = sample_clip(rng, "train", camera)
            start = int(rng.random() * (scene.num_frames - _CLIP_FRAMES + 1))
            frames = draw_clip(scene, self.size, self.photos)[start : start + _CLIP_FRAMES]
            clips.append(augment_clip(frames, rng))
            scenes.append(scene)
            starts.append(start)
        labels = motion_labels(scenes, self.patch_size, self.size)
        rows = torch.arange(len(clips))[:, None]
        shown = torch.tensor(starts)[:, None] + torch.arange(_CLIP_FRAMES)
        pixels = frames_to_pixels(np.stack(clips))
        return replace(batch, clips=pixels, flow=labels.flow[rows, shown], flow_counts=labels.flow_counts[rows, shown])


def colour_labels(scene: Scene, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """For every colour the class of the visible shape that has it, int64 (colours,), and its centre (colours, 2)."""
    classes = np.zeros(NUM_COLOURS, np.int64)
    centres = np.zeros((NUM_COLOURS, 2), np.float32)
    for shape in scene.shapes:
        if shape.visible(frame):
            colour = COLOUR_NAMES.index(shape.colour)
            classes[colour] = IGNORE if classes[colour] else 1 + SHAPES.index(shape.shape)
            centres[colour] = shape.position(frame)
    return classes, centres


class FlowHead(nn.Module):
    """How each patch's content moved from one frame to the next, from the features of both.

    Their products tell it (as in motion-energy models, Adelson and Bergen 1985): the text tower can form them too, by
    attending to the frame before and multiplying in its gated MLP.
    """

    def __init__(self, width: int, products: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.before = nn.Linear(width, products)
        self.after = nn.Linear(width, products)
        self.read = nn.Sequential(nn.Linear(products, 64), nn.GELU(), nn.Linear(64, 2))

    def forward(self, patches_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M pairs P 2"]:
        """Movement from frame f to f + 1, for each pair in a row."""
        x_MFPE = self.norm(patches_MFPE)
        flow: Tensor = self.read(self.before(x_MFPE[:, :-1]) * self.after(x_MFPE[:, 1:]))
        return flow


class TowerPretraining(nn.Module):
    """A tower and the linear heads that are thrown away afterwards."""

    def __init__(self, tower: VisionTower, select_layers: Sequence[int]) -> None:
        super().__init__()
        self.tower, self.select_layers = tower, tuple(select_layers)
        width = tower.config.hidden_size * len(self.select_layers)
        self.patch_shape = nn.Linear(width, NUM_SHAPES + 1)
        self.patch_colour = nn.Linear(width, NUM_COLOURS + 1)
        self.patch_offset = nn.Linear(width, 2)
        self.patch_extent = nn.Linear(width, 1)
        self.frame_shape = nn.Linear(width, NUM_COLOURS * (NUM_SHAPES + 1))
        self.frame_centre = nn.Linear(width, NUM_COLOURS * 2)
        self.content = nn.Linear(width, NUM_CELLS)
        self.flow = FlowHead(width)

    def forward(self, batch: StillBatch, _progress: float) -> tuple[Tensor, dict[str, float]]:
        """Sum of the losses of all heads, and accuracies for the log."""
        features = self.tower(batch.pixels[:, None], self.select_layers)[:, 0]
        frame, patches = features[:, 0], features[:, 1:]
        covered = batch.patch_shape > 0
        shape_logits = self.patch_shape(patches)
        colour_logits = self.patch_colour(patches)
        frame_logits = self.frame_shape(frame).unflatten(-1, (NUM_COLOURS, -1))
        centres = self.frame_centre(frame).unflatten(-1, (NUM_COLOURS, 2))
        present = batch.frame_shape > 0
        losses = {
            "shape": functional.cross_entropy(shape_logits.flatten(0, 1), batch.patch_shape.flatten()),
            "colour": functional.cross_entropy(colour_logits.flatten(0, 1), batch.patch_colour.flatten()),
            "offset": functional.l1_loss(self.patch_offset(patches)[covered], batch.patch_offset[covered]),
            # Sizes are fractions of the frame that differ by a tenth; a factor of 10 makes them count like offsets.
            "extent": 10 * functional.l1_loss(self.patch_extent(patches)[covered][:, 0], batch.patch_extent[covered]),
            "frame": functional.cross_entropy(
                frame_logits.flatten(0, 1), batch.frame_shape.flatten(), ignore_index=IGNORE
            ),
            # Centres are fractions of the frame; a factor of 4 makes an error of a patch count like an offset of one.
            "centre": 4 * functional.l1_loss(centres[present], batch.frame_centre[present]),
        }
        if batch.clips is not None and batch.flow is not None and batch.flow_counts is not None:
            seen = self.tower(batch.clips, self.select_layers)[:, :, 1:]
            content = patch_content(batch.clips, self.tower.config.patch_size)
            losses["content"] = functional.l1_loss(self.content(seen), content)
            losses["flow"] = 2 * mean_l1(self.flow(seen), batch.flow[:, 1:], batch.flow_counts[:, 1:])
        with torch.no_grad():
            right = shape_logits[covered].argmax(-1) == batch.patch_shape[covered]
            named = frame_logits[present].argmax(-1) == batch.frame_shape[present]
        figures = {name: loss.item() for name, loss in losses.items()}
        figures |= {"patch_right": right.float().mean().item(), "frame_right": named.float().mean().item()}
        return torch.stack(list(losses.values())).sum(), figures
