"""Aggregation: from tokens per frame to the visual tokens of one medium.

Video-LLaVA keeps every token of every frame, in order. Other models pool over time or space here; to add one, write
a function of this shape and enter it in `AGGREGATIONS` and in `config.model.AGGREGATIONS`.
"""

from collections.abc import Callable

from filmstrip.shapes import Float, Tensor


def keep_all(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """All tokens, frame after frame: R = F * P."""
    return x_MFPE.flatten(1, 2)


AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {"keep-all": keep_all}
