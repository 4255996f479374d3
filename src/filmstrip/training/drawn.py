"""Training on drawn conversations: the same task, and an auxiliary head that only drawn clips have the labels for."""

import torch
from torch import nn
from torch.nn import functional

from filmstrip.models import VideoLlava
from filmstrip.shapes import Tensor
from filmstrip.training.batches import IGNORE, ConversationBatch
from filmstrip.training.conversations import NUM_STATES
from filmstrip.training.language import LanguageTraining, answer_loss
from filmstrip.training.tower import NUM_COLOURS


class WorldTraining(LanguageTraining):
    """`LanguageTraining` with one linear head that is thrown away afterwards.

    The head reads the hidden states of a middle layer at each frame's last token, which has read all of the frame, and
    must say what every colour's shape is doing there. Answers alone are a thin signal for comparing positions across
    frames (a word or two a question); this one is dense. Its weight falls to zero by `until` of the run, so the end is
    about answers only. Where no token belongs to one frame (`ModelConfig.joint_tokens` alone), it is left out.
    """

    def __init__(self, model: VideoLlava, layer: int, weight: float = 0.5, until: float = 0.8) -> None:
        super().__init__(model)
        has_frames = model.config.tokens_per_frame("video") > 0
        self.layer, self.weight, self.until = layer, weight if has_frames else 0.0, until
        self.state_head = nn.Linear(model.config.text.hidden_size, NUM_COLOURS * NUM_STATES)

    def forward(self, batch: ConversationBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers' tokens, plus the head's while it counts; figures for the log."""
        recorded: dict[str, Tensor] = {}

        def record(site: str, value: Tensor) -> Tensor:
            recorded[site] = value
            return value

        hidden_BTD = self.hidden(batch, record)
        loss, figures = answer_loss(self.model, hidden_BTD, batch.labels)
        weight = self.weight * max(0.0, 1 - progress / self.until)
        if batch.colour_state is not None and weight > 0:
            state_loss, right = self._state_loss(batch, recorded[f"text_tower.hidden_states.{self.layer}"])
            loss = loss + weight * state_loss
            figures |= {"state": state_loss.item(), "state_right": right}
        return loss, figures

    def _state_loss(self, batch: ConversationBatch, hidden_BTD: Tensor) -> tuple[Tensor, float]:
        assert batch.colour_state is not None
        config = self.model.config
        at_video_BT = batch.input_ids == config.video_token_id
        per_frame, width = config.tokens_per_frame("video"), hidden_BTD.shape[-1]
        clips_BRD = hidden_BTD[at_video_BT].view(len(batch), -1, width)
        of_frames_BRD = clips_BRD[:, : clips_BRD.shape[1] - config.joint_tokens]
        frames_BFPD = of_frames_BRD.reshape(len(batch), -1, per_frame, width)
        logits = self.state_head(frames_BFPD[:, :, -1]).unflatten(-1, (NUM_COLOURS, NUM_STATES))
        target = batch.colour_state
        loss = functional.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=IGNORE)
        with torch.no_grad():
            counted = target > 0
            right = (logits.argmax(-1) == target)[counted].float().mean().item()
        return loss, right
