"""Generated tokens and sampling filters against transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import SamplingConfig
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.generation.sample import filter_logits, penalise_repetition, sample_tokens
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint
from tests.parity.batches import Inputs, make_inputs

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")

STEPS = 32
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "multi-head, tied, full": {
        "text_num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "vision_feature_select_strategy": "full",
    },
    "linear": {"text_rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    # The prompt is within the trained length of 40 and the answer runs past it: from there on each step has its own
    # base, and both implementations keep keys that were rotated with earlier ones.
    "dynamic, past the trained length": {
        "text_rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "text_max_position_embeddings": 40,
    },
}
SINGLE = ("tttvtttitt",)
BATCH = ("titvt", "ttttttt", "iit", "tvvttt")


def load_pair(directory: Path, **overrides: Any) -> tuple[VideoLlavaForGeneration, Any]:
    write_tiny_checkpoint(directory, tiny_hf_config(**overrides), seed=1)
    checkpoint = read_checkpoint(directory)
    with torch.device("meta"):
        model = VideoLlavaForGeneration(checkpoint.model_config())
    load_weights(model, checkpoint)
    reference = oracles.load_reference(directory)
    reference.generation_config.eos_token_id = None  # every row makes all its tokens, unless a test says otherwise
    return model.eval(), reference


def generate(model: VideoLlavaForGeneration, inputs: Inputs, **options: Any) -> torch.Tensor:
    return model.generate(**inputs.ours(), max_new_tokens=STEPS, **options)


def assert_same_until_eos(
    ours: torch.Tensor, theirs: torch.Tensor, eos: tuple[int, ...], reference_pad: int, ended: int
) -> None:
    """Equal ids, each row up to its first EOS; after it ours repeats the EOS and theirs puts its pad id."""
    assert ours.shape == theirs.shape
    count = 0
    for row, their_row in zip(ours.tolist(), theirs.tolist(), strict=True):
        hits = [index for index, token in enumerate(their_row) if token in eos]
        end = hits[0] + 1 if hits else len(their_row)
        count += end < len(their_row)
        assert row[:end] == their_row[:end]
        assert set(row[end:]) <= {eos[0]}
        assert set(their_row[end:]) <= {reference_pad}
    assert count == ended


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(tmp_path: Path, name: str, penalty: float) -> None:
    model, reference = load_pair(tmp_path, **CONFIGS[name])
    inputs = make_inputs(model.config, SINGLE)
    ours = generate(model, inputs, repetition_penalty=penalty)
    theirs = oracles.reference_generate(reference, inputs.theirs(), max_new_tokens=STEPS, repetition_penalty=penalty)
    assert ours.shape == (1, STEPS)
    assert ours.tolist() == theirs.tolist()
    assert len(set(ours[0].tolist())) >= 3  # not one token over and over, which would compare little


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", ["grouped heads", "multi-head, tied, full", "linear"])
def test_greedy_tokens_of_a_padded_batch(tmp_path: Path, name: str, penalty: float) -> None:
    """Dynamic scaling is left out: ours takes each row's own length, transformers the longest row's."""
    model, reference = load_pair(tmp_path, **CONFIGS[name])
    inputs = make_inputs(model.config, BATCH)
    ours = generate(model, inputs, repetition_penalty=penalty)
    theirs = oracles.reference_generate(reference, inputs.theirs(), max_new_tokens=STEPS, repetition_penalty=penalty)
    assert ours.shape == (len(BATCH), STEPS)
    assert ours.tolist() == theirs.tolist()
    assert len({tuple(row) for row in ours.tolist()}) == len(BATCH)


def test_rows_that_end_at_different_steps(tmp_path: Path) -> None:
    """EOS ids are chosen among the tokens that two rows make on their way, so that they end early."""
    model, reference = load_pair(tmp_path)
    inputs = make_inputs(model.config, BATCH)
    free = generate(model, inputs).tolist()
    eos = (next_unshared(free, 0, 3), next_unshared(free, 2, 9))
    model.eos_token_ids = eos
    theirs = oracles.reference_generate(
        reference, inputs.theirs(), max_new_tokens=STEPS, eos_token_id=list(eos), pad_token_id=7
    )
    assert_same_until_eos(generate(model, inputs), theirs, eos, 7, ended=2)


def next_unshared(rows: list[list[int]], row: int, step: int) -> int:
    """A token that `row` makes at `step` or later, not before, and no other row makes."""
    others = {token for index, other in enumerate(rows) if index != row for token in other}
    return next(
        token
        for index, token in enumerate(rows[row])
        if index >= step and token not in others and token not in rows[row][:index]
    )


SETTINGS = {
    "temperature": SamplingConfig(temperature=0.7),
    "top-k": SamplingConfig(temperature=1.0, top_k=7),
    "top-k of everything": SamplingConfig(temperature=1.0, top_k=1000),
    "top-k of one": SamplingConfig(temperature=1.0, top_k=1),
    "top-p": SamplingConfig(temperature=1.0, top_p=0.9),
    "small top-p": SamplingConfig(temperature=1.0, top_p=1e-6),
    "top-p near one": SamplingConfig(temperature=1.3, top_p=0.9999),
    "min-p": SamplingConfig(temperature=1.0, min_p=0.05),
    "min-p of one": SamplingConfig(temperature=1.0, min_p=1.0),
    "penalty": SamplingConfig(temperature=1.0, repetition_penalty=1.7),
    "reward": SamplingConfig(temperature=1.0, repetition_penalty=0.6),
    "everything": SamplingConfig(temperature=0.8, top_k=40, top_p=0.85, min_p=0.02, repetition_penalty=1.2),
}


def filtered(logits: torch.Tensor, sampling: SamplingConfig, ids: torch.Tensor) -> torch.Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    penalised = penalise_repetition(logits, seen, sampling.repetition_penalty)
    return filter_logits(penalised / sampling.temperature, sampling)


def random_logits(kind: str) -> torch.Tensor:
    logits = torch.randn(64, 300) * torch.logspace(-1, 1, 64)[:, None]
    if kind == "ties":  # values on a coarse grid: thresholds fall among equals
        return (logits * 2).round() / 2
    return logits


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("name", SETTINGS)
def test_filters(name: str, kind: str) -> None:
    """The same tokens stay, ties included, with the same values to the bit."""
    logits, ids = random_logits(kind), torch.randint(0, 300, (64, 20))
    expected = oracles.reference_filter(logits, SETTINGS[name], ids)
    assert torch.equal(filtered(logits, SETTINGS[name], ids), expected)


def test_seeded_draws_agree_with_the_filtered_distribution() -> None:
    """transformers draws all rows from one generator, so a batch's draws differ by design; a single row's do not."""
    sampling = replace(SETTINGS["everything"], seed=5)
    logits, ids = random_logits("distinct")[40:41], torch.randint(0, 300, (1, 20))
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    probabilities = oracles.reference_filter(logits, sampling, ids).softmax(dim=-1)
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for _ in range(50):
        drawn = torch.multinomial(probabilities, 1, generator=theirs)[:, 0]
        assert sample_tokens(logits, sampling, seen, [ours]).tolist() == drawn.tolist()
