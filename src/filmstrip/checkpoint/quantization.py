"""Which layers of a checkpoint are quantised, and how: the manifest `quantization.json`.

A quantised checkpoint is this program's own variant (`variant.PREFIX`): a Hugging Face directory in which the weight of
a listed layer is whole numbers (I8, or U8 with two of 4 bits in each) and a tensor `scales` stands beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.rules import TEMPORAL
from filmstrip.checkpoint.write import json_bytes
from filmstrip.errors import CheckpointError
from filmstrip.kernels import BITS, MULTIPLES, SCALE_DTYPE
from filmstrip.models.wide import StoredLinear

MANIFEST_FILE = "quantization.json"
MAX_LAYERS = 100_000
_VERSION = 1
_FIELDS = {"bits": int, "group": int, "rows": int, "cols": int}


@dataclass(frozen=True)
class LayerFormat:
    """How the weight (rows, cols) of one layer is stored: `group` inputs of a row share a scale."""

    bits: int
    group: int
    rows: int
    cols: int

    @property
    def numbers_shape(self) -> tuple[int, int]:
        """Shape of the stored numbers."""
        return (self.rows, self.cols * self.bits // 8)

    @property
    def numbers_dtype(self) -> torch.dtype:
        """Dtype of the stored numbers."""
        return torch.int8 if self.bits == 8 else torch.uint8

    @property
    def scales_shape(self) -> tuple[int, int]:
        """Shape of the scales."""
        return (self.rows, self.cols // self.group)


@dataclass(frozen=True)
class Manifest:
    """The quantised layers by their names in the model, and the hash of the weights that they were made from."""

    layers: Mapping[str, LayerFormat]
    source_hash: str = ""

    def to_bytes(self) -> bytes:
        """The file's content."""
        layers = {name: vars(layer) for name, layer in self.layers.items()}
        return json_bytes({"version": _VERSION, "source_hash": self.source_hash, "layers": layers})

    @property
    def fewest_bits(self) -> int:
        """Bits of the weights that have the fewest."""
        return min((one.bits for one in self.layers.values()), default=max(BITS))

    @property
    def title(self) -> str:
        """`4-bit`, or `8- and 4-bit`."""
        return (
            "- and ".join(str(bits) for bits in BITS if any(one.bits == bits for one in self.layers.values())) + "-bit"
        )


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a checkpoint directory, or None where it has none. Raises `CheckpointError` for a damaged one."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    layers = values.get("layers")
    if values.get("version") != _VERSION:
        raise CheckpointError(f"{path}: version {values.get('version')!r} is not known here (known: {_VERSION})")
    if not isinstance(layers, dict) or len(layers) > MAX_LAYERS or not isinstance(values.get("source_hash"), str):
        raise CheckpointError(f"{path} does not list the quantised layers")
    return Manifest(
        {name: _layer(entry, f"{path}: layer {name!r}") for name, entry in layers.items()}, values["source_hash"]
    )


def _layer(entry: Any, where: str) -> LayerFormat:
    if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _FIELDS:
        raise CheckpointError(f"{where}: expected whole numbers {', '.join(_FIELDS)}")
    layer = LayerFormat(**entry)
    sizes = layer.bits in BITS and min(layer.rows, layer.cols, layer.group) > 0 and layer.cols % layer.group == 0
    if not sizes or layer.group % MULTIPLES[layer.bits]:
        raise CheckpointError(f"{where}: {entry} is no way to store a weight")
    return layer


def expect_quantised(model: nn.Module, manifest: Manifest, where: str) -> None:
    """Give a model on the meta device the layers that a manifest lists, to be filled from its checkpoint.

    Those of temporal attention are left out where the model is built without it. Raises `CheckpointError` for a layer
    that the model does not have, or of another shape.
    """
    without = not any(TEMPORAL in name for name, _ in model.named_modules())
    for name, layer in manifest.layers.items():
        if without and TEMPORAL in name:
            continue
        owner, _, attribute = name.rpartition(".")
        try:
            parent = model.get_submodule(owner)
            linear = getattr(parent, attribute)
        except AttributeError:
            linear = None
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{where}: the manifest lists {name!r}, which is no layer of this model")
        if tuple(linear.weight.shape) != (layer.rows, layer.cols):
            raise CheckpointError(
                f"{where}: {name!r} is {(layer.rows, layer.cols)} in the manifest, config.json asks for "
                f"{tuple(linear.weight.shape)}"
            )
        numbers = torch.empty(layer.numbers_shape, dtype=layer.numbers_dtype, device="meta")
        scales = torch.empty(layer.scales_shape, dtype=SCALE_DTYPE, device="meta")
        stored = StoredLinear(_fixed(numbers), linear.bias, _fixed(scales))
        setattr(parent, attribute, stored)


def _fixed(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
