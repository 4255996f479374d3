"""Token merging: bipartite soft matching of similar tokens (ToMe, Bolya et al. 2023, algorithm of section 3).

Tokens at even places propose to their most similar token at an odd place; the `r` most similar pairs merge, and each
result is the mean of all original tokens in it. That is done in rounds, because one round can merge half of them at
most. Three things differ from the paper's use inside a ViT: it is applied once, to what leaves the tower; similarity
is the cosine of the tokens themselves, as there are no keys of a next attention; and survivors stay in the order of
their positions (the reference puts the unmerged ones first), so that a token's place in the prompt still says roughly
where it was.
"""

import torch
from torch.nn import functional

from filmstrip.shapes import Float, Tensor


def merge_tokens(
    x: Float[Tensor, "rows tokens E"], kept: int, *, protect_first: bool = False
) -> Float[Tensor, "rows kept E"]:
    """Merge the tokens of each row until `kept` are left; with `protect_first` the first one takes no part.

    The number that comes out does not depend on values. `kept` is 1 or more, with `protect_first` 2 or more.
    """
    sizes = torch.ones_like(x[..., :1])  # how many original tokens each one is the mean of
    while x.shape[1] > kept:
        proposing = (x.shape[1] + 1) // 2 - int(protect_first)
        x, sizes = _merge_round(x, sizes, min(x.shape[1] - kept, x.shape[1] // 2, proposing), protect_first)
    return x


def _merge_round(x: Tensor, sizes: Tensor, count: int, protect_first: bool) -> tuple[Tensor, Tensor]:
    """`count` fewer tokens in each row, and their sizes."""
    rows, tokens, width = x.shape
    unit = functional.normalize(x, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if protect_first:
        similarity[:, 0] = -torch.inf  # the most similar pairs are taken, so never this one's
    best, partner = similarity.max(dim=-1)
    proposers = best.argsort(dim=-1, descending=True, stable=True)[:, :count]
    source = 2 * proposers  # positions of the tokens that go, and of those that take them up
    target = 2 * partner.gather(1, proposers) + 1
    sums = x * sizes
    wide_source, wide_target = (index[..., None].expand(-1, -1, width) for index in (source, target))
    sums = sums.scatter_add(1, wide_target, sums.gather(1, wide_source))
    sizes = sizes.scatter_add(1, target[..., None], sizes.gather(1, source[..., None]))
    stays = torch.ones(rows, tokens, dtype=torch.bool, device=x.device).scatter(1, source, False)
    sizes = sizes[stays].view(rows, tokens - count, 1)
    return sums[stays].view(rows, tokens - count, width) / sizes, sizes
