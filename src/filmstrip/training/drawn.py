"""Training on drawn clips: what moves in them, and conversations with auxiliary heads on what moves.

Answers alone are a thin signal for comparing frames (a word or two a question). Drawn clips have dense labels
(`motion.MotionLabels`), which linear heads read from middle layers of the text tower; they are thrown away afterwards.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from filmstrip.config import ModelConfig
from filmstrip.models import VideoLlava
from filmstrip.shapes import Float, Tensor
from filmstrip.training.batches import IGNORE, ConversationBatch, DrawnBatch
from filmstrip.training.language import LanguageTraining, answer_loss
from filmstrip.training.motion import (
    NUM_CELLS,
    NUM_COLOURS,
    NUM_MEASURES,
    NUM_NAMES,
    NUM_SHAPES,
    NUM_STATES,
    SUMMARY,
    MotionLabels,
    balanced_l1,
    mean_l1,
    patch_content,
)
from filmstrip.world import CAMERA_MOVES, TICKS


@dataclass(frozen=True)
class ClipBatch(DrawnBatch):
    """Clips with the labels of what moves in them, and nothing said about them."""

    videos: Float[Tensor, "B F C Y X"]
    motion: MotionLabels
    num_tokens: int = 0

    def __len__(self) -> int:
        """Number of clips."""
        return self.videos.shape[0]

    @property
    def tokens(self) -> int:
        """Visual tokens that are read."""
        return self.num_tokens


class ClipTraining(nn.Module):
    """The text tower reads the tokens of clips alone, and its middle layers must tell what moves."""

    def __init__(self, model: VideoLlava, layer: int) -> None:
        super().__init__()
        self.model = model
        self.heads = MotionHeads(model.config, layer)

    def forward(self, batch: ClipBatch, _progress: float) -> tuple[Tensor, dict[str, float]]:
        """Sum of the heads' losses, and figures for the log."""
        recorded: dict[str, Tensor] = {}

        def record(site: str, value: Tensor) -> Tensor:
            recorded[site] = value
            return value

        tokens_BRD = self.model.encode_videos(batch.videos)
        self.model.decode(tokens_BRD, taps=record)
        return self.heads(recorded, batch.videos, batch.motion)


class WorldTraining(LanguageTraining):
    """`LanguageTraining` with the heads beside it. Their weight falls to zero by `until` of the run, so the end is
    about answers only.
    """

    def __init__(self, model: VideoLlava, layer: int, weight: float = 0.5, until: float = 0.8) -> None:
        super().__init__(model)
        self.weight, self.until = weight, until
        self.heads = MotionHeads(model.config, layer)

    def forward(self, batch: ConversationBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers' tokens, plus the heads' losses while they count; figures for the log."""
        video = batch.input_ids == self.model.config.video_token_id
        recorded: dict[str, Tensor] = {}

        def record(site: str, value: Tensor) -> Tensor:
            recorded[site] = value[video].view(len(batch), -1, value.shape[-1]) if site in self.heads.sites else value
            return value

        hidden_BTD = self.hidden(batch, record)
        loss, figures = answer_loss(self.model, hidden_BTD, batch.labels)
        weight = self.weight * max(0.0, 1 - progress / self.until)
        if isinstance(batch.motion, MotionLabels) and batch.videos is not None and weight > 0:
            motion_loss, motion = self.heads(recorded, batch.videos, batch.motion)
            return loss + weight * motion_loss, figures | motion
        return loss, figures


class MotionHeads(nn.Module):
    """Linear readings of a clip's tokens, and their losses against `MotionLabels`.

    Hidden state `layer` tells what moves: each patch's token what it shows and how that has moved, each frame's class
    token (it comes first, and knows the whole frame) what every colour is doing, each frame's last token, which has
    read all the others, what the camera does. State 1 must hold what the frame before showed (patch contents, centres
    of colours): nothing can be compared before the first block has learnt to look there, and it learns that fastest
    when asked for it. The state after `layer` tells at the last visual token what happened in the clip. An aggregation
    that leaves no tokens of single patches, or of single frames, has only the readings that it has tokens for
    (`readings`).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.text.hidden_size
        self.sites = tuple(f"text_tower.hidden_states.{index}" for index in (1, layer, layer + 1))
        self.patch_size = config.video_tower.patch_size
        self.per_frame = config.tokens_per_frame("video")
        self.class_token = config.keeps_class_token("video") and config.aggregation != "temporal-spatial-pool"
        self.norm, self.recall_norm, self.summary_norm = (nn.LayerNorm(width) for _ in range(3))
        patches = "patches" in readings(config)
        self.flow = nn.Linear(width, 2) if patches else None
        self.patch_shape = nn.Linear(width, NUM_SHAPES + 1) if patches else None
        self.patch_colour = nn.Linear(width, NUM_COLOURS + 1) if patches else None
        self.patch_extent = nn.Linear(width, 1) if patches else None
        self.content = nn.Linear(width, NUM_CELLS)
        self.centre = nn.Linear(width, NUM_COLOURS * 2)
        self.state = nn.Linear(width, NUM_COLOURS * NUM_STATES)
        self.velocity = nn.Linear(width, NUM_COLOURS * 2)
        self.camera = nn.Linear(width, 3)
        self.cut = nn.Linear(width, 2)
        self.summary = nn.ModuleDict({name: nn.Linear(width, NUM_NAMES * size) for name, size in SUMMARY.items()})
        self.measures = nn.Linear(width, NUM_NAMES * NUM_MEASURES)
        self.shots = nn.ModuleList(nn.Linear(width, size) for size in (len(CAMERA_MOVES), len(CAMERA_MOVES), TICKS))

    def forward(
        self,
        recorded: dict[str, Float[Tensor, "B R D"]],
        videos: Float[Tensor, "B F C Y X"],
        labels: MotionLabels,
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum of the losses, and figures: each loss, and shares of right readings."""
        recalling, moving, told = (recorded[site] for site in self.sites)
        losses, figures = self._summary_losses(self.summary_norm(told[:, -1]), labels)
        if self.per_frame:
            shape = (*videos.shape[:2], self.per_frame, -1)
            recalling, moving = (x[:, : shape[1] * shape[2]].reshape(shape) for x in (recalling, moving))
            frame_losses, right = self._frame_losses(self.norm(moving), labels)
            recalled = self._recall_losses(self.recall_norm(recalling), videos, labels)
            losses, figures = losses | frame_losses | recalled, figures | {"state_right": right}
        figures |= {name: loss.item() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum(), figures

    def _frame_losses(
        self, frames_BFPD: Float[Tensor, "B F P D"], labels: MotionLabels
    ) -> tuple[dict[str, Tensor], float]:
        last = frames_BFPD[:, :, -1]
        whole = frames_BFPD[:, :, 0] if self.class_token else last
        state = self.state(whole).unflatten(-1, (NUM_COLOURS, NUM_STATES))
        velocity = self.velocity(whole).unflatten(-1, (NUM_COLOURS, 2))
        losses = {
            "state": functional.cross_entropy(state.flatten(0, 2), labels.state.flatten(), ignore_index=IGNORE),
            "velocity": balanced_l1(velocity, labels.velocity, labels.velocity_counts),
            "camera": balanced_l1(self.camera(last), labels.camera, labels.camera_counts),
            "cut": functional.cross_entropy(self.cut(last).flatten(0, 1), labels.cut.flatten()),
        }
        patches = frames_BFPD[:, :, -labels.flow.shape[2] :]
        if self.flow is not None:
            losses["flow"] = balanced_l1(self.flow(patches), labels.flow, labels.flow_counts)
        if self.patch_extent is not None:
            covered = labels.patch_shape > 0
            losses["patch_extent"] = mean_l1(self.patch_extent(patches), labels.patch_extent[..., None], covered)
        if self.patch_shape is not None and self.patch_colour is not None:
            shape, colour = self.patch_shape(patches), self.patch_colour(patches)
            losses["patch_shape"] = functional.cross_entropy(shape.flatten(0, 2), labels.patch_shape.flatten())
            losses["patch_colour"] = functional.cross_entropy(colour.flatten(0, 2), labels.patch_colour.flatten())
        return losses, _right(state, labels.state, labels.state > 0)

    def _recall_losses(
        self, frames_BFPD: Float[Tensor, "B F P D"], videos: Float[Tensor, "B F C Y X"], labels: MotionLabels
    ) -> dict[str, Tensor]:
        """How well each frame after the first holds what the one before it showed."""
        losses = {}
        if self.flow is not None:
            before = patch_content(videos[:, :-1], self.patch_size)
            losses["recalled_content"] = functional.l1_loss(
                self.content(frames_BFPD[:, 1:, -before.shape[2] :]), before
            )
        if self.class_token:
            # Up to ten units: a linear reading would take long to grow such weights.
            centre = 10 * self.centre(frames_BFPD[:, 1:, 0]).unflatten(-1, (NUM_COLOURS, 2))
            losses["recalled_centre"] = mean_l1(centre, labels.centre[:, :-1], labels.centre_counts[:, :-1])
        return losses

    def _summary_losses(
        self, told_BD: Float[Tensor, "B D"], labels: MotionLabels
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        losses, figures = [], dict[str, float]()
        for index, (name, head) in enumerate(self.summary.items()):
            said, true = head(told_BD).unflatten(-1, (NUM_NAMES, -1)), labels.summary[..., index]
            losses.append(_cross_entropy(said, true))
            figures[f"{name}_right"] = _right(said, true, true != IGNORE)
        shots = [head(told_BD) for head in self.shots]
        losses += [functional.cross_entropy(said, true) for said, true in zip(shots, labels.shots.T, strict=True)]
        moved = labels.camera_counts & (labels.camera != 0).any(-1)
        figures["shot_right"] = _right(shots[0], labels.shots[:, 0], moved.any(-1))
        measures = 10 * self.measures(told_BD).unflatten(-1, (NUM_NAMES, NUM_MEASURES))
        measured = mean_l1(measures, labels.measures, labels.summary[..., 0] != IGNORE)
        return {"summary": torch.stack(losses).mean(), "measures": measured}, figures


def readings(config: ModelConfig) -> list[str]:
    """What the tokens of an aggregation can be asked: `patches`, `frames`, and always the `clip`."""
    frames = ["frames"] if config.tokens_per_frame("video") else []
    return [*(["patches"] if config.aggregation == "keep-all" else []), *frames, "clip"]


def _cross_entropy(said: Tensor, true: Tensor) -> Tensor:
    """Mean over what is not IGNORE; 0 where all is."""
    total = functional.cross_entropy(said.flatten(0, -2), true.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (true != IGNORE).sum().clamp(min=1)


@torch.no_grad()
def _right(said: Tensor, true: Tensor, counts: Tensor) -> float:
    """Share of right classes among those that count; 1 where none does."""
    return (said.argmax(-1) == true)[counts].float().mean().item() if counts.any() else 1.0
