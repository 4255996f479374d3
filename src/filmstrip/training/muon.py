"""Muon (Jordan et al. 2024) for matrices of hidden layers, AdamW for the rest, as one optimizer.

Muon replaces the momentum of a matrix by the nearest one whose singular values are all about 1, so that rare directions
move as far as common ones. PyTorch has it too (`torch.optim.Muon`), but iterates in bfloat16, which takes several times
as long as the whole step on processors without it; here the iteration has the gradient's own precision.
"""

from collections.abc import Callable
from typing import Any

import torch

from filmstrip.shapes import Float, Tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: singular values end between about 0.7 and 1.2
_ITERATIONS = 5
_MOMENTUM = 0.95
_LIKE_ADAMW = 0.2  # typical size of an entry of AdamW's update (Liu et al. 2025), so that one rate fits both


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but groups with `muon: True` are matrices that Muon moves; their state has one `momentum`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._move(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _move(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            momentum = self.state[parameter]["momentum"]
            momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
            update = orthogonalise(parameter.grad.lerp(momentum, _MOMENTUM))  # Nesterov's look ahead
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * _LIKE_ADAMW * max(parameter.shape) ** 0.5)


def orthogonalise(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """U V^T, roughly, for a matrix U S V^T: five steps of a quintic Newton-Schulz iteration on its singular values."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
