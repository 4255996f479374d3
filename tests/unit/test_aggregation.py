"""Aggregations: exact small numbers, frame order, merging against a written-out version, counts, spans, errors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.config import AggregationSettings, ModelConfig
from filmstrip.config.aggregation import AGGREGATIONS as NAMES
from filmstrip.errors import ConfigError
from filmstrip.inputs.plan import MediumTokens, plan_prompt
from filmstrip.inputs.token_map import explain
from filmstrip.models.aggregate import class_token, make_aggregation, mean_frames, strided_pool, temporal_spatial_pool
from filmstrip.models.merging import merge_tokens
from filmstrip.models.resampler import Resampler
from filmstrip.testing.tiny import write_tiny_tokenizer
from filmstrip.text.tokenizer import Tokenizer
from tests.models import GOLDEN, random_model

PATCHES_ONLY = {"video_class_token": False}
CONFIGS: dict[str, ModelConfig] = {
    "keep-all": GOLDEN,
    "mean-frames": replace(GOLDEN, aggregation="mean-frames"),
    "temporal-spatial-pool": replace(GOLDEN, aggregation="temporal-spatial-pool"),
    "strided-pool": replace(GOLDEN, aggregation="strided-pool", **PATCHES_ONLY),
    "resampler": replace(GOLDEN, aggregation="resampler", aggregation_settings=AggregationSettings(queries=6)),
    "class-token": replace(GOLDEN, aggregation="class-token"),
    "token-merging": replace(GOLDEN, aggregation="token-merging", aggregation_settings=AggregationSettings(kept=3)),
}
BY_NAME = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def numbers(*shape: int) -> torch.Tensor:
    """(M F P E) with the place of each number as its value."""
    count = int(torch.tensor(shape).prod())
    return torch.arange(count, dtype=torch.float32).reshape(shape)


def test_every_aggregation_has_an_example() -> None:
    assert set(CONFIGS) == set(NAMES)


def test_means_over_frames_and_over_space() -> None:
    """Two frames of two tokens, one channel: [[0, 1], [2, 3]]."""
    x = numbers(1, 2, 2, 1)
    assert mean_frames(x).flatten().tolist() == [1, 2]
    assert temporal_spatial_pool(x).flatten().tolist() == [0.5, 2.5, 1, 2]


def test_strided_pooling_and_class_tokens() -> None:
    """Two frames of 3 by 3 patches: of each the square at the top left, as a last odd row and column are left out."""
    assert strided_pool(numbers(1, 2, 9, 1)).flatten().tolist() == [2, 11]
    assert class_token(numbers(2, 2, 3, 1)).tolist() == [[[0], [3]], [[6], [9]]]


def test_merging_a_row_by_hand() -> None:
    """0 and 1 point the same way, 2 and 3 another; each pair becomes its mean, and three become theirs by weight."""
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 4.0]]])
    assert merge_tokens(x, 3).tolist() == [[[2, 0], [0, 2], [0, 4]]]  # of equals, the first proposes first
    assert merge_tokens(x, 2).tolist() == [[[2, 0], [0, 3]]]
    three = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]]])
    assert merge_tokens(three, 1).tolist() == [[[3, 0]]]
    assert merge_tokens(three, 2, protect_first=True).tolist() == [[[1, 0], [4, 0]]]
    assert merge_tokens(x, 4) is x


def slow_merge(tokens: list[torch.Tensor], kept: int, protect_first: bool) -> list[torch.Tensor]:
    """The same in plain loops; a token is the list of the originals in it."""
    groups = [[token] for token in tokens]
    while len(groups) > kept:
        mean = [torch.stack(group).mean(0) for group in groups]
        proposals = []
        for place in range(2 if protect_first else 0, len(groups), 2):
            likeness = [
                (torch.cosine_similarity(mean[place], mean[other], dim=0).item(), other)
                for other in range(1, len(groups), 2)
            ]
            if likeness:
                proposals.append((*max(likeness), place))
        proposals.sort(key=lambda proposal: -proposal[0])
        merged = proposals[: len(groups) - kept]
        merged = merged[: len(groups) // 2]
        for _, target, place in merged:
            groups[target] = groups[target] + groups[place]
        gone = {place for _, _, place in merged}
        groups = [group for place, group in enumerate(groups) if place not in gone]
    return [torch.stack(group).mean(0) for group in groups]


@given(tokens=st.integers(2, 17), seed=st.integers(0, 1000), protect=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_merging_equals_the_slow_version(tokens: int, seed: int, protect: bool, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1 + protect, tokens))
    x = torch.randn(3, tokens, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fast = merge_tokens(x, kept, protect_first=protect)
    assert fast.shape == (3, kept, 4)
    for row, expected in zip(fast, x, strict=True):
        torch.testing.assert_close(row, torch.stack(slow_merge(list(expected), kept, protect)))
    if protect:
        assert torch.equal(fast[:, 0], x[:, 0])


def test_a_merged_row_does_not_depend_on_its_neighbours() -> None:
    x = torch.randn(4, 17, 8)
    torch.testing.assert_close(merge_tokens(x, 5)[2:3], merge_tokens(x[2:3], 5))


def test_merging_passes_gradients() -> None:
    x = torch.randn(1, 9, 4, requires_grad=True)
    merge_tokens(x, 3).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())


@BY_NAME
@pytest.mark.parametrize("frames", [1, 3])
def test_as_many_tokens_come_out_as_the_configuration_says(config: ModelConfig, frames: int) -> None:
    model = random_model(config)
    tokens = model.encode_videos(torch.randn(2, frames, 3, 28, 28))
    assert tokens.shape == (2, config.clip_tokens(frames), 64)
    ids = torch.tensor([[1] + [191] * config.clip_tokens(frames) + [2]])
    assert model(ids, None, torch.randn(1, frames, 3, 28, 28)).isfinite().all()


@BY_NAME
def test_clips_do_not_mix(config: ModelConfig) -> None:
    model, clips = random_model(config), torch.randn(2, 3, 3, 28, 28)
    torch.testing.assert_close(model.encode_videos(clips)[1:], model.encode_videos(clips[1:]), rtol=1e-4, atol=1e-5)


def test_images_are_not_aggregated() -> None:
    image = torch.randn(1, 3, 28, 28)
    for config in CONFIGS.values():
        assert random_model(config).encode_images(image).shape[1] == 4


@pytest.mark.parametrize(
    ("name", "frames_seen"),
    [("strided-pool", [1]), ("class-token", [1]), ("token-merging", [3, 4, 5]), ("temporal-spatial-pool", [1])],
)
def test_a_frame_s_tokens_stand_in_its_place(name: str, frames_seen: list[int]) -> None:
    """A change of frame 1 of 3 changes its own tokens, and those of all frames together, and no others."""
    config = CONFIGS[name]
    model, video = random_model(config), torch.randn(1, 3, 3, 28, 28)
    before = model.encode_videos(video)
    video[0, 1] = torch.randn(3, 28, 28)
    changed = (model.encode_videos(video) - before).abs().amax(-1)[0] > 1e-6
    joint = list(range(config.clip_tokens(3) - config.joint_tokens, config.clip_tokens(3)))
    assert changed.nonzero().flatten().tolist() == [*frames_seen, *joint]


def test_the_mean_forgets_the_order_and_the_resampler_does_not() -> None:
    video = torch.randn(1, 3, 3, 28, 28)
    backwards = video.flip(1)
    mean, resampler = (random_model(CONFIGS[name]) for name in ("mean-frames", "resampler"))
    torch.testing.assert_close(mean.encode_videos(video), mean.encode_videos(backwards))
    assert not torch.allclose(resampler.encode_videos(video), resampler.encode_videos(backwards), atol=1e-3)
    assert isinstance(resampler.aggregation, Resampler)
    with torch.no_grad():
        resampler.aggregation.frame_embedding.zero_()  # without it the queries read a set of tokens
    torch.testing.assert_close(resampler.encode_videos(video), resampler.encode_videos(backwards), rtol=1e-4, atol=1e-5)


def test_the_resampler_runs_on_both_attention_backends_and_refuses_long_clips() -> None:
    model, video = random_model(CONFIGS["resampler"]), torch.randn(1, 8, 3, 28, 28)
    fused = model.encode_videos(video)
    model.set_attention("eager")
    torch.testing.assert_close(model.encode_videos(video), fused, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="resampler knows 8 frames, the clip has 9"):
        model.encode_videos(torch.randn(1, 9, 3, 28, 28))


def test_the_resampler_reads_several_hidden_states() -> None:
    config = replace(CONFIGS["resampler"], select_layers=(-2, -1))
    assert make_aggregation(config)(torch.randn(2, 3, 5, 64)).shape == (2, 6, 64)


def test_only_what_is_aggregated_has_a_site() -> None:
    sites: list[str] = []

    def record(site: str, value: torch.Tensor) -> torch.Tensor:
        sites.append(site)
        return value

    for config in CONFIGS.values():
        random_model(config).encode_videos(torch.randn(1, 2, 3, 28, 28), record)
    assert sites.count("video_tower.aggregated") == len(CONFIGS) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregation": "mean-frame"}, "did you mean 'mean-frames'"),
        ({"aggregation": "strided-pool"}, "class tokens must be dropped"),
        ({"aggregation": "class-token", "video_class_token": False}, "class tokens must not be dropped"),
        ({"aggregation": "token-merging"}, "can keep 2 to 5 tokens of a frame here, not 8"),
        (
            {"aggregation": "token-merging", "aggregation_settings": AggregationSettings(kept=1)},
            "can keep 2 to 5 tokens of a frame here, not 1",
        ),
        (
            {"aggregation_settings": AggregationSettings(queries=3)},
            r"'keep-all' has no setting queries \(it has: none\)",
        ),
        (
            {"aggregation": "resampler", "aggregation_settings": AggregationSettings(kept=3)},
            r"'resampler' has no setting kept \(it has: queries, layers, frames\)",
        ),
    ],
)
def test_what_an_aggregation_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(GOLDEN, **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "aggregation queries must be a number above zero"),
        ({"frames": 10**9}, "up to 4096"),
        ({"kept": True}, "aggregation kept must be a number above zero"),
    ],
)
def test_settings_have_bounds(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AggregationSettings(**settings)


def spans(config: ModelConfig) -> list[tuple[str, int, int | None]]:
    medium = MediumTokens("video", 2, config.tokens_per_frame("video"), joint_tokens=config.joint_tokens)
    plan = plan_prompt([1, 191], ["template", "user 1"], [medium], 190, 191)
    assert plan.visual_tokens == config.clip_tokens(2) == len(plan.input_ids) - 1
    return [(span.label, span.num_tokens, span.frame) for span in plan.spans[1:]]


def test_spans_say_which_frame_a_token_is_of() -> None:
    def per_frame(tokens: int) -> list[tuple[str, int, int | None]]:
        return [("video 0 frame 0", tokens, 0), ("video 0 frame 1", tokens, 1)]

    assert spans(CONFIGS["keep-all"]) == per_frame(5)
    assert spans(CONFIGS["token-merging"]) == per_frame(3)
    assert spans(CONFIGS["class-token"]) == spans(CONFIGS["strided-pool"]) == per_frame(1)
    assert spans(CONFIGS["mean-frames"]) == [("video 0 all frames", 5, None)]
    assert spans(CONFIGS["resampler"]) == [("video 0 all frames", 6, None)]
    assert spans(CONFIGS["temporal-spatial-pool"]) == [*per_frame(1), ("video 0 all frames", 5, None)]


def test_the_token_map_gives_the_times_of_all_frames(tmp_path: Any) -> None:
    write_tiny_tokenizer(tmp_path)
    medium = MediumTokens("video", 2, 1, "clip.mp4", (0.0, 0.5), joint_tokens=4)
    rows = explain(
        plan_prompt([1, 191], ["template", "user 1"], [medium], 190, 191), Tokenizer.from_directory(tmp_path)
    )
    assert [(row.label, row.excerpt, row.tokens) for row in rows[1:]] == [
        ("video 0 frame 0", "clip.mp4 at 0.00 s", 1),
        ("video 0 frame 1", "clip.mp4 at 0.50 s", 1),
        ("video 0 all frames", "clip.mp4 from 0.00 to 0.50 s", 4),
    ]
