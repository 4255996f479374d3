"""The last step: greedy tokens of both, and whether a token that differs was as good as a tie."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from filmstrip.diagnostics.activations import Difference
from filmstrip.diagnostics.parity.inputs import Inputs, counted_difference
from filmstrip.diagnostics.parity.report import Step, Verdict
from filmstrip.diagnostics.parity.side import OurSide, Side
from filmstrip.errors import FilmstripError
from filmstrip.inputs.collate import Batch

# How far the logits of a step with a cache may be from those without one, relative to the largest: other kernels.
CACHED = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def generation_steps(
    ours: OurSide, theirs: Side, inputs: Inputs, count: int, dtype: torch.dtype
) -> tuple[list[Step], list[tuple[str, str]]]:
    """Greedy tokens of each row: by a whole run of ours, and by our loop on the reference's inputs. Also both texts.

    A token that differs from the reference's although the inputs are the same is rounding if the reference's two best
    logits were no further apart there than the two models' logits are.
    """
    expected = theirs.generate(inputs.theirs, count)
    whole, whole_problem = _generate(ours, inputs.ours, count)
    replayed, problem = _generate(ours, inputs.adopted, count)
    steps = []
    for row, ids in enumerate(expected):
        site = f"tokens.{row}"
        total = _tokens_difference(site, whole, ids, row)
        introduced = _tokens_difference(site, replayed, ids, row)
        verdict: Verdict = "equal"
        remark = problem or whole_problem
        if introduced is None:
            verdict = "introduced"
        elif introduced.max_abs:
            tie, remark = _is_tie(ours, theirs, inputs, row, ids[: introduced.index[0]], dtype)
            verdict = "rounding" if tie else "introduced"
        elif total is None or total.max_abs:
            verdict = "inherited"
        steps.append(Step(0, site, verdict, total, introduced, problem=remark))
    mine = whole or replayed or []
    return steps, [(ours.decode(ids), theirs.decode(their)) for ids, their in zip(mine, expected, strict=False)]


def _generate(ours: OurSide, batch: Batch, count: int) -> tuple[list[list[int]] | None, str]:
    try:
        return ours.generate(batch, count), ""
    except FilmstripError as error:  # a row padded on the right, say
        return None, f"our generation refuses these inputs: {error}"


def _tokens_difference(
    site: str, rows: Sequence[Sequence[int]] | None, expected: Sequence[int], row: int
) -> Difference | None:
    if rows is None:
        return None
    longest = max(len(rows[row]), len(expected))
    # -1 stands for no token: an answer that ended earlier differs from there on.
    first, second = (torch.tensor([*ids, *[-1] * (longest - len(ids))]) for ids in (rows[row], expected))
    return counted_difference(site, first, second)


def _is_tie(
    ours: OurSide, theirs: Side, inputs: Inputs, row: int, prefix: Sequence[int], dtype: torch.dtype
) -> tuple[bool, str]:
    """Whether rounding could decide the token after `prefix`, and what was seen: both models read the same text."""
    their_logits, our_logits = (
        side.activations(_continued(batch, row, prefix), "working")["logits"][0, -1].double().cpu()
        for side, batch in ((theirs, inputs.theirs), (ours, inputs.adopted))
    )
    width = min(len(their_logits), len(our_logits))
    apart = float((their_logits[:width] - our_logits[:width]).abs().max())
    best = their_logits.topk(2).values
    gap = float(best[0] - best[1])
    room = 2 * apart + CACHED.get(dtype, 0.0) * float(their_logits.abs().max())
    remark = f"the reference's two best logits are {gap:.2e} apart there, the two models' logits {apart:.2e}"
    return gap <= room, remark


def _continued(batch: Batch, row: int, prefix: Sequence[int]) -> Batch:
    """One row without padding, with tokens after it. Media belong to the first row."""
    real = batch.input_ids[row][batch.attention_mask[row].bool()]
    ids_BT = torch.cat([real, torch.tensor(list(prefix), dtype=real.dtype)])[None]
    alone = replace(batch, input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    if row == 0:
        return alone
    return replace(alone, pixel_values_images=None, pixel_values_videos=None, image_sizes=None)
