"""Parameters counted: by component, by layer, by kind; trainable and frozen; their bytes in every precision.

A parameter counts once, however many names it has (tied embeddings, shared towers).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from filmstrip.kernels import SCALE_DTYPE
from filmstrip.models.wide import Quantisable, quantisable_layers

QUANTISED_BITS = {"int8": 8, "int4": 4}
PRECISION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PRECISIONS = ("float32", "bfloat16", *QUANTISED_BITS)

_BLOCK = re.compile(r"^(?P<stack>.*\bblocks)\.(?P<index>\d+)\.")
# The first that is found in a parameter's name decides; what is made of others comes before its parts.
_KINDS = (
    (re.compile(r"(^|\.)aggregation\."), "aggregation"),
    (re.compile(r"\.temporal\."), "temporal attention"),
    (re.compile(r"norm\."), "norm"),
    (re.compile(r"(^|\.)attention\."), "attention"),
    (re.compile(r"(^|\.)mlp\."), "mlp"),
    (re.compile(r"(^|\.)projector\."), "projector"),
    (re.compile(r"(^|\.)lm_head\."), "head"),
    (re.compile(r"embedding|newline"), "embedding"),
)


@dataclass(frozen=True)
class Count:
    """Numbers of parameters and of tensors; `trainable` of the parameters require a gradient."""

    parameters: int = 0
    tensors: int = 0
    trainable: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.parameters + other.parameters, self.tensors + other.tensors, self.trainable + other.trainable)

    @property
    def frozen(self) -> int:
        """Parameters that do not learn."""
        return self.parameters - self.trainable


@dataclass(frozen=True)
class Layer:
    """One layer, or the run of equal layers `first` to `last` of a stack; `each` is one of them."""

    path: str
    each: Count
    first: int | None = None
    last: int | None = None

    @property
    def number(self) -> int:
        """How many layers this stands for."""
        return 1 if self.first is None or self.last is None else self.last - self.first + 1

    @property
    def label(self) -> str:
        """`text_tower.blocks.0–31`, `text_tower.blocks.0` or `projector.linear_1`."""
        if self.first is None:
            return self.path
        return f"{self.path}.{self.first}" + (f"–{self.last}" if self.number > 1 else "")


@dataclass(frozen=True)
class ParameterReport:
    """All counts of one model. `shared` are the names under which a parameter that has counted appears again."""

    total: Count
    components: dict[str, Count]
    kinds: dict[str, Count]
    layers: tuple[Layer, ...]
    shared: tuple[str, ...]
    bytes_as: dict[str, int]


def count_parameters(model: nn.Module) -> ParameterReport:
    """Count a model's parameters; it may be on the meta device. Trainable is what requires a gradient."""
    named = list(model.named_parameters())
    everything = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    components: dict[str, Count] = {}
    kinds: dict[str, Count] = {}
    layers: dict[tuple[str, int | None], Count] = {}
    for name, parameter in named:
        count = _count(parameter)
        for table, key in ((components, component_of(name)), (kinds, kind_of(name))):
            table[key] = table.get(key, Count()) + count
        layer = layer_of(name)
        layers[layer] = layers.get(layer, Count()) + count
    once = {name for name, _ in named}
    return ParameterReport(
        total=sum(components.values(), Count()),
        components=components,
        kinds=kinds,
        layers=tuple(Layer(path, count, index, index) for (path, index), count in layers.items()),
        shared=tuple(_modules_of(name for name in everything if name not in once)),
        bytes_as={precision: bytes_as(model, precision) for precision in PRECISIONS},
    )


def count_modules(model: nn.Module) -> dict[str, Count]:
    """Counts of a model's top-level modules and parameters, shared ones once, under their first name."""
    counts: dict[str, Count] = {}
    for name, parameter in model.named_parameters():
        first = name.split(".")[0]
        counts[first] = counts.get(first, Count()) + _count(parameter)
    return counts


def _count(parameter: nn.Parameter) -> Count:
    return Count(parameter.numel(), 1, parameter.numel() if parameter.requires_grad else 0)


def component_of(name: str) -> str:
    """The part that a parameter belongs to: `image_tower`, ..., and the head apart from its text tower.

    In a tower on its own, which has no parts above its layers, it is the name's first word.
    """
    first = name.split(".", maxsplit=1)[0]
    return "text_tower.lm_head" if name.startswith("text_tower.lm_head.") else first


def kind_of(name: str) -> str:
    """What a parameter is for, whatever layer it is in. Raises `ValueError` for a name that this package has not."""
    for pattern, kind in _KINDS:
        if pattern.search(f".{name}"):
            return kind
    raise ValueError(f"parameter {name!r} is of no known kind")


def layer_of(name: str) -> tuple[str, int | None]:
    """The stack and number of the block that a parameter is in, or the module that holds it and None."""
    block = _BLOCK.match(name)
    if block:
        return block["stack"], int(block["index"])
    return name.removesuffix(".weight").removesuffix(".bias"), None


def fold_layers(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Join neighbours of one stack that have equal counts."""
    folded: list[Layer] = []
    for layer in layers:
        previous = folded[-1] if folded else None
        if previous and layer.first is not None and (previous.path, previous.each) == (layer.path, layer.each):
            folded[-1] = Layer(layer.path, layer.each, previous.first, layer.last)
        else:
            folded.append(layer)
    return tuple(folded)


def bytes_as(model: nn.Module, precision: str) -> int:
    """Bytes of all parameters in `precision`: a dtype, or `int8` / `int4` for the linear layers, the rest in 16 bit."""
    if precision in PRECISION_BYTES:
        return weight_bytes(model, precision)
    return weight_bytes(model, "bfloat16", precision)


def weight_bytes(model: nn.Module, dtype: str, quantize: str | None = None) -> int:
    """Bytes of all parameters in `dtype`, the weights of linear layers in `quantize` where that is given.

    As `filmstrip quantize` stores them: `int4` is 4 bits in the text tower and 8 in all else, with 16-bit scales;
    embeddings, norms, biases and head stay in `dtype`.
    """
    layers = quantised_layers(model, quantize) if quantize else []
    quantised = {id(layer.linear.weight): layer for layer in layers}
    rest = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in quantised)
    return rest * PRECISION_BYTES[dtype] + sum(quantised_bytes(layer) for layer in quantised.values())


def quantised_layers(model: nn.Module, precision: str) -> list[Quantisable]:
    """The linear layers whose weights are stored in few bits: all but the head."""
    layers = quantisable_layers(model, QUANTISED_BITS[precision]).values()
    return [layer for layer in layers if layer.group is not None]


def quantised_bytes(layer: Quantisable) -> int:
    """Bytes of a quantised weight: its numbers and its scales."""
    rows, cols = layer.linear.weight.shape
    assert layer.group is not None
    return int(rows * (cols * layer.bits // 8 + cols // layer.group * SCALE_DTYPE.itemsize))


def _modules_of(names: Iterable[str]) -> list[str]:
    """Top-level modules of repeated names; a repeated head keeps its whole path."""
    return list(dict.fromkeys(component_of(name) for name in names))
