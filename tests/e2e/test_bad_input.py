"""Bad input: one clear line on standard error, exit code 2, nothing on standard output, no traceback."""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from filmstrip.testing.tiny import tiny_hf_config, write_json, write_tiny_checkpoint
from tests.e2e.helpers import encode, moving_square, png_header, refused, run, spawn, succeed, write_audio


@pytest.fixture
def refuse(checkpoint: Path) -> Callable[..., str]:
    """`filmstrip ask` with the random checkpoint, for input that must be refused."""

    def call(*arguments: str | Path) -> str:
        return refused("ask", *arguments, "--model", checkpoint, "--max-new-tokens", "2")

    return call


# Media


def test_missing_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "nope.mp4"
    assert refuse(path, "what") == f"{path}: no such file"


def test_directory(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert refuse(tmp_path, "what") == f"{tmp_path}: is a directory, not an image or video"


def test_text_named_mp4(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("This is not a video.\n" * 50, encoding="utf-8")
    assert refuse(path, "what") == f"{path}: is not an image or video that can be read"


def test_empty_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    assert refuse(path, "what") == f"{path}: the file is empty"


def test_audio_only(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = write_audio(tmp_path / "sound.m4a")
    assert refuse(path, "what") == f"{path}: has no video stream"


def test_truncated_video_is_used_as_far_as_it_goes(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(30)]
    path = encode(tmp_path / "cut.mp4", noise, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = succeed("ask", path, "what", "-m", checkpoint, "--max-new-tokens", "2", "--json")
    warning = next(line for line in result.err.splitlines() if line.startswith("warning: "))
    assert str(path) in warning and "frames could be decoded" in warning
    assert 0 < result.json["media"][0]["total_frames"] < 30
    assert f"warning: {result.json['warnings'][0]}" == warning


def test_truncated_video_without_its_index_is_refused(refuse: Callable[..., str], clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert refuse(path, "what").startswith(f"{path}: ")


def test_one_pixel_is_an_image(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / "dot.png")
    result = succeed("ask", tmp_path / "dot.png", "what", "-m", checkpoint, "--max-new-tokens", "2", "--json")
    assert result.json["media"][0]["kind"] == "image"


def test_a_huge_image_is_refused_before_it_is_decoded(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = png_header(tmp_path / "huge.png", 20_000, 20_000)
    refuse(tmp_path / "nothing.png", "what")  # imports are paid for
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    message = refuse(path, "what")
    assert message == f"{path}: the image is far above the limit of 64,000,000 pixels; make it smaller first"
    path = png_header(tmp_path / "large.png", 9_000, 9_000)
    assert refuse(path, "what").startswith(f"{path}: 9000x9000 pixels are above the limit of 64,000,000")
    assert time.perf_counter() - started < 2
    # In kilobytes; the decoded image would take 1.2 gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_long_strip_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = png_header(tmp_path / "strip.png", 60_000, 10)
    assert "too long and narrow" in refuse(path, "what")


def test_an_animation_is_a_video(checkpoint: Path, tmp_path: Path) -> None:
    path = encode(tmp_path / "square.gif", moving_square(10), codec="gif")
    result = succeed("ask", path, "what", "-m", checkpoint, "--max-new-tokens", "2", "--json")
    (medium,) = result.json["media"]
    assert (medium["kind"], medium["total_frames"], len(medium["frames"])) == ("video", 10, 8)


def test_media_are_looked_at_before_weights_are_read(clip: Path, photo: Path, tmp_path: Path) -> None:
    """A model of many gigabytes should not be read to find a typing mistake in a file's name."""
    write_tiny_checkpoint(tmp_path / "model")
    damaged = tmp_path / "notes.mp4"
    damaged.write_text("no video")
    _set_config(tmp_path / "model", text_intermediate_size=999)  # found out when weights are read
    assert "config.json asks for" in refused("ask", clip, "what", "-m", tmp_path / "model")
    assert "is not an image or video" in refused("ask", photo, damaged, "what", "-m", tmp_path / "model")
    assert "top_p" in refused("ask", clip, "what", "--top-p", "2", "-m", tmp_path / "model")
    assert "placeholder" in refused("ask", clip, "what <video>", "-m", tmp_path / "model")
    assert "top_p" in refused("chat", clip, "--top-p", "2", "-m", tmp_path / "model")


# Prompts


def test_more_placeholders_than_media(refuse: Callable[..., str], clip: Path) -> None:
    message = refuse(clip, "what is in <video> and <image>")
    assert "2 video placeholders for 1 video (40 visual tokens)" in message
    assert f"placeholder 1 (in media) is video 0 ({clip}), 40 tokens" in message
    assert "placeholder 2 (in user 1) has no video" in message
    assert "1 image placeholder for 0 images" in message


def test_no_question() -> None:
    assert refused("ask").startswith("Missing argument 'QUESTION'")


def test_the_last_argument_is_a_file(refuse: Callable[..., str], clip: Path) -> None:
    assert refuse(clip) == f"the last argument must be the question, in quotes, but {str(clip)!r} is a file"
    assert refuse("What happens", clip).endswith(f"in quotes, but {str(clip)!r} is a file")  # the wrong way round


def test_the_last_argument_is_a_directory(refuse: Callable[..., str], clip: Path) -> None:
    message = f"the last argument must be the question, in quotes, but {str(clip.parent)!r} is a directory"
    assert refuse(clip, clip.parent) == message


def test_a_question_without_quotes(refuse: Callable[..., str], clip: Path) -> None:
    message = "What: no such file; the question is the last argument, in quotes"
    assert refuse(clip, "What", "happens?") == message


def test_the_last_argument_looks_like_a_file(refuse: Callable[..., str], clip: Path) -> None:
    assert " but 'typo.MP4' looks like a file (and there is none of this name)" in refuse(clip, "typo.MP4")


def test_an_empty_question(refuse: Callable[..., str], clip: Path) -> None:
    assert refuse(clip, "  ") == "the question is empty"


def test_a_very_long_question_is_a_question(checkpoint: Path) -> None:
    """Longer than a file name may be, which the check for a forgotten question must survive."""
    succeed("ask", "what is " * 60, "-m", checkpoint, "--max-new-tokens", "2")


def test_bytes_that_are_no_text(checkpoint: Path, clip: Path) -> None:
    done = spawn("ask", clip, b"what \xff is", "-m", checkpoint)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"filmstrip: the prompt contains bytes that are not valid Unicode text\n"


def test_a_file_name_that_is_no_text_works(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.mp4"
    shutil.copy(clip, path)
    done = spawn("ask", path, "what", "-m", checkpoint, "--max-new-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["media"][0]["total_frames"] == 24


def test_questions_in_a_pipe_that_are_no_text(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in most people's locale
    done = spawn("chat", "-m", checkpoint, "--max-new-tokens", "2", stdin=b"what \xff\n")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(b"filmstrip: the questions on standard input are not UTF-8 text")
    assert b"Traceback" not in done.stderr


def test_a_chat_question_with_a_placeholder_too_many(checkpoint: Path, clip: Path) -> None:
    result = run("chat", clip, "-m", checkpoint, "--max-new-tokens", "2", stdin="what is <video>\n")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("filmstrip: the prompt has 2 video placeholders for 1 video")


def test_a_bad_line_in_a_pipe_does_not_lose_the_answers_before_it(checkpoint: Path, clip: Path) -> None:
    arguments = ("chat", clip, "-m", checkpoint, "--max-new-tokens", "2", "--json")
    result = run(*arguments, stdin="what is this\nwhat is <video>\nnever asked\n")
    assert result.code == 2
    assert [turn["question"] for turn in result.json["turns"]] == ["what is this"]
    assert result.err.splitlines()[-1].startswith("filmstrip: the prompt has ")
    assert run(*arguments, stdin="what is <video>\n").out == ""


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-p", "2"], "top_p must be above 0 and at most 1, is 2.0"),
        (["--top-k", "-1"], "top_k must not be negative"),
        (["--min-p", "1.5"], "min_p must be between 0 and 1"),
        (["--cache", "x", "--cache-limit", "inf"], "--cache-limit is a number of gigabytes"),
        (["--temperature", "-1"], "temperature must not be negative, is -1.0"),
        (["--temperature", "nan"], "temperature must be a finite number, not nan"),
        (["--temperature", "inf"], "temperature must be a finite number, not inf"),
        (["--repetition-penalty", "0"], "repetition_penalty must be above 0"),
        (["--repetition-penalty", "nan"], "repetition_penalty must be a finite number, not nan"),
        (["--repetition-penalty", "inf"], "repetition_penalty must be a finite number, not inf"),
        (["--max-new-tokens", "10000000000000000000"], "max_new_tokens must be at most 1,000,000"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--seed", "99999999999999999999"], "the seed must be from 0 to 9223372036854775807"),
        (["--frames", "0"], "Invalid value for '--frames'"),
        (["--frames", "many"], "Invalid value for '--frames'"),
        (["--frames", "5000"], "5000 frames are more than the limit of 1024"),
        (["--max-new-tokens", "0"], "Invalid value for '--max-new-tokens'"),
        (["--stop", ""], "a stop string must not be empty"),
        (["--device", "nonsense"], "unknown device 'nonsense' (for example cpu, cuda"),
        (["--device", "meta"], "device 'meta' is not available"),
        (["--preset", "orignal"], "unknown preset 'orignal' (known: original, transformers); did you mean 'original'?"),
        (["--prompt", "vicuna"], "unknown prompt 'vicuna' (known: vicuna-v1,"),
        (["--transform", "clip"], "unknown image transform 'clip'"),
        (["--temporal"], "has no weights for temporal attention; the preset 'transformers' needs none"),
        (["--sampler", "uniform"], "unknown frame sampler 'uniform'"),
        (["--sampler", "times"], "--sampler times needs --at"),
        (["--sampler", "indices"], "--sampler indices needs --at"),
        (["--sampler", "fps"], "--sampler fps needs --fps"),
        (["--at", "1,2"], "--at goes with --sampler times or --sampler indices"),
        (["--sampler", "times", "--at", "one"], "--at takes comma-separated numbers, not 'one'"),
        (["--sampler", "indices", "--at", "1.5"], "--at takes comma-separated"),
        (["--sampler", "times", "--at", "9"], "there is no frame at 9 s, the clip lasts 3.000 s"),
        (["--sampler", "indices", "--at", "24"], "there is no frame 24, the clip has 24"),
        (["--fps", "0"], "fps must be a number above zero"),
        (["--fps", "2", "--sampler", "times"], "--fps goes with --sampler fps, not times"),
        (["--frames", "4", "--fps", "2"], "--frames goes with the uniform samplers"),
        (["--unknown"], "No such option: --unknown"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_options(checkpoint: Path, clip: Path, options: list[str], words: str) -> None:
    assert words in refused("ask", clip, "what", "--model", checkpoint, *options)


def test_unknown_dtype(refuse: Callable[..., str], clip: Path) -> None:
    assert refuse(clip, "what", "--dtype", "int9").startswith("unknown dtype 'int9' (known: float32, bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(refuse: Callable[..., str], clip: Path) -> None:
    assert refuse(clip, "what", "--device", "cuda").startswith("device 'cuda' is not available: ")


def test_more_tokens_than_memory(checkpoint: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("filmstrip.api.stream.new_cache", full)
    result = run("ask", clip, "what", "-m", checkpoint, "--max-new-tokens", "1000000")
    assert (result.code, result.out) == (2, "")
    assert "filmstrip: there is not enough memory for a key/value cache of" in result.err.splitlines()[-1]


def test_output_that_cannot_be_written(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    """Found out before the model is loaded and the answer is made."""
    message = refused("ask", clip, "what", "-m", checkpoint, "--run-card", tmp_path / "no" / "card.json")
    assert message == f"{tmp_path / 'no' / 'card.json'}: cannot write here (there is no directory {tmp_path / 'no'})"
    assert "is a directory" in refused("ask", clip, "what", "-m", checkpoint, "--run-card", tmp_path).lower()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "cannot write here" in refused("demo", "-m", checkpoint, "--out", tmp_path / "file" / "demo")


# Checkpoints


def _copy(checkpoint: Path, to: Path) -> Path:
    shutil.copytree(checkpoint, to)
    return to


def _set_config(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", tiny_hf_config(**changes))


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
    )


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zero bytes": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "truncated": (_cut_weights, "model.safetensors"),
    "LFS pointer": (_lfs_pointer, "LFS"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "model type": (lambda folder: _set_config(folder, model_type="video_lava"), "video_lava"),
    "rope scaling": (
        lambda folder: _set_config(folder, text_rope_scaling={"rope_type": "telescope", "factor": 2.0}),
        "telescope",
    ),
    "shapes": (lambda folder: _set_config(folder, text_intermediate_size=128), "config.json asks for"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer is no JSON": (lambda folder: (folder / "tokenizer.json").write_text("no"), "tokenizer.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(checkpoint: Path, clip: Path, tmp_path: Path, damage: str) -> None:
    spoil, words = DAMAGES[damage]
    folder = _copy(checkpoint, tmp_path / "model")
    spoil(folder)
    message = refused("ask", clip, "what", "--model", folder, "--max-new-tokens", "2")
    assert words in message and str(folder) in message


@pytest.mark.parametrize("verb", [["ask", "what", "-m"], ["chat", "-m"], ["show"]], ids=lambda verb: verb[0])
def test_names_that_are_no_checkpoint(verb: list[str], tmp_path: Path) -> None:
    assert refused(*verb, tmp_path / "missing").startswith(f"no checkpoint '{tmp_path / 'missing'}'")
    (tmp_path / "file").touch()
    assert refused(*verb, tmp_path / "file") == f"{tmp_path / 'file'} is a file; a checkpoint is a directory"
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(*verb, tmp_path / "empty")
    assert "nobody/nothing-at-all" in refused(*verb, "nobody/nothing-at-all")
    assert "no checkpoint ''" in refused(*verb, "")


# The form of the message


def test_debug_shows_the_traceback(checkpoint: Path, tmp_path: Path) -> None:
    done = spawn("ask", tmp_path / "nope.mp4", "what", "-m", checkpoint, "--debug")
    assert b"Traceback (most recent call last)" in done.stderr and b"no such file" in done.stderr
    assert done.stderr.splitlines()[-1] == f"filmstrip: {tmp_path / 'nope.mp4'}: no such file".encode()
    assert done.returncode == 2
    plain = spawn("ask", tmp_path / "nope.mp4", "what", "-m", checkpoint)
    assert plain.stderr == f"filmstrip: {tmp_path / 'nope.mp4'}: no such file\n".encode()
    assert (plain.returncode, plain.stdout) == (2, b"")


def test_file_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    message = refused("ask", tmp_path / "a\x1b[2Jb\nc.mp4", "what")
    assert message.endswith("a␛[2Jb c.mp4: no such file")
