"""The benchmark's harness: what is dropped, counted and written. Nothing here passes or fails by a time."""

import json
import mmap
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.diagnostics.bench import machine, run
from filmstrip.diagnostics.bench import peer as peer_module
from filmstrip.diagnostics.bench.limits import limit_seconds, work_flops
from filmstrip.diagnostics.bench.machine import Limits, OtherWork
from filmstrip.diagnostics.bench.ours import Ours
from filmstrip.diagnostics.bench.page_cache import cached_share, evict
from filmstrip.diagnostics.bench.peer import LLAMA, OURS, THEIRS, Peer, Sample
from filmstrip.diagnostics.bench.plain import as_plain, read_earlier
from filmstrip.diagnostics.bench.plan import (
    LARGE,
    RESULTS,
    Part,
    choose_peers,
    plan_product,
    shortage,
    weights_bytes,
)
from filmstrip.diagnostics.bench.report import as_markdown
from filmstrip.diagnostics.bench.rows import Row, take_in_turn
from filmstrip.diagnostics.bench.run import Options, Results, run_bench
from filmstrip.diagnostics.bench.sizes import SIZES, checkpoint_for, model_bytes, text_bytes
from filmstrip.diagnostics.bench.startup import FIRST_ANSWER, time_command
from filmstrip.diagnostics.bench.targets import TARGETS, Target, judge
from filmstrip.diagnostics.bench.workloads import FRAMES, QUESTION_TOKENS, WORKLOADS, Workload, make_inputs
from filmstrip.diagnostics.memory_inference import kv_cache_bytes
from filmstrip.diagnostics.tracker import resident_gauge
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import build_meta
from filmstrip.models.wide import is_quantised

BOTH = (OURS, THEIRS)
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
    with pytest.raises(ConfigError, match="unknown dtype"):
        checkpoint_for("S", "int2", tmp_path)


@pytest.mark.parametrize("size", ["tiny", "S"])
def test_quantised_checkpoints_are_made_from_what_the_others_run(size: str, tmp_path: Path) -> None:
    quantised = checkpoint_for(size, "int8", tmp_path)
    manifest = read_checkpoint(quantised).quantization
    assert manifest is not None and manifest.fewest_bits == 8
    plain = checkpoint_for(size, "bfloat16", tmp_path)
    assert plain.is_dir() and read_checkpoint(plain).quantization is None
    part = Part(size, "int8", ())
    assert (part.dtype_of(OURS), part.dtype_of(THEIRS)) == ("int8", "bfloat16")
    ours = Ours()
    assert ours.open(quantised, torch.bfloat16) == {"compute": "float32", "kept": "float32"}
    assert is_quantised(ours.model)


def test_a_second_question_goes_the_way_that_ships(tmp_path: Path) -> None:
    """Through the tokenizer, the pixels' hash and the store, on random weights too."""
    ours = Ours()
    ours.open(checkpoint_for("tiny", "float32", tmp_path), torch.float32)
    assert ours.second(WORKLOADS["second"]).run() == 1
    ours.open(checkpoint_for("S", "float32", tmp_path), torch.float32)
    ours.assistant.store = None
    with pytest.raises(FilmstripError, match="more than is remembered"):
        ours.second(WORKLOADS["second"])


def test_the_old_model_is_let_go_before_a_load_is_timed(tmp_path: Path) -> None:
    ours = Ours()
    ours.open(checkpoint_for("tiny", "float32", tmp_path), torch.float32)
    work = ours.load(WORKLOADS["load-warm"])
    work.before()
    assert not hasattr(ours, "model") and not hasattr(ours, "assistant")
    assert work.run() == 1 and ours.greedy(2)


def test_the_first_token_of_an_answer_is_no_step_of_decoding(tmp_path: Path) -> None:
    """It comes from reading the prompt's last token again, which is another way through the model."""
    ours = Ours()
    ours.open(checkpoint_for("tiny", "float32", tmp_path), torch.float32)
    work = ours.decode(WORKLOADS["decode-64"])
    for _ in range(2):
        work.before()
        assert work.run() == 16
        assert work.run() == 0


def test_bytes_of_a_decoding_step() -> None:
    """Counted on the modules themselves: all of the text tower but its embedding table."""
    model = build_meta(SMALL)
    assert isinstance(model, VideoLlava)
    tower = model.text_tower
    read = [p for p in tower.parameters() if p is not tower.token_embedding.weight]
    assert text_bytes(SMALL, "float32", "float32") == sum(p.numel() for p in read) * 4
    assert text_bytes(SMALL, "int8", "float32") < text_bytes(SMALL, "bfloat16", "bfloat16")
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
    steps = Workload("decode", context=100, batch=3)
    for kept, size in (("float32", 4), ("bfloat16", 2)):
        step = limit_seconds(SMALL, steps, "bfloat16", limits, "float32", kept)
        weights = text_bytes(SMALL, "bfloat16", "float32")
        assert step == (weights + 3 * kv_cache_bytes(SMALL.text, 1, 100, size)) / 1e9
    # Where 16-bit products are slow, the limit is that of multiplying in float32.
    vision = limit_seconds(SMALL, Workload("vision"), "bfloat16", limits, "float32", "float32")
    assert vision == work_flops(SMALL, Workload("vision")) / 1e9
    assert limit_seconds(SMALL, Workload("load"), "float32", limits, "float32", "float32") is None


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


def test_the_work_of_others_is_seen_and_ones_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All busy time of the machine, less that of the processes that are known."""
    stat, own = tmp_path / "stat", {7: 100, 8: 10}
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(machine, "_ticks", own.__getitem__)
    stat.write_text("cpu  500 0 100 9999 99 0 0 0 0 0\ncpu0 1 1 1\n")
    known, unknown = OtherWork((7, 8)), OtherWork(())
    stat.write_text("cpu  560 0 110 9999 99 0 0 5 0 0\ncpu0 1 1 1\n")  # 75 more, 5 of them stolen by a hypervisor
    own[7] += 40
    assert known.seconds() == pytest.approx(35 * known.tick)
    assert unknown.seconds() == pytest.approx(75 * known.tick)


def test_limits_are_measured_beside_no_other_work_if_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = iter([(5.0, 0.0), (1.0, 0.9), (4.0, 0.05), (6.0, 0.0), (2.0, 0.0)])
    monkeypatch.setattr(machine, "_trial", lambda work: next(trials))
    assert machine._best(lambda: None, 0.1) == (4.0, 0.05)
    busy = iter([(3.0, 0.5), (2.0, 0.7)] * 4)
    monkeypatch.setattr(machine, "_trial", lambda work: next(busy))
    assert machine._best(lambda: None, 0.1) == (2.0, 0.7)


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
    take_in_turn(row, {name: taker(name) for name in given}, 3, 0.1)
    assert row.seconds(OURS) == [1.0, 2.0, 3.0]
    assert row.dropped == {OURS: 1, THEIRS: 0}
    assert order == [OURS, THEIRS] * 3 + [OURS]
    assert row.ratio() == 2.0 and row.ratios() == [4.0, 2.0, pytest.approx(4 / 3)]


def test_a_busy_machine_ends_with_few_samples_not_never() -> None:
    row = Row("S", "float32", "decode")
    take_in_turn(row, {OURS: lambda: Sample(1.0, 1.0, 0)}, 3, 0.1)
    assert row.samples == {OURS: []} and row.dropped == {OURS: 6}
    assert row.median(OURS) is None and row.ratio() is None


def test_a_peer_that_fails_leaves_the_others_alone() -> None:
    def fail() -> Sample:
        raise FilmstripError("transformers: out of memory")

    row = Row("S", "float32", "decode")
    take_in_turn(row, {THEIRS: fail, OURS: lambda: Sample(1.0, 0.0, 0)}, 3, 0.1)
    assert len(row.samples[OURS]) == 3
    assert row.failed == {THEIRS: "transformers: out of memory"}


def test_the_results_page_has_a_row_for_every_target() -> None:
    rows = {(part.size, part.dtype, work) for part in RESULTS for work in part.workloads}
    for target in TARGETS:
        for workload in filter(None, (target.workload, target.base)):
            assert workload == FIRST_ANSWER or (target.size, target.dtype, workload) in rows, target.title
    assert not {(part.size, work) for part in RESULTS + LARGE for work in part.workloads} & {("7B", "train")}


def test_a_product_of_sizes_and_dtypes_is_what_was_asked_for() -> None:
    plan = plan_product(("tiny", "S"), ("float32", "int8"))
    assert [part.title for part in plan] == ["tiny float32", "tiny int8", "S float32", "S int8"]
    assert "train" in plan[0].workloads and "train" not in plan[1].workloads
    with pytest.raises(ConfigError, match="float32 alone, not in bfloat16"):
        plan_product(("S",), ("bfloat16",), ("train",))


def test_what_there_is_no_room_for_is_left_out_with_a_reason() -> None:
    part = Part("7B", "int8", ())
    both, alone = weights_bytes(part, BOTH), weights_bytes(part, (OURS,))
    assert alone == model_bytes(SIZES["7B"], "int8") < model_bytes(SIZES["7B"], "bfloat16") < both
    assert choose_peers(part, BOTH, 2 * both) == (BOTH, {})
    chosen, why = choose_peers(part, BOTH, int(1.2 * alone))
    assert chosen == (OURS,) and "GB of weights, 9" in why[THEIRS]
    assert choose_peers(part, BOTH, 10**9)[0] == ()
    assert choose_peers(Part("7B", "bfloat16", ()), BOTH, int(1.2 * 15e9))[0] == BOTH  # one file for both
    kept = {OURS: "float32", THEIRS: "bfloat16"}
    config, free = SIZES["M"], 8 * 10**9
    assert not shortage(Part("M", "bfloat16", ()), config, WORKLOADS["decode-64"], kept, free)
    assert "needs about" in shortage(Part("M", "bfloat16", ()), config, WORKLOADS["decode-2100x8"], kept, free)
    assert "needs about 50" in shortage(Part("M", "float32", ()), config, WORKLOADS["train"], kept, free)


def measured(size: str, dtype: str, workload: str, ours: float, theirs: float, **more: Any) -> Row:
    work = WORKLOADS[workload]
    samples = {OURS: [Sample(ours, 0.0, 3 * 10**8)] * 3, THEIRS: [Sample(theirs, 0.0, 5 * 10**8)] * 3}
    return Row(size, dtype, work.name, work.tokens, samples=samples, **more)


def test_targets_are_judged_by_ratio_and_share() -> None:
    decode = Target("decode", "M", "float32", "decode-64", 1.5, 1.8, share=0.8)
    fast, slow = (measured("M", "float32", "decode-64", 0.1, 0.16, limits=[limit] * 3) for limit in (0.09, 0.05))
    assert [judge([row], [decode])[0].verdict for row in (fast, slow)] == ["met", "missed"]
    assert judge([fast], [replace(decode, stretch=1.5)])[0].verdict == "stretch met"
    assert judge([fast], [replace(decode, least=1.7)])[0].verdict == "missed"
    assert judge([], [decode])[0].verdict == "not measured"
    found = judge(
        [fast, measured("M", "float32", "decode-64x8", 0.2, 0.9)],
        [replace(decode, workload="decode-64x8", base="decode-64", share=None)],
    )
    assert found[0].ratio == pytest.approx(4.0) and found[0].verdict == "stretch met"


MACHINE = {
    "processor": "Some processor",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 24 * 2**30,
    "system": "Linux 6",
    "python": "3.11",
    "torch": "2.13",
    "transformers": "5.23.0",
    "llama_cpp_python": "0.3.36",
    "filmstrip": "0.1.0",
    "vectors": "AVX2",
    "date": "2026-11-28 10:00 UTC",
    "load": 0.0,
}


def test_the_page_says_what_was_measured() -> None:
    row = measured("S", "float32", "decode-64", 0.002, 0.005, limits=[0.001] * 3)
    row.dropped = {OURS: 1, THEIRS: 2}
    batch = measured("S", "float32", "decode-64x8", 0.004, 0.02)
    few = measured("S", "int8", "vision", 1.0, 2.0)
    options = Options(Path("unused"), rounds=3, command="filmstrip bench DIR")
    results = Results(MACHINE, Limits(32e9, {"float32": 170e9}), options, [row, batch, few])
    results.agreement["S float32"], results.skipped["7B int8"] = "the same 8 tokens", "no room"
    page = as_markdown(results)
    assert "read 32.0 GB/s" in page and "float32 170 GFLOP/s" in page and "Some processor" in page
    assert "`filmstrip bench DIR` on 2026-11-28" in page and "transformers 5.23.0, filmstrip 0.1.0" in page
    line = "| decode at 64 | 2 ms (2 ms–2 ms), 500 tokens/s | 0.30 GB | 5 ms (5 ms–5 ms), 200 tokens/s | 0.50 GB "
    assert line + "| 2.50 (2.50–2.50) | 50% | 3, 3 | 3 |" in page
    assert "tokens a second over batch 1: filmstrip 4.00x, transformers 2.00x" in page
    assert "| decode at 64, S, float32 | 2x | 2.5x | 2.50x (2.50–2.50) | 50% | stretch met |" in page
    assert "runs those in bfloat16" in page and "- 7B int8: no room" in page and "**Not finished" in page
    plain = as_plain(results)
    assert plain["rows"][0]["ratio"] == pytest.approx(2.5) and plain["complete"] is False
    assert plain["rows"][0]["peers"][THEIRS]["dropped"] == 2
    why = "- prefill, M, float32: nearly all of it is the same products"
    assert why not in page, "what was not measured was not missed"
    results.rows.append(measured("M", "float32", "prefill", 1.0, 0.9))
    assert why in as_markdown(results)
    results.complete = True
    assert "Not finished" not in as_markdown(results)


def test_a_model_that_cannot_be_had_costs_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before it is kept, and what comes after it runs."""
    monkeypatch.setattr(run, "measure_limits", lambda *_: Limits(1e9, {"float32": 1e9}))
    sizes = []

    def write(size: str, dtype: str, cache: Path) -> Path:
        sizes.append(size)
        if size == "S":
            raise CheckpointError("no room on the disk")
        return checkpoint_for(size, dtype, cache)

    monkeypatch.setattr(run, "checkpoint_for", write)
    plan = tuple(Part(size, "float32", ("vision",)) for size in ("tiny", "S", "tiny"))
    kept: list[tuple[int, bool]] = []
    options = Options(tmp_path, plan, (OURS,), rounds=1, threads=1, quiet=9.0, startup=False)
    results = run_bench(options, keep=lambda so_far: kept.append((len(so_far.rows), so_far.complete)))
    assert sizes == ["tiny", "S", "tiny"] and results.skipped == {"S float32": "no room on the disk"}
    assert [row.workload for row in results.rows] == [WORKLOADS["vision"].name] * 2
    assert kept == [(0, False), (1, False), (2, False), (2, True)]


def test_a_sample_stands_beside_what_the_machine_could_do_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured after each that counts; what was measured at the beginning does not count."""
    monkeypatch.setattr(run, "measure_limits", lambda *_: Limits(1e15, {"float32": 1e15}))
    products, reading = iter((1e9, 4e9)), iter((3e9, 2e9))
    monkeypatch.setattr(run, "measure_products", lambda *_, **__: (next(products), 0.0))
    monkeypatch.setattr(run, "measure_reading", lambda *_, **__: (next(reading), 0.0))
    plan = (Part("tiny", "float32", ("vision", "decode-64")),)
    rows = run_bench(Options(tmp_path, plan, (OURS,), rounds=2, threads=1, quiet=9.0, startup=False)).rows
    config = read_checkpoint(checkpoint_for("tiny", "float32", tmp_path)).config
    could = {"vision": [Limits(0, {"float32": rate}) for rate in (1e9, 4e9)]}
    could["decode-64"] = [Limits(rate, {}) for rate in (3e9, 2e9)]
    for row, (name, limits) in zip(rows, could.items(), strict=True):
        expected = [limit_seconds(config, WORKLOADS[name], "float32", one, "float32", "float32") for one in limits]
        assert row.limits == expected


def test_the_share_of_the_limit_is_that_of_pairs() -> None:
    """Also where the machine was faster in one minute than in the next."""
    limits = iter((1.0, 1.0, 2.0))
    seconds = iter((2.0, 9.0, 2.0, 4.0))
    others = iter((0.0, 1.0, 0.0, 0.0))
    row = Row("S", "float32", "decode")
    taker = {OURS: lambda: Sample(next(seconds), next(others), 0), THEIRS: lambda: Sample(8.0, 0.0, 0)}
    take_in_turn(row, taker, 3, 0.1, lambda: next(limits))
    assert row.limits == [1.0, 1.0, 2.0], "a sample that is dropped has none"
    assert row.share == 0.5 and Row("S", "float32", "load, cold").share is None


def test_a_run_goes_on_where_it_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are whole are taken as they are, with their sitting; the others are measured."""
    rates = iter((1e9, 2e9))
    monkeypatch.setattr(run, "measure_limits", lambda *_: Limits(next(rates), {"float32": 1e9}))
    options = Options(tmp_path, (), (OURS,), rounds=1, threads=1, quiet=9.0, startup=False)
    first = run_bench(replace(options, plan=(Part("tiny", "float32", ("vision", "prefill")),)))
    first.rows[1].failed["filmstrip"] = "ended by signal 9"
    figures = tmp_path / "page.json"
    figures.write_text(json.dumps(as_plain(first)))
    both = replace(options, plan=(Part("tiny", "float32", ("vision", "prefill")),))
    noted: list[str] = []
    second = run_bench(both, noted.append, earlier=read_earlier(figures, both))
    assert [row.workload for row in second.rows] == [WORKLOADS[name].name for name in ("vision", "prefill")]
    assert second.rows[0].seconds(OURS) == first.rows[0].seconds(OURS) and second.rows[0].limits == first.rows[0].limits
    assert not second.rows[1].failed and second.rows[1].seconds(OURS) != first.rows[1].seconds(OURS)
    assert not any("vision" in what for what in noted)
    assert [sitting.limits.read_bytes for sitting in second.sittings] == [1e9, 2e9]
    assert as_markdown(second).count("What this machine could do when it began") == 2


def test_rows_are_whole_without_peers_that_could_not_be_asked(tmp_path: Path) -> None:
    """llama.cpp decodes and does nothing else; of the largest model some peers have no room."""
    sample, no_room = Sample(1.0, 0.0, 1), "not run: 28.2 GB of weights, 23.9 GB of memory free"
    both = {OURS: [sample], THEIRS: [sample]}
    rows = [
        Row("tiny", "float32", "vision, 8 frames", 0, [], both),
        Row("tiny", "float32", "decode at 64", 1, [], both),
        Row("M", "float32", "decode at 64", 1, [], {**both, LLAMA: [sample]}),
        Row("7B", "int8", "decode at 64", 1, [], {OURS: [sample]}, failed={THEIRS: no_room, LLAMA: no_room}),
        Row(
            "7B",
            "int4",
            "decode at 64",
            1,
            [],
            {OURS: [sample]},
            failed={THEIRS: "ended by signal 9", LLAMA: no_room},
        ),
        Row("7B", "int4", "vision, 8 frames", 0, [], {}, failed={OURS: no_room, THEIRS: no_room}),
    ]
    options = Options(tmp_path, (), (OURS, THEIRS, LLAMA), rounds=1, threads=1)
    results = Results(machine.describe_machine(), Limits(1e9, {}), options, rows)
    figures = tmp_path / "page.json"
    figures.write_text(json.dumps(as_plain(results)))
    assert [(row.size, row.workload) for row in read_earlier(figures, options).rows] == [
        ("tiny", "vision, 8 frames"),
        ("M", "decode at 64"),
        ("7B", "decode at 64"),
    ]


def test_figures_of_other_circumstances_are_not_gone_on_with(tmp_path: Path) -> None:
    options = Options(tmp_path, (), (OURS,), rounds=1, threads=1)
    figures = tmp_path / "page.json"
    with pytest.raises(ConfigError, match="nothing to resume"):
        read_earlier(figures, options)
    content = json.loads(json.dumps(as_plain(Results(machine.describe_machine(), Limits(1e9, {}), options))))
    figures.write_text(json.dumps(content))
    assert read_earlier(figures, options).rows == []
    for change, name in (
        ({"machine": {**content["machine"], "processor": "another"}}, "processor"),
        ({"machine": {**content["machine"], "program": "another"}}, "program"),
        ({"rounds": 9}, "rounds"),
    ):
        figures.write_text(json.dumps({**content, **change}))
        with pytest.raises(ConfigError, match=f"with another {name};"):
            read_earlier(figures, options)
    other = ({"rows": [{}]}, {"sittings": [1]}, {"sittings": []})
    for damage in ("{", "[]", "{}", *(json.dumps({**content, **change}) for change in other)):
        figures.write_text(damage)
        with pytest.raises(ConfigError, match="is not what `filmstrip bench --out` writes"):
            read_earlier(figures, options)


def test_a_peer_that_dies_while_answers_are_compared_is_noted() -> None:
    class Dead(Peer):
        def __init__(self) -> None:
            pass

        def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
            raise FilmstripError("transformers: ended by signal 9: it said nothing")

    assert run._agreement([Dead(), Dead()]) == "not compared (transformers: ended by signal 9: it said nothing)"


def test_a_prompt_that_would_take_an_hour_is_not_read_to_compare_answers() -> None:
    """Without 16-bit products in hardware PyTorch's own are a hundred times as slow."""
    limits = Limits(read_bytes=20e9, flops={"float32": 180e9, "bfloat16": 50e9, "float16": 1e9})
    narrow = Part("M", "float16", ("decode-64",))
    assert "in float16 would take transformers" in run._too_slow(narrow, SIZES["M"], limits)
    for part in (replace(narrow, dtype="int8"), replace(narrow, dtype="float32"), replace(narrow, size="S")):
        assert run._too_slow(part, SIZES[part.size], limits) == ""


def test_a_file_leaves_memory_unless_somebody_has_it_mapped(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(2**20))
    with path.open("rb") as file:
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ).close()
        os.fsync(file.fileno())
    assert cached_share(path) > 0.9
    try:
        evict([path])
    except FilmstripError:
        pytest.skip("this file system is in memory, or does not let go")
    assert cached_share(path) < 0.1
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not any(mapped[::4096])
        with pytest.raises(FilmstripError, match="stayed in memory"):
            evict([path])


def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "fake_worker.py").write_text(f"import sys, time\n{code}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(peer_module, "_WORKER", "fake_worker")


def test_a_peer_that_talks_much_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds, before it is asked and before it ends."""
    code = "sys.stderr.write('x' * 500_000 + '\\n'); sys.stdin.readline()\n"
    code += "sys.stderr.write('y' * 500_000 + '\\nfirst\\nlast words\\n'); sys.exit(3)"
    fake_worker(tmp_path, monkeypatch, code)
    with Peer(OURS) as peer, pytest.raises(FilmstripError, match=r"exit code 3: .*first / last words$"):
        peer.ask("open")


def test_a_peer_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(tmp_path, monkeypatch, "time.sleep(600)")
    with Peer(OURS) as peer:
        peer.timeout = 0.2
        with pytest.raises(FilmstripError, match="no answer"):
            peer.ask("open")
        with pytest.raises(FilmstripError, match="ended by signal 9"):
            peer.ask("open")


def test_a_peer_says_why_it_cannot() -> None:
    with Peer(OURS) as peer, pytest.raises(FilmstripError, match=r"filmstrip: CheckpointError: .*no-such-directory"):
        peer.ask("open", directory="no-such-directory", dtype="float32", threads=1)


def test_commands_are_timed_with_their_memory_threads_and_words() -> None:
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    sample, said = time_command([sys.executable, "-c", code], threads=3)
    assert said == "3" and sample.seconds > 0
    gauge = resident_gauge(ExitStack())
    assert 0 < sample.peak < 100 * 2**20
    assert gauge is None or gauge.now() > sample.peak  # this process, which starts it, is larger
    with pytest.raises(FilmstripError, match=r"exit code 1: .*ModuleNotFoundError"):
        time_command([sys.executable, "-c", "import no_such_module"], threads=1)
    with pytest.raises(FilmstripError, match="ended by signal 9"):
        time_command([sys.executable, "-c", "import time; time.sleep(600)"], threads=1, timeout=0.5)
