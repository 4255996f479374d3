"""A whole checkpoint in the original release's layout, through the whole loader, against what that release computed.

Its video tower is the fixture of `test_original_video_tower` (random weights and every hidden state, temporal
attention on and off); everything else is random.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.api import load
from filmstrip.testing.original import (
    Place,
    languagebind_config,
    original_config,
    original_state,
    write_original_checkpoint,
)
from filmstrip.testing.tiny import write_json
from tests.parity.test_original_video_tower import RUNS, TOLERANCE, fixture_tensors

PREFIX = "model.video_tower.video_tower."


def write(directory: Path, towers: Place, pickled: bool, activation: str) -> dict[str, Any]:
    """Write the directory; returns the fixture's tensors."""
    tensors, config = fixture_tensors()
    weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
    state = {name: tensor for name, tensor in original_state().items() if not name.startswith(PREFIX)}
    state |= {PREFIX + name: tensor for name, tensor in weights.items()}
    width = original_config(mm_hidden_size=config["hidden_size"])
    write_original_checkpoint(directory, state=state, config=width, towers=towers, pickled=pickled)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    vision = {name: config[name] for name in sizes} | {"hidden_act": activation}
    write_json(directory / "video_tower" / "config.json", languagebind_config(config["num_frames"], **vision))
    return tensors


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("towers", "pickled"), [("main", True), ("inside", False)])
def test_every_hidden_state_of_the_loaded_tower(tmp_path: Path, run: str, towers: Place, pickled: bool) -> None:
    activation, temporal = RUNS[run]
    tensors = write(tmp_path, towers, pickled, activation)
    assistant = load(tmp_path, temporal_attention=temporal, quiet=True)
    tower = assistant.model.video_tower
    assert (tower.blocks[0].temporal is not None) is temporal
    assert any("left out: 17,536 parameters" in warning for warning in assistant.warnings) is not temporal
    pixels = tensors["pixel_values_bctyx"].transpose(1, 2)
    with torch.inference_mode():
        for index in range(len(tower.blocks) + 1):
            expected = tensors[f"{run}/hidden_states.{index}"]
            torch.testing.assert_close(tower(pixels, [index]), expected, atol=TOLERANCE, rtol=0)


def test_what_the_text_tower_reads_of_a_video(tmp_path: Path) -> None:
    """Hidden state -2 with its class tokens, frame after frame, through the projector; on and off differ."""
    tensors = write(tmp_path, "main", False, "gelu")
    pixels = tensors["pixel_values_bctyx"].transpose(1, 2)
    for temporal, run in ((True, "gelu_time"), (False, "gelu_notime")):
        model = load(tmp_path, temporal_attention=temporal, quiet=True).model
        with torch.inference_mode():
            expected = model.projector(tensors[f"{run}/hidden_states.3"].flatten(1, 2))
            torch.testing.assert_close(model.encode_videos(pixels), expected, atol=TOLERANCE, rtol=0)


def test_the_preset_decides(tmp_path: Path) -> None:
    """Of the checkpoint's own accord the original's program runs; transformers' leaves temporal attention out."""
    write(tmp_path, "main", False, "gelu")
    own, port = load(tmp_path, quiet=True), load(tmp_path, preset="transformers", quiet=True)
    assert own.origin.preset.name == "original" and own.origin.temporal_attention
    assert own.warnings == ()
    assert port.origin.preset.name == "transformers" and not port.origin.temporal_attention
    assert any("left out: 17,536 parameters of temporal attention" in warning for warning in port.warnings)
