"""A hash of the weights a model computes with, for the run card.

It covers the canonical name, shape, stored dtype and bytes of every tensor that was used, in order of name; tensors
left out, file names, key layout and sharding do not count. Up to `FULL_BYTES` in all, every byte is hashed and the
value begins with `sha256:`. Above that a load would wait for it, so of each tensor only `SAMPLES` evenly spaced blocks
of `BLOCK_BYTES` count and the value begins with `sha256-sampled:`: enough to tell two trainings apart, not enough to
prove that two files are equal.
"""

import hashlib

import torch

from filmstrip.shapes import Tensor

FULL_BYTES = 256 * 2**20
BLOCK_BYTES = 4096
SAMPLES = 8


class WeightsDigest:
    """Collects tensors in order of name. `total_bytes` of all of them decides between full and sampled."""

    def __init__(self, total_bytes: int) -> None:
        self._sampled = total_bytes > FULL_BYTES
        self._sha = hashlib.sha256()

    def add(self, name: str, dtype: str, tensor: Tensor) -> None:
        """Add one CPU tensor as it is stored."""
        self._sha.update(f"{name} {dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        if not self._sampled or raw.nbytes <= SAMPLES * BLOCK_BYTES:
            self._sha.update(raw)
            return
        last = raw.nbytes - BLOCK_BYTES
        for sample in range(SAMPLES):
            start = last * sample // (SAMPLES - 1)
            self._sha.update(raw[start : start + BLOCK_BYTES])

    def value(self) -> str:
        """`sha256:` or `sha256-sampled:` and 64 hexadecimal digits."""
        return f"{'sha256-sampled' if self._sampled else 'sha256'}:{self._sha.hexdigest()}"
