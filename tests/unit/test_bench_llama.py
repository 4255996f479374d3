"""llama.cpp beside the others: who is a peer, what it is given, how it is judged, and that it runs the same model."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import filmstrip
from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.bench.machine import Limits
from filmstrip.diagnostics.bench.peer import LLAMA, OURS, THEIRS, Sample
from filmstrip.diagnostics.bench.plan import PEERS, Part, able, choose_peers, usable_peers, weights_bytes
from filmstrip.diagnostics.bench.report import as_markdown
from filmstrip.diagnostics.bench.rows import Row
from filmstrip.diagnostics.bench.run import Options, Results
from filmstrip.diagnostics.bench.targets import judge
from filmstrip.diagnostics.bench.workloads import STEPS, WORKLOADS
from filmstrip.errors import ConfigError
from tests.unit.test_bench import MACHINE

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the library gguf is not installed")
needs_llama = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")


def test_llama_cpp_is_a_peer_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filmstrip.diagnostics.bench.plan.find_spec", lambda name: None)
    assert usable_peers(None) == (OURS, THEIRS)
    with pytest.raises(ConfigError, match=r"not installed here \(pip install llama-cpp-python gguf\)"):
        usable_peers([OURS, LLAMA])
    with pytest.raises(ConfigError, match=r"unknown peer 'llama' .*; did you mean 'llama\.cpp'"):
        usable_peers(["llama"])
    monkeypatch.setattr("filmstrip.diagnostics.bench.plan.find_spec", lambda name: name)
    assert usable_peers(None) == usable_peers(PEERS) == PEERS
    works = [WORKLOADS[name] for name in ("prefill", "decode-64", "load-cold")]
    assert able(OURS, works) == works and able(LLAMA, works) == [WORKLOADS["decode-64"]]
    part = Part("M", "float32", ())
    all_of_it, without = weights_bytes(part, PEERS), weights_bytes(part, (OURS, THEIRS))
    assert 0.6 * without < all_of_it - without < 0.9 * without  # a file of the text tower, of its own
    assert choose_peers(part, PEERS, int(1.2 * without))[0] == (OURS, THEIRS)


def test_the_rate_of_llama_cpp_is_a_stretch() -> None:
    rows = {name: Row("M", name, "decode at 64", 1) for name in ("float16", "int8")}
    for row, rival in ((rows["float16"], 1.1), (rows["int8"], 0.9)):
        row.samples = {name: [Sample(value, 0.0, 1)] for name, value in ((OURS, 1.0), (THEIRS, 4.0), (LLAMA, rival))}
    verdicts = {
        judged.target.dtype: (judged.verdict, judged.to_peer) for judged in judge(rows.values()) if judged.ratio
    }
    assert verdicts == {"float16": ("stretch met", 1.1), "int8": ("met", 0.9)}
    options = Options(Path("cache"), peers=PEERS)
    page = as_markdown(Results(MACHINE, Limits(1e9, {"float32": 1e9}), options, [*rows.values()]))
    assert "| decode at 64, M, float16 | 2.2x | llama.cpp f16's rate (1.10x) | 4.00x (4.00–4.00) |" in page
    assert "| work | filmstrip | peak | transformers | peak | llama.cpp | peak | ratio | ratio to llama.cpp |" in page
    assert "runs the text tower alone" in page


@needs_gguf
@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "F16"), ("int8", "Q8_0"), ("int4", "Q4_0")])
def test_it_is_given_the_same_weights(dtype: str, kind: str, tmp_path: Path) -> None:
    from filmstrip.checkpoint.gguf import gguf_tensors, gguf_text_config
    from filmstrip.checkpoint.gguf_file import read_gguf
    from filmstrip.diagnostics.bench.llama_file import GGUF_FILE, write_text_tower

    source = filmstrip.load("tiny", quiet=True).model.text_tower
    file = read_gguf(write_text_tower(resolve("tiny"), tmp_path / "out", dtype) / GGUF_FILE)
    assert {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1} == {kind}
    config = gguf_text_config(file)
    assert config == source.config
    # Of a block's largest, at most: half a step (Q4_0's last is a whole one), and a scale that is rounded to float16.
    steps = {"F16": 2**-11, "Q8_0": 1 / 127 / 2 + 2**-11, "Q4_0": 1 / 8 + 2**-11}
    for name, lazy in gguf_tensors(file, config, torch.float32).items():
        weight = source.state_dict()[name]
        assert (lazy.read() - weight).abs().max() <= 1.001 * steps[kind] * weight.abs().max(), name


@needs_gguf
@needs_llama
def test_it_runs_the_same_model(tmp_path: Path) -> None:
    """Logits of the embedded model's text tower: 0.2 % of the largest apart at most, because it keeps keys and
    values in float16 (measured: 0.02 %)."""
    from filmstrip.diagnostics.bench.llama import Llama
    from filmstrip.diagnostics.bench.llama_file import write_text_tower

    model, ids = filmstrip.load("tiny", quiet=True).model, [1, 50, 60, 70, 200, 300, 44]
    with torch.inference_mode():
        tower = model.text_tower
        right = tower.logits(model.decode(tower.token_embedding(torch.tensor([ids]))))[0].numpy()
    peer = Llama()
    said = peer.open(write_text_tower(resolve("tiny"), tmp_path / "out", "float32"), torch.float32)
    assert said == {"compute": "float32", "kept": "float16"}
    assert np.abs(peer.logits(ids) - right).max() < 2e-3 * np.abs(right).max()
    for name in ("decode-64", "decode-64x4"):
        work = peer.prepare(WORKLOADS[name])
        for _ in range(2):
            work.before()
            assert work.run() == STEPS
    peer.close()
