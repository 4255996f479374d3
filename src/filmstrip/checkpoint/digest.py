"""A hash of the weights a model computes with, for the run card.

It covers the canonical name, shape, stored dtype and bytes of every tensor that was used, in order of name; tensors
left out, file names, key layout and sharding do not count. Up to `FULL_BYTES` in all, every byte is hashed and the
value begins with `sha256:`. Above that a load would wait for it, so of each tensor only `SAMPLES` evenly spaced blocks
of `BLOCK_BYTES` count and the value begins with `sha256-sampled:`: enough to tell two trainings apart, not enough to
prove that two files are equal. On a disk that has not been read yet each block is a seek, hence so few.
"""

import hashlib

import torch

from filmstrip.shapes import Tensor

FULL_BYTES = 256 * 2**20
SAMPLED = "sha256-sampled"
BLOCK_BYTES = 4096
SAMPLES = 2


class WeightsDigest:
    """Collects tensors in order of name. `total_bytes` of all of them decides between full and sampled."""

    def __init__(self, total_bytes: int) -> None:
        self._sampled = total_bytes > FULL_BYTES
        self._sha = hashlib.sha256()

    def blocks(self, size: int) -> list[tuple[int, int]]:
        """Which bytes of a tensor of `size` bytes count: pairs of first and end."""
        if not self._sampled or size <= SAMPLES * BLOCK_BYTES:
            return [(0, size)]
        starts = [(size - BLOCK_BYTES) * (2 * sample + 1) // (2 * SAMPLES) for sample in range(SAMPLES)]
        return [(start, start + BLOCK_BYTES) for start in starts]

    def add(self, name: str, dtype: str, tensor: Tensor) -> None:
        """Add one CPU tensor as it is stored."""
        self._sha.update(f"{name} {dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start, end in self.blocks(raw.nbytes):
            self._sha.update(raw[start:end])

    def value(self) -> str:
        """`sha256:` or `sha256-sampled:` and 64 hexadecimal digits."""
        return f"{SAMPLED if self._sampled else 'sha256'}:{self._sha.hexdigest()}"
