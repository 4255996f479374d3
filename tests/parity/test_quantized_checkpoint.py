"""`filmstrip quantize`: what is written, that it computes what the numbers stand for, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import filmstrip
from filmstrip.api import Assistant
from filmstrip.checkpoint.quantization import MANIFEST_FILE, read_manifest
from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.doctor import diagnose
from filmstrip.errors import FilmstripError
from filmstrip.generation.fused import fused_decoding
from filmstrip.generation.step import new_cache
from filmstrip.kernels import SCALE_DTYPE, find_kernels
from filmstrip.models.wide import StoredLinear, count_weights
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint
from filmstrip.testing.tolerances import TOLERANCES
from tests.e2e.helpers import needs_bundled_model, refused, succeed

BOUND = TOLERANCES["widened products"].bound
pytestmark = needs_bundled_model


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The embedded model in 8 and in 4 bits."""
    place = tmp_path_factory.mktemp("quantised")
    for bits in (8, 4):
        succeed("quantize", "tiny", place / str(bits), "--bits", str(bits))
    return {bits: place / str(bits) for bits in (8, 4)}


def load(path: Path, **choices: str) -> Assistant:
    return filmstrip.load(path, quiet=True, **choices)


def stand_in(assistant: Assistant) -> Assistant:
    """The same model with plain layers of the weights that the numbers stand for."""
    for module in list(assistant.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, StoredLinear):
                rows, cols = child.stored.rows, child.stored.cols
                linear = nn.Linear(cols, rows, bias=child.bias is not None)
                linear.weight = nn.Parameter(child.stored.widened(torch.float32), requires_grad=False)
                if child.bias is not None:
                    linear.bias = nn.Parameter(child.bias, requires_grad=False)
                setattr(module, name, linear)
    return assistant


@pytest.mark.parametrize("bits", [8, 4])
def test_logits_are_those_of_the_weights_that_the_numbers_stand_for(quantised: dict[int, Path], bits: int) -> None:
    ours, plain = load(quantised[bits]), stand_in(load(quantised[bits]))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 8, 3, 64, 64, generator=generator)
    video = torch.full((ours.config.clip_tokens(8),), ours.config.video_token_id)
    ids = torch.cat([torch.tensor([1]), video, torch.arange(30, 60)])[None]
    torch.testing.assert_close(ours.model(ids, None, pixels), plain.model(ids, None, pixels), atol=BOUND, rtol=0)
    answers = [one.model.generate(ids, None, pixels, max_new_tokens=12) for one in (ours, plain)]
    assert torch.equal(*answers)
    if find_kernels()[0] is not None:
        assert fused_decoding(ours.model, new_cache(ours.model, 1, 4)) is not None


def test_what_is_written(quantised: dict[int, Path]) -> None:
    source = filmstrip.load("tiny", quiet=True)
    size = (resolve("tiny") / "model.safetensors").stat().st_size
    for bits, most in ((8, 0.36), (4, 0.34)):
        manifest = read_manifest(quantised[bits])
        assert manifest is not None and manifest.source_hash == source.origin.weights_hash
        assert {one.bits for name, one in manifest.layers.items() if name.startswith("text_tower.")} == {bits}
        assert {one.bits for name, one in manifest.layers.items() if not name.startswith("text_tower.")} == {8}
        model = load(quantised[bits]).model
        linears = [name for name, module in source.model.named_modules() if isinstance(module, nn.Linear)]
        assert manifest.layers.keys() == {*linears} - {"text_tower.lm_head"}
        assert count_weights(model) == count_weights(source.model)
        assert (quantised[bits] / "model.safetensors").stat().st_size < most * size


def test_weights_are_near_what_they_were(quantised: dict[int, Path]) -> None:
    source = dict(filmstrip.load("tiny", quiet=True).model.named_modules())
    for bits, most in ((8, 0.01), (4, 0.12)):
        for name, module in load(quantised[bits]).model.named_modules():
            if isinstance(module, StoredLinear):
                weight = source[name].weight
                error = (module.stored.widened(torch.float32) - weight).norm() / weight.norm()
                assert error < (most if name.startswith("text_tower.") else 0.01), name


def test_16_bit_models_keep_16_bit_where_they_are_not_quantised(tmp_path: Path) -> None:
    succeed("convert", "tiny", tmp_path / "half", "--dtype", "bfloat16")
    succeed("quantize", tmp_path / "half", tmp_path / "small", "--bits", "4", "--vision-bits", "0")
    assistant = load(tmp_path / "small")
    assert assistant.origin.dtype == "bfloat16" and assistant.origin.compute == "float32"
    assert assistant.model.text_tower.token_embedding.weight.dtype == torch.bfloat16
    projection = assistant.model.text_tower.blocks[0].attention.q_proj
    assert isinstance(projection, StoredLinear) and projection.scales is not None
    assert projection.scales.dtype == SCALE_DTYPE
    if find_kernels()[0] is not None:
        assert fused_decoding(assistant.model, new_cache(assistant.model, 1, 4)) is not None
    narrow = load(tmp_path / "small", compute="stored")
    question = "How many shapes are there?"
    assert narrow.ask((), question, max_new_tokens=2).run_card["compute"] == "bfloat16"
    assert assistant.ask((), question, max_new_tokens=2).run_card["compute"] == "float32"


def test_the_doctor_finds_it_sound(quantised: dict[int, Path], tmp_path: Path) -> None:
    for path in quantised.values():
        diagnosis = diagnose(path)
        assert diagnosis.sound, diagnosis.findings
    damaged = tmp_path / "damaged"
    shutil.copytree(quantised[4], damaged)
    (damaged / MANIFEST_FILE).unlink()
    assert not diagnose(damaged).sound


@pytest.mark.parametrize("part", ["weight", "scales"])
def test_the_doctor_refuses_what_the_loader_refuses(quantised: dict[int, Path], tmp_path: Path, part: str) -> None:
    """Numbers of another kind than the manifest says."""
    damaged = tmp_path / "damaged"
    shutil.copytree(quantised[8], damaged)
    tensors = load_file(damaged / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(f"mlp.up_proj.{part}"))
    save_file({**tensors, name: tensors[name].float()}, damaged / "model.safetensors", {"format": "pt"})
    diagnosis = diagnose(damaged)
    told = [finding for finding in diagnosis.findings if "its manifest asks for" in finding.what]
    assert not diagnosis.sound and len(told) == 1, diagnosis.findings
    with pytest.raises(FilmstripError, match="its manifest asks for"):
        load(damaged)


def test_groups_that_do_not_divide_are_said(tmp_path: Path) -> None:
    result = succeed("quantize", "tiny", tmp_path / "q", "--bits", "4", "--vision-bits", "0", "--group", "256")
    assert "have a scale for every 32 inputs, since theirs do not divide by 256" in result.err + result.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), "version 2 is not known"),
        (lambda m: m.update(layers=[]), "does not list the quantised layers"),
        (lambda m: next(iter(m["layers"].values())).update(bits=3), "no way to store a weight"),
        (lambda m: next(iter(m["layers"].values())).update(group=0), "no way to store a weight"),
        (lambda m: next(iter(m["layers"].values())).update(group=8), "no way to store a weight"),
        (lambda m: next(iter(m["layers"].values())).update(bits=4, group=16), "no way to store a weight"),
        (lambda m: next(iter(m["layers"].values())).update(rows="9"), "expected whole numbers"),
        (lambda m: next(iter(m["layers"].values())).update(rows=9), "config.json asks for"),
        (
            lambda m: m["layers"].update({"projector.nothing": next(iter(m["layers"].values()))}),
            "no layer of this model",
        ),
        (lambda m: m["layers"].update({"": next(iter(m["layers"].values()))}), "no layer of this model"),
        (lambda m: m["layers"].popitem(), "is stored as"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_manifests_that_do_not_fit(quantised: dict[int, Path], tmp_path: Path, change, message: str) -> None:
    place = tmp_path / "model"
    shutil.copytree(quantised[8], place)
    manifest = json.loads((place / MANIFEST_FILE).read_text())
    change(manifest)
    (place / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(FilmstripError, match=message):
        load(place)


@pytest.mark.parametrize("preset", ["original", "transformers"])
def test_temporal_attention_is_quantised_and_may_be_left_out(tmp_path: Path, preset: str) -> None:
    write_tiny_checkpoint(tmp_path / "whole", tiny_hf_config(), temporal_frames=4)
    succeed("quantize", tmp_path / "whole", tmp_path / "small")
    manifest = read_manifest(tmp_path / "small")
    assert manifest is not None and any(".temporal." in name for name in manifest.layers)
    assistant = load(tmp_path / "small", preset=preset)
    assert assistant.origin.temporal_attention == (preset == "original")
    assert torch.isfinite(assistant.model.encode_videos(torch.randn(1, 4, 3, 28, 28))).all()


def test_what_is_refused(quantised: dict[int, Path], tmp_path: Path) -> None:
    path = quantised[8]
    assert "quantised already (8-bit)" in refused("quantize", path, tmp_path / "twice")
    assert "convert the checkpoint that it was made from" in refused("convert", path, tmp_path / "converted")
    assert "train the checkpoint that it was made from" in refused(
        "train", "lora", "--set", f"model.checkpoint={path}", "--set", f"data.files={_questions(tmp_path)}",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert "8, 4 bits, not 3" in refused("quantize", "tiny", tmp_path / "x", "--bits", "3")
    assert "multiple of 32" in refused("quantize", "tiny", tmp_path / "x", "--group", "48")
    assert "ask to overwrite" in refused("quantize", "tiny", path)
    with pytest.raises(FilmstripError, match="a quantised model is not written anew"):
        load(path).save(tmp_path / "saved")
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="filmstrip_video_llava"):
        AutoConfig.from_pretrained(path)


def _questions(place: Path) -> Path:
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "two"}]
    (place / "data.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    return place / "data.json"


def test_a_whole_command(quantised: dict[int, Path], tmp_path: Path) -> None:
    content = succeed("quantize", "tiny", tmp_path / "again", "--bits", "4", "--json").json
    assert content["dtypes"] == ["float16", "float32", "int8", "uint8"]
    first, again = (path / "model.safetensors" for path in (quantised[4], tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()
    frame = np.zeros((64, 64, 3), np.uint8)
    from PIL import Image

    Image.fromarray(frame).save(tmp_path / "black.png")
    card = succeed("ask", tmp_path / "black.png", "How many shapes are there?", "-m", tmp_path / "again", "--json").json
    assert "uint8" in card["run_card"]["description"]
