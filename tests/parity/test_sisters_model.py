"""LLaVA-1.5 and LLaVA-NeXT-Video: every named activation against transformers, on random checkpoints it wrote."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from filmstrip.checkpoint.hf_config import parse_config
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.models import VideoLlava
from filmstrip.testing.random_reference import reference_model
from filmstrip.testing.tiny import DiskLayout, tiny_sister_config, write_tiny_checkpoint
from filmstrip.testing.tolerances import TOLERANCES
from tests.parity.batches import SIZES, Inputs, make_inputs
from tests.parity.test_transformers_model import LLAMA3, assert_backends_within, differences, load

oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")

LLAVA, NEXT_VIDEO = "llava", "llava_next_video"
Sister = Literal["llava", "llava_next_video"]
IMAGE_ROWS = ("titt", "tttt", "iit", "titttttt")
MIXED_ROWS = ("titvt", "tttt", "iit", "tvvitttttt")


@dataclass(frozen=True)
class Case:
    sister: Sister
    rows: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "llava, grouped heads, one image": Case("llava", ("tttitt",)),
    "llava, text only": Case("llava", ("ttttt",)),
    "llava, four images, multi-head, tied, class token kept": Case(
        "llava",
        ("tiittiti",),
        {
            "text_num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "vision_feature_select_strategy": "full",
        },
    ),
    "llava, padded batch, two layers": Case("llava", IMAGE_ROWS, {"vision_feature_layer": [-2, -4]}),
    "llava, padded batch, tied inside only, llama3": Case(
        "llava", IMAGE_ROWS, {"text_tie_word_embeddings": True, "text_rope_scaling": LLAMA3}
    ),
    "next, one portrait image": Case("llava_next_video", ("tttitt",)),
    "next, an image of every shape": Case("llava_next_video", ("tit" * len(SIZES),)),
    "next, one video": Case("llava_next_video", ("ttvtt",)),
    "next, text only": Case("llava_next_video", ("ttttt",)),
    "next, padded batch of both, one key head": Case(
        "llava_next_video", MIXED_ROWS, {"text_num_key_value_heads": 1, "text_head_dim": 24}
    ),
    "next, padded batch of both, two layers, multi-head": Case(
        "llava_next_video", MIXED_ROWS, {"vision_feature_layer": [-2, 1], "text_num_key_value_heads": 4}
    ),
    # The variant tuned by preferences has linear scaling (reference sheet 9).
    "next, linear scaling, gelu towers, last layer": Case(
        "llava_next_video",
        MIXED_ROWS,
        {
            "text_rope_scaling": {"rope_type": "linear", "factor": 2.5},
            "vision_hidden_act": "gelu",
            "vision_feature_layer": -1,
        },
    ),
    # Five patches along an edge: the last row and column of a frame's patches are left out of the pooling.
    "next, odd number of patches": Case(
        "llava_next_video",
        ("tivit", "tv"),
        {"vision_image_size": 70, "image_grid_pinpoints": [[70, 140], [140, 70], [210, 140]]},
    ),
    "llava, the published geometry": Case(
        "llava", ("tiit",), {"vision_image_size": 336, "text_max_position_embeddings": 4096}
    ),
    "next, the published geometry": Case(
        "llava_next_video",
        ("tivt", "i"),
        {"vision_image_size": 336, "image_grid_pinpoints": None, "text_max_position_embeddings": 4096},
    ),
    "next, one grid": Case("llava_next_video", ("iit",), {"image_grid_pinpoints": [[112, 112]]}),
}
# Not LLaVA-1.5 with two layers: transformers drops its class tokens before it joins them, here it is after, and the
# projector's 16-bit kernel sums rows that lie otherwise in memory in another order (one unit in the last place).
HALF_CASES = ("llava, padded batch, tied inside only, llama3", "next, padded batch of both, one key head")


@pytest.mark.parametrize("name", CASES)
def test_every_activation(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    reference = reference_model(tiny_sister_config(case.sister, **case.config))
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert_backends_within(model, reference, make_inputs(model.config, case.rows), "float32")


@pytest.mark.parametrize("name", HALF_CASES)
def test_every_activation_in_bfloat16(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    config = tiny_sister_config(case.sister, **case.config)
    reference_model(config).to(torch.bfloat16).save_pretrained(tmp_path)
    reference, model = oracles.load_reference(tmp_path, dtype=torch.bfloat16), load(tmp_path)
    assert model.text_tower.lm_head.weight.dtype == torch.bfloat16
    assert_backends_within(model, reference, make_inputs(model.config, case.rows, dtype=torch.bfloat16), "bfloat16")


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
@pytest.mark.parametrize("sister", [LLAVA, NEXT_VIDEO])
def test_every_layout_read_by_both(tmp_path: Path, sister: Sister, layout: DiskLayout) -> None:
    write_tiny_checkpoint(tmp_path, tiny_sister_config(sister), layout=layout, seed=3)
    model, reference = load(tmp_path), oracles.load_reference(tmp_path)
    rows = IMAGE_ROWS if sister == LLAVA else MIXED_ROWS
    assert_backends_within(model, reference, make_inputs(model.config, rows), "float32")


def test_tiles_padded_to_one_number_as_the_processor_of_transformers_gives_them(tmp_path: Path) -> None:
    """The reference takes tiles of all images flat, and padded per image; only the second is what its users pass."""
    write_tiny_checkpoint(tmp_path, tiny_sister_config(NEXT_VIDEO))
    model, reference = load(tmp_path), oracles.load_reference(tmp_path)
    inputs = make_inputs(model.config, ("tiitit",))
    tilings = [model.config.tiling(size) for size in SIZES[:3]]
    counts = [tiling.num_tiles for tiling in tilings if tiling is not None]
    assert len(set(counts)) > 1
    theirs = inputs.theirs()
    groups = theirs["pixel_values"].split(counts)
    padded = [torch.cat([group, 7.0 + torch.zeros(max(counts) - len(group), *group.shape[1:])]) for group in groups]
    with torch.inference_mode():
        expected = reference(**theirs | {"pixel_values": torch.stack(padded)}).logits
        found = model(**inputs.ours())
    torch.testing.assert_close(found, expected, atol=TOLERANCES["activations, float32, other kernels"].bound, rtol=0)


# One weight moved by little, and the first site at which that can be seen.
PLANTED = {
    "image_newline": "embeddings",
    "image_tower.blocks.1.mlp.fc2.bias": "image_tower.hidden_states.2",
    "projector.linear_2.bias": "projector.image",
}


@pytest.mark.parametrize("parameter", PLANTED)
def test_a_planted_fault_is_found_where_it_is(tmp_path: Path, parameter: str) -> None:
    write_tiny_checkpoint(tmp_path, tiny_sister_config(NEXT_VIDEO))
    model, reference = load(tmp_path), oracles.load_reference(tmp_path)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[:8] += 0.05
    found = differences(model, reference, make_inputs(model.config, MIXED_ROWS), "sdpa", "sdpa")
    bound = TOLERANCES["activations, float32, other kernels"].bound
    assert next(item.site for item in found if item.max_abs > bound) == PLANTED[parameter]


STEPS = 24


@pytest.mark.parametrize("rows", [("ttitt",), ("titt", "ttttttt", "iit")], ids=["single", "padded batch"])
@pytest.mark.parametrize("sister", [LLAVA, NEXT_VIDEO])
def test_greedy_tokens(tmp_path: Path, sister: Sister, rows: tuple[str, ...]) -> None:
    model, inputs, reference = generating(tmp_path, sister, rows)
    ours = model.generate(**inputs.ours(), max_new_tokens=STEPS)
    theirs = oracles.reference_generate(reference, inputs.theirs(), max_new_tokens=STEPS)
    assert ours.shape == (len(rows), STEPS)
    assert ours.tolist() == theirs.tolist()
    assert len({tuple(row) for row in ours.tolist()}) == len(rows)


def test_greedy_tokens_about_videos_and_images(tmp_path: Path) -> None:
    model, inputs, reference = generating(tmp_path, NEXT_VIDEO, ("tvt", "titvtt", "vvt"))
    ours = model.generate(**inputs.ours(), max_new_tokens=STEPS, repetition_penalty=1.3)
    theirs = oracles.reference_generate(reference, inputs.theirs(), max_new_tokens=STEPS, repetition_penalty=1.3)
    assert ours.tolist() == theirs.tolist()
    assert len(set(ours.flatten().tolist())) > 10


def generating(directory: Path, sister: Sister, rows: tuple[str, ...]) -> tuple[VideoLlavaForGeneration, Inputs, Any]:
    write_tiny_checkpoint(directory, tiny_sister_config(sister, text_max_position_embeddings=2048), seed=1)
    model = load(directory, VideoLlavaForGeneration)
    reference = oracles.load_reference(directory)
    reference.generation_config.eos_token_id = None
    return model, make_inputs(model.config, rows), reference


@pytest.mark.parametrize(
    ("sister", "parameters", "tensors"), [(LLAVA, 7_063_427_072, 686), (NEXT_VIDEO, 7_063_431_168, 687)]
)
def test_the_published_7b_shapes(sister: str, parameters: int, tensors: int) -> None:
    """Counts of the reference sheet, section 9, from the published files' few keys and the class defaults."""
    config = parse_config({"model_type": sister, "text_config": {"vocab_size": 32_064}}, "config.json").model
    with torch.device("meta"):
        model = VideoLlava(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(list(model.parameters())) == tensors
    assert config.tokens_per_frame("image") == 576
    if sister == NEXT_VIDEO:
        assert 32 * config.tokens_per_frame("video") == 32 * 144
