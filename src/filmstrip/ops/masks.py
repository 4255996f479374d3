"""The only place where causality and padding are decided.

A query in slot t may read key slot s when `s <= t` (causality) and slot s holds a real token (padding). PyTorch's
attention kernel has a fast path for plain causality, `is_causal`, which is wrong when there are fewer queries than
keys (it aligns to the upper left) and must not be combined with a mask, so this module picks one or the other.
"""

from dataclasses import dataclass

import torch

from filmstrip.shapes import Bool, Int, Tensor


@dataclass(frozen=True)
class AttentionMask:
    """What attention may read: `keep_BTS` True where it may, or `is_causal`, or neither (everything)."""

    keep_BTS: Bool[Tensor, "B T S"] | None = None
    is_causal: bool = False

    def last_queries(self, count: int, num_keys: int, device: torch.device) -> "AttentionMask":
        """The same for the last `count` queries alone."""
        if self.keep_BTS is not None:
            return AttentionMask(self.keep_BTS[:, -count:])
        return causal_mask(None, count, num_keys, device) if self.is_causal else self


def causal_mask(
    attention_mask_BS: Int[Tensor, "B S"] | None, num_queries: int, num_keys: int, device: torch.device
) -> AttentionMask:
    """Mask for `num_queries` new tokens at the end of `num_keys` slots.

    `attention_mask_BS` is 1 for real tokens and 0 for padding, over all slots; None means no padding. A padding
    token reads itself, so that its row is never empty (an empty softmax is NaN); nothing reads it.
    """
    if attention_mask_BS is None:
        if num_queries == 1:
            return AttentionMask()
        if num_queries == num_keys:
            return AttentionMask(is_causal=True)
    slots_S = torch.arange(num_keys, device=device)
    slots_T = slots_S[num_keys - num_queries :]
    causal_TS = slots_S[None, :] <= slots_T[:, None]
    if attention_mask_BS is None:
        return AttentionMask(keep_BTS=causal_TS[None])
    itself_TS = slots_S[None, :] == slots_T[:, None]
    keep_BTS = (causal_TS & attention_mask_BS[:, None, :].bool()) | itself_TS
    return AttentionMask(keep_BTS=keep_BTS)


def token_positions(attention_mask_BS: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Position of each token among the real tokens of its row; padding gets 0.

    Left padding therefore does not move a prompt: its first real token is always at position 0.
    """
    return (attention_mask_BS.long().cumsum(dim=-1) - 1).clamp(min=0)


def document_mask(documents_BT: Int[Tensor, "B T"]) -> AttentionMask:
    """Causality within each document of a row; documents do not read each other.

    `documents_BT` numbers the documents; padding has a number of its own (-1) and reads itself.
    """
    length = documents_BT.shape[1]
    causal_TS = torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return AttentionMask(keep_BTS=(documents_BT[:, :, None] == documents_BT[:, None, :]) & causal_TS)


def document_positions(documents_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Position of each token within its document; the tokens of a document stand together."""
    slots_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return slots_T - (slots_T * begins_BT).cummax(dim=1).values


def branch_mask(branches_BT: Int[Tensor, "B T"]) -> AttentionMask:
    """Several texts that go on from one beginning, in one row: each reads the beginning and itself, causally.

    `branches_BT` is 0 for the beginning, then the number of the text; padding has -1 and reads itself.
    """
    own_BTS = document_mask(branches_BT).keep_BTS
    assert own_BTS is not None
    return AttentionMask(keep_BTS=own_BTS | ((branches_BT[:, :, None] > 0) & (branches_BT[:, None, :] == 0)))


def branch_positions(branches_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Position of each token behind the beginning, as if its text stood there alone."""
    begun_B1 = (branches_BT == 0).sum(dim=1, keepdim=True)
    return document_positions(branches_BT) + begun_B1 * (branches_BT > 0)
