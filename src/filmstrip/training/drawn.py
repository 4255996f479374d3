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
from filmstrip.models.record import Recorder
from filmstrip.shapes import Bool, Float, Tensor
from filmstrip.training.batches import IGNORE, ConversationBatch, DrawnBatch
from filmstrip.training.language import LanguageTraining, answer_loss
from filmstrip.training.mentions import EXTREMES, FACTS, NEIGHBOURS, NUM_NEIGHBOURS, MentionLabels
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
from filmstrip.world import CAMERA_MOVES, EVENTS, TICKS

# In a run in which these counted in full they were soon four times the answers' loss: comparing was learnt, and what
# the camera does and whether something is there, which had been learnt without them, was not.
_MENTIONS = 0.3
# What happens is learnt soon once movement is known, and asked for from the start it holds up what comes before it: the
# camera's moves were then at chance at step 1,800, when a run that was not asked had 89 % of them right.
_EVENTS_FROM = 0.6  # of the stage without words


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

    def forward(self, batch: ClipBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Sum of the heads' losses, of which those of events count more and more from `_EVENTS_FROM` of the run on, and
        figures for the log.
        """
        recorder = Recorder(detach=False)
        tokens_BRD = self.model.encode_videos(batch.videos)
        self.model.decode(tokens_BRD, taps=recorder)
        events = max(0.0, (progress - _EVENTS_FROM) / (1 - _EVENTS_FROM))
        return self.heads(recorder.activations, batch.videos, batch.motion, events)


class WorldTraining(LanguageTraining):
    """`LanguageTraining` with the heads beside it, on what moves and on what questions name. Their weight falls to zero
    by `until` of the run, so the end is about answers only.
    """

    def __init__(self, model: VideoLlava, layer: int, weight: float = 0.5, until: float = 0.8) -> None:
        super().__init__(model)
        self.weight, self.until = weight, until
        self.heads = MotionHeads(model.config, layer)
        self.mention_heads = MentionHeads(model.config, layer)

    def forward(self, batch: ConversationBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers' tokens, plus the heads' losses while they count; figures for the log."""
        recorder = Recorder(detach=False)
        hidden_BTD = self.hidden(batch, recorder)
        loss, figures = answer_loss(self.model, hidden_BTD, batch.labels)
        weight = self.weight * max(0.0, 1 - progress / self.until)
        if weight == 0:
            return loss, figures
        media, recorded = self.model.config.placeholder_ids, recorder.activations
        if isinstance(batch.motion, MotionLabels) and batch.videos is not None:
            video = batch.input_ids.eq(media["video"])
            clips = {site: _of_rows(recorded[site], video) for site in self.heads.sites}
            motion_loss, motion = self.heads(clips, batch.videos, batch.motion)
            loss, figures = loss + weight * motion_loss, figures | motion
        if isinstance(batch.mentions, MentionLabels):
            visual = torch.isin(batch.input_ids, batch.input_ids.new_tensor(list(media.values())))
            mention_loss, mentioned = self.mention_heads(recorded, visual, batch.mentions)
            loss, figures = loss + weight * mention_loss, figures | mentioned
        return loss, figures


def _of_rows(x_BTD: Tensor, where_BT: Tensor) -> Tensor:
    """The tokens where `where_BT`, equally many of each row: (B, R, D)."""
    return x_BTD[where_BT].view(len(x_BTD), -1, x_BTD.shape[-1])


class MentionHeads(nn.Module):
    """Linear readings of the tokens that end a name of a shape, and their losses against `MentionLabels`.

    Hidden state `layer` must tell there how large the shape is and where. The state after it tells whether there is
    such a shape, what happens to it, which clips' own tokens tell at `layer` only, and how it differs from the shape
    that was named before it; the state after that, in what order things happen, and at the last visual token which
    shape is the leftmost, the biggest, and so on.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.text.hidden_size
        self.sites = tuple(f"text_tower.hidden_states.{layer + later}" for later in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.sites)
        self.whole_norm = nn.LayerNorm(width)
        self.measures = nn.Linear(width, NUM_MEASURES)
        self.there = nn.Linear(width, 2)
        self.facts = nn.ModuleDict({name: nn.Linear(width, size) for name, size in FACTS.items()})
        self.differences = nn.Linear(width, NUM_MEASURES)
        self.neighbours = nn.Linear(width, len(NEIGHBOURS) * NUM_NEIGHBOURS)
        self.later = nn.Linear(width, 2)
        self.extremes = nn.Linear(width, len(EXTREMES) * NUM_COLOURS)

    def forward(
        self, recorded: dict[str, Float[Tensor, "B T D"]], visual: Bool[Tensor, "B T"], labels: MentionLabels
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum of the losses, and figures: each loss, and shares of right readings."""
        named, compared = labels.named.bool(), labels.compared.bool()
        measuring, telling, ordering = (
            norm(recorded[site][named]) for norm, site in zip(self.norms, self.sites, strict=True)
        )
        facts, second = labels.facts[named], compared[named]
        told = torch.stack([_cross_entropy(head(telling), facts[:, i]) for i, head in enumerate(self.facts.values())])
        ends = labels.there != IGNORE
        there, is_there = self.there(self.norms[1](recorded[self.sites[1]][ends])), labels.there[ends]
        neighbours = self.neighbours(ordering).unflatten(-1, (len(NEIGHBOURS), NUM_NEIGHBOURS))
        later = self.later(ordering)
        last_BD = _of_rows(recorded[self.sites[-1]], visual)[:, -1]
        extremes = self.extremes(self.whole_norm(last_BD)).unflatten(-1, (len(EXTREMES), NUM_COLOURS))
        # Up to ten units: a linear reading would take long to grow such weights.
        measures, differences = 10 * self.measures(measuring), 10 * self.differences(telling)
        losses = {
            "there": _cross_entropy(there, is_there),
            "named_measures": mean_l1(measures, labels.measures[named], torch.ones_like(second)),
            "named_facts": told.mean(),
            "neighbours": _cross_entropy(neighbours, labels.neighbours[named]),
            "differences": mean_l1(differences, labels.differences[named], second),
            "later": _cross_entropy(later, labels.later[named]),
            "extremes": _cross_entropy(extremes, labels.extremes),
        }
        figures = {name: loss.item() for name, loss in losses.items()}
        figures["extremes_right"] = _right(extremes, labels.extremes, labels.extremes != IGNORE)
        figures["there_right"] = _right(there, is_there, torch.ones_like(is_there, dtype=torch.bool))
        figures["later_right"] = _right(later, labels.later[named], labels.later[named] != IGNORE)
        return _MENTIONS * torch.stack(list(losses.values())).sum(), figures


class MotionHeads(nn.Module):
    """Linear readings of a clip's tokens, and their losses against `MotionLabels`.

    Hidden state `layer` tells what moves: each patch's token what it shows and how that has moved, each frame's class
    token (it comes first, and knows the whole frame) what every colour is doing, each frame's last token, which has
    read all the others, what the camera does. State 1 must hold what the frame before showed (patch contents, centres
    of colours): nothing can be compared before the first block has learnt to look there, and it learns that fastest
    when asked for it. The state after `layer` tells at the last visual token what happened in the clip, and at each
    class token what has happened so far; the state after that one to which shape the last of it did. An aggregation
    that leaves no tokens of single patches, or of single frames, has only the readings that it has tokens for
    (`readings`).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.text.hidden_size
        self.sites = tuple(f"text_tower.hidden_states.{index}" for index in (1, *range(layer, layer + 3)))
        self.patch_size = config.video_tower.patch_size
        self.per_frame = config.tokens_per_frame("video")
        self.class_token = config.keeps_class_token("video") and config.aggregation != "temporal-spatial-pool"
        self.norm, self.recall_norm, self.summary_norm = (nn.LayerNorm(width) for _ in range(3))
        self.happened_norm, self.latest_norm = (nn.LayerNorm(width) for _ in range(2))
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
        self.happened = nn.Linear(width, NUM_NAMES * (1 + len(EVENTS)))
        self.latest = nn.Linear(width, 1 + NUM_SHAPES)
        self.summary = nn.ModuleDict({name: nn.Linear(width, NUM_NAMES * size) for name, size in SUMMARY.items()})
        self.measures = nn.Linear(width, NUM_NAMES * NUM_MEASURES)
        self.shots = nn.ModuleList(nn.Linear(width, size) for size in (len(CAMERA_MOVES), len(CAMERA_MOVES), TICKS))

    def forward(
        self,
        recorded: dict[str, Float[Tensor, "B R D"]],
        videos: Float[Tensor, "B F C Y X"],
        labels: MotionLabels,
        events: float = 1.0,
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum of the losses, those of what has happened by each frame weighed by `events`, and figures: each loss as it
        is, and shares of right readings.
        """
        states = [recorded[site] for site in self.sites]
        losses, figures = self._summary_losses(self.summary_norm(states[2][:, -1]), labels)
        weights = dict[str, float]()
        if self.per_frame:
            shape = (*videos.shape[:2], self.per_frame, -1)
            recalling, moving, telling, ordering = (x[:, : shape[1] * shape[2]].reshape(shape) for x in states)
            frame_losses, right = self._frame_losses(self.norm(moving), labels)
            recalled = self._recall_losses(self.recall_norm(recalling), videos, labels)
            so_far, known = self._event_losses(self._whole(telling), self._whole(ordering), labels)
            losses, figures = losses | frame_losses | recalled | so_far, figures | known | {"state_right": right}
            weights = dict.fromkeys(so_far, events)
        figures |= {name: loss.item() for name, loss in losses.items()}
        weighed = [loss * weights.get(name, 1.0) for name, loss in losses.items()]
        return torch.stack(weighed).sum(), figures

    def _frame_losses(
        self, frames_BFPD: Float[Tensor, "B F P D"], labels: MotionLabels
    ) -> tuple[dict[str, Tensor], float]:
        last, whole = frames_BFPD[:, :, -1], self._whole(frames_BFPD)
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

    def _whole(self, frames_BFPD: Float[Tensor, "B F P D"]) -> Float[Tensor, "B F D"]:
        """The token that knows the whole frame."""
        return frames_BFPD[:, :, 0 if self.class_token else -1]

    def _event_losses(
        self, telling_BFD: Float[Tensor, "B F D"], ordering_BFD: Float[Tensor, "B F D"], labels: MotionLabels
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        happened = self.happened(self.happened_norm(telling_BFD)).unflatten(-1, (NUM_NAMES, -1))
        latest = self.latest(self.latest_norm(ordering_BFD))
        said = {"happened": (happened, labels.happened), "latest": (latest, labels.latest)}
        right = {f"{name}_right": _right(one, true, true > 0) for name, (one, true) in said.items()}
        return {name: _cross_entropy(one, true) for name, (one, true) in said.items()}, right

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
