"""Activations of two runs side by side: paired by the name of their site, and how far apart they are."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from filmstrip.shapes import Int, Tensor


@dataclass(frozen=True)
class Difference:
    """How far one activation is from its reference: the largest absolute difference, and the reference's own size.

    `index` is where the largest difference is, in the shape of ours, and `ours` and `theirs` the two values there.
    Positions of text sites count the real tokens of their row.
    """

    site: str
    max_abs: float
    scale: float
    index: tuple[int, ...] = ()
    ours: float = 0.0
    theirs: float = 0.0

    @property
    def relative(self) -> float:
        """The largest difference as a part of the reference's largest absolute value."""
        if self.max_abs == 0.0:
            return 0.0
        return self.max_abs / max(self.scale, torch.finfo(torch.float32).tiny)

    @property
    def finite(self) -> bool:
        """Whether both sides hold numbers: NaN or infinity on one of them makes the difference infinite."""
        return math.isfinite(self.max_abs)

    @property
    def kind(self) -> str:
        """The site without its layer number."""
        return self.site.rstrip("0123456789").rstrip(".")


def compare(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], attention_mask: Int[Tensor, "B T"] | None = None
) -> tuple[Difference, ...]:
    """Differences at every site of ours, in our order.

    A reference that keeps clips and frames on one axis is folded into our shape. With `attention_mask`, only real
    positions of the sites of shape (B, T, ...) count: what padding holds is nobody's business. NaN on either side is
    an infinite difference. Raises `KeyError` for a site that the reference does not have, `ValueError` when the
    numbers of values differ.
    """
    return tuple(compare_site(site, value, theirs[site], attention_mask) for site, value in ours.items())


def compare_site(
    site: str,
    ours: Tensor,
    theirs: Tensor,
    attention_mask: Int[Tensor, "B T"] | None = None,
    their_mask: Int[Tensor, "B S"] | None = None,
) -> Difference:
    """The difference at one site; `their_mask` is for a reference that is padded in another way (None: as ours).

    Raises `ValueError` when the two do not hold the same number of values.
    """
    theirs = fold(theirs, tuple(ours.shape))
    places: list[tuple[int, ...]] | None = None
    first, second = ours, theirs
    if attention_mask is not None and is_text_site(site):
        their_mask = attention_mask if their_mask is None else their_mask
        if attention_mask.sum(dim=1).tolist() != their_mask.sum(dim=1).tolist():
            raise ValueError(f"{site}: the rows hold {_counts(attention_mask)} and {_counts(their_mask)} real tokens")
        first, second = ours[attention_mask.bool()], theirs[their_mask.bool()]
        places = [(row, token) for row, mask in enumerate(attention_mask) for token in range(int(mask.sum()))]
    if first.shape != second.shape:
        raise ValueError(f"{site}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} do not hold the same values")
    found = largest_difference(site, first, second)
    if places is None or not found.index:
        return found
    return Difference(
        site, found.max_abs, found.scale, (*places[found.index[0]], *found.index[1:]), found.ours, found.theirs
    )


def largest_difference(site: str, ours: Tensor, theirs: Tensor) -> Difference:
    """The largest difference of two tensors of one shape, and where it is."""
    first, second = ours.double(), theirs.double()
    if first.numel() == 0:
        return Difference(site, 0.0, 0.0)
    apart = (first - second).abs().nan_to_num(nan=torch.inf)
    flat = int(apart.argmax())
    index = tuple(int(place) for place in torch.unravel_index(torch.tensor(flat), apart.shape))
    scale = second.abs().nan_to_num(nan=0.0, posinf=0.0).max()
    return Difference(site, float(apart[index]), float(scale), index, float(first[index]), float(second[index]))


def fold(theirs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A reference's value with the axes of ours: clips and frames apart, one row of a table per row of the batch.

    Only axes are split, merged or repeated; the last one or two keep their own length, so that a reference with more
    tokens or channels stays different.
    """
    if theirs.shape == shape:
        return theirs
    if theirs.dim() == len(shape) and theirs.shape[0] == 1 and theirs.shape[1:] == shape[1:]:
        return theirs.expand(shape)
    if theirs.numel() == math.prod(shape) and theirs.shape[-1] == shape[-1]:
        return theirs.reshape(shape)
    if len(shape) == 4 and theirs.dim() == 3 and theirs.shape[0] == shape[0] * shape[1]:
        return theirs.reshape(*shape[:2], *theirs.shape[1:])  # (M*F P E) with another P
    if len(shape) == 3 and theirs.dim() == 3 and shape[0] and theirs.shape[0] % shape[0] == 0:
        return theirs.reshape(shape[0], -1, theirs.shape[-1])  # (M*F P D) to (M R D)
    return theirs


def is_text_site(site: str) -> bool:
    """Whether the site's value has one row per batch row and one entry per token."""
    return site in ("embeddings", "logits") or site.startswith("text_tower.")


def worst(differences: Iterable[Difference]) -> dict[str, Difference]:
    """The largest difference of each kind of site."""
    found: dict[str, Difference] = {}
    for difference in differences:
        known = found.get(difference.kind)
        if known is None or difference.max_abs > known.max_abs:
            found[difference.kind] = difference
    return found


def _counts(mask: Tensor) -> str:
    return "/".join(str(count) for count in mask.sum(dim=1).tolist())
