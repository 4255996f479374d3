"""`filmstrip bench` at its smallest: that it runs, agrees and writes, never how fast anything is."""

import json
from pathlib import Path

from tests.e2e.helpers import refused, run, succeed


def test_all_workloads_of_the_small_sizes(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    arguments = ("bench", tmp_path / "cache", "--sizes", "tiny,S", "--rounds", "1", "--quiet", "9", "--out", page)
    succeed(*arguments)
    text = page.read_text()
    assert text.startswith("# Speed\n") and "## tiny, float32" in text and "## S, float32" in text
    assert text.count("the same 8 tokens") == 2
    rows = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert len(rows) == 2 + 2 * 10
    assert not [row["failed"] for row in rows if row["failed"]]
    for row in rows:
        assert row["ratio"] > 0
        assert all(len(peer["seconds"]) == 1 for peer in row["peers"].values())


def test_bad_input(tmp_path: Path) -> None:
    assert "unknown size 'L'" in refused("bench", tmp_path, "--sizes", "L")
    assert "did you mean 'prefill'" in refused("bench", tmp_path, "--workloads", "prefil")
    assert "unknown peer 'vllm'" in refused("bench", tmp_path, "--peers", "vllm")
    (tmp_path / "file").touch()
    result = run("bench", tmp_path / "file" / "below", "--sizes", "S", "--workloads", "vision")
    assert result.code == 2 and "below: cannot write here" in result.err and "Traceback" not in result.err
