"""`filmstrip demo` and the bundled model: the first minute."""

import json
import os
import pty
import sys
from pathlib import Path
from subprocess import Popen

import pytest
from PIL import Image

import filmstrip
from filmstrip.cli.demo import draw_demo, tally
from filmstrip.world import score
from tests.e2e.helpers import Result, decode_all, needs_bundled_model, refused, succeed


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run with the bundled model, and the folder it wrote to."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return succeed("demo", "--out", out), out


@needs_bundled_model
def test_it_writes_the_clip_and_a_contact_sheet(demo: tuple[Result, Path]) -> None:
    result, out = demo
    assert sorted(path.name for path in out.iterdir()) == ["clip-5.mp4", "clip-5.png"]
    times, pixels = decode_all(out / "clip-5.mp4", [0])
    _, frames, questions = draw_demo(5)
    assert len(times) == len(frames)
    assert pixels[0].shape == frames[0].shape
    # The file is the drawn clip: the codec changes a grey level here and there, not the picture.
    assert abs(pixels[0].astype(int) - frames[0].astype(int)).mean() < 4
    sheet = Image.open(out / "clip-5.png")
    assert sheet.width > 8 * 100 and sheet.height > 150 + 20 * len(questions)
    assert f"drew {out / 'clip-5.mp4'}: {len(frames)} frames" in result.err


@needs_bundled_model
def test_it_prints_an_answer_to_each_question(demo: tuple[Result, Path]) -> None:
    result, out = demo
    _, _, questions = draw_demo(5)
    asked, answers = result.out.splitlines()[::2], result.out.splitlines()[1::2]
    assert asked == [question.text for question in questions]
    assert len(answers) == len(questions) == 6 and all(answers)
    scores = [score(question, answer) for question, answer in zip(questions, answers, strict=True)]
    assert f"{scores.count(1)} of 6 right" in result.err
    assert f"{tally(scores)} · contact sheet: {out / 'clip-5.png'}" in result.err
    wrong = [question for question, answer in zip(questions, answers, strict=True) if score(question, answer) < 1]
    assert result.err.count("the truth: ") == len(wrong)


@needs_bundled_model
def test_the_first_question_of_the_demo_is_answered_right(demo: tuple[Result, Path]) -> None:
    result, _ = demo
    question = draw_demo(5)[2][0]
    assert score(question, result.out.splitlines()[1]) == 1, (question, result.out)


@needs_bundled_model
def test_the_bundled_model_is_better_than_chance_over_several_demos(tmp_path: Path) -> None:
    """Not its accuracy (scripts/evaluate_tiny.py measures that), but that what is bundled is the trained one."""
    asked = []
    for seed in range(1, 5):
        asked += succeed("demo", "--seed", str(seed), "--out", tmp_path, "--json").json["questions"]
    wrong = [(one["question"], one["answer"], one["truth"]) for one in asked if one["score"] < 1]
    # The best constant answer of each family gets 0.3 on the whole (60 clips).
    assert sum(one["score"] for one in asked) / len(asked) > 0.6, wrong


@needs_bundled_model
def test_json(demo: tuple[Result, Path], tmp_path: Path) -> None:
    content = succeed("demo", "--out", tmp_path, "--json").json
    assert set(content) == {"clip", "sheet", "seed", "right", "questions"}
    assert [one["answer"] for one in content["questions"]] == demo[0].out.splitlines()[1::2]
    assert content["right"] == sum(one["score"] == 1 for one in content["questions"])
    assert Path(content["clip"]).is_file() and Path(content["sheet"]).is_file()


@needs_bundled_model
def test_tiny_is_the_default_and_loads_by_name(demo: tuple[Result, Path]) -> None:
    _, out = demo
    question = draw_demo(5)[2][0].text
    card = succeed("ask", out / "clip-5.mp4", question, "--json").json
    assert card["model"] == "tiny"
    assert card["answer"] == filmstrip.load("tiny", quiet=True).ask(out / "clip-5.mp4", question).text
    assert card["warnings"] == []


def test_the_tally_tells_right_from_partly_right() -> None:
    assert tally([1.0, 1.0, 0.0]) == "2 of 3 right"
    assert tally([1.0, 0.0, 0.6]) == "1 of 3 right, one 60% right"


def demo_at_a_terminal(out: Path, checkpoint: Path, **variables: str) -> bytes:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "filmstrip.cli.main", "demo", "--out", str(out), "-m", str(checkpoint)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"} | variables
    process = Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    assert process.wait(60) == 0
    os.close(ours)
    assert b"contact sheet" in seen
    return seen


def test_frames_are_drawn_at_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    seen = demo_at_a_terminal(tmp_path, checkpoint)
    assert seen.count("▀".encode()) >= 8 * 22 * 11  # eight frames, 22 columns, 11 lines of two pixels each


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_frames_without_colours(checkpoint: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    assert "▀".encode() not in demo_at_a_terminal(tmp_path, checkpoint, **variables)


def test_the_same_seed_draws_the_same_clip() -> None:
    first, again, other = draw_demo(3), draw_demo(3), draw_demo(4)
    assert (first[1] == again[1]).all() and not (first[1] == other[1]).all()
    assert [question.text for question in first[2]] == [question.text for question in again[2]]


def test_a_model_of_any_training_can_be_shown(checkpoint: Path, tmp_path: Path) -> None:
    result = succeed("demo", "-m", checkpoint, "--out", tmp_path, "--json")
    assert json.loads(result.out)["right"] <= 6
    assert "Video-LLaVA without temporal attention" in result.err


def test_a_seed_below_zero() -> None:
    assert "Invalid value for '--seed'" in refused("demo", "--seed", "-1")


@needs_bundled_model
def test_the_embedded_model_is_called_a_toy_once(demo: tuple[Result, Path]) -> None:
    _, out = demo
    assert succeed("ask", out / "clip-5.mp4", "How many shapes are there?").err.count("is a toy") == 1
    assert succeed("chat", out / "clip-5.mp4", stdin="How many?\nWhich colour?\n").err.count("is a toy") == 1


@needs_bundled_model
def test_a_quantised_copy_is_called_a_toy_and_another_small_model_is_not(
    demo: tuple[Result, Path], checkpoint: Path, tmp_path: Path
) -> None:
    succeed("quantize", "tiny", tmp_path / "copy")
    question = (demo[1] / "clip-5.mp4", "How many?", "--max-new-tokens", "2", "--model")
    assert f"{tmp_path / 'copy'} is a toy" in succeed("ask", *question, tmp_path / "copy").err
    assert "is a toy" not in succeed("ask", *question, checkpoint).err
