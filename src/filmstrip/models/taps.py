"""Named sites inside the model, for looking and for changing.

Every module takes `taps=None`. None costs nothing; otherwise the function is called with the site's name and its
value at each named site, and what it returns is used in the value's place. Recording returns the value itself,
patching returns another.

Sites, in order (`{t}` is `image_tower` or `video_tower`; of an image that is cut into tiles, each tile is a medium)::

    {t}.embeddings            patches with class token and positions        (M F P E)
    {t}.hidden_states.{i}     0 after the first norm, i after block i-1     (M F P E)
    {t}.selected              the chosen layers, class token by the rules   (M F P E)
    video_tower.aggregated    unless all tokens are kept: what is left      (M R E)
    projector.{kind}          projected visual tokens                       (M R D)
    embeddings                token embeddings with visual tokens in place  (B T D)
    text_tower.rotary.{cos,sin}    tables that turn queries and keys        (B T H)
    text_tower.hidden_states.{i}   0 is the input, i after block i-1        (B T D)
    text_tower.final_norm     what the head reads                           (B T D)
    logits                                                                  (B T W)
"""

from collections.abc import Callable

from filmstrip.shapes import Tensor

Taps = Callable[[str, Tensor], Tensor]
"""A function of a site's name and value; its return value replaces the value."""


def tap(taps: Taps | None, site: str, value: Tensor) -> Tensor:
    """Pass `value` through `taps` under the name `site`."""
    return value if taps is None else taps(site, value)
