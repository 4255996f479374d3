"""A checkpoint with quantised weights, made tensor by tensor from another one."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.card import CARD_FILE, model_card
from filmstrip.checkpoint.convert_hf import hf_to_hf
from filmstrip.checkpoint.convert_output import Output, require_complete, require_equal_copies, source_hash
from filmstrip.checkpoint.convert_source import in_layout, read_source
from filmstrip.checkpoint.quantization import MANIFEST_FILE, LayerFormat, Manifest
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.checkpoint.resolve import CONFIG_FILE
from filmstrip.checkpoint.rules import SCALES
from filmstrip.checkpoint.variant import ARCHITECTURE_PREFIX, PREFIX
from filmstrip.checkpoint.write import LazyTensor, json_bytes
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError
from filmstrip.kernels import BITS, SCALE_DTYPE, choose_scales, round_to
from filmstrip.models.weightless import build_meta
from filmstrip.models.wide import GROUP_MULTIPLE, quantisable_layers


@dataclass(frozen=True)
class QuantizeOptions:
    """Bits of the text tower's layers and of everything else's (0: as they are), and inputs that share a scale (by
    default `GROUPS`).
    """

    bits: int = 8
    vision_bits: int = 8
    group: int | None = None

    def __post_init__(self) -> None:
        known = ", ".join(map(str, BITS))
        require(self.bits in BITS, f"weights are stored in {known} bits, not {self.bits}")
        require(
            self.vision_bits in (0, *BITS), f"vision weights are stored in {known} bits or 0, not {self.vision_bits}"
        )
        require(
            self.group is None or (self.group > 0 and self.group % GROUP_MULTIPLE == 0),
            f"a group is a multiple of {GROUP_MULTIPLE} inputs, not {self.group}",
        )


def quantized_output(source: Path, options: QuantizeOptions) -> Output:
    """What `filmstrip quantize` writes: the source with its layers quantised, all else as it is.

    A layer whose inputs do not divide into groups, or smaller ones, stays as it is, with a note. Raises
    `CheckpointError` for a source that is not a whole model in Hugging Face's format, or quantised already.
    """
    checkpoint = read_checkpoint(source)
    if checkpoint.layout.name == "P":
        raise CheckpointError(f"{source} is in the original release's layout; `filmstrip convert` it first")
    if checkpoint.quantization is not None:
        raise CheckpointError(f"{source} is quantised already ({checkpoint.quantization.title})")
    config = checkpoint.model_config(temporal_attention=checkpoint.temporal_frames is not None)
    read, model = read_source(checkpoint.parts, checkpoint.unused), build_meta(config)
    require_complete(read.tensors, model, str(source))
    require_equal_copies(read.tensors, model, str(source))
    digest = source_hash(read_source(checkpoint.parts, mapped=True).tensors, model)
    chosen = quantisable_layers(model, options.bits, options.vision_bits, options.group)
    left = [name for name, layer in chosen.items() if layer.group is None]
    layers = {
        name: LayerFormat(layer.bits, layer.group, *layer.linear.weight.shape)
        for name, layer in chosen.items()
        if layer.group is not None
    }
    manifest = Manifest(layers, digest)
    first_names = {id(module): name for name, module in model.named_modules()}
    aliases = {name: first_names[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in read.tensors.items():
        owner, _, parameter = name.rpartition(".")
        layer = layers.get(aliases[owner]) if parameter == "weight" else None
        tensors |= {name: tensor} if layer is None else _quantized(name, tensor, layer)
    files = dict(hf_to_hf(source, tensors, None, temporal=config.video_tower.temporal_attention).files)
    files[CONFIG_FILE] = json_bytes(_as_variant(json.loads(files[CONFIG_FILE])))
    files[MANIFEST_FILE] = manifest.to_bytes()
    notes: tuple[str, ...] = (
        (f"{len(left)} layers stay as they are: their inputs do not divide by {GROUP_MULTIPLE}",) if left else ()
    )
    other = [name for name, layer in layers.items() if options.group not in (None, layer.group)]
    if other:
        told = f"{len(other)} layers have a scale for every {GROUP_MULTIPLE} inputs, since theirs do not divide"
        notes += (f"{told} by {options.group}",)
    rows = [("source", f"{source.resolve().name}: {checkpoint.describe()}"), ("weights of the source", digest)]
    shared = " or ".join(map(str, sorted({layer.group for layer in layers.values()})))
    rows.append(("quantised", f"{len(layers)} layers, {manifest.title}, one scale for {shared} inputs"))
    files[CARD_FILE] = model_card(source.resolve().name, "A quantised checkpoint.", rows, notes)
    return Output(
        tensors=in_layout(tensors, checkpoint.layout),
        files=files,
        layout=f"{checkpoint.layout.title}, quantised",
        sources={str(source): digest},
        left_out=read.left_out,
        notes=notes,
        stand_for=sum(tensor.numel for tensor in read.tensors.values()),
    )


def _quantized(name: str, tensor: LazyTensor, layer: LayerFormat) -> dict[str, LazyTensor]:
    """The two tensors of a layer. The scales, which are small, are kept from one to the other; the weight is not."""
    scales = cache(lambda: choose_scales(tensor.read(), layer.bits, layer.group))
    return {
        name: LazyTensor(
            layer.numbers_shape, layer.numbers_dtype, lambda: round_to(tensor.read(), scales(), layer.bits)
        ),
        name.removesuffix("weight") + SCALES: LazyTensor(layer.scales_shape, SCALE_DTYPE, scales),
    }


def _as_variant(values: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` that transformers refuses, for it would take the numbers for weights."""
    own = str(values["model_type"])
    names = [str(name) for name in values.get("architectures") or []]
    return values | {
        "model_type": own if own.startswith(PREFIX) else PREFIX + own,
        "architectures": [one if one.startswith(ARCHITECTURE_PREFIX) else ARCHITECTURE_PREFIX + one for one in names],
    }
