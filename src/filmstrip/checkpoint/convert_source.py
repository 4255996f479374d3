"""The tensors of a checkpoint under the names of the model, none of them read yet."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch

from filmstrip.checkpoint.files import TensorReader
from filmstrip.checkpoint.header import DTYPES, WEIGHT_DTYPES, TensorInfo
from filmstrip.checkpoint.parts import Ignored, Part
from filmstrip.checkpoint.rules import Drop, Layout, Mapped
from filmstrip.checkpoint.write import LazyTensor
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Tensor


@dataclass(frozen=True)
class Source:
    """Tensors by the names of the model, and the parameters that are left out, by reason."""

    tensors: dict[str, LazyTensor]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """One dtype that holds every tensor exactly."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors.values()))


def read_source(parts: Iterable[Part], unused: Iterable[Ignored] = (), *, mapped: bool = False) -> Source:
    """The tensors of a checkpoint's parts; `unused` are others that lie there and are not taken.

    Reading one gives it memory of its own, which is free again when the tensor is; with `mapped` it is a view of the
    mapped file, for those who look at little of it. Raises `CheckpointError` for a key that its layout does not know or
    that names a parameter a second time, and for a weight in a dtype that is none.
    """
    tensors: dict[str, LazyTensor] = {}
    left_out: dict[str, int] = defaultdict(int)
    for ignored in unused:
        left_out[ignored.why] += ignored.parameters
    for files, layout in parts:
        reader = TensorReader(files)
        for key, info in files.tensors.items():
            place = layout.to_canonical(key)
            if isinstance(place, Drop):
                left_out[place.why] += info.numel
            elif place is None or place.canonical in tensors:
                raise CheckpointError(
                    f"{files.directory}: tensor {key!r} has no place of its own in the {layout.title}"
                )
            else:
                tensors[place.canonical] = _lazy(info, place, reader.read if mapped else reader.read_copy)
    return Source(tensors, dict(left_out))


def _lazy(info: TensorInfo, place: Mapped, read: Callable[[str], Tensor]) -> LazyTensor:
    shape = place.transform.canonical_shape(info.shape)
    if info.dtype not in WEIGHT_DTYPES or shape is None:
        raise CheckpointError(
            f"{info.path}: tensor {info.name!r} is {info.dtype} of shape {info.shape}, which no weight here is"
        )
    return LazyTensor(shape, DTYPES[info.dtype], lambda: place.transform.to_canonical(read(info.name)))


def in_layout(tensors: Mapping[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    """Tensors by the names and in the shapes of `layout`. Raises `CheckpointError` for one that it has no place for."""
    places = [(layout.from_canonical(name), tensor) for name, tensor in tensors.items()]
    return {place.disk: tensor.view(place.transform.from_canonical) for place, tensor in places}
