"""Loading: every key lands, is left out for a reason, or is an error; nothing stays on meta."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.checkpoint.describe import short_count
from filmstrip.checkpoint.digest import WeightsDigest
from filmstrip.checkpoint.load import WITHOUT_TEMPORAL, LoadReport, load_weights
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.models.video_llava import VideoLlava
from filmstrip.testing.tiny import DiskLayout, tiny_hf_config, write_json, write_tiny_checkpoint

TEMPORAL_PARAMETERS = 4 * (3 * 32 + 4 * (32 * 32 + 32) + 2 * 32)  # layers x (embedding, q k v out, norm)


def load(directory: Path, *, temporal: bool | None = None, **options: Any) -> tuple[VideoLlava, LoadReport]:
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config(temporal_attention=temporal))
    return model, load_weights(model, checkpoint, **options)


def edit(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of `model.safetensors`; `__` in a name stands for a dot."""
    path = directory / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    save_file(state, path)


def fails(directory: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(directory, **options)
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message
    return message


def test_report_of_a_whole_checkpoint(tmp_path: Path) -> None:
    state = write_tiny_checkpoint(tmp_path)
    model, report = load(tmp_path)
    parameters = sum(tensor.numel() for tensor in state.values())
    assert report.description == "Video-LLaVA without temporal attention, hub layout (A), float32, 272 k parameters"
    assert (report.layout, report.used, report.parameters, report.ignored) == ("A", 176, parameters, ())
    assert (report.dtype_on_disk, report.dtype, report.dropped_temporal_parameters) == ("float32", "float32", 0)
    assert report.warnings == ()
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.text_tower.lm_head.weight, state["lm_head.weight"])


def test_temporal_attention_is_left_out_or_used(tmp_path: Path) -> None:
    state = write_tiny_checkpoint(tmp_path, temporal_frames=3)
    _, without = load(tmp_path)
    assert without.dropped_temporal_parameters == TEMPORAL_PARAMETERS == 17_536
    assert without.reasons == {WITHOUT_TEMPORAL: 44}
    model, report = load(tmp_path, temporal=True)
    assert (report.used, report.ignored) == (220, ())
    assert report.description.startswith("Video-LLaVA with temporal attention")
    loaded = model.video_tower.blocks[2].temporal.embedding
    stored = state["model.video_tower.encoder.layers.2.temporal_embedding"]
    assert stored.shape == (1, 3, 32) and torch.equal(loaded, stored[0])
    assert report.weights_hash != without.weights_hash


def test_temporal_attention_that_is_not_there(tmp_path: Path) -> None:
    config = tiny_hf_config(filmstrip={"temporal_attention": True, "temporal_frames": 3})
    write_tiny_checkpoint(tmp_path, config)
    assert "no weights for temporal attention" in fails(tmp_path)
    write_json(tmp_path / "config.json", tiny_hf_config())
    with pytest.raises(ConfigError, match="no weights for temporal attention"):
        load(tmp_path, temporal=True)


def test_the_section_switches_temporal_attention_on(tmp_path: Path) -> None:
    config = tiny_hf_config(filmstrip={"temporal_attention": True, "temporal_frames": 3})
    write_tiny_checkpoint(tmp_path, config, temporal_frames=3)
    assert load(tmp_path)[1].used == 220
    assert load(tmp_path, temporal=False)[1].dropped_temporal_parameters == TEMPORAL_PARAMETERS


def test_old_buffers_are_ignored_with_a_reason(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    edit(
        tmp_path,
        image_tower__vision_model__embeddings__position_ids=torch.arange(5)[None],
        language_model__model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
    )
    report = load(tmp_path)[1]
    assert report.reasons == {"old files store it; it is computed from the configuration": 2}
    assert report.dropped_temporal_parameters == 0


def test_missing_keys_are_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    edit(tmp_path, language_model__lm_head__weight=None)
    assert "tensor 'language_model.lm_head.weight' is missing" in fails(tmp_path)
    edit(tmp_path, **{f"multi_modal_projector__linear_{i}__{p}": None for i in (1, 2) for p in ("weight", "bias")})
    assert "5 tensors ('multi_modal_projector.linear_1.bias'" in fails(tmp_path)


def test_keys_that_the_configuration_has_no_room_for_are_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    edit(tmp_path, language_model__model__layers__3__mlp__up_proj__weight=torch.ones(112, 64))
    message = fails(tmp_path)
    assert "'language_model.model.layers.3.mlp.up_proj.weight' is not part of the model" in message


def test_shapes_that_differ_are_shown(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, temporal_frames=3)
    edit(tmp_path, language_model__model__norm__weight=torch.ones(65))
    assert "'language_model.model.norm.weight' has shape (65,), config.json asks for (64,)" in fails(tmp_path)
    edit(tmp_path, language_model__model__norm__weight=torch.ones(64))
    edit(tmp_path, video_tower__vision_model__encoder__layers__1__temporal_embedding=torch.ones(1, 4, 32))
    assert "has shape (1, 4, 32), config.json asks for (1, 3, 32)" in fails(tmp_path, temporal=True)


def test_weights_must_be_floating_point(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    edit(tmp_path, language_model__model__norm__weight=torch.ones(64, dtype=torch.int32))
    assert "stored as I32" in fails(tmp_path)


@pytest.mark.parametrize("stored", [False, True])
def test_tied_embeddings(tmp_path: Path, stored: bool) -> None:
    state = write_tiny_checkpoint(tmp_path, tiny_hf_config(tie_word_embeddings=True))
    if stored:
        embedding = state["model.language_model.embed_tokens.weight"]
        edit(tmp_path, language_model__lm_head__weight=embedding)
    model, report = load(tmp_path)
    assert model.text_tower.lm_head.weight is model.text_tower.token_embedding.weight
    assert len(report.ignored) == int(stored)
    assert all("the same weights as 'language_model" in reason for reason in report.reasons)
    assert report.parameters == sum(tensor.numel() for tensor in state.values())


def test_tied_embeddings_that_differ(tmp_path: Path) -> None:
    state = write_tiny_checkpoint(tmp_path, tiny_hf_config(tie_word_embeddings=True))
    edit(tmp_path, language_model__lm_head__weight=state["model.language_model.embed_tokens.weight"] + 1)
    message = fails(tmp_path)
    assert "'language_model.lm_head.weight' and 'language_model.model.embed_tokens.weight' differ" in message


def test_shared_towers(tmp_path: Path) -> None:
    state = write_tiny_checkpoint(tmp_path, tiny_hf_config(filmstrip={"shared_towers": True}))
    assert "differ" in fails(tmp_path)
    tower = {name: tensor for name, tensor in state.items() if name.startswith("model.image_tower.")}
    disk = {name.replace("model.image_tower.", "video_tower.vision_model."): tensor for name, tensor in tower.items()}
    edit(tmp_path, **{name.replace(".", "__"): tensor for name, tensor in disk.items()})
    model, twice = load(tmp_path)
    assert model.video_tower is model.image_tower and len(twice.ignored) == len(disk)
    edit(tmp_path, **{name.replace(".", "__"): None for name in disk})
    once = load(tmp_path)[1]
    assert once.ignored == () and once.weights_hash == twice.weights_hash


def test_dtypes(tmp_path: Path) -> None:
    state = write_tiny_checkpoint(tmp_path)
    model, report = load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (report.dtype_on_disk, report.dtype) == ("float32", "bfloat16")
    assert torch.equal(model.projector.linear_1.weight, state["model.multi_modal_projector.linear_1.weight"].bfloat16())
    edit(tmp_path, language_model__model__norm__weight=torch.ones(64, dtype=torch.bfloat16))
    mixed, report = load(tmp_path)
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert "mixes the dtypes BF16, F32" in report.warnings[0]


def test_stored_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    model, _ = load(tmp_path)
    start = min(parameter.data_ptr() for parameter in model.parameters())
    end = max(parameter.data_ptr() + parameter.nbytes for parameter in model.parameters())
    assert end - start < path.stat().st_size, "all parameters should lie in one map of the file"


def test_the_hash_follows_content_and_not_packaging(tmp_path: Path) -> None:
    def value(name: str, layout: DiskLayout, seed: int) -> str:
        write_tiny_checkpoint(tmp_path / name, layout=layout, seed=seed)
        return load(tmp_path / name)[1].weights_hash

    first = value("a", "A", 0)
    assert first == value("c", "C", 0) and first.startswith("sha256:")
    assert first != value("other", "A", 1)


def test_large_weights_are_sampled_and_the_hash_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(tensor: torch.Tensor) -> str:
        collected = WeightsDigest(tensor.nbytes)
        collected.add("a", "F32", tensor)
        return collected.value()

    tensor = torch.zeros(100_000)
    monkeypatch.setattr("filmstrip.checkpoint.digest.FULL_BYTES", 1000)
    sampled = digest(tensor)
    assert sampled.startswith("sha256-sampled:")
    for index, seen in ((0, False), (25_000, True), (50_000, False), (74_900, True), (99_999, False)):
        changed = tensor.clone()
        changed[index] = 1
        assert (digest(changed) != sampled) == seen


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    for directory, words in ((tmp_path / "x", "not a directory"), (tmp_path, "no config.json")):
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(directory)
    write_json(tmp_path / "config.json", tiny_hf_config())
    with pytest.raises(CheckpointError, match=r"neither model.safetensors"):
        read_checkpoint(tmp_path)


def test_unusual_things_are_reported(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    write_json(tmp_path / "generation_config.json", {"num_beams": 4})
    (tmp_path / "preprocessor_config.json").unlink()
    warnings = load(tmp_path)[1].warnings
    assert ["num_beams" in warnings[1], "no preprocessor_config.json" in warnings[0]] == [True, True]


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512"), (1_900_000, "1.9 M"), (303_179_776, "303 M"), (7_366_279_168, "7.4 B")]
)
def test_short_counts(number: int, text: str) -> None:
    assert short_count(number) == text


def test_a_weight_that_does_not_fit_the_dtype_is_named(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weights[name][0, 0] = 1e6
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*does not fit float16"):
        load(tmp_path, dtype=torch.float16)
