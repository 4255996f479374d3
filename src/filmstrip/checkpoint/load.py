"""Weights from a checkpoint into a model that was built on `torch.device("meta")`.

Every key is used, left out for a stated reason, or an error; every parameter is filled or named in an error. Tensors
that need no conversion are assigned from the memory map as they are. Others are read one at a time into memory of
their own, converted and dropped, so that a load needs at most one tensor more than the model itself.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from filmstrip.checkpoint.describe import describe, dtype_names
from filmstrip.checkpoint.digest import WeightsDigest
from filmstrip.checkpoint.files import TensorReader, announce
from filmstrip.checkpoint.header import DTYPES, WEIGHT_DTYPES, TensorInfo, dtype_name
from filmstrip.checkpoint.parts import Ignored, Weights
from filmstrip.checkpoint.rules import SCALES, TEMPORAL, Drop, Mapped
from filmstrip.checkpoint.write import convert
from filmstrip.errors import CheckpointError
from filmstrip.models import Decoder, VideoLlava
from filmstrip.models.vision import VisionTower
from filmstrip.models.wide import count_weights
from filmstrip.shapes import Tensor

WITHOUT_TEMPORAL = "the model is built without temporal attention"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, what was not, and what the result is.

    `parameters` counts weights of the model once, shared ones too. `weights_hash` is described in `digest`.
    """

    description: str
    layout: str
    dtype_on_disk: str
    dtype: str
    parameters: int
    used: int
    ignored: tuple[Ignored, ...]
    weights_hash: str
    warnings: tuple[str, ...]

    @property
    def dropped_temporal_parameters(self) -> int:
        """Weights of temporal attention that the checkpoint has and the model does not use."""
        return sum(item.parameters for item in self.ignored if item.why == WITHOUT_TEMPORAL)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of tensors left out, by reason."""
        counts: dict[str, int] = defaultdict(int)
        for item in self.ignored:
            counts[item.why] += 1
        return dict(counts)


@dataclass(frozen=True)
class _Parameter:
    """One parameter of the model under all its names: tied weights and shared towers have several."""

    names: tuple[str, ...]
    value: nn.Parameter


@dataclass(frozen=True)
class _Stored:
    """One tensor on disk, the parameter that it is, and the reader of its files."""

    info: TensorInfo
    mapped: Mapped
    reader: TensorReader

    def read(self, *, copy: bool) -> Tensor:
        """The tensor in the model's shape, from the memory map or in memory of its own."""
        tensor = self.reader.read_copy(self.info.name) if copy else self.reader.read(self.info.name)
        return self.mapped.transform.to_canonical(tensor)


def load_weights(
    model: VideoLlava | Decoder | VisionTower,
    checkpoint: Weights,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadReport:
    """Fill `model` with the checkpoint's weights, in `dtype` (None: as stored) on `device`.

    Temporal attention that the checkpoint has and `model.config` has not is left out and counted. A tied head or a
    shared tower may be stored once, or again with the same values. `on_progress` is called with parameters filled and
    in all. Raises `CheckpointError`, one line, for missing or unexpected keys, shapes that differ, copies that
    disagree, and files that cannot be read.
    """
    parameters = _parameters(model)
    sources, ignored = _plan(parameters, checkpoint)
    infos = [stored.info for copies in sources.values() for stored in copies]
    floats = [copies[0].info for name, copies in sources.items() if _is_converted(name, copies[0].info)]
    target, warnings = _target_dtype(floats, dtype, checkpoint)
    digest = WeightsDigest(sum(info.end - info.begin for info in infos))
    on_cpu = torch.device(device).type == "cpu"
    hashed = ((info, block) for info in infos for block in digest.blocks(info.end - info.begin))
    announce((info.path, info.begin + begin, info.begin + end) for info, (begin, end) in hashed)
    for done, name in enumerate(sorted(sources), start=1):
        first, *copies = sources[name]
        wanted = target if _is_converted(name, first.info) else DTYPES[first.info.dtype]
        converts = not on_cpu or DTYPES[first.info.dtype] != wanted
        tensor = first.read(copy=converts)
        for stored in copies:
            _require_equal(tensor, stored.read(copy=converts), first.info, stored.info, checkpoint)
            why = f"the same weights as {first.info.name!r}, which the model shares"
            ignored.append(Ignored(stored.info.name, why, stored.info.numel))
        digest.add(name, first.info.dtype, tensor)
        value = _convert(tensor, wanted, first.info, checkpoint).to(device)
        del tensor  # or it would still be there while the next one is read
        _assign(model, parameters[name], value)
        if on_progress is not None:
            on_progress(done, len(sources))
    _require_no_meta(model)
    count = count_weights(model)
    return LoadReport(
        description=describe(model.config, checkpoint.layout.title, dtype_names(infos), count),
        layout=checkpoint.layout.name,
        dtype_on_disk=dtype_names(infos),
        dtype=dtype_name(target),
        parameters=count,
        used=len(sources),
        ignored=(*ignored, *checkpoint.unused),
        weights_hash=digest.value(),
        warnings=checkpoint.warnings + warnings,
    )


def _parameters(model: nn.Module) -> dict[str, _Parameter]:
    """Every parameter once, under the first of its names."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(value, []).append(name)
    return {aliases[0]: _Parameter(tuple(aliases), value) for value, aliases in names.items()}


def _plan(parameters: Mapping[str, _Parameter], checkpoint: Weights) -> tuple[dict[str, list[_Stored]], list[Ignored]]:
    """Which tensors fill which parameter, and which are left out; from names and shapes alone."""
    owners = {alias: name for name, parameter in parameters.items() for alias in parameter.names}
    sources: dict[str, list[_Stored]] = defaultdict(list)
    ignored: list[Ignored] = []
    unexpected: list[str] = []
    for files, layout in checkpoint.parts:
        reader = TensorReader(files)
        for key, info in files.tensors.items():
            mapped = layout.to_canonical(key)
            if isinstance(mapped, Drop):
                ignored.append(Ignored(key, mapped.why, info.numel))
            elif isinstance(mapped, Mapped) and mapped.canonical in owners:
                parameter = parameters[owners[mapped.canonical]]
                _require_shape(info, mapped, parameter.value, checkpoint)
                sources[parameter.names[0]].append(_Stored(info, mapped, reader))
            elif isinstance(mapped, Mapped) and TEMPORAL in mapped.canonical:
                ignored.append(Ignored(key, WITHOUT_TEMPORAL, info.numel))
            else:
                unexpected.append(key)
    if unexpected:
        raise CheckpointError(
            f"{checkpoint.directory}: {_some(unexpected)} not part of the model that config.json describes"
        )
    _require_all(parameters, sources, checkpoint)
    return {name: sorted(copies, key=lambda stored: len(stored.info.name)) for name, copies in sources.items()}, ignored


def _require_all(parameters: Mapping[str, _Parameter], sources: Iterable[str], checkpoint: Weights) -> None:
    missing = sorted(parameters.keys() - set(sources))
    if not missing:
        return
    if all(TEMPORAL in name for name in missing) and checkpoint.temporal_frames is None:
        raise CheckpointError(
            f"{checkpoint.directory} has no weights for temporal attention, which the model is built with; "
            "choose the preset 'transformers' or temporal_attention=False"
        )
    keys = [_place(name, checkpoint) for name in missing]
    raise CheckpointError(f"{checkpoint.directory}: {_some(keys)} missing from the checkpoint")


def _place(name: str, checkpoint: Weights) -> str:
    """Where a parameter would be stored: in a part of its own (a tower's directory) if there is one."""
    for _, layout in checkpoint.parts[1:]:
        with suppress(CheckpointError):
            return layout.from_canonical(name).disk
    return checkpoint.layout.from_canonical(name).disk


def _some(keys: list[str]) -> str:
    """`1 tensor is`, `3 tensors are`, with the first names."""
    shown = ", ".join(repr(key) for key in keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"tensor {shown} is" if len(keys) == 1 else f"{len(keys)} tensors ({shown}) are"


def _require_shape(info: TensorInfo, mapped: Mapped, parameter: nn.Parameter, checkpoint: Weights) -> None:
    if mapped.transform.canonical_shape(info.shape) != tuple(parameter.shape):
        expected = tuple(mapped.transform.from_canonical(torch.empty_like(parameter, device="meta")).shape)
        raise CheckpointError(
            f"{checkpoint.directory}: tensor {info.name!r} has shape {info.shape}, config.json asks for {expected}"
        )
    if mapped.canonical.endswith(f".{SCALES}") or not parameter.is_floating_point():
        if DTYPES[info.dtype] != parameter.dtype:
            wanted = dtype_name(parameter.dtype)
            told = f"tensor {info.name!r} is stored as {info.dtype}, its manifest asks for {wanted}"
            raise CheckpointError(f"{checkpoint.directory}: {told}")
    elif info.dtype not in WEIGHT_DTYPES:
        raise CheckpointError(
            f"{checkpoint.directory}: tensor {info.name!r} is stored as {info.dtype}; "
            f"supported for weights: {', '.join(WEIGHT_DTYPES)}"
        )


def _target_dtype(
    infos: Iterable[TensorInfo], dtype: torch.dtype | None, checkpoint: Weights
) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the whole model. As stored, or, where the file mixes several, one that holds them all exactly."""
    stored = sorted({info.dtype for info in infos})
    if dtype is not None:
        return dtype, ()
    target = DTYPES[stored[0]]
    for other in stored[1:]:
        target = torch.promote_types(target, DTYPES[other])
    if len(stored) == 1:
        return target, ()
    return target, (f"{checkpoint.directory} mixes the dtypes {', '.join(stored)}; the model is built in {target}",)


def _is_converted(name: str, info: TensorInfo) -> bool:
    """Whether a tensor takes the model's dtype: the numbers and scales of quantised layers do not."""
    return info.dtype in WEIGHT_DTYPES and not name.endswith(f".{SCALES}")


def _convert(tensor: Tensor, dtype: torch.dtype, info: TensorInfo, checkpoint: Weights) -> Tensor:
    try:
        return convert(tensor, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.directory}: tensor {info.name!r}: {error}") from error


def _require_equal(first: Tensor, second: Tensor, one: TensorInfo, other: TensorInfo, checkpoint: Weights) -> None:
    if first.dtype != second.dtype or not torch.equal(first, second):
        raise CheckpointError(
            f"{checkpoint.directory}: {one.name!r} and {other.name!r} differ, "
            "but config.json makes them one (tied embeddings or shared towers)"
        )


def _assign(model: nn.Module, parameter: _Parameter, tensor: Tensor) -> None:
    """Put one new parameter in all places of the old one."""
    value = nn.Parameter(tensor, requires_grad=parameter.value.requires_grad)
    for name in parameter.names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, value)


def _require_no_meta(model: nn.Module) -> None:
    left = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if left:
        raise CheckpointError(f"the model's {_some(left)} not filled by any checkpoint")
