"""Adapters: what is saved is what was trained, and merging it changes no logit."""

import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from filmstrip.api import Assistant, load
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.testing.tiny import write_tiny_checkpoint
from filmstrip.training.adapters import AdapterInfo, add_adapters, load_adapter, merge_adapters, save_adapter
from filmstrip.training.recipe import LoraRecipe

RECIPE = LoraRecipe(rank=3, alpha=6.0, dropout=0.1)
PROMPT = torch.tensor([[1, 5, 9, 300, 260, 7]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tiny_checkpoint(tmp_path / "base")
    return tmp_path / "base"


def trained(base: Path) -> tuple[Assistant, tuple[str, ...]]:
    """A model with adapters as if trained: both matrices random, the projector changed."""
    assistant = load(base, quiet=True)
    modules = add_adapters(assistant.model, RECIPE)
    torch.manual_seed(0)
    for name, parameter in assistant.model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
        if name.startswith("projector"):
            parameter.requires_grad_(True)
            parameter.data += 0.1
    assistant.model.eval()
    return assistant, modules


def save(assistant: Assistant, modules: tuple[str, ...], directory: Path) -> Path:
    return save_adapter(assistant.model, AdapterInfo(modules, 3, 6.0, "base", "hash"), directory)


def logits(assistant: Assistant) -> torch.Tensor:
    with torch.no_grad():
        pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
        ids = torch.cat([PROMPT, torch.full((1, 4), assistant.config.image_token_id), PROMPT], dim=1)
        return assistant.model(ids, pixels)


def test_adapters_sit_where_they_are_asked_for(base: Path) -> None:
    assistant, modules = trained(base)
    assert len(modules) == 3 * 7  # q, k, v, o, gate, up, down of three blocks; not the head, not the projector
    assert all(name.startswith("text_tower.blocks.") for name in modules)
    assert sum(isinstance(module, LoraLayer) for module in assistant.model.modules()) == 21


def test_a_new_adapter_changes_nothing(base: Path) -> None:
    plain = load(base, quiet=True)
    before = logits(plain)
    add_adapters(plain.model, RECIPE)
    plain.model.eval()
    assert torch.equal(logits(plain), before)


def test_saved_loaded_merged(base: Path, tmp_path: Path) -> None:
    """Logits with the adapter beside the weights, read back, and merged into a plain checkpoint: the same to 1e-5."""
    assistant, modules = trained(base)
    expected = logits(assistant)
    assert not torch.allclose(expected, logits(load(base, quiet=True)), atol=0.1)
    adapter = save(assistant, modules, tmp_path / "adapter")
    again = load(base, quiet=True)
    info = load_adapter(again.model, adapter)
    assert (info.rank, info.alpha, info.modules) == (3, 6.0, modules)
    assert torch.equal(logits(again), expected)
    assert merge_adapters(again.model) == 21
    assert (logits(again) - expected).abs().max() < 1e-5
    again.save(tmp_path / "merged")
    merged = load(tmp_path / "merged", quiet=True)
    assert not any(isinstance(module, LoraLayer) for module in merged.model.modules())
    assert (logits(merged) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_into_16_bits_rounds_once(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Adapters stay float32 until they are in the sum: weights are the rounding of the float32 merge."""
    adapter = save(*trained(base), tmp_path / "adapter")
    exact, halves = (load(base, dtype=dtype, compute="stored", quiet=True) for _ in range(2))
    exact.model.float()
    for assistant in (exact, halves):
        load_adapter(assistant.model, adapter)
        merge_adapters(assistant.model)
    name = "text_tower.blocks.1.attention.q_proj.weight"
    expected, merged = (assistant.model.get_parameter(name) for assistant in (exact, halves))
    assert merged.dtype == dtype
    assert torch.equal(merged, expected.to(dtype))


def test_an_adapter_is_replaced_in_one_step(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is there until the new one is whole."""
    place = save(*trained(base), tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert save(*trained(base), place) == place

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filmstrip.training.adapters.write_safetensors", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save(*trained(base), place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if "adapter" in path.name] == ["adapter"]


def test_the_files_are_those_of_peft(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = save(*trained(base), tmp_path / "adapter")
    config = LoraConfig.from_pretrained(adapter)
    assert (config.r, config.lora_alpha) == (3, 6.0)
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert "base_model.model.text_tower.blocks.0.attention.q_proj.lora_A.weight" in names
    assert len(names) == 42
    others = set(load_file(adapter / "other_weights.safetensors"))
    assert others == {f"projector.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}


def test_targets_that_name_nothing(base: Path) -> None:
    model = load(base, quiet=True).model
    with pytest.raises(ConfigError, match=r"lora\.targets: 'text_towr' is the path of no part"):
        add_adapters(model, LoraRecipe(targets=("text_towr",)))
    with pytest.raises(ConfigError, match="name no linear layer"):
        add_adapters(model, LoraRecipe(targets=("text_tower",)))


def test_adapters_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    adapter = save(*trained(base), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())

    def refused(words: str, **changes: object) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=words):
            load_adapter(load(base, quiet=True).model, adapter)

    refused("r must be a whole number", r=10**9)
    refused("r must be a whole number", r="3")
    refused("not a plain LoRA", use_dora=True)
    refused("not a plain LoRA", peft_type="PROMPT_TUNING")
    refused("target_modules must list", target_modules="all-linear")
    refused("adapts 'lm_hat', which is no linear layer", target_modules=["lm_hat"])
    refused("is no part of this model", r=4)
    refused("is no part of this model", target_modules=config["target_modules"][:-1])
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop("base_model.model.text_tower.blocks.0.attention.q_proj.lora_A.weight")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_A\.weight' is missing"):
        load_adapter(load(base, quiet=True).model, adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        load_adapter(load(base, quiet=True).model, adapter)


def test_weights_that_are_no_numbers_are_not_merged(base: Path) -> None:
    assistant, _ = trained(base)
    name, parameter = next((n, p) for n, p in assistant.model.named_parameters() if "lora_B" in n)
    parameter.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="cannot be merged"):
        merge_adapters(assistant.model)
    assert name
