"""What is done to a task before it runs: dtypes, activation checkpointing, compilation, and sharing among devices."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from filmstrip.config.checks import require
from filmstrip.models import VideoLlava
from filmstrip.models.compiler import require_compiler
from filmstrip.models.decoder import DecoderBlock
from filmstrip.models.vision import VisionBlock
from filmstrip.training.optimizer import is_sharded
from filmstrip.training.parallel import Parallel, share_matrices, share_weights
from filmstrip.training.recipe import Recipe


def prepare_task(task: nn.Module, model: VideoLlava, recipe: Recipe, parallel: Parallel) -> None:
    """Make a task whose parameters are frozen or not ready to train, as the recipe says."""
    task.to(parallel.device)
    _set_dtypes(task, recipe, parallel)
    sharing_matrices = parallel.mesh is not None and recipe.tensor_parallel > 1
    require(
        not (sharing_matrices and recipe.stages[-1].lora is not None),
        "adapters and tensor_parallel do not go together; let FSDP share the weights alone (tensor_parallel: 1)",
    )
    share_matrices(model, parallel)
    if recipe.compile:
        require_compiler(parallel.device)
    for block in _blocks(task):
        if recipe.activation_checkpointing:
            _checkpoint_activations(block)
        if recipe.compile:
            block.compile()
    share_weights(task, model, parallel, torch.bfloat16 if recipe.precision == "bfloat16" else None)
    task.train()


def gather_weights(model: VideoLlava, dtype: torch.dtype | None = None) -> None:
    """Make every shared weight whole again, on the CPU of every process, and all of `dtype`, to write the model.

    A model whose weights were shared cannot run any more: its modules still expect their shares.
    """
    whole: dict[nn.Parameter, nn.Parameter] = {}  # a tied weight stays one
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter not in whole:
            value = parameter.full_tensor() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]
            whole[parameter] = nn.Parameter(value.detach().to("cpu", dtype), parameter.requires_grad)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, whole[parameter])


def _set_dtypes(task: nn.Module, recipe: Recipe, parallel: Parallel) -> None:
    """Weights that learn are float32: their updates are smaller than what bfloat16 can tell apart.

    Others take half the room in bfloat16, unless several devices share the weights: FSDP wants one dtype for all that
    is gathered together.
    """
    halve = recipe.precision == "bfloat16" and parallel.data_size == 1
    for parameter in task.parameters():
        dtype = torch.bfloat16 if halve and not parameter.requires_grad else torch.float32
        parameter.data = parameter.data.to(dtype)


def _blocks(task: nn.Module) -> list[nn.Module]:
    return [module for module in task.modules() if isinstance(module, DecoderBlock | VisionBlock)]


def _checkpoint_activations(block: nn.Module) -> None:
    """Keep a block's input alone and compute the rest again when gradients are needed (Chen et al. 2016).

    The method is replaced, not the module wrapped: parameters keep their names. A block that an earlier stage has
    trained is as it should be: another time around, and everything would be computed once more.
    """
    if isinstance(block.forward, partial):
        return
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
