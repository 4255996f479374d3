"""Fusion: visual tokens take the place of their placeholders among the text embeddings.

The prompt already holds one placeholder id per visual token (the processor expanded it), so fusion only overwrites::

    ids         <s> USER: IMG IMG IMG \n What ...
    embeddings  t0  t1    --- --- ---  t5 t6
    visual                v0  v1  v2
    fused       t0  t1    v0  v1  v2   t5 t6
"""

from collections.abc import Sequence

import torch

from filmstrip.config import MediaKind
from filmstrip.errors import PromptError
from filmstrip.shapes import Float, Int, Tensor

_LISTED = 8  # an error message lists so many media of unequal length and no more


def fuse(
    embeddings_BTD: Float[Tensor, "B T D"],
    input_ids_BT: Int[Tensor, "B T"],
    visual: Sequence[Float[Tensor, "_ D"]] | Float[Tensor, "M R D"] | None,
    placeholder_id: int,
    kind: MediaKind,
) -> Float[Tensor, "B T D"]:
    """Overwrite every embedding at `placeholder_id` with the next visual token.

    `visual` holds the tokens of each medium: one tensor where all have equally many, else a sequence. They are used in
    the order of their media; placeholders in the order of batch row, then position. So all media of row 0 come before
    those of row 1. Raises `PromptError` when the counts differ or a row holds a part of a medium, with both numbers and
    what each row and each medium holds.
    """
    at_placeholder_BT = input_ids_BT == placeholder_id
    lengths = [] if visual is None else [tokens.shape[0] for tokens in visual]
    per_row = at_placeholder_BT.sum(dim=1).tolist()
    if not _rows_hold_whole_media(per_row, lengths):
        raise PromptError(_mismatch(per_row, lengths, kind))
    if visual is None:
        return embeddings_BTD
    flat = visual.flatten(0, 1) if isinstance(visual, Tensor) else torch.cat(tuple(visual))
    return embeddings_BTD.masked_scatter(at_placeholder_BT[:, :, None], flat.to(embeddings_BTD))


def _rows_hold_whole_media(per_row: Sequence[int], lengths: Sequence[int]) -> bool:
    """Whether the media, one after another, fill each row's placeholders without a rest."""
    left = iter(lengths)
    for room in per_row:
        filled = 0
        while filled < room:
            length = next(left, None)
            if length is None:
                return False
            filled += length
        if filled > room:
            return False
    return next(left, None) is None


def _mismatch(per_row: Sequence[int], lengths: Sequence[int], kind: MediaKind) -> str:
    """One line that says what each side holds."""
    have = f"{len(lengths)} {kind}{'s' * (len(lengths) != 1)} giving {sum(lengths)} visual tokens"
    if len(set(lengths)) > 1:
        shown = [f"{kind} {index}: {length}" for index, length in enumerate(lengths[:_LISTED])]
        have += f" ({', '.join(shown)}{', ...' * (len(lengths) > _LISTED)})"
    elif len(lengths) > 1:
        have += f" ({kind} 0 to {len(lengths) - 1}: {lengths[0]} each)"
    rows = f" (by batch row: {', '.join(map(str, per_row))})" if len(per_row) > 1 else ""
    return f"the prompt holds {sum(per_row)} {kind} placeholders{rows}, but there are {have}"
