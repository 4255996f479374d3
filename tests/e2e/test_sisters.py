"""LLaVA-1.5 and LLaVA-NeXT-Video from the command line and from Python, on random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from filmstrip.api import load
from filmstrip.errors import PromptError
from filmstrip.testing.tiny import tiny_sister_config, write_tiny_checkpoint
from tests.e2e.helpers import encode, moving_square, refused, run, succeed

SHORT = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "llava"
    write_tiny_checkpoint(path, tiny_sister_config("llava", text_max_position_embeddings=2048))
    return path


@pytest.fixture(scope="module")
def next_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "next"
    config = tiny_sister_config("llava_next_video", text_max_position_embeddings=2048)
    write_tiny_checkpoint(path, config, layout="C", processor="nested")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long.mp4` (40 frames), `portrait.png` and `wide.png`."""
    path = tmp_path_factory.mktemp("media")
    encode(path / "long.mp4", moving_square(40, width=96))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(path / "portrait.png")
    Image.fromarray(rng.integers(0, 256, (33, 250, 3), dtype=np.uint8)).save(path / "wide.png")
    return path


def test_an_image_and_llava(llava: Path, folder: Path) -> None:
    result = succeed("ask", folder / "portrait.png", "what is this", "--model", llava, "--json", *SHORT)
    answer = result.json
    assert answer["visual_tokens"] == 16
    assert answer["run_card"]["prompt"] == "USER: <image>\nwhat is this ASSISTANT:"
    assert answer["preset"] == "transformers"
    assert "tiles" not in answer["run_card"]["media"][0]


def test_a_video_and_llava(llava: Path, folder: Path) -> None:
    """Both verbs say it before a question could be asked."""
    clip = folder / "long.mp4"
    assert (
        refused("ask", clip, "what is this", "--model", llava) == f"{clip} is a video, and LLaVA-1.5 takes images only"
    )
    assert "takes images only" in refused("chat", clip, "--model", llava, stdin="what\n")
    with pytest.raises(PromptError, match="takes images only"):
        load(llava, quiet=True).chat(clip)


def test_images_in_tiles_and_a_video(next_video: Path, folder: Path) -> None:
    media = (folder / "portrait.png", folder / "long.mp4", folder / "wide.png")
    result = succeed("ask", *media, "what is this", "--model", next_video, "--explain", *SHORT)
    shown = " ".join(result.err.split())
    assert "image 0 base" in shown and "portrait.png on 2x2 tiles, 8 rows of 6 and a newline" in shown
    assert "image 1 tiles" in shown and "wide.png on 1x3 tiles" in shown
    assert "video 0 frame 31" in shown and "video 0 frame 32" not in shown  # 32 frames, as it was trained
    assert "warning" not in shown


def test_the_run_card_of_an_image_in_tiles(next_video: Path, folder: Path) -> None:
    answer = succeed("ask", folder / "wide.png", "what", "--model", next_video, "--json", *SHORT).json
    card = answer["run_card"]
    assert card["media"][0]["tiles"] == {"rows": 1, "columns": 3, "pixels": 56}
    assert (card["media"][0]["height"], card["media"][0]["width"]) == (33, 250)
    spans = {span["label"]: span["last"] - span["first"] + 1 for span in card["token_map"]["spans"]}
    assert spans["image 0 base"] == 16
    assert spans["image 0 base"] + spans["image 0 tiles"] == answer["visual_tokens"]


def test_the_program_of_the_original_release_has_no_tiles(next_video: Path, folder: Path) -> None:
    line = refused("ask", folder / "wide.png", "what", "--model", next_video, "--preset", "original")
    assert "LLaVA-NeXT-Video cuts images into tiles" in line and "choose 'clip-pil-bicubic'" in line


def test_a_batch_equals_its_rows(next_video: Path, folder: Path) -> None:
    """Rows of unequal tiles, of a video, of both and of nothing, padded to one length."""
    assistant = load(next_video, quiet=True)
    requests = [
        ([folder / "portrait.png", folder / "wide.png"], "what is this"),
        (folder / "long.mp4", "what moves left"),
        ([folder / "wide.png", folder / "long.mp4"], "how many"),
        ([], "what"),
    ]
    together = assistant.ask_batch(requests, max_new_tokens=6)
    alone = [assistant.ask(*request, max_new_tokens=6) for request in requests]
    assert [answer.prompt.plan for answer in together] == [answer.prompt.plan for answer in alone]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_a_chat_reads_tiles_and_frames_once(next_video: Path, folder: Path) -> None:
    assistant = load(next_video, quiet=True)
    media = [folder / "portrait.png", folder / "long.mp4"]
    chat = assistant.chat(media)
    first = chat.say("what is this", max_new_tokens=6)
    assert first.token_ids == assistant.ask(media, "what is this", max_new_tokens=6).token_ids
    second = chat.say("how many", max_new_tokens=6)
    assert second.prefix_reused > first.prompt.plan.visual_tokens
    whole = torch.tensor([second.prompt.plan.input_ids])
    batch = assistant.batch([second.prompt])
    ids = assistant.model.generate(whole, *batch.media[:2], image_sizes=batch.image_sizes, max_new_tokens=6)
    assert ids[0].tolist() == list(second.token_ids)


def test_chat_and_show_on_the_command_line(next_video: Path, llava: Path, folder: Path) -> None:
    result = run("chat", folder / "portrait.png", "--model", next_video, "--json", *SHORT, stdin="what\nhow many\n")
    assert result.code == 0 and len(result.json["turns"]) == 2
    for model, title in ((next_video, "LLaVA-NeXT-Video"), (llava, "LLaVA-1.5")):
        content = succeed("show", model, "--json").json
        assert content["description"].startswith(title)
        assert content["parameters"]["total"]["parameters"] == content["stored"]["bytes"] // 4


@pytest.mark.parametrize("sister", ["llava", "next_video"])
def test_saved_and_loaded_is_the_same(
    sister: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = load(request.getfixturevalue(sister), quiet=True)
    copy = load(first.save(tmp_path / "copy"), quiet=True)
    answers = [model.ask(folder / "portrait.png", "what is this", max_new_tokens=6) for model in (first, copy)]
    assert answers[0].token_ids == answers[1].token_ids
    assert copy.origin.weights_hash == first.origin.weights_hash
    assert copy.selection == first.selection
    assert copy.config == first.config
