"""The benchmark's harness: what is dropped, counted and written. Nothing here passes or fails by a time."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.diagnostics.bench.limits import limit_seconds, work_flops
from filmstrip.diagnostics.bench.machine import Limits, OtherWork
from filmstrip.diagnostics.bench.peer import OURS, THEIRS, Peer, Sample, time_command
from filmstrip.diagnostics.bench.report import as_markdown
from filmstrip.diagnostics.bench.run import Options, Results, Row, _in_turn, as_plain
from filmstrip.diagnostics.bench.sizes import SIZES, checkpoint_for, text_bytes
from filmstrip.diagnostics.bench.workloads import FRAMES, QUESTION_TOKENS, WORKLOADS, Workload, make_inputs
from filmstrip.diagnostics.memory_inference import kv_cache_bytes
from filmstrip.errors import ConfigError, FilmstripError
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import build_meta

TOWER = VisionConfig(hidden_size=32, intermediate_size=64, num_layers=3, num_heads=2, image_size=28, patch_size=14)
SMALL = ModelConfig(
    text=TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    image_tower=TOWER,
    video_tower=TOWER,
    image_token_id=60,
    video_token_id=61,
    pad_token_id=62,
)


@pytest.mark.parametrize(("size", "millions"), [("S", 8.7), ("M", 1566), ("7B", 7366)])
def test_sizes_are_what_they_are_called(size: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in build_meta(SIZES[size]).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_random_checkpoints_are_written_once_and_are_always_the_same(tmp_path: Path) -> None:
    first = checkpoint_for("S", "bfloat16", tmp_path / "a")
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_for("S", "bfloat16", tmp_path / "a") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    again = checkpoint_for("S", "bfloat16", tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert read_checkpoint(first).config.text == SIZES["S"].text
    with pytest.raises(ConfigError, match="unknown size"):
        checkpoint_for("L", "float32", tmp_path)
    with pytest.raises(ConfigError, match="float32 weights alone"):
        checkpoint_for("tiny", "float16", tmp_path)


def test_bytes_of_a_decoding_step() -> None:
    """Counted on the modules themselves: all of the text tower but its embedding table."""
    model = build_meta(SMALL)
    assert isinstance(model, VideoLlava)
    tower = model.text_tower
    read = [p for p in tower.parameters() if p is not tower.token_embedding.weight]
    assert text_bytes(SMALL, "float32") == sum(p.numel() for p in read) * 4
    assert kv_cache_bytes(SMALL.text, 1, 100, 2) == 2 * 3 * 2 * 8 * 100 * 2


def test_flops_are_those_of_the_work() -> None:
    """Against PyTorch's counter on the model itself, which counts masked attention too, and no logits."""
    model = build_meta(SMALL)
    assert isinstance(model, VideoLlava)
    model.set_attention("eager")
    inputs = make_inputs(SMALL, torch.float32)
    length = inputs.input_ids.shape[1]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_videos(inputs.videos.to("meta"))
        model.decode(torch.empty(1, length, SMALL.text.hidden_size))
    head = 2 * SMALL.text.hidden_size * SMALL.text.vocab_size
    masked = 3 * 4 * SMALL.text.num_heads * SMALL.text.head_dim * (length * length - length * (length + 1) / 2)
    assert work_flops(SMALL, Workload("prefill")) == counter.get_total_flops() - masked + head
    assert work_flops(SMALL, Workload("vision")) < work_flops(SMALL, Workload("prefill"))
    assert work_flops(SMALL, Workload("second")) < work_flops(SMALL, Workload("prefill")) / 2
    assert work_flops(SMALL, Workload("train")) > 2 * work_flops(SMALL, Workload("prefill"))


def test_limits_follow_from_bytes_or_products() -> None:
    limits = Limits(read_bytes=1e9, flops={"float32": 1e9, "bfloat16": 1e8})
    step = limit_seconds(SMALL, Workload("decode", context=100, batch=3), "bfloat16", limits)
    assert step == (text_bytes(SMALL, "bfloat16") + 3 * kv_cache_bytes(SMALL.text, 1, 100, 2)) / 1e9
    # Where 16-bit products are slow, the limit is that of multiplying in float32.
    assert limit_seconds(SMALL, Workload("vision"), "bfloat16", limits) == work_flops(SMALL, Workload("vision")) / 1e9
    assert limit_seconds(SMALL, Workload("load"), "float32", limits) is None


def test_inputs_are_a_prompt_with_a_video() -> None:
    inputs = make_inputs(SMALL, torch.float32, rows=2)
    assert (inputs.input_ids == 61).sum(dim=1).tolist() == [SMALL.clip_tokens(FRAMES)] * 2
    assert inputs.question_ids.shape == (2, QUESTION_TOKENS)
    assert int(inputs.question_ids.max()) < 60
    assert torch.equal(inputs.input_ids, make_inputs(SMALL, torch.float32, rows=2).input_ids)


def test_workloads_travel() -> None:
    for workload in WORKLOADS.values():
        assert Workload(**asdict(workload)) == workload
    assert len({workload.name for workload in WORKLOADS.values()}) == len(WORKLOADS)


def _burn(seconds: float) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def test_the_work_of_others_is_seen_and_ones_own_is_not() -> None:
    """A process that does nothing but count for a second, beside one that is known."""
    busy = "import time; end = time.perf_counter() + 1.5\nwhile time.perf_counter() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", busy])
    known, unknown = OtherWork((process.pid,)), OtherWork(())
    _burn(1.0)
    difference = unknown.seconds() - known.seconds()
    process.wait()
    assert difference > 0.3  # of one second; a machine that does much else gives it less than a core


def options(**changes: object) -> Options:
    return Options(Path("unused"), **({"rounds": 3, "quiet": 0.1} | changes))  # type: ignore[arg-type]


def test_samples_beside_other_work_are_dropped_and_taken_again() -> None:
    given = {
        OURS: iter([Sample(1.0, 0.0, 5), Sample(9.0, 0.5, 5), Sample(2.0, 0.0, 7), Sample(3.0, 0.1, 5)]),
        THEIRS: iter([Sample(4.0, 0.0, 5)] * 3),
    }
    order = []

    def taker(name: str):  # type: ignore[no-untyped-def]
        def take() -> Sample:
            order.append(name)
            return next(given[name])

        return take

    row = Row("S", "float32", "decode")
    _in_turn(row, {name: taker(name) for name in given}, options())
    assert [sample.seconds for sample in row.samples[OURS]] == [1.0, 2.0, 3.0]
    assert row.dropped == {OURS: 1, THEIRS: 0}
    assert order == [OURS, THEIRS] * 3 + [OURS]
    assert row.ratio == 2.0


def test_a_busy_machine_ends_with_few_samples_not_never() -> None:
    row = Row("S", "float32", "decode")
    _in_turn(row, {OURS: lambda: Sample(1.0, 1.0, 0)}, options())
    assert row.samples == {OURS: []} and row.dropped == {OURS: 6}
    assert row.median(OURS) is None and row.ratio is None


def test_a_peer_that_fails_leaves_the_others_alone() -> None:
    def fail() -> Sample:
        raise FilmstripError("transformers: out of memory")

    row = Row("S", "float32", "decode")
    _in_turn(row, {THEIRS: fail, OURS: lambda: Sample(1.0, 0.0, 0)}, options())
    assert len(row.samples[OURS]) == 3
    assert row.failed == {THEIRS: "transformers: out of memory"}


def test_the_page_says_what_was_measured() -> None:
    machine = {
        "processor": "Some processor",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 24 * 2**30,
        "system": "Linux 6",
        "python": "3.11",
        "torch": "2.13",
        "vectors": "AVX2",
    }
    row = Row("S", "float32", "decode at 64", limit=0.001)
    row.samples = {OURS: [Sample(0.002, 0.0, 3 * 10**8)] * 3, THEIRS: [Sample(0.005, 0.0, 5 * 10**8)] * 3}
    row.dropped = {OURS: 1, THEIRS: 2}
    results = Results(machine, Limits(32e9, {"float32": 170e9}), options(), [row], {"S float32": "the same 8 tokens"})
    page = as_markdown(results, "filmstrip bench DIR")
    assert "read 32.0 GB/s" in page and "float32 170 GFLOP/s" in page and "Some processor" in page
    line = "| decode at 64 | 2 ms (2 ms–2 ms) | 0.30 GB | 5 ms (5 ms–5 ms) | 0.50 GB | 2.50 | 50% | 3 |"
    assert line in page
    plain = as_plain(results)
    assert plain["rows"][0]["ratio"] == pytest.approx(2.5)
    assert plain["rows"][0]["peers"][THEIRS]["dropped"] == 2


def test_a_peer_says_why_it_cannot() -> None:
    with Peer(OURS) as peer, pytest.raises(FilmstripError, match=r"filmstrip: CheckpointError: .*no-such-directory"):
        peer.ask("open", directory="no-such-directory", dtype="float32", threads=1)
    with pytest.raises(FilmstripError, match="ModuleNotFoundError"):
        time_command([sys.executable, "-c", "import no_such_module"])
