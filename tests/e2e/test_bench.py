"""`filmstrip bench` at its smallest: that it runs, agrees and writes, never how fast anything is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from filmstrip.diagnostics.bench.machine import Limits, describe_machine
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.run import Options, Results
from filmstrip.diagnostics.bench.startup import FIRST_ANSWER
from tests.e2e.helpers import refused, run, succeed

# All but what takes long: many rows, long contexts, compiled training, programs that are started anew.
WORKLOADS = "load-cold,load-warm,vision,prefill,decode-64,second,train"
ALL_WORKLOADS = f"start-up,{WORKLOADS},decode-64x4,decode-64x8,decode-2100"
QUICK = ("--rounds", "1", "--quiet", "9", "--threads", "1")


@pytest.mark.parametrize("workloads", [WORKLOADS, pytest.param(ALL_WORKLOADS, marks=pytest.mark.slow)])
def test_workloads_of_the_embedded_model(workloads: str, tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    succeed("bench", tmp_path / "cache", "--sizes", "tiny", "--workloads", workloads, *QUICK, "--out", page)
    text = page.read_text()
    assert text.startswith("# Speed, measured\n") and "## tiny, float32" in text
    assert "Not finished" not in text and "## Not run" not in text
    assert text.count("the same 8 tokens") == 1
    rows = {row["workload"]: row for row in json.loads(page.with_suffix(".json").read_text())["rows"]}
    asked = workloads.split(",")
    assert len(rows) == len(asked) + ("start-up" in asked)  # two rows: the program, and an answer
    failures = {name: row["failed"] for name, row in rows.items() if row["failed"]}
    for name, failed in failures.items():
        assert "load" in name and "stayed in memory" in str(failed)  # a temporary directory may be in memory
    for row in (row for name, row in rows.items() if name not in failures):
        assert row["ratio"] > 0
        assert all(len(peer["seconds"]) == 1 and peer["peak_bytes"] > 0 for peer in row["peers"].values())
    if "start-up" in asked:
        assert rows[FIRST_ANSWER]["remarks"][1].startswith("both answered")


@pytest.mark.slow
def test_quantised_weights_beside_those_that_they_were_made_from(tmp_path: Path) -> None:
    what = ("--sizes", "S", "--dtypes", "float32,int8", "--workloads", "decode-64,decode-64x8")
    content = succeed("bench", tmp_path, *what, *QUICK, "--json").json
    assert content["complete"] and not content["skipped"]
    assert content["agreement"]["S float32"] == "the same 8 tokens"
    assert [row["dtype"] for row in content["rows"]] == ["float32", "float32", "int8", "int8"]
    for row in content["rows"]:
        assert row["ratio"] > 0 and row["share_of_limit"] > 0 and not row["failed"]
        assert row["peers"]["filmstrip"]["tokens_per_second"] > 0


def test_bad_input(tmp_path: Path) -> None:
    assert "name it" in refused("bench", tmp_path, "--resume")
    assert "--out is a file" in refused("bench", tmp_path, "--resume", "--out", ".")
    assert "nothing to resume" in refused("bench", tmp_path, "--resume", "--out", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
    assert "unknown size 'L'" in refused("bench", tmp_path, "--sizes", "L")
    assert "did you mean 'prefill'" in refused("bench", tmp_path, "--workloads", "prefil")
    assert "unknown peer 'vllm'" in refused("bench", tmp_path, "--peers", "vllm")
    assert "float32 alone" in refused("bench", tmp_path, "--dtypes", "bfloat16", "--workloads", "train")
    assert "leave out --sizes" in refused("bench", tmp_path, "--results", "--sizes", "M")
    (tmp_path / "file").touch()
    for workload in ("vision", "start-up"):
        result = run("bench", tmp_path / "file" / "below", "--sizes", "S", "--workloads", workload)
        assert result.code == 2 and "below: cannot write here" in result.err and "Traceback" not in result.err


def test_where_the_page_cannot_be_written_nothing_is_measured(tmp_path: Path) -> None:
    assert "cannot write here" in refused("bench", tmp_path, "--out", tmp_path / "no" / "page.md")
    assert "the page is Markdown" in refused("bench", tmp_path, "--out", tmp_path / "page.json")
    assert not list(tmp_path.iterdir())


def test_what_was_measured_is_printed_when_the_run_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_options: Options, _note: object, keep: Callable[[Results], None], _earlier: None) -> Results:
        results = Results(describe_machine(), Limits(1e9, {"float32": 1e9}), Options(tmp_path))
        results.rows.append(Row("S", "float32", "vision"))
        keep(results)
        raise KeyboardInterrupt

    monkeypatch.setattr("filmstrip.diagnostics.bench.run.run_bench", stop)
    result = run("bench", tmp_path)
    assert result.code == 130 and "**Not finished" in result.out and "| vision |" in result.out


def test_help_sends_the_page_where_no_other_is() -> None:
    text = succeed("bench", "--help").out
    assert "--out docs/results.md" in text and "docs/speed.md" not in text
