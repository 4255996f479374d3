"""What an assembled model has besides its two towers: a projector, and perhaps temporal attention."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from filmstrip.checkpoint.convert_output import require_complete
from filmstrip.checkpoint.convert_source import read_source
from filmstrip.checkpoint.files import open_tensor_file
from filmstrip.checkpoint.layout_parts import PROJECTOR, SEQUENTIAL_PROJECTOR, under
from filmstrip.checkpoint.parts import Part
from filmstrip.checkpoint.rules import Layout, detect_layout
from filmstrip.checkpoint.write import LazyTensor
from filmstrip.config import ModelConfig
from filmstrip.models.projector import Projector
from filmstrip.models.weightless import weightless

PREFIX = "projector."

# A projector in a file of its own: LLaVA's stage 1 saves `model.mm_projector.0.weight`, transformers' names are
# `multi_modal_projector.linear_1.weight`; either is found without its prefix too.
_FILE_LAYOUTS = tuple(
    Layout(f"{prefix}{number}", f"projector file ({prefix or 'no prefix'})", under(rules, prefix, ""))
    for number, (rules, name) in enumerate(
        ((SEQUENTIAL_PROJECTOR, "mm_projector."), (PROJECTOR, "multi_modal_projector."))
    )
    for prefix in (f"model.{name}", name, "")
)


def new_projector(config: ModelConfig, dtype: torch.dtype, seed: int) -> dict[str, LazyTensor]:
    """A random projector: weights and biases uniform within 1/sqrt(inputs), PyTorch's default for `nn.Linear`.

    It is what LLaVA starts its stage 1 from (`build_vision_projector` leaves the default alone). Drawn in float32 in a
    fixed order, so a seed gives the same projector on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    with weightless():
        shapes = {name: tuple(value.shape) for name, value in Projector(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        inputs = shapes[f"{name.rpartition('.')[0]}.weight"][1]
        bound = 1 / math.sqrt(inputs)
        values = (2 * torch.rand(shape, generator=generator) - 1) * bound
        tensors[PREFIX + name] = LazyTensor.of(values.to(dtype))
    return tensors


def load_projector(path: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, LazyTensor]:
    """The projector in a `.safetensors` file or in the `mm_projector.bin` of LLaVA's first training stage.

    Raises `CheckpointError`, one line, for a file that is damaged or holds something else, and for a projector that
    does not fit between these towers.
    """
    files = open_tensor_file(path)
    layout = detect_layout(files.tensors, _FILE_LAYOUTS, str(path))
    tensors = read_source([Part(files, layout)]).tensors
    with weightless():
        model = Projector(config)
    require_complete(tensors, model, str(path))
    return {PREFIX + name: tensor.to(dtype) for name, tensor in tensors.items()}


def new_temporal_attention(
    tower: Mapping[str, LazyTensor], num_layers: int, frames: int, dtype: torch.dtype
) -> dict[str, LazyTensor]:
    """Temporal attention that changes nothing until it is trained, by names inside the tower.

    Queries, keys, values and the norm start as those of the same layer's attention over space; the output projection
    and the frame vectors (which the residual passes through) are zero. `tower` has the spatial ones.
    """
    width = tower["class_embedding"].shape[0]

    def zeros(*shape: int) -> LazyTensor:
        return LazyTensor(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))

    tensors: dict[str, LazyTensor] = {}
    for layer in range(num_layers):
        block = f"blocks.{layer}."
        for kind in ("weight", "bias"):
            for part in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{block}temporal.attention.{part}.{kind}"] = tower[f"{block}attention.{part}.{kind}"]
            tensors[f"{block}temporal.norm.{kind}"] = tower[f"{block}attention_norm.{kind}"]
        tensors[f"{block}temporal.attention.out_proj.weight"] = zeros(width, width)
        tensors[f"{block}temporal.attention.out_proj.bias"] = zeros(width)
        tensors[f"{block}temporal.embedding"] = zeros(frames, width)
    return tensors
