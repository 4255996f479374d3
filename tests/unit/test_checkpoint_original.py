"""Directories in the original release's layout: where the towers come from, which ids media get, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.api import load
from filmstrip.api.load import open_model
from filmstrip.checkpoint import pku_towers
from filmstrip.checkpoint.load import WITHOUT_TEMPORAL, LoadReport, load_weights
from filmstrip.checkpoint.pku_towers import IN_CHECKPOINT, TowerSources
from filmstrip.checkpoint.read import read_any, read_checkpoint, read_config
from filmstrip.errors import CheckpointError, FilmstripError
from filmstrip.models.video_llava import VideoLlava
from filmstrip.testing.original import Place, languagebind_config, original_config, write_original_checkpoint
from filmstrip.testing.tiny import tiny_vocabulary_size, write_json, write_tiny_checkpoint, write_tiny_tokenizer

VOCABULARY = tiny_vocabulary_size()
TEMPORAL_PARAMETERS = 4 * (3 * 32 + 4 * (32 * 32 + 32) + 2 * 32)  # layers x (embedding, q k v out, norm)


def fill(
    directory: Path, towers: TowerSources | None = None, temporal: bool | None = None
) -> tuple[VideoLlava, LoadReport]:
    checkpoint = read_checkpoint(directory, towers)
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config(temporal_attention=temporal))
    return model, load_weights(model, checkpoint)


def one_line(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(FilmstripError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("towers", ["main", "inside", "both"])
def test_every_tensor_lands_wherever_it_lies(tmp_path: Path, towers: Place, pickled: bool) -> None:
    state = write_original_checkpoint(tmp_path, towers=towers, pickled=pickled)
    model, report = fill(tmp_path)
    assert report.used == len(state) and report.layout == "P"
    assert report.parameters == sum(tensor.numel() for tensor in state.values())
    assert (
        report.description == "Video-LLaVA with temporal attention, original PKU layout (P), float32, 284 k parameters"
    )
    block = "model.video_tower.video_tower.encoder.layers.2"
    temporal = model.video_tower.blocks[2].temporal
    assert temporal is not None
    assert torch.equal(temporal.embedding, state[f"{block}.temporal_embedding"][0])
    assert torch.equal(temporal.attention.out_proj.bias, state[f"{block}.temporal_attn.out_proj.bias"])
    assert torch.equal(model.projector.linear_2.weight, state["model.mm_projector.2.weight"])
    assert torch.equal(model.text_tower.lm_head.weight, state["lm_head.weight"])
    image = state["model.image_tower.image_tower.post_layernorm.bias"]
    assert torch.equal(model.image_tower.post_norm.bias, image)


def test_the_same_weights_have_one_hash_wherever_they_lie(tmp_path: Path) -> None:
    hashes = set()
    for number, (towers, pickled) in enumerate([("main", False), ("inside", True), ("both", False)]):
        write_original_checkpoint(tmp_path / str(number), towers=towers, pickled=pickled)  # type: ignore[arg-type]
        hashes.add(fill(tmp_path / str(number))[1].weights_hash)
    assert len(hashes) == 1


def test_what_is_not_used_is_reported(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path / "inside", towers="inside")
    _, report = fill(tmp_path / "inside")
    assert report.warnings == () and sum(report.reasons.values()) == 4  # CLIP's text model, twice
    write_original_checkpoint(tmp_path / "both", towers="both")
    _, report = fill(tmp_path / "both")
    assert report.reasons == {IN_CHECKPOINT: 2 * (4 * 16 + 7 + 2) + 44}
    assert all(f"left out, as {IN_CHECKPOINT}" in warning for warning in report.warnings)
    assert len(report.warnings) == 2


def test_the_main_checkpoint_wins_over_the_towers_directories(tmp_path: Path) -> None:
    state = write_original_checkpoint(tmp_path, towers="both")
    path = tmp_path / "video_tower" / "model.safetensors"
    other = {name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}
    save_file(other, path)
    model, _ = fill(tmp_path)
    assert torch.equal(
        model.video_tower.class_embedding, state["model.video_tower.video_tower.embeddings.class_embedding"]
    )
    path.write_bytes(b"damaged, and not needed")
    assert any("is not a safetensors file; not needed" in warning for warning in fill(tmp_path)[1].warnings)


def test_temporal_attention_can_be_left_out_by_name(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path, towers="inside")
    model, report = fill(tmp_path, temporal=False)
    assert model.video_tower.blocks[0].temporal is None
    assert report.dropped_temporal_parameters == TEMPORAL_PARAMETERS
    assert report.reasons[WITHOUT_TEMPORAL] == 44
    assert report.description.startswith("Video-LLaVA without temporal attention")


def test_towers_without_it_are_said_to_have_none(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path, frames=0)
    assert read_checkpoint(tmp_path).temporal_frames is None
    assert "no weights for temporal attention" in one_line(fill, tmp_path, temporal=True)
    assistant = load(tmp_path, quiet=True)
    assert assistant.warnings == (
        "preset 'original' has temporal attention, but this checkpoint holds no weights for it",
    )
    write_json(tmp_path / "video_tower" / "config.json", languagebind_config(3))
    assert "no weights for temporal attention" in one_line(fill, tmp_path)


def test_towers_may_be_given(tmp_path: Path) -> None:
    state = write_original_checkpoint(tmp_path / "whole", towers="inside")
    elsewhere = {}
    for tower in ("image_tower", "video_tower"):
        elsewhere[tower] = tmp_path / f"my {tower}"
        shutil.move(tmp_path / "whole" / tower, elsewhere[tower])
    model, report = fill(tmp_path / "whole", TowerSources(**elsewhere))
    assert report.used == len(state)
    assert torch.equal(model.image_tower.post_norm.bias, state["model.image_tower.image_tower.post_layernorm.bias"])
    opened = open_model(tmp_path / "whole", **elsewhere)
    assert opened.config.video_tower.temporal_attention and opened.config.video_tower.activation == "gelu"
    message = one_line(read_checkpoint, tmp_path / "whole", TowerSources(image_tower=tmp_path / "nowhere"))
    assert "no checkpoint" in message


def test_towers_are_fetched_by_the_ids_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights only where the checkpoint holds none of that tower."""
    state = write_original_checkpoint(tmp_path / "whole", towers="inside")
    hub = {}
    for tower, name in (("image_tower", "LanguageBind_Image"), ("video_tower", "LanguageBind_Video_merge")):
        hub[f"LanguageBind/{name}"] = tmp_path / name
        shutil.move(tmp_path / "whole" / tower, tmp_path / name)
    asked = []

    def fetch(repo_id: str, *, weights: bool = True) -> Path:
        asked.append((repo_id, weights))
        return hub[repo_id]

    monkeypatch.setattr(pku_towers, "fetch", fetch)
    assert fill(tmp_path / "whole")[1].used == len(state)
    assert asked == [(name, True) for name in hub]
    save_file(state, tmp_path / "whole" / "model.safetensors")
    asked.clear()
    assert fill(tmp_path / "whole")[1].used == len(state)
    assert asked == [(name, False) for name in hub]


def test_a_tower_that_cannot_be_had_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_original_checkpoint(tmp_path, towers="inside")
    shutil.rmtree(tmp_path / "video_tower")

    def fetch(repo_id: str, *, weights: bool = True) -> Path:
        raise CheckpointError("the hub cannot be reached")

    monkeypatch.setattr(pku_towers, "fetch", fetch)
    message = one_line(read_checkpoint, tmp_path)
    assert "no video_tower/config.json; give the tower with --video-tower" in message
    assert "LanguageBind/LanguageBind_Video_merge: the hub cannot be reached" in message


@pytest.mark.parametrize("named", ["/etc", "../towers", "./tower", "towers", "~/towers", 7, "a/b/../c"])
def test_paths_in_a_configuration_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Any) -> None:
    write_original_checkpoint(tmp_path / "whole", config=original_config(mm_video_tower=named))
    shutil.move(tmp_path / "whole" / "video_tower", tmp_path / "towers")
    monkeypatch.chdir(tmp_path)
    message = one_line(read_checkpoint, tmp_path / "whole")
    assert "paths of a checkpoint are not followed: give the tower with --video-tower" in message


def test_a_directory_of_the_same_name_is_not_what_the_configuration_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_original_checkpoint(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "video_tower", tmp_path / "LanguageBind" / "LanguageBind_Video_merge")
    shutil.rmtree(tmp_path / "whole" / "video_tower")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached" in one_line(read_checkpoint, tmp_path / "whole")


def test_towers_are_chosen_for_this_layout_alone(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    assert "for the original release's layout only" in one_line(
        read_checkpoint, tmp_path, TowerSources(video_tower=tmp_path)
    )


def test_media_have_ids_behind_the_vocabulary(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path)
    config = read_config(tmp_path).model
    assert (config.text.vocab_size, config.image_token_id, config.video_token_id) == (
        VOCABULARY,
        VOCABULARY,
        VOCABULARY + 1,
    )
    write_tiny_tokenizer(tmp_path)  # one that was given tokens for media, in another order of ids
    config = read_config(tmp_path).model
    assert (config.image_token_id, config.video_token_id, config.pad_token_id) == (VOCABULARY, VOCABULARY + 1, 0)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"<image>"', '"<other>"'))
    config = read_config(tmp_path).model
    assert config.video_token_id == VOCABULARY + 1
    assert config.image_token_id == VOCABULARY + 3, "an id that is no token's"


def test_the_configuration_that_results(tmp_path: Path) -> None:
    config = original_config(mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch", rope_theta=5e5)
    write_original_checkpoint(tmp_path, config=config)
    parsed = read_config(tmp_path)
    model = parsed.model
    assert (model.select_layers, model.select_strategy, model.text.rope.theta) == ((-1,), "full", 5e5)
    assert (model.image_tower.activation, model.image_tower.temporal_attention) == ("gelu", False)
    assert (model.video_tower.temporal_attention, model.video_tower.temporal_frames) == (True, 3)
    assert (parsed.extras.preset, parsed.extras.trained_frames) == ("original", 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'; supported: mlp2x_gelu"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True; tokens around media are not supported"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'; supported: patch, cls_patch"),
        ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer is 'last'; expected a whole number"),
        ({"mm_vision_select_layer": 9}, "vision feature layer 9 is not among the image tower's 5 hidden states"),
        ({"mm_hidden_size": 48}, "mm_hidden_size is 48; the image tower's config.json says 32"),
        ({"architectures": ["LlavaLlamaForSomething"]}, "supported with mm_image_tower and mm_video_tower"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_original_checkpoint(tmp_path, config=original_config(**changes))
    message = one_line(read_checkpoint, tmp_path)
    assert words in message and str(tmp_path / "config.json") in message


def test_a_tower_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path)
    write_json(tmp_path / "image_tower" / "config.json", {"vision_config": {"model_type": "siglip_vision_model"}})
    assert "image_tower/config.json, vision_config: model_type is 'siglip_vision_model'" in one_line(
        read_checkpoint, tmp_path
    )
    write_json(tmp_path / "image_tower" / "config.json", languagebind_config(hidden_size=48))
    assert "mm_hidden_size is 32; the image tower's config.json says 48" in one_line(read_checkpoint, tmp_path)


def test_the_original_llava_is_not_this_layout(tmp_path: Path) -> None:
    config = original_config(mm_image_tower=None, mm_video_tower=None, mm_vision_tower="openai/clip")
    write_original_checkpoint(tmp_path, config=config)
    assert "the original LLaVA's layout (mm_vision_tower), which is not read" in one_line(read_any, tmp_path)


def test_missing_keys_are_named_as_they_would_be_stored(tmp_path: Path) -> None:
    write_original_checkpoint(tmp_path, towers="inside")
    path = tmp_path / "video_tower" / "model.safetensors"
    state = load_file(path)
    del state["vision_model.pre_layrnorm.bias"]
    save_file(state, path)
    assert "tensor 'vision_model.pre_layrnorm.bias' is missing" in one_line(fill, tmp_path)
    main = load_file(tmp_path / "model.safetensors")
    del main["model.mm_projector.0.bias"]
    save_file(main, tmp_path / "model.safetensors")
    assert "'model.mm_projector.0.bias'" in one_line(fill, tmp_path)


@pytest.mark.parametrize("damage", ["absent", "broken"])
def test_placeholder_ids_without_a_readable_tokenizer(tmp_path: Path, damage: str) -> None:
    """Media then get the ids behind the vocabulary; whoever needs the tokenizer says what is wrong with it."""
    write_original_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json"):
        (tmp_path / name).unlink(missing_ok=True)
    if damage == "broken":
        (tmp_path / "tokenizer.json").write_text("{")
    config = read_checkpoint(tmp_path).config
    assert (config.image_token_id, config.video_token_id) == (config.text.vocab_size, config.text.vocab_size + 1)
