"""Muon: orthogonal updates for matrices, AdamW untouched for the rest."""

import pytest
import torch
from torch import nn

from filmstrip.errors import ConfigError
from filmstrip.training.muon import orthogonalise
from filmstrip.training.optimizer import make_optimizer, parameter_groups
from filmstrip.training.recipe import OptimizerRecipe


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonalise(matrix)
    values = torch.diagonal(u.T @ update @ v.T)
    # Jordan's coefficients trade exactness for speed: the iteration ends between 0.68 and 1.13.
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert (update - u @ torch.diag(values) @ v).abs().max() < 1e-4


def test_it_is_pytorchs_update_but_for_bfloat16() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(12, 20), torch.randn(4, 12, 20)
    theirs = nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    module = nn.Linear(20, 12, bias=False)
    module.weight.data.copy_(start)
    optimizer = make_optimizer(module, OptimizerRecipe(learning_rate=0.01, weight_decay=0.1, muon=("weight",)))
    for gradient in gradients:
        theirs.grad, module.weight.grad = gradient.clone(), gradient.clone()
        reference.step()
        optimizer.step()
    moved = (theirs - start).norm()
    assert (module.weight - theirs).norm() < 0.03 * moved  # bfloat16 has 8 bits, and the iteration has five steps


def test_the_rest_is_moved_by_adamw() -> None:
    torch.manual_seed(0)
    both, plain = nn.Linear(4, 4), nn.Linear(4, 4)
    plain.load_state_dict(both.state_dict())
    optimizers = [make_optimizer(both, OptimizerRecipe(muon=("weight",))), make_optimizer(plain, OptimizerRecipe())]
    x = torch.randn(3, 4)
    for module, optimizer in zip((both, plain), optimizers, strict=True):
        module(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(both.bias, plain.bias)
    assert not torch.equal(both.weight, plain.weight)


def test_only_matrices_are_moved_by_muon() -> None:
    groups = parameter_groups(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), OptimizerRecipe(muon=("*",)))
    shapes = {group["muon"]: {parameter.ndim for parameter in group["params"]} for group in groups}
    assert shapes == {True: {2}, False: {1}}


def test_a_path_that_names_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.muon: 'wieght' .* did you mean 'weight'"):
        parameter_groups(nn.Linear(2, 2), OptimizerRecipe(muon=("wieght",)))
