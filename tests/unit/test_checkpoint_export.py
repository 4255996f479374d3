"""Writing: what is written loads back the same; nothing half-written, nothing in the way destroyed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from filmstrip.checkpoint import export
from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import Checkpoint, read_checkpoint
from filmstrip.config import SamplingConfig
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.media.transform import PixelSpec
from filmstrip.models.video_llava import VideoLlava
from filmstrip.testing.tiny import DiskLayout, tiny_hf_config, write_tiny_checkpoint

COMPANIONS = Companions(
    files={"tokenizer.json": b"{}\r\n", "README.md": b"card"},
    pixels=PixelSpec(size=28, crop=28),
    generation=GenerationDefaults(1, (2,), 410, SamplingConfig(max_new_tokens=40)),
    chat_template="{{ messages }}\n",
    trained_frames=3,
    preset="original",
)


def load(directory: Path, *, temporal: bool | None = None) -> tuple[VideoLlava, Checkpoint]:
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = VideoLlava(checkpoint.model_config(temporal_attention=temporal))
    load_weights(model, checkpoint)
    return model, checkpoint


def make(directory: Path, *, frames: int = 0, **overrides: Any) -> VideoLlava:
    write_tiny_checkpoint(directory, tiny_hf_config(**overrides), temporal_frames=frames)
    return load(directory, temporal=bool(frames))[0]


def assert_same_state(one: VideoLlava, other: VideoLlava) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def build(directory: Path, variant: str, frames: int) -> VideoLlava:
    """A model with weights from disk; a shared tower is freshly made, as no other writer knows it."""
    if variant != "shared":
        return make(directory, frames=frames, tie_word_embeddings=variant == "tied")
    write_tiny_checkpoint(directory, temporal_frames=frames)
    config = read_checkpoint(directory).model_config(temporal_attention=bool(frames))
    return VideoLlava(replace(config, image_tower=config.video_tower, shared_towers=True))


@pytest.mark.parametrize(
    ("layout", "variant", "frames"),
    [("A", "plain", 0), ("A", "shared", 3), ("B", "tied", 3), ("C", "shared", 0), ("C", "plain", 3), ("D", "tied", 0)],
)
def test_what_is_written_is_read_back(tmp_path: Path, layout: DiskLayout, variant: str, frames: int) -> None:
    model = build(tmp_path / "source", variant, frames)
    save_checkpoint(model, tmp_path / "out", COMPANIONS, ExportOptions(layout=layout))
    again, checkpoint = load(tmp_path / "out")
    assert_same_state(model, again)
    assert checkpoint.config == model.config and checkpoint.layout.name == layout
    assert (checkpoint.extras.trained_frames, checkpoint.extras.preset) == (3, "original")
    assert checkpoint.generation == COMPANIONS.generation
    assert checkpoint.processor.pixels == COMPANIONS.pixels
    assert checkpoint.processor.chat_template == COMPANIONS.chat_template
    assert checkpoint.warnings == ()


def test_files_are_copied_byte_for_byte_and_nothing_else_is_there(tmp_path: Path) -> None:
    out = save_checkpoint(make(tmp_path / "source"), tmp_path / "deep" / "out", COMPANIONS)
    assert (out / "tokenizer.json").read_bytes() == b"{}\r\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "video_preprocessor_config.json",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards(tmp_path: Path) -> None:
    model = make(tmp_path / "source")
    limit = 100_000
    out = save_checkpoint(model, tmp_path / "out", COMPANIONS, ExportOptions(max_shard_bytes=limit))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 5 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert all((out / shard).stat().st_size < max(limit, largest) + 10_000 for shard in shards)
    assert not (out / "model.safetensors").exists()
    assert_same_state(model, load(out)[0])


def test_another_dtype(tmp_path: Path) -> None:
    model = make(tmp_path / "source")
    out = save_checkpoint(model, tmp_path / "out", COMPANIONS, ExportOptions(dtype=torch.float16))
    again = load(out)[0]
    assert torch.equal(again.text_tower.lm_head.weight, model.text_tower.lm_head.weight.half())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_directory_in_the_way(tmp_path: Path) -> None:
    model = make(tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    save_checkpoint(model, out, COMPANIONS)  # an empty one is no obstacle
    with pytest.raises(CheckpointError, match="not empty; choose another place"):
        save_checkpoint(model, out, COMPANIONS)
    (out / "stale.json").write_text("{}")
    save_checkpoint(model, out, COMPANIONS, ExportOptions(overwrite=True))
    assert not (out / "stale.json").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="something other than a checkpoint"):
        save_checkpoint(model, precious, COMPANIONS, ExportOptions(overwrite=True))
    assert (precious / "thesis.tex").read_text() == "x"
    with pytest.raises(CheckpointError, match="exists"):
        save_checkpoint(model, precious / "thesis.tex", COMPANIONS)


def test_a_failure_leaves_nothing_new_and_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tmp_path / "source")
    out = save_checkpoint(model, tmp_path / "out", COMPANIONS)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_files", full_disk)
    for directory in (out, tmp_path / "new"):
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
            save_checkpoint(model, directory, COMPANIONS, ExportOptions(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert_same_state(model, load(out)[0])


@pytest.mark.parametrize("name", ["../evil", "/abs", "sub/file", "", ".hidden", "config.json", "model.safetensors"])
def test_companion_names_stay_inside(tmp_path: Path, name: str) -> None:
    model = make(tmp_path / "source")
    with pytest.raises(CheckpointError, match="not a plain name"):
        save_checkpoint(model, tmp_path / "out", Companions(files={name: b"x"}))
    assert not (tmp_path / "out").exists()


def test_a_crop_that_the_towers_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cropped to 224 pixels, the towers take 28"):
        save_checkpoint(make(tmp_path / "source"), tmp_path / "out", Companions(pixels=PixelSpec()))
    assert not (tmp_path / "out").exists()
