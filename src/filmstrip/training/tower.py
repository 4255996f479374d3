"""Pretraining of the embedded model's vision tower on drawn stills, with labels only a drawn picture can have.

Real towers come pretrained on image-text pairs. This one is taught what covers each patch, in which colour, and where
exactly the shape's centre lies, finer than a patch: direction of motion is a comparison of positions across frames,
and a tower that only knows *what* it sees leaves it at chance. The class token learns the same for the whole frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from filmstrip.models.vision import VisionTower
from filmstrip.shapes import Float, Int, Tensor
from filmstrip.training.batches import IGNORE, TensorBatch, frames_to_pixels
from filmstrip.world import (
    COLOUR_NAMES,
    SHAPES,
    Scene,
    SceneOptions,
    augment_stills,
    dense_labels,
    draw_stills,
    sample_still,
)

NUM_COLOURS, NUM_SHAPES = len(COLOUR_NAMES), len(SHAPES)


@dataclass(frozen=True)
class StillBatch(TensorBatch):
    """Stills with their labels; class 0 is "nothing there".

    `patch_*` say what covers most of each patch and where its centre lies from the patch's, in patches. `frame_*`
    say, for every colour, which shape has it (IGNORE if several do) and where its centre lies (0 to 1).
    """

    pixels: Float[Tensor, "B C Y X"]
    patch_shape: Int[Tensor, "B patches"]
    patch_colour: Int[Tensor, "B patches"]
    patch_offset: Float[Tensor, "B patches 2"]
    frame_shape: Int[Tensor, "B colours"]
    frame_centre: Float[Tensor, "B colours 2"]

    def __len__(self) -> int:
        """Number of stills."""
        return self.pixels.shape[0]

    @property
    def weight(self) -> float:
        """Losses are means over stills."""
        return float(len(self))

    @property
    def tokens(self) -> int:
        """Patches that are read."""
        return self.patch_shape.numel()

    @property
    def skipped(self) -> tuple[()]:
        """Drawn samples cannot be damaged."""
        return ()


class StillBatches:
    """`batch(number)` draws one batch; picklable, so that workers can make batches."""

    def __init__(self, seed: int, size: int, patch_size: int, batch_size: int, photos: Sequence[np.ndarray]) -> None:
        self.seed, self.size, self.patch_size, self.batch_size = seed, size, patch_size, batch_size
        self.photos = list(photos)
        self.options = SceneOptions(num_frames=1, max_shapes=4, num_photos=len(self.photos))

    def __call__(self, number: int) -> StillBatch:
        """Draw batch `number`."""
        rng = np.random.default_rng([self.seed, 1, number])
        scenes = [sample_still(rng, self.options) for _ in range(self.batch_size)]
        frames = augment_stills(draw_stills(scenes, self.size, self.photos), rng)
        patches = dense_labels([(scene, 0) for scene in scenes], self.patch_size, self.size)
        whole = [colour_labels(scene, 0) for scene in scenes]
        return StillBatch(
            frames_to_pixels(frames),
            torch.from_numpy(patches.shape),
            torch.from_numpy(patches.colour),
            torch.from_numpy(patches.offset),
            torch.from_numpy(np.stack([shapes for shapes, _ in whole])),
            torch.from_numpy(np.stack([centres for _, centres in whole])),
        )


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


class TowerPretraining(nn.Module):
    """A tower and the linear heads that are thrown away afterwards."""

    def __init__(self, tower: VisionTower, select_layers: Sequence[int]) -> None:
        super().__init__()
        self.tower, self.select_layers = tower, tuple(select_layers)
        width = tower.config.hidden_size * len(self.select_layers)
        self.patch_shape = nn.Linear(width, NUM_SHAPES + 1)
        self.patch_colour = nn.Linear(width, NUM_COLOURS + 1)
        self.patch_offset = nn.Linear(width, 2)
        self.frame_shape = nn.Linear(width, NUM_COLOURS * (NUM_SHAPES + 1))
        self.frame_centre = nn.Linear(width, NUM_COLOURS * 2)

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
            "frame": functional.cross_entropy(
                frame_logits.flatten(0, 1), batch.frame_shape.flatten(), ignore_index=IGNORE
            ),
            # Centres are fractions of the frame; a factor of 4 makes an error of a patch count like an offset of one.
            "centre": 4 * functional.l1_loss(centres[present], batch.frame_centre[present]),
        }
        with torch.no_grad():
            right = shape_logits[covered].argmax(-1) == batch.patch_shape[covered]
            named = frame_logits[present].argmax(-1) == batch.frame_shape[present]
        figures = {name: loss.item() for name, loss in losses.items()}
        figures |= {"patch_right": right.float().mean().item(), "frame_right": named.float().mean().item()}
        return torch.stack(list(losses.values())).sum(), figures
