"""Fusion: visual tokens take the place of their placeholders among the text embeddings.

The prompt already holds one placeholder id per visual token (the processor expanded it), so fusion only overwrites::

    ids         <s> USER: IMG IMG IMG \n What ...
    embeddings  t0  t1    --- --- ---  t5 t6
    visual                v0  v1  v2
    fused       t0  t1    v0  v1  v2   t5 t6
"""

from filmstrip.config import MediaKind
from filmstrip.errors import PromptError
from filmstrip.shapes import Float, Int, Tensor


def fuse(
    embeddings_BTD: Float[Tensor, "B T D"],
    input_ids_BT: Int[Tensor, "B T"],
    visual_MRD: Float[Tensor, "M R D"] | None,
    placeholder_id: int,
    kind: MediaKind,
) -> Float[Tensor, "B T D"]:
    """Overwrite every embedding at `placeholder_id` with the next visual token.

    Visual tokens are used in the order of their media; placeholders in the order of batch row, then position. So all
    media of row 0 come before those of row 1. Raises `PromptError` when the counts differ or a row holds a part of a
    medium, with both numbers and what each row and each medium holds.
    """
    at_placeholder_BT = input_ids_BT == placeholder_id
    if visual_MRD is None:
        if bool(at_placeholder_BT.any()):
            raise PromptError(_mismatch(at_placeholder_BT, 0, 0, kind))
        return embeddings_BTD
    num_media, per_medium, width = visual_MRD.shape
    per_row_B = at_placeholder_BT.sum(dim=1)
    if int(per_row_B.sum()) != num_media * per_medium or bool((per_row_B % per_medium).any()):
        raise PromptError(_mismatch(at_placeholder_BT, num_media, per_medium, kind))
    visual = visual_MRD.reshape(-1, width).to(embeddings_BTD)
    return embeddings_BTD.masked_scatter(at_placeholder_BT[:, :, None], visual)


def _mismatch(at_placeholder_BT: Tensor, num_media: int, per_medium: int, kind: MediaKind) -> str:
    """One line that says what each side holds."""
    per_row = at_placeholder_BT.sum(dim=1).tolist()
    have = f"{num_media} {kind}{'s' * (num_media != 1)} giving {num_media * per_medium} visual tokens"
    if num_media > 1:
        have += f" ({kind} 0 to {num_media - 1}: {per_medium} each)"
    rows = f" (by batch row: {', '.join(map(str, per_row))})" if len(per_row) > 1 else ""
    return f"the prompt holds {sum(per_row)} {kind} placeholders{rows}, but there are {have}"
