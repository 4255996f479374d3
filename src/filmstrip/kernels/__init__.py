"""Compiled kernels for decoding on a CPU; everything also runs without them."""

from filmstrip.kernels.library import Kernels, find_kernels
from filmstrip.kernels.products import HALF_DTYPES, PIECE, faster_widened, product
from filmstrip.kernels.step import MAX_ROWS, FusedStep, Projections
from filmstrip.kernels.stored import (
    BITS,
    FLOAT_KINDS,
    GROUPS,
    MULTIPLES,
    SCALE_DTYPE,
    StoredMatrix,
    choose_scales,
    quantize,
    round_to,
)

__all__ = [
    "BITS",
    "FLOAT_KINDS",
    "GROUPS",
    "HALF_DTYPES",
    "MAX_ROWS",
    "MULTIPLES",
    "PIECE",
    "SCALE_DTYPE",
    "FusedStep",
    "Kernels",
    "Projections",
    "StoredMatrix",
    "choose_scales",
    "faster_widened",
    "find_kernels",
    "product",
    "quantize",
    "round_to",
]
