"""The legend: the one place where a dimension gets its letter.

Public functions carry jaxtyping annotations (`Float[Tensor, "B T D"]`), local tensors a suffix (`x_BTD`).
An image is a clip with one frame; media are grouped by kind and M counts within a group.

====  =====================================================  ====================
 B     row of the batch                                       prompts in a batch
 M     medium (image or video) within its kind                I images, V videos
 F     frame                                                  8 for Video-LLaVA
 C     colour channel                                         3
 Y X   pixel row, pixel column                                224
 P     token of one frame: class token, then patches          257
 E     width of the vision tower                              1024
 R     visual tokens of one medium: those of each frame in    2056
       a row, then those of all frames together
 L     prompt token before placeholders are expanded
 T     prompt token after expansion (the fused sequence)
 S     slot of the key/value cache (S >= T)                   4096
 D     width of the text model                                4096
 N     query head                                             32
       among pixels: tile (an image that is not cut is one)   5
 K     key/value head                                         32
 H     width of one head                                      128
 W     vocabulary entry                                       32064
====  =====================================================  ====================
"""

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor", "UInt8"]
