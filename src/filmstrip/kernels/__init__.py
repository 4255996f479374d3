"""Compiled kernels for decoding on a CPU; everything also runs without them."""

from filmstrip.kernels.library import Kernels, find_kernels
from filmstrip.kernels.step import FusedStep, Projections

__all__ = ["FusedStep", "Kernels", "Projections", "find_kernels"]
