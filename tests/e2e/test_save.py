"""What `Assistant.save` writes is the model it was called on, here and in transformers."""

from pathlib import Path

import pytest
import torch

from filmstrip.api import load
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.errors import CheckpointError
from filmstrip.oracle.processors import reference_tokenizer
from filmstrip.oracle.reference import load_reference, reference_generate

SAMPLING = {"max_new_tokens": 12}


@pytest.mark.parametrize("temporal", [False, True])
def test_saved_and_loaded_is_the_same(
    checkpoint: Path, temporal_checkpoint: Path, clip: Path, tmp_path: Path, temporal: bool
) -> None:
    source = temporal_checkpoint if temporal else checkpoint
    preset = "original" if temporal else None
    first = load(source, preset=preset, quiet=True)
    copy = load(first.save(tmp_path / "copy"), quiet=True)
    answers = [assistant.ask(clip, "what is this", **SAMPLING) for assistant in (first, copy)]
    assert answers[0].token_ids == answers[1].token_ids
    assert copy.origin.temporal_attention == temporal
    assert copy.origin.weights_hash == first.origin.weights_hash
    assert copy.origin.preset == first.origin.preset
    assert copy.selection == first.selection
    assert copy.sampling == first.sampling
    assert copy.model.eos_token_ids == first.model.eos_token_ids


def test_transformers_loads_what_was_saved(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    first = load(checkpoint, quiet=True)
    answer = first.ask(clip, "what is this", **SAMPLING)
    directory = first.save(tmp_path / "copy")
    reference, prompt = load_reference(directory), answer.prompt
    inputs = {
        "input_ids": torch.tensor([prompt.plan.input_ids]),
        "pixel_values_videos": prompt.pixels_videos[0][None],
    }
    new = reference_generate(reference, inputs, **SAMPLING)[0].tolist()
    assert new == list(answer.token_ids)
    text = "what is this red square"
    assert reference_tokenizer(directory)(text)["input_ids"] == first.processor.tokenizer.encode(text).ids


def test_nothing_is_overwritten_unasked(checkpoint: Path, tmp_path: Path) -> None:
    assistant = load(checkpoint, quiet=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        assistant.save(tmp_path)
    with pytest.raises(CheckpointError, match="something other than a checkpoint"):
        assistant.save(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    directory = assistant.save(tmp_path / "new")
    assistant.save(directory, overwrite=True)
    assert read_checkpoint(directory).config == assistant.config
