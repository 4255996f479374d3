"""The original release's layout and plain towers on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from filmstrip.api import load
from filmstrip.errors import CheckpointError
from filmstrip.testing.original import write_original_checkpoint
from filmstrip.testing.tiny import tiny_hf_config, tiny_state, tiny_vocabulary_size, write_json
from tests.e2e.helpers import refused, run, succeed

FRAMES = 8
TOKENS_PER_FRAME = 5
VOCABULARY = tiny_vocabulary_size()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pickled shards with a tower in each of its directories; no tokens for media in the tokenizer."""
    path = tmp_path_factory.mktemp("original") / "model"
    write_original_checkpoint(path, frames=FRAMES, towers="inside", pickled=True)
    return path


def test_a_question_about_a_video(original: Path, clip: Path) -> None:
    answer = succeed("ask", clip, "what moves", "--model", original, "--max-new-tokens", "6", "--json").json
    card = answer["run_card"]
    assert card["preset"]["name"] == "original" and card["temporal_attention"] is True
    assert (card["layout"], card["weights_hash"][:7]) == ("P", "sha256:")
    assert answer["warnings"] == []
    assert answer["visual_tokens"] == FRAMES * TOKENS_PER_FRAME
    assert card["prompt"].startswith("A chat between a curious user") and len(answer["media"][0]["frames"]) == FRAMES


def test_the_same_answer_from_the_command_line_and_the_api(original: Path, clip: Path) -> None:
    line = succeed("ask", clip, "what moves", "-m", original, "--max-new-tokens", "6", "--json").json
    answer = load(original, quiet=True).ask(clip, "what moves", max_new_tokens=6)
    assert line["answer"] == answer.text


def test_no_token_behind_the_vocabulary_is_ever_drawn(original: Path, media: Path) -> None:
    assistant = load(original, quiet=True)
    for seed in range(3):
        answer = assistant.ask(media / "photo.png", "what", max_new_tokens=30, temperature=50.0, seed=seed)
        assert answer.token_ids and max(answer.token_ids) < VOCABULARY
    assert assistant.model.config.image_token_id == VOCABULARY


def test_text_is_cut_where_media_stand(original: Path, media: Path) -> None:
    """Each piece begins with a space token, media are one run of the id behind the vocabulary, BOS comes once."""
    opened = load(original, quiet=True)
    plan = opened.request([media / "photo.png"], "what is this").prompt.plan
    ids = list(plan.input_ids)
    run_of_media = [index for index, token_id in enumerate(ids) if token_id == VOCABULARY]
    assert run_of_media == list(range(run_of_media[0], run_of_media[0] + 4))
    tokenizer = opened.processor.tokenizer
    assert ids.count(tokenizer.bos_id) == 1 and ids[0] == tokenizer.bos_id
    assert tokenizer.id_to_token(ids[run_of_media[-1] + 1]) == "▁"


def test_the_other_program_says_what_it_does_without(original: Path, clip: Path) -> None:
    answer = succeed(
        "ask", clip, "what moves", "-m", original, "--preset", "transformers", "--max-new-tokens", "3", "--json"
    )
    warnings = answer.json["warnings"] + answer.err.splitlines()
    assert any("the tokenizer has no tokens for media" in text for text in warnings)
    assert any("parameters of temporal attention" in text for text in warnings)


def test_a_conversation(original: Path, clip: Path) -> None:
    result = run("chat", clip, "-m", original, "--max-new-tokens", "3", "--json", stdin="what moves\nwhere\n")
    assert result.code == 0, result.err
    assert len(result.json["turns"]) == 2


def test_saving_needs_embeddings_for_media(original: Path, tmp_path: Path) -> None:
    """What is saved must load in transformers, which looks placeholders up."""
    with pytest.raises(CheckpointError, match=r"no embeddings for media; `filmstrip convert` adds them"):
        load(original, quiet=True).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_towers_from_elsewhere(original: Path, clip: Path, tmp_path: Path) -> None:
    expected = succeed("ask", clip, "what moves", "-m", original, "--max-new-tokens", "4", "--json").json["answer"]
    model = tmp_path / "model"
    shutil.copytree(original, model)
    towers = [tmp_path / "image", tmp_path / "video"]
    for name, place in zip(("image_tower", "video_tower"), towers, strict=True):
        shutil.move(model / name, place)
    given = ("--image-tower", towers[0], "--video-tower", towers[1])
    line = succeed("ask", clip, "what moves", "-m", model, *given, "--max-new-tokens", "4", "--json")
    assert line.json["answer"] == expected
    assert succeed("show", model, *given, "--json").json["description"].startswith("Video-LLaVA with temporal")
    assert "no checkpoint" in refused("ask", clip, "what", "-m", model, "--video-tower", tmp_path / "none", *given[:2])


def test_show(original: Path) -> None:
    content = succeed("show", original, "--json").json
    state = write_original_checkpoint(original.parent / "again", frames=FRAMES)
    assert content["parameters"]["total"]["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert content["parameters"]["total"]["tensors"] == len(state)
    assert content["layout"] == "P" and content["config"]["image_token_id"] == VOCABULARY
    assert "original PKU layout (P)" in succeed("show", original).out


def write_llama(directory: Path) -> Path:
    """A plain LLaMA in one pickled file."""
    directory.mkdir()
    config = tiny_hf_config()
    write_json(directory / "config.json", config["text_config"])
    inside = "model.language_model."
    state = {
        name.replace(inside, "model."): tensor
        for name, tensor in tiny_state(config).items()
        if name.startswith(inside) or name == "lm_head.weight"
    }
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def test_towers_on_their_own(original: Path, clip: Path, tmp_path: Path) -> None:
    llama = write_llama(tmp_path / "llama")
    for tower, title in ((llama, "LLaMA text tower"), (original / "video_tower", "CLIP vision tower with temporal")):
        content = succeed("show", tower, "--json").json
        assert content["description"].startswith(title) and "tokens_per_image" not in content
        assert title in succeed("show", tower).out
        message = refused("ask", clip, "what moves", "-m", tower)
        assert f"is only a part of a model ({title}" in message and "`filmstrip assemble`" in message


def test_a_malicious_checkpoint_runs_nothing(original: Path, clip: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(original, model)
    index = json.loads((model / "pytorch_model.bin.index.json").read_text())
    shard = model / sorted(set(index["weight_map"].values()))[0]

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Evil()}, shard)
    assert "only tensors are read, and nothing is executed" in refused("ask", clip, "what", "-m", model)
    assert not (tmp_path / "ran").exists()
