"""The doctor on every family of checkpoint: the original release, sisters, towers on their own, transformers' saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.checkpoint.assemble import AssembleOptions, assemble
from filmstrip.checkpoint.pku_towers import TowerSources
from filmstrip.diagnostics.doctor import Diagnosis, Finding, diagnose
from filmstrip.errors import CheckpointError
from filmstrip.testing.original import Place, original_config, original_state, write_original_checkpoint
from filmstrip.testing.random_reference import reference_model
from filmstrip.testing.tiny import (
    tiny_hf_config,
    tiny_sister_config,
    tiny_state,
    write_json,
    write_tiny_checkpoint,
    write_tiny_processor,
    write_tiny_tokenizer,
)

CONFIG = original_config(torch_dtype="float32")
VIDEO_QUERY = "encoder.layers.1.self_attn.q_proj.weight"


def serious(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity != "note"}


def only(diagnosis: Diagnosis, code: str) -> Finding:
    (finding,) = (finding for finding in diagnosis.findings if finding.code == code)
    return finding


def change(path: Path, **changes: Any) -> None:
    """Replace tensors of a safetensors file; `__` is a dot, None removes."""
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        state.pop(key) if tensor is None else state.update({key: tensor})
    save_file(state, path, {"format": "pt"})


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("towers", ["main", "inside", "both"])
def test_the_original_release_is_sound(tmp_path: Path, towers: Place, pickled: bool) -> None:
    write_original_checkpoint(tmp_path, config=CONFIG, towers=towers, pickled=pickled)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    assert diagnosis.sentence.startswith("Video-LLaVA with temporal attention, original PKU layout (P), float32,")
    assert diagnosis.facts["layout"] == "P"
    left_out = [finding for finding in diagnosis.findings if finding.code == "tensors-left-out"]
    assert len(left_out) == {"main": 0, "inside": 4, "both": 2}[towers], left_out


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("towers", ["main", "inside"])
def test_values_are_read_wherever_the_towers_lie(tmp_path: Path, towers: Place, pickled: bool) -> None:
    state = original_state()
    state[f"model.video_tower.video_tower.{VIDEO_QUERY}"][2, 3] = float("nan")
    state["model.norm.weight"].zero_()
    write_original_checkpoint(tmp_path, config=CONFIG, state=state, towers=towers, pickled=pickled)
    diagnosis = diagnose(tmp_path)
    assert serious(diagnosis) == {"not-finite", "all-zero"}
    place = "video_tower/vision_model." if towers == "inside" else "model.video_tower.video_tower."
    finding = only(diagnosis, "not-finite")
    assert finding.subject == place + VIDEO_QUERY and "[2, 3]" in finding.what


def test_a_damaged_tower_directory_is_named(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path, config=CONFIG, towers="inside")
    path = tmp_path / "video_tower" / "model.safetensors"
    change(path, **{f"vision_model__{VIDEO_QUERY}".replace(".", "__"): None})
    diagnosis = diagnose(tmp_path)
    assert serious(diagnosis) == {"tensors-missing"}
    assert VIDEO_QUERY in only(diagnosis, "tensors-missing").what
    path.write_bytes(path.read_bytes()[:-5])
    assert only(diagnose(tmp_path), "file-truncated").subject == "video_tower/model.safetensors"


def test_towers_given_by_hand(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path / "model", config=CONFIG, towers="inside")
    for name in ("image_tower", "video_tower"):
        (tmp_path / "model" / name).rename(tmp_path / name)
    diagnosis = diagnose(tmp_path / "model", towers=TowerSources(tmp_path / "image_tower", tmp_path / "video_tower"))
    assert diagnosis.sound and "272 k" not in diagnosis.sentence
    assert diagnosis.facts["tensors"] > 200


def test_towers_that_are_elsewhere(tmp_path: Path) -> None:
    """Offline their configuration cannot be had, which is the one thing that is wrong; nothing is reported missing."""
    write_original_checkpoint(tmp_path, config=CONFIG, towers="inside")
    (tmp_path / "image_tower" / "model.safetensors").unlink()
    (tmp_path / "image_tower" / "config.json").unlink()
    (tmp_path / "image_tower").rmdir()
    diagnosis = diagnose(tmp_path)
    assert serious(diagnosis) == {"config-unsupported"}
    assert "--image-tower" in only(diagnosis, "config-unsupported").what
    assert only(diagnosis, "tower-elsewhere").subject == "image_tower"


def test_placeholders_past_the_vocabulary_are_by_design_in_the_original_only(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path / "original", config=CONFIG)
    assert diagnose(tmp_path / "original").sound
    write_tiny_checkpoint(tmp_path / "hub", tiny_hf_config(image_token_index=900))
    assert "placeholder-outside-vocabulary" in serious(diagnose(tmp_path / "hub"))


def test_a_pickle_that_is_damaged(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path, config=CONFIG, pickled=True)
    path = tmp_path / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert only(diagnose(tmp_path), "file-damaged").subject == path.name
    path.unlink()
    assert only(diagnose(tmp_path), "shard-missing").subject == path.name


def test_pickles_beside_safetensors_are_a_note(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound and only(diagnosis, "weights-twice").severity == "note"


@pytest.mark.parametrize("layout", ["A", "C"])
@pytest.mark.parametrize(("model_type", "title"), [("llava", "LLaVA-1.5,"), ("llava_next_video", "LLaVA-NeXT-Video,")])
def test_sisters_are_sound(tmp_path: Path, model_type: Any, title: str, layout: Any) -> None:
    write_tiny_checkpoint(tmp_path, tiny_sister_config(model_type), layout=layout)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    assert diagnosis.sentence.startswith(title) and diagnosis.facts["layout"] == layout


def test_image_and_video_ids_of_the_sister_swapped(tmp_path: Path) -> None:
    """Trap 23: the two families have them the other way round."""
    config = tiny_sister_config("llava_next_video")
    image, video = config["image_token_index"], config["video_token_index"]
    write_tiny_checkpoint(tmp_path, config)
    write_json(tmp_path / "config.json", config | {"image_token_index": video, "video_token_index": image})
    assert serious(diagnose(tmp_path)) == {"placeholder-is-another-token"}


def write_text_tower(directory: Path, *, bare: bool = False) -> None:
    config = tiny_hf_config()
    text = config["text_config"] | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    state = {
        name.replace("model.language_model.", "" if bare else "model."): tensor
        for name, tensor in tiny_state(config).items()
        if "language_model" in name or name == "lm_head.weight"
    }
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", text)
    write_tiny_tokenizer(directory)
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def write_vision_tower(directory: Path) -> None:
    config = tiny_hf_config()
    prefix = "model.image_tower."
    state = {
        f"vision_model.{name.removeprefix(prefix)}": tensor
        for name, tensor in tiny_state(config).items()
        if name.startswith(prefix)
    }
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", config["vision_config"] | {"torch_dtype": "float32"})
    save_file(state, directory / "model.safetensors", {"format": "pt"})


def test_towers_on_their_own_are_sound(tmp_path: Path) -> None:
    write_text_tower(tmp_path / "text")
    write_vision_tower(tmp_path / "vision")
    text, vision = diagnose(tmp_path / "text"), diagnose(tmp_path / "vision")
    assert text.sound, text.findings
    assert text.sentence.startswith("LLaMA text tower, LlamaForCausalLM layout, float32, ")
    assert vision.sound, vision.findings
    assert vision.sentence.startswith("CLIP vision tower, CLIPModel layout, float32, ")


def test_a_decoder_without_a_head_is_sound_as_a_tower(tmp_path: Path) -> None:
    """transformers' LlamaModel. A LlamaForCausalLM that has lost its head is another matter."""
    write_text_tower(tmp_path, bare=True)
    change(tmp_path / "model.safetensors", lm_head__weight=None)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    assert "cannot generate" in only(diagnosis, "head-missing").meaning
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' is missing"):
        assemble(tmp_path, tmp_path, AssembleOptions())
    write_text_tower(tmp_path)
    change(tmp_path / "model.safetensors", lm_head__weight=None)
    assert serious(diagnose(tmp_path)) == {"tensors-missing"}


def test_faults_in_towers_on_their_own(tmp_path: Path) -> None:
    write_text_tower(tmp_path / "text")
    write_vision_tower(tmp_path / "vision")
    change(
        tmp_path / "text" / "model.safetensors", model__norm__weight=torch.full((64,), float("nan")), more=torch.ones(1)
    )
    assert serious(diagnose(tmp_path / "text")) == {"not-finite", "tensors-foreign"}
    table = torch.randn(10, 32)
    change(tmp_path / "vision" / "model.safetensors", vision_model__embeddings__position_embedding__weight=table)
    assert "3 x 3 patches" in only(diagnose(tmp_path / "vision"), "position-table").what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["video_llava", "llava", "llava_next_video"])
def test_what_transformers_writes_is_sound(tmp_path: Path, model_type: Any, dtype: torch.dtype) -> None:
    config = tiny_hf_config() if model_type == "video_llava" else tiny_sister_config(model_type)
    reference_model(config).to(dtype).save_pretrained(tmp_path)
    write_tiny_tokenizer(tmp_path, model_type=model_type)
    write_tiny_processor(tmp_path, config, "nested")
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    assert str(dtype).removeprefix("torch.") in diagnosis.sentence


def test_what_transformers_writes_with_defaults_and_in_shards_is_sound(tmp_path: Path) -> None:
    """The lengths in its config.json are its own defaults, whatever the towers are."""
    config = tiny_hf_config(image_seq_length=None, video_seq_length=None, torch_dtype=None)
    reference_model(config).save_pretrained(tmp_path, max_shard_size=150_000)
    write_tiny_tokenizer(tmp_path)
    write_tiny_processor(tmp_path, config)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    assert len(diagnosis.facts["files"]) > 2


@pytest.mark.parametrize("inner", [True, None], ids=["said twice", "said once"])
def test_tied_and_saved_by_transformers_is_sound(tmp_path: Path, inner: bool | None) -> None:
    """Said once, transformers writes the inner flag all the same: false, its default, which it never reads."""
    config = tiny_hf_config(tie_word_embeddings=True, text_tie_word_embeddings=inner)
    reference_model(config).save_pretrained(tmp_path)
    write_tiny_tokenizer(tmp_path)
    write_tiny_processor(tmp_path, config)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound, diagnosis.findings
    codes = [finding.code for finding in diagnosis.findings]
    assert ("tie-stated-twice" in codes) == (inner is None)


def test_flags_of_tying_that_disagree_are_a_warning_where_a_head_is_stored(tmp_path: Path) -> None:
    """There they lead to two models: one with that head, one without."""
    write_tiny_checkpoint(tmp_path)
    config = tiny_hf_config(tie_word_embeddings=True, text_tie_word_embeddings=False)
    write_json(tmp_path / "config.json", config)
    assert serious(diagnose(tmp_path)) == {"tie-stated-twice", "tied-differ"}
