"""The command line as a user sees it: `ask`, `chat`, `show`. Random weights, so answers are noise."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from filmstrip.testing.tiny import tiny_hf_config, tiny_state
from tests.e2e.helpers import refused, spawn, succeed

ANSWER_KEYS = {
    "answer",
    "model",
    "preset",
    "media",
    "prompt_tokens",
    "visual_tokens",
    "generated_tokens",
    "prefix_reused",
    "token_ids",
    "stop_reason",
    "timings",
    "warnings",
    "run_card",
}
CARD_KEYS = {
    "model",
    "description",
    "layout",
    "weights_hash",
    "preset",
    "temporal_attention",
    "dtype",
    "compiled",
    "compute",
    "kv",
    "quantization",
    "decoding",
    "device",
    "media",
    "prompt",
    "token_map",
    "sampling",
    "versions",
}
PER_FRAME, PER_IMAGE = (
    5,
    4,
)  # visual tokens of the tiny checkpoint: 2x2 patches, a video's frames keep their class token


@pytest.fixture
def ask(checkpoint: Path) -> Any:
    """`filmstrip ask ... --json` with the random checkpoint and four tokens."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        return succeed("ask", *arguments, "--model", checkpoint, "--max-new-tokens", "4", "--json").json

    return call


def test_ask_prints_the_answer_and_nothing_else_on_stdout(checkpoint: Path, clip: Path) -> None:
    arguments = ("ask", clip, "what is this", "-m", checkpoint, "--max-new-tokens", "6")
    result = succeed(*arguments)
    summary, last = result.err.splitlines()
    assert summary.startswith(f"{checkpoint}: Video-LLaVA without temporal attention, hub layout (A), float32, 272 k")
    assert "preset transformers (frames uniform-exclusive, pixels clip-pil-bicubic, prompt chat-template)" in summary
    assert re.fullmatch(
        r"8 frames · \d+ prompt tokens \(40 visual\) · first after \d+\.\d\d s · 6 tokens at \d+/s · ended by length",
        last,
    )
    assert result.out == succeed(*arguments, "--json").json["answer"] + "\n"


def test_json_has_every_field_and_figures_that_fit_together(ask: Any, checkpoint: Path, clip: Path) -> None:
    content = ask(clip, "what is this")
    assert set(content) == ANSWER_KEYS
    assert set(content["run_card"]) == CARD_KEYS
    assert content["model"] == str(checkpoint)
    assert content["preset"] == content["run_card"]["preset"]["name"] == "transformers"
    (medium,) = content["media"]
    assert (medium["path"], medium["kind"], medium["total_frames"]) == (str(clip), "video", 24)
    assert [frame["index"] for frame in medium["frames"]] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert [frame["time"] for frame in medium["frames"]] == [0.375 * place for place in range(8)]  # 8 frames a second
    assert content["visual_tokens"] == 8 * PER_FRAME
    assert content["generated_tokens"] == len(content["token_ids"]) == 4
    assert content["stop_reason"] == "length"
    assert set(content["timings"]) == {"decode_media", "vision", "prefill", "first_token", "decode"}
    assert all(seconds > 0 for seconds in content["timings"].values())
    card = content["run_card"]
    assert card["token_map"]["prompt_tokens"] == content["prompt_tokens"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", card["weights_hash"])
    assert re.fullmatch("[0-9a-f]{64}", card["media"][0]["pixels_sha256"])
    assert {"python", "filmstrip", "torch"} <= set(card["versions"])
    assert card["versions"]["torch"] == torch.__version__
    assert card["sampling"]["max_new_tokens"] == 4


def test_images_and_videos_mixed(ask: Any, media: Path) -> None:
    paths = [media / name for name in ("photo.png", "clip.mp4", "wide.jpg", "other.mp4")]
    content = ask(*paths, "what is different")
    assert [medium["kind"] for medium in content["media"]] == ["image", "video", "image", "video"]
    assert content["visual_tokens"] == 2 * PER_IMAGE + 2 * 8 * PER_FRAME
    labels = [span["label"] for span in content["run_card"]["token_map"]["spans"]]
    assert {"image 0", "image 1", "video 0 frame 7", "video 1 frame 7"} <= set(labels)
    # The pixels of each kind are told apart in the run card: four media, four hashes.
    assert len({medium["pixels_sha256"] for medium in content["run_card"]["media"]}) == 4


def test_a_question_without_media(ask: Any) -> None:
    content = ask("what is this")
    assert (content["media"], content["visual_tokens"]) == ([], 0)


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        (["--frames", "4"], [0, 6, 12, 18]),
        (["--sampler", "uniform-inclusive"], [0, 3, 6, 9, 13, 16, 19, 23]),
        (["--sampler", "uniform-exclusive", "--frames", "3"], [0, 8, 16]),
        (["--fps", "2"], [0, 4, 8, 12, 16, 20]),
        (["--sampler", "fps", "--fps", "1"], [0, 8, 16]),
        (["--sampler", "times", "--at", "0,0.5,2.9"], [0, 4, 23]),
        (["--sampler", "indices", "--at", "5,0,-1"], [5, 0, 23]),
    ],
)
def test_frame_samplers(ask: Any, clip: Path, options: list[str], indices: list[int]) -> None:
    content = ask(clip, "what is this", *options)
    assert [frame["index"] for frame in content["media"][0]["frames"]] == indices
    assert content["visual_tokens"] == len(indices) * PER_FRAME
    sampler = options[1] if options[0] == "--sampler" else "fps" if options[0] == "--fps" else "uniform-exclusive"
    assert content["run_card"]["preset"]["frame_sampler"] == sampler
    assert content["preset"] == ("transformers" if sampler == "uniform-exclusive" else "transformers, changed")


def test_a_seed_makes_sampling_repeatable(ask: Any, clip: Path) -> None:
    arguments = (clip, "what is this", "--temperature", "2", "--max-new-tokens", "12")
    first, again, other = (ask(*arguments, "--seed", seed)["token_ids"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_seed_is_chosen_and_recorded_when_none_is_given(ask: Any, clip: Path) -> None:
    arguments = (clip, "what is this", "--temperature", "2", "--max-new-tokens", "12")
    content = ask(*arguments)
    seed = content["run_card"]["sampling"]["seed"]
    assert isinstance(seed, int)
    assert ask(*arguments, "--seed", str(seed))["token_ids"] == content["token_ids"]
    assert ask(clip, "what is this")["run_card"]["sampling"]["seed"] is None  # greedy draws nothing


def test_filters_that_leave_one_token_are_greedy(ask: Any, clip: Path) -> None:
    greedy = ask(clip, "what is this")["token_ids"]
    for option in (["--top-k", "1"], ["--top-p", "0.0000001"], ["--min-p", "1"]):
        assert ask(clip, "what is this", "--temperature", "2", "--seed", "3", *option)["token_ids"] == greedy, option
    assert ask(clip, "what is this", "--temperature", "2", "--seed", "3")["token_ids"] != greedy


def test_repetition_penalty_is_applied(ask: Any, clip: Path) -> None:
    ids = ask(clip, "what is this", "--repetition-penalty", "1000000", "--max-new-tokens", "8")["token_ids"]
    assert len(set(ids)) == len(ids)


def test_a_stop_string_ends_the_answer_before_itself(ask: Any, clip: Path) -> None:
    for seed in range(20):  # until the random model says something with a few different characters in it
        arguments = (clip, "what is this", "--temperature", "2", "--seed", str(seed), "--max-new-tokens", "24")
        whole = ask(*arguments)
        letters = [letter for letter in whole["answer"] if letter.isprintable() and letter not in " \ufffd"]
        if len(letters) > 4:
            break
    letter = next(letter for letter in letters if letter != letters[0])
    content = ask(*arguments, "--stop", "never this", "--stop", letter)
    assert content["stop_reason"] == "stop_string"
    assert content["answer"] == whole["answer"][: whole["answer"].index(letter)].strip()
    assert content["token_ids"] == whole["token_ids"][: len(content["token_ids"])] != whole["token_ids"]


def test_the_token_map_covers_the_prompt(checkpoint: Path, clip: Path) -> None:
    arguments = ("ask", clip, "what is this", "-m", checkpoint, "--max-new-tokens", "2")
    content = succeed(*arguments, "--json", "--explain").json
    result = succeed(*arguments, "--explain")
    assert result.out == content["answer"] + "\n"  # `> answer.txt` gets the answer and nothing else
    lines = result.err.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("token map"))
    header, *rows, total = lines[start : lines.index("", start)]
    assert header.split() == ["token", "map", "tokens", "positions", "text"]
    # label, tokens, first position, last position if there are several
    parsed = [re.match(r"(\S.*?) {2,}(\d+) {2,}(\d+)(?:–(\d+))?(?: |$)", row) for row in rows]
    found = [(row[1], int(row[2]), int(row[3]), int(row[4] or row[3])) for row in parsed if row]
    assert len(found) == len(rows)
    assert sum(tokens for _, tokens, _, _ in found) == content["prompt_tokens"] == int(total.split()[1])
    spans = content["run_card"]["token_map"]["spans"]
    assert [(span["label"], span["first"], span["last"]) for span in spans] == [row[:1] + row[2:] for row in found]
    assert "clip.mp4 at 1.12 s" in "".join(row for row in rows if row.startswith("video 0 frame 3"))


def test_the_run_card_file_is_the_one_in_the_json(ask: Any, clip: Path, tmp_path: Path) -> None:
    content = ask(clip, "what is this", "--run-card", tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8")) == content["run_card"]


def test_presets_are_whole_programs(ask: Any, clip: Path) -> None:
    cards = {name: ask(clip, "what is this", "--preset", name)["run_card"] for name in ("original", "transformers")}
    assert cards["original"]["preset"] == {
        "name": "original",
        "frame_sampler": "uniform-inclusive",
        "image_transform": "languagebind",
        "prompt": "vicuna-v1",
        "temporal_attention": False,  # asked for, but this checkpoint has no weights for it: a warning says so
        "split_at_media": True,
    }
    assert cards["transformers"]["preset"] == {
        "name": "transformers",
        "frame_sampler": "uniform-exclusive",
        "image_transform": "clip-pil-bicubic",
        "prompt": "chat-template",
        "temporal_attention": False,
        "split_at_media": False,
    }
    assert cards["original"]["prompt"].startswith("A chat between a curious user")
    assert cards["transformers"]["prompt"] == "USER: <video>\nwhat is this ASSISTANT:"
    assert cards["original"]["media"][0]["pixels_sha256"] != cards["transformers"]["media"][0]["pixels_sha256"]


def test_single_choices_change_a_preset_and_its_name(ask: Any, clip: Path) -> None:
    content = ask(clip, "what is this", "--transform", "languagebind", "--prompt", "hf-plain")
    assert content["preset"] == "transformers, changed"
    assert content["run_card"]["preset"]["image_transform"] == "languagebind"
    assert content["run_card"]["preset"]["prompt"] == "hf-plain"


def test_temporal_attention_on_and_off(temporal_checkpoint: Path, clip: Path) -> None:
    arguments = ("ask", clip, "what is this", "-m", temporal_checkpoint, "--max-new-tokens", "4")
    results = {preset: succeed(*arguments, "--preset", preset, "--json") for preset in ("original", "transformers")}
    assert "Video-LLaVA with temporal attention" in results["original"].err
    assert "Video-LLaVA without temporal attention" in results["transformers"].err
    config = tiny_hf_config()
    count = sum(tensor.numel() for name, tensor in tiny_state(config, temporal_frames=8).items() if "temporal_" in name)
    assert f"warning: left out: {count:,} parameters of temporal attention" in results["transformers"].err
    assert "left out" not in results["original"].err
    assert [results[name].json["run_card"]["temporal_attention"] for name in results] == [True, False]
    # Frames that see each other give other numbers than frames that do not, all else being equal.
    same = ("--preset", "original", "--json")
    card = succeed(*arguments, *same, "--no-temporal").json["run_card"]
    assert (card["temporal_attention"], card["preset"]["name"]) == (False, "original, changed")
    assert card["weights_hash"] != results["original"].json["run_card"]["weights_hash"]
    assert card["prompt"] == results["original"].json["run_card"]["prompt"]


def test_a_frame_count_the_model_was_not_trained_with_is_warned_about_once(checkpoint: Path, clip: Path) -> None:
    result = succeed("ask", clip, "what is this", "-m", checkpoint, "--frames", "6", "--max-new-tokens", "2")
    assert result.err.count("has 6 frames, but the model was trained with 8") == 1


def test_a_prompt_past_the_trained_positions_is_warned_about(checkpoint: Path, clip: Path) -> None:
    result = succeed("ask", clip, "what is this now? " * 60, "-m", checkpoint, "--max-new-tokens", "2")
    assert "but the model was trained for 512 positions" in result.err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(checkpoint: Path, clip: Path, dtype: str) -> None:
    result = succeed("ask", clip, "what", "-m", checkpoint, "--dtype", dtype, "--max-new-tokens", "2", "--json")
    assert result.json["run_card"]["dtype"] == dtype
    assert f"float32, 272 k parameters, run in {dtype}" in result.err


def test_a_system_line_stands_in_front(ask: Any, clip: Path) -> None:
    content = ask(clip, "what is this", "--prompt", "vicuna-v1", "--system", "Answer in one word.")
    assert content["run_card"]["prompt"].startswith("Answer in one word. USER: <video>\nwhat is this ASSISTANT:")
    assert content["run_card"]["token_map"]["spans"][1]["label"] == "system"


def test_a_cache_spares_the_next_command_the_video(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    arguments = ("-m", checkpoint, "--max-new-tokens", "3", "--json")
    cached = (*arguments, "--cache", tmp_path / "cache")
    first = succeed("ask", clip, "what is this", *cached).json
    second = succeed("ask", clip, "how many", *cached).json
    assert first["prefix_reused"] == 0 and second["prefix_reused"] > second["visual_tokens"]
    assert second["token_ids"] == succeed("ask", clip, "how many", *arguments).json["token_ids"]
    spoken = succeed("chat", clip, *cached, stdin="is it left").json["turns"][0]
    assert spoken["prefix_reused"] == second["prefix_reused"]
    for path in (tmp_path / "cache").iterdir():  # a damaged cache is a slow one, not a wrong one
        path.write_bytes(path.read_bytes()[:100])
    result = succeed("ask", clip, "how many", *cached)
    assert result.json["token_ids"] == second["token_ids"] and result.json["prefix_reused"] == 0
    assert "is damaged" in result.err
    assert "cannot be a cache directory" in refused("ask", clip, "how many", "-m", checkpoint, "--cache", clip)


def test_chat_through_a_pipe_reuses_what_was_read(checkpoint: Path, clip: Path) -> None:
    arguments = ("chat", clip, "-m", checkpoint, "--max-new-tokens", "3")
    result = succeed(*arguments, stdin="\nwhat is this\n\n  \nhow many\n\n")
    assert len(result.out.splitlines()) == 2  # empty lines only separate questions
    assert "clip.mp4: video, 8 of 24 frames" in result.err
    first, second = succeed(*arguments, "--json", stdin="what is this\nhow many").json["turns"]  # so does the end
    assert set(first) == ANSWER_KEYS | {"question"}
    assert (first["question"], second["question"]) == ("what is this", "how many")
    assert first["prefix_reused"] == 0
    assert second["prefix_reused"] >= first["prompt_tokens"]
    assert f"({second['visual_tokens']} visual, {second['prefix_reused']} already read)" in result.err
    assert result.out == f"{first['answer']}\n{second['answer']}\n"


def test_the_summary_names_the_sampler_that_runs(checkpoint: Path, clip: Path) -> None:
    common = ("-m", checkpoint, "--max-new-tokens", "2", "--preset", "transformers")
    inclusive, fps = ("--sampler", "uniform-inclusive"), ("--fps", "2")
    for result in (
        succeed("ask", clip, "what", *common, *inclusive),
        succeed("chat", clip, *common, *inclusive, stdin="what\n"),
    ):
        assert "preset transformers, changed (frames uniform-inclusive, pixels clip" in result.err
    assert "preset transformers, changed (frames fps, pixels clip" in succeed("ask", clip, "what", *common, *fps).err
    assert "preset transformers (frames uniform-exclusive" in succeed("ask", clip, "what", *common).err


def test_chat_warns_about_the_same_thing_once(checkpoint: Path, clip: Path) -> None:
    result = succeed("chat", clip, "-m", checkpoint, "--frames", "5", "--max-new-tokens", "2", stdin="a\nb\nc\n")
    assert result.err.count("trained with 8") == 1


def test_chat_at_a_terminal(checkpoint: Path, clip: Path) -> None:
    command = [sys.executable, "-m", "filmstrip.cli.main", "chat", str(clip), "-m", str(checkpoint)]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "2"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    screen = _Screen(ours)
    screen.wait_for(b"you> ")
    os.write(ours, b"what is this\n")
    screen.wait_for(b"ended by length")
    screen.wait_for(b"you> ")
    os.write(ours, b"<video>\n")  # a slip: it is warned about and the conversation goes on
    screen.wait_for(b"2 video placeholders for 1 video")
    screen.wait_for(b"you> ")
    os.write(ours, b"\x04")
    assert process.wait(60) == 0
    os.close(ours)
    assert b"Traceback" not in screen.shown and b"reading weights" in screen.shown


class _Screen:
    """What a terminal shows. Several things may come in one read, so what was read past is kept."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.shown, self.seen = descriptor, b"", 0

    def wait_for(self, text: bytes, seconds: float = 90) -> None:
        """Read until `text` appears behind what was waited for before."""
        end = time.monotonic() + seconds
        while (found := self.shown.find(text, self.seen)) < 0:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.descriptor], [], [], left)[0], self.shown[self.seen :]
            self.shown += os.read(self.descriptor, 4096)
        self.seen = found + len(text)


def test_show_json_agrees_with_the_files(checkpoint: Path) -> None:
    content = succeed("show", checkpoint, "--json").json
    stored = load_file(checkpoint / "model.safetensors")
    total = sum(tensor.numel() for tensor in stored.values())
    assert content["parameters"]["total"] == {"parameters": total, "tensors": len(stored)}
    for part, prefix in (
        ("image_tower", "image_tower."),
        ("video_tower", "video_tower."),
        ("projector", "multi_modal_projector."),
        ("text_tower", "language_model."),
    ):
        numbers = [tensor.numel() for name, tensor in stored.items() if name.startswith(prefix)]
        assert content["parameters"][part] == {"parameters": sum(numbers), "tensors": len(numbers)}
    assert content["stored"] == {"tensors": len(stored), "bytes": 4 * total, "dtypes": ["float32"]}
    assert (content["layout"], content["tokens_per_image"], content["tokens_per_video_frame"]) == ("A", 4, 5)
    assert content["config"]["text"]["num_kv_heads"] == 2
    assert content["config"]["video_tower"]["temporal_attention"] is False


def test_show_prints_the_same_figures(checkpoint: Path) -> None:
    out = succeed("show", checkpoint).out
    assert "Video-LLaVA without temporal attention, hub layout (A), float32, 272 k parameters" in out
    assert re.search(r"^total +272,064 +176$", out, re.MULTILINE)
    assert re.search(r"^text\.num_kv_heads +2 *$", out, re.MULTILINE)
    assert re.search(r"^text\.rope\.theta +10000\.0 *$", out, re.MULTILINE)


def test_as_a_process_of_its_own(checkpoint: Path, clip: Path) -> None:
    done = spawn("ask", clip, "what is this", "-m", checkpoint, "--max-new-tokens", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == ANSWER_KEYS
    assert done.stdout.count(b"\n") == 1
    assert done.stderr.count(b"\n") == 1 and b"preset transformers" in done.stderr  # the line that says what was built


def test_a_reader_that_goes_away_is_no_drama(checkpoint: Path) -> None:
    command = f"{sys.executable} -m filmstrip.cli.main show {checkpoint} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
