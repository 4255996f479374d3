"""Low-rank adapters (Hu et al. 2021) through `peft`: put in, saved, read back, merged into the weights.

A saved adapter is a directory in peft's format (`adapter_config.json`, `adapter_model.safetensors`) and
`other_weights.safetensors`: what was trained beside the adapters, the projector in the published recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.files import TensorFiles, TensorReader, open_tensor_file
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import LazyTensor, json_bytes, write_safetensors
from filmstrip.config.checks import require
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.shapes import Tensor
from filmstrip.training.patterns import require_matches
from filmstrip.training.recipe import LoraRecipe

CONFIG_FILE, ADAPTER_FILE, OTHER_FILE = "adapter_config.json", "adapter_model.safetensors", "other_weights.safetensors"
ADAPTER_PATHS = "*.lora_*"
BASE_FILE = (
    "base.json"  # the hash of the weights it was trained on; peft would complain about a key of ours in its file
)
_PEFT_PREFIX = "base_model.model."
_MARK = ".lora_"
_MAX_RANK = 4096


@dataclass(frozen=True)
class AdapterInfo:
    """Shape of the adapters, and the weights they were trained on: their name and their hash."""

    modules: tuple[str, ...]
    rank: int
    alpha: float
    base: str
    base_hash: str


def add_adapters(model: nn.Module, recipe: LoraRecipe) -> tuple[str, ...]:
    """Put an adapter on every linear layer that `recipe.targets` name; returns the layers' paths.

    Everything but the adapters is frozen. Raises `ConfigError` when a target names no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    require_matches(recipe.targets, linear, "lora.targets")
    chosen = tuple(name for name in linear if any(fnmatchcase(name, target) for target in recipe.targets))
    require(bool(chosen), f"lora.targets {', '.join(recipe.targets)} name no linear layer")
    _inject(model, chosen, recipe.rank, recipe.alpha, recipe.dropout)
    return chosen


def save_adapter(model: nn.Module, info: AdapterInfo, directory: Path) -> Path:
    """Write the adapters of `model`, and whatever else in it learns; an adapter that is there is replaced.

    Raises `CheckpointError` if that fails.
    """
    learnt = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {_to_peft(name): tensor for name, tensor in learnt.items() if _MARK in name}
    others = {name: tensor for name, tensor in learnt.items() if _MARK not in name}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": info.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": info.alpha,
        "lora_dropout": 0.0,
        "r": info.rank,
        "target_modules": list(info.modules),
        "task_type": None,
    }
    with atomic_directory(directory, overwrite=True, marker=CONFIG_FILE) as partial:
        (partial / CONFIG_FILE).write_bytes(json_bytes(config))
        (partial / BASE_FILE).write_bytes(json_bytes({"weights_hash": info.base_hash}))
        for name, tensors in ((ADAPTER_FILE, adapters), (OTHER_FILE, others)):
            for _ in write_safetensors(partial / name, {key: _lazy(tensor) for key, tensor in tensors.items()}):
                pass
    return directory


def read_adapter_info(directory: Path) -> AdapterInfo:
    """The checked contents of `adapter_config.json`. Raises `CheckpointError`."""
    path = directory / CONFIG_FILE
    values = read_json(path)
    if values.get("peft_type") != "LORA" or values.get("use_dora") or values.get("bias", "none") != "none":
        raise CheckpointError(f"{path} is not a plain LoRA adapter without biases")
    modules, rank, alpha = values.get("target_modules"), values.get("r"), values.get("lora_alpha")
    if not isinstance(modules, list) or not modules or not all(isinstance(name, str) for name in modules):
        raise CheckpointError(f"{path}: target_modules must list the paths of the adapted layers")
    if type(rank) is not int or not 0 < rank <= _MAX_RANK or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r must be a whole number up to {_MAX_RANK} and lora_alpha a number")
    base = values.get("base_model_name_or_path")
    digest = read_json(directory / BASE_FILE).get("weights_hash") if (directory / BASE_FILE).exists() else ""
    return AdapterInfo(tuple(modules), rank, float(alpha), str(base or ""), str(digest or ""))


def load_adapter(model: nn.Module, directory: Path) -> AdapterInfo:
    """Put the adapters in `directory` on `model`, unmerged, with all that was trained beside them.

    Raises `CheckpointError` for one that does not fit the model.
    """
    info = read_adapter_info(directory)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(info.modules) - layers)
    if unknown:
        raise CheckpointError(f"{directory} adapts {unknown[0]!r}, which is no linear layer of this model")
    if (directory / OTHER_FILE).exists():
        _fill(model, open_tensor_file(directory / OTHER_FILE), lambda name: name)
    _inject(model, info.modules, info.rank, info.alpha, dropout=0.0)
    for name, parameter in model.named_parameters():
        if _MARK in name:  # peft gives an adapter the dtype of its layer, which may be half of what is in the file
            parameter.data = parameter.data.float()
    filled = _fill(model, open_tensor_file(directory / ADAPTER_FILE), _from_peft)
    missing = sorted({name for name, _ in model.named_parameters() if _MARK in name} - filled)
    if missing:
        raise CheckpointError(f"{directory}: tensor {_to_peft(missing[0])!r} is missing")
    model.eval()
    return info


def merge_adapters(model: nn.Module) -> int:
    """Add every adapter to the weights of its layer and take it off; returns how many there were.

    Sums are made in float32 and rounded once, to the dtype of the layer. Raises `CheckpointError` when the result is
    not finite.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        layer = module.get_base_layer()
        merged = layer.weight.data.float()
        for adapter in module.active_adapters:
            merged = merged + module.get_delta_weight(adapter).float()
        merged = merged.to(layer.weight.dtype)
        if not bool(merged.isfinite().all()):
            raise CheckpointError(f"the adapter on {name} cannot be merged: the sum is not finite")
        layer.weight.data = merged
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer)
    return len(adapted)


def _inject(model: nn.Module, modules: tuple[str, ...], rank: int, alpha: float, dropout: float) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("adapters need the library peft: pip install 'filmstrip[train]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(modules),
        bias="none",
    )
    inject_adapter_in_model(config, model)


def _to_peft(name: str) -> str:
    """peft leaves the adapter's own name (`default`) out of files."""
    return _PEFT_PREFIX + name.replace(".default.", ".")


def _from_peft(name: str) -> str:
    path = name.removeprefix(_PEFT_PREFIX)
    return path.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def _lazy(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, tensor.cpu)


def _fill(model: nn.Module, files: TensorFiles, rename: Callable[[str], str]) -> set[str]:
    """Copy every tensor of `files` into the parameter of its name; returns the names. Shapes are checked first."""
    parameters = dict(model.named_parameters())
    reader = TensorReader(files)
    for key, tensor in files.tensors.items():
        parameter = parameters.get(rename(key))
        if parameter is None or tuple(parameter.shape) != tensor.shape:
            raise CheckpointError(f"{tensor.path}: {key!r} of shape {tensor.shape} is no part of this model")
        parameter.data.copy_(reader.read(key))
    return {rename(key) for key in files.tensors}
