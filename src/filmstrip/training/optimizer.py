"""AdamW, or Muon for chosen matrices, with rates of their own for parts of a model; clipping; a running mean."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from filmstrip.config.checks import require
from filmstrip.shapes import Tensor
from filmstrip.training.muon import MuonAdamW
from filmstrip.training.patterns import matches, matches_any, require_matches, trainable_parts
from filmstrip.training.recipe import OptimizerRecipe


def parameter_groups(task: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """One group per learning rate, per decayed or not, and per Muon or not, of the parameters that learn.

    Vectors (norms, biases, single embeddings) are not decayed, and Muon moves none. Raises `ConfigError` for a path in
    `rates` or `muon` that names nothing.
    """
    parts = trainable_parts(task)
    require_matches(recipe.rates, [*parts], "optimizer.rates")
    require_matches(recipe.muon, [*parts], "optimizer.muon")
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parts.items():
        if parameter.requires_grad:
            rates = [rate for pattern, rate in recipe.rates.items() if matches(name, pattern)]
            muon = parameter.ndim == 2 and matches_any(name, recipe.muon)
            key = (rates[0] if rates else recipe.learning_rate, parameter.ndim >= 2, muon)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "base_lr": rate,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "muon": muon,
        }
        for (rate, decayed, muon), parameters in groups.items()
    ]


def make_optimizer(task: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """An optimizer of the parameters that learn, its state made at once (zeros), so that it can be loaded into.

    Raises `ConfigError` for Muon where weights are spread over devices: it needs whole matrices.
    """
    distributed = any(is_sharded(parameter) for parameter in task.parameters())
    require(not (distributed and recipe.muon), "optimizer.muon needs whole matrices: train on one process")
    # A tensor-parallel model mixes sharded and whole parameters, which PyTorch's grouped kernels refuse.
    optimizer = MuonAdamW(parameter_groups(task, recipe), betas=recipe.betas, eps=recipe.eps, foreach=not distributed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["muon"]:
                optimizer.state[parameter] = {"momentum": torch.zeros_like(parameter)}
            else:
                optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` of its highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over devices (a `DTensor`)."""
    return hasattr(tensor, "device_mesh")


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to `max_norm` over all of them (0: never); returns the norm before.

    Sharded gradients count whole: their squares are summed over the devices that share them. A gradient of exactly zero
    is taken away: its parameter had no part in this step, and momentum and decay are not to move it. A norm that is not
    finite leaves the gradients as they are, for the caller to see.
    """
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(parameter.grad, dtype=torch.float32) for parameter in learning]
    whole = [norm.full_tensor() if is_sharded(norm) else norm for norm in norms]  # type: ignore[operator]
    values = torch.stack(whole) if whole else torch.zeros(1)
    total = torch.linalg.vector_norm(values).item()
    for parameter, norm in zip(learning, values.tolist(), strict=False):
        if norm == 0:
            parameter.grad = None
        elif parameter.grad is not None and max_norm and max_norm < total < float("inf"):
            parameter.grad.mul_(max_norm / total)
    return total


class RunningMean:
    """Exponential moving average of the weights that learn: `mean = decay * mean + (1 - decay) * weight`.

    The decay is lower in the first steps (`(1 + n) / (10 + n)`, as in TensorFlow's `ExponentialMovingAverage`), so that
    the random start is forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.means = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Count the weights after optimizer step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.means[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange means and weights; a second time puts both back, bit for bit."""
        for name, parameter in self.parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self.means[name])
            self.means[name].copy_(weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the means in the place of the weights."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.means[name])
