"""Training of the text tower (and projector, and towers) on conversations, from files or drawn."""

from torch import nn
from torch.nn import functional

from filmstrip.models import VideoLlava
from filmstrip.models.taps import Taps
from filmstrip.ops.masks import branch_mask, branch_positions, document_mask, document_positions
from filmstrip.shapes import Float, Int, Tensor
from filmstrip.training.batches import IGNORE, ConversationBatch


class LanguageTraining(nn.Module):
    """The model, and the cross entropy of the assistant's tokens."""

    def __init__(self, model: VideoLlava) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ConversationBatch, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over the labelled tokens, and figures for the log."""
        hidden_BTD = self.hidden(batch, last=positions_read(batch.labels))
        loss, figures = answer_loss(self.model, hidden_BTD, batch.labels)
        return loss, figures

    def hidden(
        self, batch: ConversationBatch, taps: Taps | None = None, last: int | None = None
    ) -> Float[Tensor, "B out D"]:
        """Hidden states after the final norm, of all positions or of so many last ones. Conversations that share a row,
        or what it begins with, do not see each other.
        """
        x_BTD = self.model.embed(batch.input_ids, batch.images, batch.videos, batch.image_sizes)
        x_BTD = x_BTD + self._of_unused(x_BTD)
        if batch.branches is not None:
            positions_BT, mask = branch_positions(batch.branches), branch_mask(batch.branches)
        elif batch.documents is not None:
            positions_BT, mask = document_positions(batch.documents), document_mask(batch.documents)
        else:
            return self.model.decode(x_BTD, taps=taps, last=last)
        return self.model.text_tower(x_BTD, positions_BT, mask, taps=taps, last=last)

    def _of_unused(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, ""]:
        """Zero, with a gradient of zero for every visual part that learns.

        Where several processes share the weights, all must have gradients of the same ones, in the same order: a batch
        of text alone on one and of videos on another would wait for each other. `clip_gradients` leaves out what was
        used nowhere.
        """
        visual = [p for name, p in self.model.named_parameters() if not name.startswith("text_tower.")]
        zero = x_BTD.new_zeros(())
        return sum((p.flatten()[:1].sum().to(zero) * 0.0 for p in visual if p.requires_grad), zero)


def positions_read(labels_BT: Int[Tensor, "B T"]) -> int:
    """How many last positions tell the labelled tokens: from the one before the first of them on."""
    labelled_T = (labels_BT != IGNORE).any(dim=0)
    first = int(labelled_T.int().argmax()) if bool(labelled_T.any()) else labels_BT.shape[1]
    return min(labels_BT.shape[1] - first + 1, labels_BT.shape[1])


def answer_loss(
    model: VideoLlava, hidden_BTD: Float[Tensor, "B out D"], labels_BT: Int[Tensor, "B T"]
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross entropy over labelled tokens (0 where there are none); logits are computed for these alone.

    `hidden_BTD` are of all positions, or of as many last ones as tell every labelled token (`positions_read`).
    """
    targets_BT = labels_BT[:, -hidden_BTD.shape[1] :][:, 1:]
    counted_BT = targets_BT != IGNORE
    logits = model.text_tower.logits(hidden_BTD[:, :-1][counted_BT][None])[0]
    targets = targets_BT[counted_BT]
    count = max(len(targets), 1)
    loss = functional.cross_entropy(logits.float(), targets, reduction="sum") / count
    right = (logits.argmax(-1) == targets).float().sum().item() / count
    return loss, {"answer": loss.item(), "right": right}
