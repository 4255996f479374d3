"""What fits into a memory: answers are the largest that the estimate allows; sizes as people write them."""

from dataclasses import replace

import pytest

from filmstrip.config import ModelConfig, VisionConfig
from filmstrip.diagnostics.memory import estimate
from filmstrip.diagnostics.memory_fit import ALL_PRECISIONS, fit
from filmstrip.diagnostics.memory_units import format_bytes, parse_size
from filmstrip.diagnostics.memory_workload import Workload
from filmstrip.errors import ConfigError

GIB = 2**30
PUBLISHED = ModelConfig()
BFLOAT16 = [("bfloat16", None)]


@pytest.mark.parametrize("gibibytes", [16, 24])
def test_one_frame_more_would_not_fit(gibibytes: int) -> None:
    (found,) = fit(PUBLISHED, Workload(), gibibytes * GIB, ["frames"], BFLOAT16)
    assert found.total <= gibibytes * GIB
    assert estimate(PUBLISHED, Workload(frames=found.frames)).peak.total == found.total
    assert estimate(PUBLISHED, Workload(frames=found.frames + 1)).peak.total > gibibytes * GIB


@pytest.mark.parametrize("unknown", ["batch", "context"])
def test_one_row_or_token_more_would_not_fit(unknown: str) -> None:
    (found,) = fit(PUBLISHED, Workload(), 20 * GIB, [unknown], BFLOAT16)  # type: ignore[list-item]
    more = {"batch": found.batch + 1} if unknown == "batch" else {"context": found.context + 1}
    assert found.total <= 20 * GIB < estimate(PUBLISHED, Workload(**more)).peak.total


def test_a_table_has_every_precision_and_growing_batches() -> None:
    found = fit(PUBLISHED, Workload(padded=True), 24 * GIB, ["batch", "frames"], ALL_PRECISIONS)
    assert {row.precision for row in found} == {"bfloat16", "int8", "int4"}  # float32 weights alone are 27 GiB
    for precision in ("bfloat16", "int8", "int4"):
        rows = [row for row in found if row.precision == precision]
        assert [row.batch for row in rows] == [2**power for power in range(len(rows))]
        frames = [row.frames for row in rows]
        assert frames == sorted(frames, reverse=True) and frames[-1] >= 1
    one = {row.precision: row.frames for row in found if row.batch == 1}
    assert one["bfloat16"] < one["int8"] < one["int4"]


def test_three_unknowns_run_over_batch_and_context() -> None:
    found = fit(PUBLISHED, Workload(padded=True), 18 * GIB, ["batch", "context", "frames"], BFLOAT16)
    assert len({(row.batch, row.context) for row in found}) == len(found) > 3
    for row in found:
        assert row.frames * 257 + 256 <= row.context


def test_contexts_past_the_trained_length_are_marked() -> None:
    found = fit(PUBLISHED, Workload(), 24 * GIB, ["frames"], BFLOAT16)
    assert found[0].beyond_training == (found[0].context > 4096) is True
    assert not fit(PUBLISHED, Workload(), 15 * GIB, ["frames"], BFLOAT16)[0].beyond_training


def test_temporal_attention_bounds_the_frames() -> None:
    config = replace(PUBLISHED, video_tower=VisionConfig(temporal_attention=True))
    (found,) = fit(config, Workload(), 80 * GIB, ["frames"], BFLOAT16)
    assert found.frames == 8


def test_nothing_fits_into_too_little() -> None:
    assert fit(PUBLISHED, Workload(), 2 * GIB, ["frames"], ALL_PRECISIONS) == ()


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is unknown"):
        fit(PUBLISHED, Workload(), GIB, [], BFLOAT16)
    with pytest.raises(ConfigError, match="no videos whose frames"):
        fit(PUBLISHED, Workload(videos=0), GIB, ["frames"], BFLOAT16)
    with pytest.raises(ConfigError, match="cannot hold"):
        fit(PUBLISHED, Workload(context=200), 100 * GIB, ["frames"], BFLOAT16)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * GIB),
        ("24GB", 24_000_000_000),
        ("800MiB", 800 * 2**20),
        ("1.5 gib", GIB * 3 // 2),
        ("512", 512),
        ("3tb", 3 * 10**12),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "16 Gigs", "-3GiB", "1e3", "0", "9" * 400 + "GiB", "99999999TiB", "1.2.3GB"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_size(text)


def test_sizes_are_written() -> None:
    assert [format_bytes(size) for size in (96, 2048, 1.5 * 2**20, 14_732_558_336, 5 * 2**40)] == [
        "96 B",
        "2.0 KiB",
        "1.5 MiB",
        "13.72 GiB",
        "5.00 TiB",
    ]
