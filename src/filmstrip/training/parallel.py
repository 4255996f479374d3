"""One process or many: which samples this process reads, and how the model is spread over the devices.

`torchrun` starts the processes. Of N, `tensor_parallel` share each matrix of the text tower (Shoeybi et al. 2019,
through `parallelize_module`); the N / `tensor_parallel` groups share the samples, and each holds a part of every weight
(FSDP2, `fully_shard`; Zhao et al. 2023).
"""

import gc
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import distributed, nn

from filmstrip.config.checks import require
from filmstrip.models import VideoLlava
from filmstrip.models.decoder import DecoderBlock

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """This process's place. Without `mesh` it is the only one; else the mesh has the axes `data` and `tensor`."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: "DeviceMesh | None" = None

    @property
    def data_rank(self) -> int:
        """Which share of the samples is read here."""
        return 0 if self.mesh is None else self.mesh["data"].get_local_rank()

    @property
    def data_size(self) -> int:
        """Into how many shares samples are divided."""
        return 1 if self.mesh is None else self.mesh["data"].size()

    def sum(self, value: float) -> float:
        """The sum over the shares of the samples."""
        if self.mesh is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, group=self.mesh["data"].get_group())
        return tensor.item()

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's clock, and whether any process was asked to stop: the same on all."""
        if self.mesh is None:
            return seconds, stop
        first = distributed.get_rank() == 0
        values = torch.tensor([seconds if first else 0.0, float(stop)], dtype=torch.float64, device=self.device)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        told, stopping = values.tolist()
        return told, stopping > 0

    def from_first(self, value: float) -> float:
        """The first process's value, on all."""
        if self.mesh is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(tensor, src=0)
        return tensor.item()

    def gather(self, values: list[T]) -> list[T]:
        """The lists of all shares, one after another."""
        if self.mesh is None:
            return values
        group = self.mesh["data"].get_group()
        lists: list[Any] = [None] * self.data_size
        distributed.all_gather_object(lists, values, group=group)
        return [value for part in lists for value in part]


def start_parallel(tensor_parallel: int, device: torch.device | None = None) -> Parallel:
    """Join the processes that `torchrun` started; alone without it.

    Raises `ConfigError` when their number is no multiple of `tensor_parallel`.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    if processes == 1:
        require(tensor_parallel == 1, f"tensor_parallel is {tensor_parallel}: start so many processes with torchrun")
        return Parallel(device or torch.device("cuda" if on_gpu else "cpu"))
    require(
        processes % tensor_parallel == 0,
        f"torchrun started {processes} processes, not a multiple of tensor_parallel ({tensor_parallel})",
    )
    if on_gpu:
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    # Before there is a group: modules imported later keep it, as a default value (`torch.distributed.nn.functional`).
    for name in ("torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"):
        importlib.import_module(name)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    shape = (processes // tensor_parallel, tensor_parallel)
    mesh = distributed.device_mesh.init_device_mesh(place.type, shape, mesh_dim_names=("data", "tensor"))
    return Parallel(place, mesh)


def stop_parallel(parallel: Parallel) -> None:
    """Leave the process groups, if there are any, and end their threads.

    A thread of gloo lets go of a tensor only after the process that waited for the sum has gone on. If that process has
    ended by then, Python is gone, and the thread aborts it (SIGABRT, "terminate called without an active exception").
    `destroy_process_group` forgets groups; their threads end with the last reference, and the mesh, which caches of
    DTensor keep for good, has one.
    """
    if parallel.mesh is None:
        return
    distributed.destroy_process_group()
    getattr(parallel.mesh, "_pg_registry", {}).clear()
    gc.collect()


def share_matrices(model: VideoLlava, parallel: Parallel) -> None:
    """Tensor parallelism of the text tower: heads and MLP columns are divided, so each block needs two sums.

    Raises `ConfigError` when heads or widths cannot be divided evenly.
    """
    if parallel.mesh is None or parallel.mesh["tensor"].size() == 1:
        return
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    mesh, text = parallel.mesh["tensor"], model.config.text
    size = mesh.size()
    for name, value in (
        ("attention heads", text.num_heads),
        ("key/value heads", text.num_kv_heads),
        ("MLP columns", text.intermediate_size),
    ):
        require(value % size == 0, f"{value} {name} cannot be divided among tensor_parallel {size} devices")
    plan: dict[str, ParallelStyle] = {f"attention.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
    plan |= {name: RowwiseParallel() for name in ("attention.o_proj", "mlp.down_proj")}
    for block in cast(Iterable[DecoderBlock], model.text_tower.blocks):
        parallelize_module(block, mesh, plan)
        # What a projection puts out here are this device's heads.
        block.attention.num_heads = text.num_heads // size
        block.attention.num_kv_heads = text.num_kv_heads // size


def share_weights(task: nn.Module, model: nn.Module, parallel: Parallel, dtype: torch.dtype | None) -> None:
    """FSDP2: a part of every weight on every device, gathered block by block when needed, `dtype` for computing.

    Only the text tower's blocks are units of their own. Everything else is gathered at the start of a step, because
    every process must gather the same: samples without images on one and with on another would wait for each other.
    """
    if parallel.mesh is None or parallel.data_size == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype is not None else None)
    mesh = parallel.mesh["data"]
    for block in cast(VideoLlava, model).text_tower.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(task, mesh=mesh, mp_policy=policy)


def share_again(task: nn.Module, parallel: Parallel) -> None:
    """Let go of weights that a forward pass without a backward pass has gathered and kept.

    Until then the task's parameters are whole copies, which neither the optimizer nor a checkpoint knows.
    """
    if parallel.mesh is None:
        return
    from torch.distributed.fsdp import FSDPModule

    for module in task.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
